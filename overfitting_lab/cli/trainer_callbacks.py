"""The contract of each of Lightning's callbacks: it works through training, test, resume and export, or is refused."""

import inspect
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pydoc import locate
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer, callbacks
from lightning.pytorch.callbacks import (
    Checkpoint,
    DeviceStatsMonitor,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    ThroughputMonitor,
    WeightAveraging,
)
from lightning.pytorch.utilities.model_helpers import is_overridden

from overfitting_lab.callbacks.accumulation import AccumulationOnResume
from overfitting_lab.callbacks.averaging import ValidatedAverage
from overfitting_lab.runs.files import RunFiles

FLAG = "--trainer.callbacks"
WRITERS = (Checkpoint, DeviceStatsMonitor, LearningRateMonitor, ThroughputMonitor)  # need a folder or a logger


@dataclass(frozen=True)
class Contract:
    """The decision on a callback of Lightning: it works here, or it is refused."""

    works: bool
    sentence: str  # what it does here; or why it is refused, and what to type instead
    subclasses: bool = False  # its subclasses are refused too


def _works(sentence: str) -> Contract:
    return Contract(True, sentence)


def _refused(sentence: str, *, subclasses: bool = False) -> Contract:
    return Contract(False, sentence, subclasses)


CONTRACTS = {
    "BackboneFinetuning": _refused(
        "the networks here have no part called backbone. To freeze layers, give a subclass of BaseFinetuning"
    ),
    "BaseFinetuning": _refused("it is a base class and freezes nothing. Give a subclass that names the layers"),
    "BasePredictionWriter": _refused(
        "no script predicts through the Trainer, so it would write nothing. Use scripts/predict.py", subclasses=True
    ),
    "BatchSizeFinder": _refused(
        "the run would train with another batch size than its config.yaml says. Give --data.batch_size; "
        "--check shows time and memory of a step",
        subclasses=True,
    ),
    "Callback": _refused("it is a base class and does nothing. Give a subclass"),
    "Checkpoint": _refused("it is a base class and saves nothing. Give ModelCheckpoint or another subclass"),
    "DeviceStatsMonitor": _works("Logs the device's statistics. On a CPU it needs psutil: pip install psutil."),
    "EarlyStopping": _works(
        "Stops training when a metric stops improving. A resumed run keeps the count. --config early_stopping gives it."
    ),
    "GradientAccumulationScheduler": _works(
        "Changes the number of accumulated batches at given epochs. A resumed epoch has the right number, too."
    ),
    "LambdaCallback": _works("Calls functions, named by import path, such as on_fit_start=package.name."),
    "LearningRateFinder": _refused(
        "the run would train with another learning rate than its config.yaml says. Give --model.optimizer.lr; "
        "the doctor says if it is too high or too low",
        subclasses=True,
    ),
    "LearningRateMonitor": _works("Logs the learning rate to all loggers. TensorBoard has the rate without it."),
    "ModelCheckpoint": _works(
        "Saves checkpoints of its own, in checkpoints/model_checkpoint/ unless dirpath names another folder. "
        "best.ckpt, last.ckpt and previous.ckpt stay as they are, and --resume and the test use them."
    ),
    "ModelPruning": _refused(
        "its checkpoints lack the masks, so a resumed run would train pruned weights again, and best.ckpt could not "
        "be loaded. Prune a finished network with torch.nn.utils.prune",
        subclasses=True,
    ),
    "ModelSummary": _works("Prints Lightning's table of layers instead of this project's."),
    "OnExceptionCheckpoint": _refused(
        "the next new run would silently start from the file that it leaves. Leave it out: last.ckpt is there for "
        "--resume, and --checkpoint_minutes says how old it may be",
        subclasses=True,
    ),
    "ProgressBar": _refused("it is a base class and shows nothing. Give RichProgressBar or TQDMProgressBar"),
    "RichModelSummary": _works("Prints Lightning's table of layers instead of this project's."),
    "RichProgressBar": _works("Replaces this project's progress bar, even if the output is not a terminal."),
    "StochasticWeightAveraging": _refused(
        "it averages when training ends, so the average would be neither validated nor kept. Give "
        "--config averaging/swa, whose average is the same, validated and kept",
        subclasses=True,
    ),
    "SpikeDetection": _refused(
        "Lightning's class cannot load its own state, so a run could not be resumed. Leave it out: a loss that is NaN "
        "or infinite ends a run without it, and --doctor stop ends one that cannot succeed"
    ),
    "ThroughputMonitor": _works("Logs images per second. Its batch_size_fn is a function's import path."),
    "Timer": _refused(
        "its argument interval cannot be written in a configuration. Give --trainer.max_time DD:HH:MM:SS"
    ),
    "TQDMProgressBar": _works("Replaces this project's progress bar, even if the output is not a terminal."),
    "EMAWeightAveraging": _works(
        "Averages the weights exponentially. The average is validated, tested, and kept in best.ckpt, weights.pth and "
        "exports. last.ckpt also has the trained weights. --config averaging/ema gives it."
    ),
    "WeightAveraging": _works(
        "Computes the mean of the weights of all steps. The mean is used and kept like EMAWeightAveraging's average."
    ),
}


