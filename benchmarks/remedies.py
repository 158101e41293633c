"""Measure the cost of each method against over-fitting: the time of a training step with it and without it."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contenders import Contender, fit, running
from benchmarks.measuring import Spread, alternate

STEPS = 8  # in a turn: an epoch of 1,000 images
# By factor and level of the ablation in docs/remedies.md. SWA and early stopping do nothing in a step.
REMEDIES = {
    "dropout=0.5": "--model.dropout=0.5",
    "weight_decay=0.01": "--model.optimizer.weight_decay=0.01",
    "adamw=on": "--config=optimizer/adamw",
    "augment=flip_crop": "--data.augment=flip_crop",
    "augment=trivial": "--data.augment=trivial",
    "cutout=16": "--data.cutout=16",
    "mixup=0.2": "--data.mixup=0.2",
    "cutmix=1.0": "--data.cutmix=1",
    "label_smoothing=0.1": "--model.label_smoothing=0.1",
    "ema=on": "--config=averaging/ema",
    "batch_norm=True": "--model.batch_norm=true",
    "width=0.25": "--model.width=0.25",
}


def measure(arguments: list[str], rounds: int) -> dict[str, Spread]:
    """Return for each method the time of a step of overfit.yaml with it, divided by the time of a step without it."""
    experiment = ["--config=overfit", *arguments]
    return {name: _ratio(experiment, flag, rounds) for name, flag in REMEDIES.items()}


def _ratio(experiment: list[str], flag: str, rounds: int) -> Spread:
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        without, remedied = (
            stack.enter_context(running(Contender(fit, flags), experiment, folder))
            for flags, folder in zip(((), (flag,)), folders, strict=True)
        )
        return alternate(lambda _: without(STEPS)[0] / remedied(STEPS)[0], [flag], rounds)[flag]
