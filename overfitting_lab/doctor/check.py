"""``--check``: examine an experiment before training, in a few seconds, on one device, and keep no files."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch.optim import Optimizer

from datamodules import Batch, CIFAR10DataModule
from lightning_modules import ImageClassifier
from overfitting_lab.callbacks.console import data_lines
from overfitting_lab.callbacks.fitting_data import check_limits, run_length
from overfitting_lab.callbacks.recovery import checkpoint_bytes
from overfitting_lab.doctor import Severity, activations
from overfitting_lab.doctor.callback import IMAGES, HopelessError, examine
from overfitting_lab.doctor.layers import measure_layers
from overfitting_lab.doctor.schedule import length, schedule_cut_short

SECONDS = 6  # about as long as the steps may take
FEW = 8  # images that are probed if they are large


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
    check_limits(trainer, data)
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

    made: Any = model.configure_optimizers()
    optimizer, schedule = (made, None) if isinstance(made, Optimizer) else (made["optimizer"], made["lr_scheduler"])
    _, steps, total, epochs = run_length(trainer, data)
    print(f"steps      {steps:,} an epoch, {total:,} in {epochs} epochs")
    if schedule is None:
        print("schedule   none: the learning rate stays")
    else:
        scheduler, interval = schedule["scheduler"], schedule.get("interval", "epoch")
        needed, there = length(scheduler), epochs if interval == "epoch" else total
        end = "has no end of its own" if needed is None else f"is at its end after {needed:,} {interval}s of {there:,}"
        print(f"schedule   {type(scheduler).__name__} {end}")
        found += schedule_cut_short(scheduler, interval, epochs, total)
    _print_costs(trainer, model, optimizer, batch, steps, total, len(data.val_indices))
    root = Path(trainer.default_root_dir)
    folder = next(path for path in (root, *root.resolve().parents) if path.is_dir())
    needed, free = checkpoint_bytes(model), shutil.disk_usage(folder).free
    print(f"disk       up to {needed / 1e9:.1f} GB for checkpoints; {free / 1e9:.1f} GB are free")
    problems = [f"{folder} has too little room; --trainer.default_root_dir FOLDER"] * (free < needed)
    for diagnosis in found:
        print(diagnosis)
    problems += [diagnosis.code for diagnosis in found if diagnosis.severity is Severity.FATAL]
    sys.stdout.flush()
    if problems:
        raise HopelessError(f"this run cannot succeed: {', '.join(problems)}")
    print("check      " + ("nothing that would keep it from learning" if found else "nothing to report"), flush=True)


def _print_costs(
    trainer: Trainer, model: ImageClassifier, optimizer: Optimizer, batch: Batch, steps: int, total: int, val_size: int
) -> None:
    def timed(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        if model.device.type != "cpu":
            torch.accelerator.synchronize(model.device)
        return time.perf_counter() - started

    def passes(training: bool = True) -> None:
        with torch.set_grad_enabled(training), trainer.precision_plugin.forward_context():
            loss = F.cross_entropy(model(batch.images[:number]).float(), batch.labels[:number])
        if training:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]

    images = len(batch.images)
    number = min(4, images)
    for work in (passes, optimizer.step):  # the first ones take memory
        work()
    while number < images and 6 * timed(passes) < SECONDS:
        number = min(2 * number, images)
    # The time of the passes grows with the images, the time of the weights' update does not.
    seconds = median(timed(passes) for _ in range(3)) * images / number * trainer.accumulate_grad_batches
    seconds += timed(optimizer.step)
    epoch = steps * seconds + timed(lambda: passes(training=False)) * val_size / number
    whole = timedelta(seconds=round(epoch * total / steps))
    print(
        f"time       {seconds:.3g} s a step, {epoch:.3g} s an epoch with validation, {whole} in all "
        f"(3 steps of {number} of {images} images on {model.device.type.upper()})"
    )
    after = f"after steps of {number} of {images} images"
    if model.device.type == "cuda":
        taken, there = torch.cuda.max_memory_reserved(model.device), torch.cuda.mem_get_info(model.device)[1]
        print(f"memory     {taken / 1e9:.1f} of the GPU's {there / 1e9:.1f} GB {after}")
    elif os.name == "posix":
        import resource  # not at the top: Windows has none

        taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(f"memory     {taken / 1e9:.1f} GB {after}")
