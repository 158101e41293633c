"""``--check``: examine an experiment before training, in a few seconds, on one device, and keep no files."""

import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from datamodules import Batch, CIFAR10DataModule
from lightning_modules import ImageClassifier
from lightning_modules.schedules import Length, in_run, optimizer_and_schedule
from overfitting_lab.callbacks.clock import clock_of
from overfitting_lab.callbacks.console import data_lines
from overfitting_lab.callbacks.doctor import IMAGES, HopelessError, examine
from overfitting_lab.callbacks.recovery import checkpoint_bytes
from overfitting_lab.callbacks.run_length import run_length
from overfitting_lab.callbacks.time_left import evaluations
from overfitting_lab.doctor import Severity, activations
from overfitting_lab.doctor.layers import measure_layers
from overfitting_lab.doctor.schedule import length, schedule_cut_short
from overfitting_lab.runs.notes import in_words
from overfitting_lab.runs.text import TimeRange, space

SECONDS = 6  # about as long as the steps may take
FEW = 8  # images that are probed if they are large
LONGEST = 100_000  # steps of a schedule that are tried


def check(trainer: Trainer, model: ImageClassifier, data: CIFAR10DataModule) -> None:
    """Print data, shapes, first loss, schedule, time, memory, disk space and diagnosis of an experiment.

    A few steps are trained to measure their time. The weights are not kept.

    Raises:
        HopelessError: if the run cannot succeed.
        DataError: if the data cannot be had.
        LimitError: if a limit or an interval does not fit the data.
    """
    data.trainer = trainer
    data.prepare_data()
    data.setup("fit")
    # What the run's own callbacks refuse, the check refuses as well.
    trainer.datamodule = data  # type: ignore[attr-defined]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if type(callback).__module__.startswith("overfitting_lab."):
            callback.setup(trainer, model, "fit")
    print(data_lines(data.description()))
    model.network.load_state_dict(model.pretrained(), strict=False)
    trainer.precision_plugin.convert_module(model)
    model.to(trainer.strategy.root_device)
    batch = data.to_network(next(iter(data.train_dataloader())).to(model.device), training=True)
    probed = batch.images[: IMAGES if data.image_size <= 64 else FEW].to(next(model.parameters()).dtype)
    measured = measure_layers(model.network, probed, trainer.precision_plugin.forward_context())
    facts, found = examine(data, model)
    found += activations.diagnose(measured)
    size = " x ".join(map(str, measured.input.shape))
    print(f"shapes     {size} into {len(measured.layers)} layers; their outputs' root mean square")
    for layer in measured.weighted:
        print(f"           {layer!s:16} {' x '.join(map(str, layer.shape)):>16} {layer.size:9.3g}")
    loss = float(F.cross_entropy(measured.logits, batch.labels[: len(probed)]))
    print(f"first loss {loss:.3f} on {len(probed)} images; chance level is {facts.chance:.3f}")

    optimizer, schedule = optimizer_and_schedule(model)
    problems = []
    run = run_length(trainer, data)
    in_all = f"{run.total:,} in {run.epochs} epochs" if run.total else "and no limit to their number"
    print(f"steps      {run.steps:,} an epoch, {in_all}")
    if not schedule:
        print("schedule   none: the learning rate stays")
        if not any(group["lr"] for group in optimizer.param_groups):
            problems.append("the learning rate is 0; --model.optimizer.lr")
    else:
        scheduler, interval = schedule["scheduler"], schedule.get("interval", "epoch")
        needed, there = length(scheduler), in_run(schedule, run)
        end = (
            "has no end of its own"
            if needed is None
            else f"needs {needed:,} {interval}s to its end; the run has {there:,}"
        )
        print(f"schedule   {type(scheduler).__name__} {end}")
        if run.total:
            epochs, by_step = (in_run({**schedule, "interval": each}, run) for each in ("epoch", "step"))
            found += schedule_cut_short(scheduler, interval, epochs, by_step)
        if not isinstance(scheduler, ReduceLROnPlateau):
            problems += _try_schedule(model, interval, there)
    _print_costs(trainer, model, data, optimizer, batch, run)
    root = Path(trainer.default_root_dir)
    folder = next(path for path in (root, *root.resolve().parents) if path.is_dir())
    needed, free = checkpoint_bytes(trainer, model), shutil.disk_usage(folder).free
    print(f"disk       up to {space(needed)} for checkpoints; {space(free)} are free")
    problems += [f"{folder} has too little room; --trainer.default_root_dir FOLDER"] * (free < needed)
    for diagnosis in found:
        print(diagnosis)
    problems += [diagnosis.code for diagnosis in found if diagnosis.severity is Severity.FATAL]
    sys.stdout.flush()
    if problems:
        raise HopelessError(f"this run cannot succeed: {', '.join(problems)}")
    print("check      " + ("nothing that would keep it from learning" if found else "nothing to report"), flush=True)


