"""The Trainer's parts: the callbacks of a run in their order, its loggers and its plugins."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelSummary, ProgressBar

from overfitting_lab.callbacks.averaging import AverageRequired
from overfitting_lab.callbacks.checkpoints import AtomicCheckpointIO, BestCheckpoint
from overfitting_lab.callbacks.clock import Clock
from overfitting_lab.callbacks.console import Console, LayerTable, TerminalBar
from overfitting_lab.callbacks.counts import TrainingCounts
from overfitting_lab.callbacks.dashboard import Dashboard
from overfitting_lab.callbacks.doctor import Doctor
from overfitting_lab.callbacks.epochs import EpochRecorder
from overfitting_lab.callbacks.further_loggers import FurtherLoggers
from overfitting_lab.callbacks.guarded import guarded, with_attempted_exception_hook
from overfitting_lab.callbacks.images import ImageRecord
from overfitting_lab.callbacks.limits import LimitCheck
from overfitting_lab.callbacks.logger import RunLogger
from overfitting_lab.callbacks.noise import LabelNoiseProbe
from overfitting_lab.callbacks.optimizer import OptimizerSettings
from overfitting_lab.callbacks.other_checkpoints import OtherCheckpoints
from overfitting_lab.callbacks.plateau import PlateauSchedule
from overfitting_lab.callbacks.profile import NoProfiler, ProfileFolder
from overfitting_lab.callbacks.recovery import Recovery
from overfitting_lab.callbacks.step_limit import StepLimit
from overfitting_lab.callbacks.steps import FiniteLoss, SeededSteps
from overfitting_lab.callbacks.summary import RunSummary
from overfitting_lab.callbacks.time_left import TimeLeft
from overfitting_lab.runs.provenance import git_commit, versions
from overfitting_lab.runs.recipe import decides
from overfitting_lab.runs.text import escaped, not_text


@dataclass(frozen=True)
class Assembly:
    """Assemble a Trainer's arguments.

    Lightning calls each hook of the callbacks in their order, but moves every ``Checkpoint`` behind the others. A
    comment beside a callback says what it must precede.
    """

    config: Namespace  # of the experiment, as parsed
    trainer: Namespace  # the Trainer's settings, with their objects built
    given: list[Callback]  # the configured callbacks, with what completes them
    logger: RunLogger | None  # None if no folder is kept
    may_continue: bool  # even if a callback stopped the run that is resumed
    precision_reason: str
    begun: float  # when the command began, by time.perf_counter()
    complete: Callable[[], Namespace]  # the complete configuration, once the Trainer is built
    as_text: Callable[[], str]  # the same as YAML

    def arguments(self, environment: ClusterEnvironment) -> dict[str, Any]:
        """Return the Trainer's arguments that differ from its settings; ``environment`` is used unless one is set."""
        trainer, bar = self.trainer, self._has(ProgressBar)
        plugins = [*_listed(trainer.plugins)]
        environments = [*plugins, getattr(trainer.strategy, "cluster_environment", None)]
        if not any(isinstance(each, ClusterEnvironment) for each in environments):
            plugins.append(environment)
        return {
            "callbacks": self.callbacks(),
            "logger": [self.logger, *map(guarded, trainer.logger or [])] if self.logger else False,
            "enable_progress_bar": self._terminal or (bar and trainer.enable_progress_bar is None),
            "enable_checkpointing": self._saves,
            "enable_model_summary": False,
            "plugins": [*plugins, AtomicCheckpointIO()],
            "profiler": trainer.profiler or NoProfiler(),
            "log_every_n_steps": trainer.log_every_n_steps or 1,
        }

    def callbacks(self) -> list[Callback]:
        """Return all callbacks in their order."""
        doctor = Doctor(self.logger, stop=self.config.doctor == "stop") if self.config.doctor != "off" else None
        table = self.trainer.enable_model_summary is not False and not self._has(ModelSummary)
        bar = self._terminal and not self._has(ProgressBar)
        return [
            Clock(self.begun),  # before all whose work it measures
            StepLimit(),  # before all that read max_steps
            LimitCheck(),  # refuses, before RunSummary claims the run's folder
            LabelNoiseProbe(),
            EpochRecorder(self.config.monitor),  # before all that read its records, or which validation is the best
            OptimizerSettings(),  # refuses a checkpoint, before the given callbacks read it
            AverageRequired(),  # refuses a checkpoint as well
            *map(with_attempted_exception_hook, self.given),
            *([] if self._has(PlateauSchedule) else [PlateauSchedule(reductions=None)]),  # before the checkpoints
            *([doctor] if doctor else []),  # before RunSummary, which writes its findings
            SeededSteps(self.config.seed_everything),
            *(self._writers(self.logger, doctor) if self.logger else []),
            *([] if self._saves else [FiniteLoss()]),
            *([LayerTable()] if table else []),
            *([TerminalBar()] if bar else []),
            TimeLeft(),
            Console(self.logger, not self._terminal, self.precision_reason),  # last: its lines stand below the others
        ]

    def _writers(self, logger: RunLogger, doctor: Doctor | None) -> list[Callback]:
        """Return the callbacks that write the run's folder."""
        config = self.config
        facts = {"experiment": config.experiment, "seed": config.seed_everything, "versions": versions()}
        facts["git_commit"] = git_commit()
        decisive = {name: value for name, value in settings(config).items() if decides(name)}
        writers: list[Callback] = [
            FurtherLoggers(logger, lambda: settings(self.complete())),
            RunSummary(logger, self.as_text, facts, lambda: doctor.diagnosis if doctor else []),  # claims the folder
            ProfileFolder(logger),
            OtherCheckpoints(logger),
            ImageRecord(logger),
            Dashboard(logger, decisive, config.trainer.log_every_n_steps),
        ]
        if self._saves:  # last of all: they save what the others did in the step
            every = config.checkpoint_minutes, config.checkpoint_steps
            recovery = Recovery(logger, *every, keeps=config.keep, may_continue=self.may_continue)
            writers += [TrainingCounts(), BestCheckpoint(logger), recovery]  # last.ckpt says what best.ckpt holds
        return writers

    @property
    def _saves(self) -> bool:
        """True if the run writes checkpoints."""
        return self.logger is not None and self.trainer.enable_checkpointing is not False

    @property
    def _terminal(self) -> bool:
        """True if a progress bar stands for the lines of the epochs."""
        wanted = self.trainer.enable_progress_bar
        return sys.stdout.isatty() if wanted is None else bool(wanted)

    def _has(self, kind: type[Callback]) -> bool:
        return any(isinstance(callback, kind) for callback in self.given)