def configured(trainer: Namespace) -> list[Any]:
    """Return the callbacks in the Trainer's settings: as settings, or as objects once they are built."""
    given = trainer.callbacks or []
    return given if isinstance(given, list) else [given]


def refusal(class_path: str) -> str | None:
    """Return why a callback is refused and what to type instead; ``None`` if it is not.

    Args:
        class_path: import path, or the name of a callback of Lightning.
    """
    kind = locate(class_path) if "." in class_path else getattr(callbacks, class_path, None)
    for name, contract in CONTRACTS.items():
        refused = getattr(callbacks, name)
        if contract.works or not inspect.isclass(kind):
            continue
        if kind is refused or (contract.subclasses and issubclass(kind, refused)):
            return f"{FLAG} {kind.__name__} is refused: {contract.sentence}"
    return None


def check_configured(trainer: Namespace) -> None:
    """Refuse callbacks of Lightning that do not work here, before anything is built.

    Raises:
        ValueError: if one of the Trainer's settings is such a callback.
    """
    for given in configured(trainer):
        if reason := refusal(given.class_path):
            raise ValueError(reason)


def without_refused(trainer: Namespace) -> list[Namespace]:
    """Return the callbacks in the Trainer's settings that are not refused, for a script that does not train."""
    return [given for given in configured(trainer) if refusal(given.class_path) is None]


def complete(given: Sequence[Callback], trainer: Namespace, *, keep: bool) -> list[Callback]:
    """Return the configured callbacks, and beside some of them a callback that supplies what Lightning's lacks.

    Args:
        given: the configured callbacks.
        trainer: settings of the Trainer.
        keep: True if the command may keep a run's folder. Without a folder, callbacks that only write are left out.

    Raises:
        ValueError: if callbacks contradict each other or another setting, or would overwrite a run's checkpoints.
    """
    _check_together(given, trainer, keep=keep)
    completed: list[Callback] = []
    writes = keep and trainer.logger is not False and not trainer.fast_dev_run
    for callback in given:
        if isinstance(callback, ModelCheckpoint):
            _check_folder(callback)
        if isinstance(callback, WRITERS) and not writes:
            continue
        if isinstance(callback, WeightAveraging):
            completed.append(ValidatedAverage(callback))
        if isinstance(callback, ModelSummary):
            logging.getLogger("lightning.pytorch.callbacks.model_summary").setLevel(logging.INFO)  # it logs its table
        completed.append(callback)
        if isinstance(callback, GradientAccumulationScheduler):
            completed.append(AccumulationOnResume(callback))
    return completed


def _check_together(given: Sequence[Callback], trainer: Namespace, *, keep: bool) -> None:
    keys = [callback.state_key for callback in given if is_overridden("state_dict", callback, Callback)]
    for callback in given:
        name = type(callback).__name__
        if keys.count(callback.state_key) > 1:
            raise ValueError(
                f"{FLAG} has {name} twice with the same settings: leave one out, a checkpoint cannot hold both"
            )
        if keep and isinstance(callback, WRITERS) and trainer.logger is False and not trainer.fast_dev_run:
            raise ValueError(f"{FLAG} {name} writes to the run's folder: leave --trainer.logger false out")
        if isinstance(callback, GradientAccumulationScheduler) and trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"{FLAG} {name} decides how many batches add up: leave --trainer.accumulate_grad_batches out"
            )
        by_step = isinstance(callback, EMAWeightAveraging) and callback.update_every_n_steps > 0
        if by_step and callback.update_starting_at_epoch is not None:  # type: ignore[attr-defined]
            raise ValueError(
                f"{FLAG} {name}: update_starting_at_epoch adds updates at the ends of epochs, and those of steps "
                "begin at once. Give update_starting_at_step, or update_every_n_steps 0 beside it"
            )
    if sum(isinstance(callback, WeightAveraging) for callback in given) > 1:
        raise ValueError(f"{FLAG} has two averages of the weights, and only one network can be validated: give one")


def _check_folder(callback: ModelCheckpoint) -> None:
    """Refuse a ModelCheckpoint that would write beside a run's own checkpoints."""
    own = RunFiles(Path("/version_0"))
    folder = Path(os.path.normpath(Path(callback.dirpath or own.others, callback.filename or "FILE"))).parent
    if folder == RunFiles(folder.parent).checkpoints and re.fullmatch(r"version_\d+", folder.parent.name):
        raise ValueError(
            f"{FLAG} ModelCheckpoint would write to the folder of a run's own checkpoints, {folder}; "
            f"leave dirpath out, and its files will go to {own.others.name}/ in that folder"
        )


def check_device(trainer: Trainer) -> None:
    """Refuse a callback that does not work on the Trainer's devices, before the first step.

    Raises:
        ValueError: if psutil is missing and a CPU's statistics are wanted.
    """
    on_cpu = trainer.strategy.root_device.type == "cpu"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        reads_cpu = isinstance(callback, DeviceStatsMonitor) and (callback._cpu_stats or on_cpu)
        if reads_cpu and callback._cpu_stats is not False and find_spec("psutil") is None:
            raise ValueError(f"{FLAG} DeviceStatsMonitor needs psutil to read the CPU: pip install psutil")
