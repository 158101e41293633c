"""The run that ``--resume`` names, with the flags that change its settings."""

import os
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from overfitting_lab.runs.run import Run


class Resumption:
    """Read the configuration of the run to resume, and put flags on top of it.

    Any setting may change if the run's state still fits. The owner of the state refuses any other change:

    - fewer epochs than the run has trained: :meth:`fewer_epochs`;
    - other images, labels or split: ``CIFAR10DataModule.load_state_dict``;
    - another batch size within an epoch: ``BatchLoader.load_state_dict``;
    - another network: ``ImageClassifier.on_load_checkpoint``;
    - another optimizer or schedule: ``OptimizerSettings``; weights that are no longer averaged: ``AverageRequired``;
    - another metric that chooses the best checkpoint: ``EpochRecorder.load_state_dict``.

    Attributes:
        run: the run.
        config: its configuration, with the flags on top.
        changes: value in the run's ``config.yaml`` and new value of each setting that differs, by flag.

    Raises:
        RunError: if the folder is not a run's.
    """

    def __init__(self, parser: ArgumentParser, folder: Path, flags: list[str]) -> None:
        self.run = Run(folder)
        own = ["--config", str(self.run.files.config)]
        self.config: Namespace = parser.parse_args([*own, *flags])  # first: a configuration among the flags may have
        given: Namespace = parser.parse_args(own)  # the run's network beside it
        self.config.trainer.callbacks = _without_repeated(given.trainer.callbacks, self.config.trainer.callbacks)
        before, after = (vars(config.as_flat()) for config in (given, self.config))
        self.changes: dict[str, tuple[Any, Any]] = {
            key: (before.get(key), after[key]) for key in after if after[key] != before.get(key)
        }

    @property
    def folder(self) -> Path:
        """The run's folder, relative to the working directory."""
        return Path(os.path.relpath(self.run.folder))

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


def _without_repeated(before: Any, after: Any) -> Any:
    """Return the callbacks without those that an overlay of the run adds a second time."""
    if not isinstance(before, list) or not isinstance(after, list) or after[: len(before)] != before:
        return after
    return before + [callback for callback in after[len(before) :] if callback not in before]