def _try_schedule(model: ImageClassifier, interval: str, number: int) -> list[str]:
    """Step a schedule as often as the run will, print its learning rates, and return what would stop the run."""
    optimizer, schedule = optimizer_and_schedule(model)
    scheduler = schedule["scheduler"]
    rates = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step|To get the last learning rate")
        for step in range(min(number, LONGEST)):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            try:
                scheduler.step()
            except Exception as error:  # of torch, or of a user's own class
                return [
                    f"{type(scheduler).__name__} fails after {interval} {step + 1:,} of {number:,}: {in_words(error)}"
                ]
    if rates:
        highest = rates.index(max(rates))
        print(
            f"           learning rate {rates[0]:.3g} at first, at most {rates[highest]:.3g} in {interval} "
            f"{highest + 1:,}, at last {rates[-1]:.3g}"
        )
    return []


def _print_costs(
    trainer: Trainer, model: ImageClassifier, data: CIFAR10DataModule, optimizer: Optimizer, batch: Batch, run: Length
) -> None:
    def timed(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        if model.device.type != "cpu":
            torch.accelerator.synchronize(model.device)
        return time.perf_counter() - started

    def measured(work: Callable[[], object]) -> TimeRange:
        seconds = [timed(work) for _ in range(3)]
        return TimeRange(min(seconds), max(seconds))

    def passes(training: bool = True) -> None:
        with torch.set_grad_enabled(training), trainer.precision_plugin.forward_context():
            loss = F.cross_entropy(model(batch.images[:number]).float(), batch.labels[:number])
        if training:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]

    times = clock_of(trainer).times
    assert times is not None
    start = TimeRange(times.start, times.start)
    images = len(batch.images)
    number = min(4, images)
    for work in (passes, optimizer.step):  # the first ones take memory
        work()
    while number < images and 6 * timed(passes) < SECONDS:
        number = min(2 * number, images)
    # The time of the passes grows with the images, the time of the weights' update does not.
    step = measured(passes).times(images / number * trainer.accumulate_grad_batches) + measured(optimizer.step)
    image = measured(lambda: passes(training=False)).times(1 / number)
    evaluated = evaluations(trainer, data, run)
    validation, test = image.times(evaluated.validation), image.times(evaluated.test)
    steps = f"{step.low:.3g} to {step.high:.3g} s a step"
    how = f"measured in 3 steps of {number} images on {model.device.type.upper()}, for a batch of {images}"
    if run.total:
        training, validating = step.times(run.total), image.times(evaluated.validations + evaluated.probe)
        print(f"time       {start + training + validating + test} in all: {steps} ({how})")
        print(f"           start {start}, training {training}, validation {validating}, test {test}")
    else:
        epoch = step.times(run.steps) + validation
        print(f"time       {epoch} an epoch with validation, start {start}, test {test}: {steps} ({how})")
    after = f"after steps of {number} images"
    if model.device.type == "cuda":
        taken, there = torch.cuda.max_memory_reserved(model.device), torch.cuda.mem_get_info(model.device)[1]
        print(f"memory     {space(taken)} of the GPU's {space(there)} {after}")
    elif os.name == "posix":
        import resource  # not at the top: Windows has none

        taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(f"memory     {space(taken)} {after}")
