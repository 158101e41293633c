"""The run that ``--resume`` names or finds, with the flags that change its settings."""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from filelock import BaseFileLock
from jsonargparse import ArgumentParser, Namespace

from overfitting_lab.runs import Run, UsageError, runs_with
from overfitting_lab.runs.files import experiments_folder, wait_for
from overfitting_lab.runs.recipe import setting_name

AUTO = "auto"  # in place of a folder: the newest run with the command's own settings and data


class Resumption:
    """A run to resume, with the configuration to resume it with.

    Any setting may change if the run's state still fits. The owner of the state refuses any other change:

    - fewer epochs than the run has trained: :meth:`fewer_epochs`;
    - other images, labels or split: ``CIFAR10DataModule.load_state_dict``;
    - another batch size within an epoch: ``BatchLoader.load_state_dict``;
    - another network: ``ImageClassifier.on_load_checkpoint``;
    - another optimizer, schedule, or accumulation within an epoch: ``OptimizerSettings``;
    - weights that are no longer averaged: ``AverageRequired``;
    - another metric that chooses the best checkpoint: ``EpochRecorder.load_state_dict``.

    Attributes:
        run: the run.
        config: the configuration.
        changes: value ``before`` and value ``after`` of each setting that differs, by flag.
    """

    def __init__(self, run: Run, config: Namespace, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        self.run = run
        self.config = config
        self.changes: dict[str, tuple[Any, Any]] = {
            key: (before.get(key), after[key]) for key in after if after[key] != before.get(key)
        }

    @classmethod
    def with_flags(cls, parser: ArgumentParser, folder: Path, flags: list[str]) -> "Resumption":
        """Return the resumption of the run in a folder with its own configuration, and flags on top.

        Raises:
            RunError: if the folder is not a run's.
            UsageError: if a flag would have the run elsewhere.
        """
        run = Run(folder)
        own = ["--config", str(run.files.config)]
        config: Namespace = parser.parse_args([*own, *flags])  # first: a configuration among the flags may have the
        given: Namespace = parser.parse_args(own)  # run's network beside it
        _keep_place(folder, given, config, {*map(setting_name, flags)})
        config.trainer.callbacks = _without_repeated(given.trainer.callbacks, config.trainer.callbacks)
        before, after = (vars(each.as_flat()) for each in (given, config))
        return cls(run, config, before, after | {"config": before["config"]})  # the files' names are no setting

    @property
    def folder(self) -> Path:
        """The run's folder, relative to the working directory."""
        return Path(os.path.relpath(self.run.folder))

    @property
    def place(self) -> Path:
        """The absolute path of the run's folder, whose parents are its experiment and the folder of all experiments.

        If the folder is a link, it is the link's path.
        """
        return Path(os.path.abspath(self.run.folder))  # noqa: PTH100

    @property
    def is_complete(self) -> bool:
        """True if there is nothing left to do."""
        return not self.changes and self.run.finished

    @property
    def changes_callbacks(self) -> bool:
        """True if a callback that stopped the run may not stop it again."""
        return any(key.startswith("trainer.callbacks") for key in self.changes)

    @property
    def completeness(self) -> str:
        """The sentence about a run that is complete."""
        ended = self.run.summary.reason
        why = f": {ended}. Give this setting another value to train longer" if ended else ""
        return f"{self.run.folder} is already complete{why}"

    def fewer_epochs(self) -> str | None:
        """Return a message if the flags ask for fewer epochs than the run has trained."""
        epochs = self.config.trainer.max_epochs or -1
        if "trainer.max_epochs" in self.changes and self.run.status != "unknown":
            done = self.run.summary.epochs
            if 0 < epochs < done:
                return (
                    f"--trainer.max_epochs {epochs}: the run has trained {done} epochs already; give more, or begin a "
                    "new run"
                )
        return None


class RunFinder:
    """Find the newest run with a recipe and data, and keep out other searches for the same.

    A second process with the same search waits here until the first one ends. So two commands that start at once train
    one run. The operating system frees the lock of a process that is killed. The lock's file stays.
    """

    def __init__(self, experiment: Path, recipe: Mapping[str, Any], fingerprint: str) -> None:
        self._found = experiment, recipe, fingerprint
        experiment.mkdir(parents=True, exist_ok=True)
        wanted = json.dumps([recipe, fingerprint], sort_keys=True, default=str)
        name = f".{hashlib.sha256(wanted.encode()).hexdigest()[:16]}.lock"
        self.lock: BaseFileLock = wait_for(experiment / name, f"these settings in {experiment}")

    def newest(self) -> Run | None:
        """Return the run, after any other process that trains it; ``None`` if there is none."""
        found = runs_with(*self._found)
        if found and not found[0].finished:
            found[0].files.wait_for_training()
            found = runs_with(*self._found)
        return found[0] if found else None


def _keep_place(folder: Path, given: Namespace, config: Namespace, typed: Collection[str]) -> None:
    """Keep a run's experiment and root, which another configuration may name otherwise. Refuse flags that do."""
    root = experiments_folder(config.trainer.default_root_dir).resolve()
    for name, moves in (
        ("experiment", config.experiment != given.experiment),
        ("trainer.default_root_dir", root != folder.resolve().parent.parent),
    ):
        if moves and name in typed:
            raise UsageError(f"--{name}: a resumed run stays in its folder, {folder}: leave it out")
        config[name] = given[name]


def _without_repeated(before: Any, after: Any) -> Any:
    """Return the callbacks without those that an overlay of the run adds a second time."""
    if not isinstance(before, list) or not isinstance(after, list) or after[: len(before)] != before:
        return after
    return before + [callback for callback in after[len(before) :] if callback not in before]
