"""The result of one run of a study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from overfitting_lab.runs import Run, RunError
from overfitting_lab.runs.epochs import Monitor


@dataclass(frozen=True)
class Trial:
    """The result of one run."""

    setting: Mapping[str, Any]  # levels of the factors or number of training images (size), and the seed
    test_acc: float  # test accuracy of the best checkpoint, a fraction of 1
    train_acc: float  # training accuracy of the last epoch, with dropout and augmentation on
    val_acc: float  # validation accuracy of the last epoch
    gap: float  # generalization gap, a fraction of 1
    seconds: float  # duration of the run with start, validation and test; of old runs, of training with validation
    epochs: int  # number of epochs
    origin: Mapping[str, Any]  # data, device, versions and commit of the run
    gap_instrument: str = "training"  # accuracy on training images in the gap: probe or training
    calibration_error: float | None = None  # expected calibration error on the test images; trials of old runs lack it
    monitor: Monitor = "val_acc"  # validation metric that chose the checkpoint

    averaged: bool | None = None  # True if the tested network is an average of weights

    @property
    def subset(self) -> int:
        """The set of training images, from 0."""
        return int(self.setting.get("subset", 0))

    def has(self, setting: Mapping[str, Any]) -> bool:
        """Tell if the run has these settings; it may have others besides."""
        return all(name in self.setting and self.setting[name] == value for name, value in setting.items())


def with_one_gap(trials: Sequence[Trial]) -> list[Trial]:
    """Return trials whose gaps have one instrument: the probe if all have one, else training."""
    return [*trials] if {trial.gap_instrument for trial in trials} == {"probe"} else [*map(by_training, trials)]


def by_training(trial: Trial) -> Trial:
    """Return a trial with the gap from training accuracy, which is measured with dropout and augmentation on."""
    return replace(trial, gap=trial.train_acc - trial.val_acc, gap_instrument="training")


def result_of(run: Run, setting: Mapping[str, Any]) -> Trial:
    """Return the result of a finished run.

    Raises:
        RunError: if it ran without validation or test.
    """
    summary, last, gap = run.summary, run.summary.last, run.summary.generalization_gap
    if summary.test is None or last is None or last.val_acc is None or gap is None:
        raise RunError(
            f"{run.folder} ran without validation, but an ablation needs it: remove --trainer.limit_val_batches"
        )
    origin = {
        "data": f"{summary.data.name} ({(summary.data.identity or 'unknown')[:12]})"
        + f", tested on {summary.tested_on} images" * (" of " in summary.tested_on),
        "device": f"{summary.world_size} x {summary.device}",
        "precision": summary.precision,
        **{name: summary.versions[name] for name in ("python", "torch", "lightning")},
        "commit": summary.git_commit,
    }
    return Trial(
        setting=setting,
        test_acc=summary.test.acc,
        train_acc=last.train_acc,
        val_acc=last.val_acc,
        gap=gap,
        seconds=summary.total_seconds,
        epochs=summary.epochs,
        origin=origin,
        gap_instrument=summary.gap_instrument or "training",
        calibration_error=run.calibration_error,
        monitor=run.recipe["monitor"],
        averaged=summary.test.averaged,
    )
