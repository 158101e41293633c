"""The dry run: what is missing, and how long it would take on this machine."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from overfitting_lab.campaign.plan import AblationPage, Campaign, Entry
from overfitting_lab.campaign.reference import REFERENCE, reference_bytes, reference_runs
from overfitting_lab.campaign.values import hours
from overfitting_lab.campaign.work import State, is_there
from overfitting_lab.cli.experiment import ExperimentCLI
from overfitting_lab.runs import Run
from overfitting_lab.runs.text import TimeRange

REST = 45_000  # training images of CIFAR-10 that validation leaves
TIMED = 4.0  # seconds of the timing, at least one step
BATCH = 128
ALEXNET = ("lightning_modules.AlexNet", 32, 1.0)  # as it is timed: network, image size and width
UNCERTAIN = 2.0  # other work on a machine makes a run this much slower, or made the reference run


class Estimator:
    """Estimate times from the reference runs and from a short timing of AlexNet here.

    A run's time is its number of images divided by the speed of the entry's own reference runs, or of the runs of the
    same network at the same size. The slowest and the fastest of them give the range. It is scaled by the speed of
    AlexNet here, against the median of the reference runs of AlexNet, and widened at both ends. Only reference runs on
    this kind of device count, because a GPU is not faster than a CPU by the same factor for every network.
    """

    def __init__(self, campaign: Campaign) -> None:
        runs = [run for entry in campaign.runs.values() for run in reference_runs(entry).values()]
        self.here: float | None = None
        self._device = ""
        if runs:
            self.here, self._device = measured_speed()
        self._runs = self._on_device(runs)
        speeds = sorted(speed(run) for run in self._runs if _network(run.recipe) == ALEXNET)
        self._scale = speeds[len(speeds) // 2] / self.here if speeds and self.here else 1.0

    def estimate(self, entry: Entry) -> TimeRange | None:
        """Return the time of one run of an entry; ``None`` if no run tells anything about it."""
        there = [*reference_runs(entry).values()]
        like = self._on_device(there) or [run for run in self._runs if _network(run.recipe) == _network(entry.recipe)]
        if not like:
            return None
        size = there[0].summary.data.train_size if there else entry.recipe["data.train_size"]
        images = entry.recipe["trainer.max_epochs"] * (size or REST)
        speeds = [speed(run) for run in like]
        return TimeRange(images / max(speeds) * self._scale / UNCERTAIN, images / min(speeds) * self._scale * UNCERTAIN)

    def _on_device(self, runs: Sequence[Run]) -> list[Run]:
        return [run for run in runs if run.summary.device == self._device]


def described(found: Sequence[State], ablations: Sequence[AblationPage], campaign: Campaign) -> Iterator[str]:
    """Yield a line for each entry and ablation, and a sum: what is there, what is missing, and its time here."""
    estimator = Estimator(campaign) if any(state.to_train for state in found) else None
    sums, unknown = TimeRange(0.0, 0.0), 0
    for state in found:
        entry, parts = state.entry, [f"there: {_seeds(state.there)}"]
        parts += [f"seed {seed}: {run.status} in {run.folder}" for seed, run in sorted(state.begun.items())]
        if state.missing:
            parts.append(f"missing: {_seeds(state.missing)}")
        if state.to_train and estimator:
            time_of_one, n = estimator.estimate(entry), len(state.to_train)
            if time_of_one is None:
                unknown += n
                parts[-1] += ", time unknown: no run of this network on such a device tells it"
            else:
                of_all = time_of_one.times(n)
                sums += of_all
                parts[-1] += f", {hours(of_all.low)} to {hours(of_all.high)} h"
        yield f"{entry.name:28} {'; '.join([*parts, *state.refused])}"
    absent = [ablation for ablation in ablations if not is_there(ablation)]
    for ablation in ablations:
        yield f"{ablation.short_name:28} {'missing, time unknown' if ablation in absent else 'there'}"
    size = f"{REFERENCE} has {reference_bytes() / 2**20:.1f} MiB"
    if not estimator:
        collected = "without --dry-run, the runs above are collected" if any(state.left for state in found) else size
        yield f"{f'{len(absent)} missing' if absent else 'nothing is missing'}; {collected}"
        return
    runs = sum(len(state.to_train) for state in found)
    others = f", and {unknown + len(absent)} of unknown time" if unknown or absent else ""
    yield f"missing    {runs} runs, {hours(sums.low)} to {hours(sums.high)} h here with one worker{others}; {size}"
    if estimator.here:
        yield (
            f"estimate   from the times of the reference runs, and {estimator.here:.0f} images/s of AlexNet in a short "
            f"timing here; widened by a factor of {UNCERTAIN:.0f}, because other work slows a machine down"
        )


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}" if seeds else "none"


def speed(run: Run) -> float:
    """Return the training images of a run per second of training, validation and all else."""
    return run.summary.epochs * run.summary.data.train_size / run.summary.seconds


def measured_speed() -> tuple[float, str]:
    """Return the images per second of a few training steps of AlexNet here, with the usual precision, and the device.

    The device is ``cpu``, ``cuda`` or ``mps``.
    """
    cli = ExperimentCLI(["--config=overfit", "--data.source=synthetic"], keep=False)
    device = cli.trainer.strategy.root_device
    network = cli.model.to(device).network
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    images, labels = torch.randn(BATCH, 3, 32, 32, device=device), torch.arange(BATCH, device=device) % 10
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=cli.trainer.precision == "bf16-mixed")

    def step() -> None:
        optimizer.zero_grad()
        with autocast:
            loss = cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()  # waits for a GPU

    step()
    begun, steps = time.monotonic(), 0
    while steps == 0 or time.monotonic() - begun < TIMED:
        step()
        steps += 1
    return steps * BATCH / (time.monotonic() - begun), device.type


def _network(recipe: dict[str, Any]) -> tuple[str, int, float]:
    return recipe["model"], recipe["data.image_size"], recipe.get("model.width", 1.0)