def settings(config: Namespace) -> dict[str, Any]:
    """Return the settings that are plain values, by flag."""
    return {
        key.replace(".init_args", "").removesuffix(".class_path"): next(
            escaped(str(value))
            if kind is str
            else kind(value)  # of a restricted type, such as PositiveFloat, which some loggers cannot write
            for kind in (bool, int, float, str)
            if isinstance(value, kind)
        )
        for key, value in vars(config.as_flat()).items()
        if isinstance(value, str | int | float)
        and key != "model.init_args.num_classes"  # decided by the data, not known yet
        and (not key.startswith("trainer.") or key == "trainer.max_epochs")
    }


def check_writable(folder: Path) -> None:
    """Check that files can be written to a folder, or to the one in which it would be made. Leave nothing behind.

    Raises:
        MisconfigurationException: if they cannot.
    """
    if reason := not_text(folder):
        raise MisconfigurationException(f"cannot write to {folder}: {reason}")
    try:
        whole = folder.absolute()
        TemporaryFile(dir=next(each for each in (whole, *whole.parents) if each.exists())).close()
    except OSError as error:
        raise MisconfigurationException(
            f"cannot write to {folder}: {error.strerror}; "
            "make it writable, or keep runs elsewhere with --trainer.default_root_dir FOLDER"
        ) from error


def _listed(value: Any) -> list[Any]:
    """Return a flag's value as a list; the value may be a list, a single object or ``None``."""
    return value if isinstance(value, list) else [value] if value else []
