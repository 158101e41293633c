"""A run's folder as an object: the one interface between training and everything that comes after."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from overfitting_lab.runs.calibration import calibration
from overfitting_lab.runs.checkpoints import checked_checkpoint
from overfitting_lab.runs.epochs import EpochRecord, read_records
from overfitting_lab.runs.files import RunError, RunFiles, new_run_command, resume_command
from overfitting_lab.runs.recipe import own_code, read_settings, recipe, with_earlier
from overfitting_lab.runs.summary import Summary


class Run:
    """Read what a run left in its folder, ``lightning_logs/<experiment>/version_N``.

    Raises:
        RunError: if the folder is not a run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = RunFiles(folder)
        if not self.files.config.is_file():
            example = "give one such as lightning_logs/overfit/version_0"
            raise RunError(f"{folder} is not a run's folder (it has no config.yaml); {example}")
        self._new_run = new_run_command(self.files.config)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The complete configuration, by flag."""
        return read_settings(self.files.config)

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings that decide the result, by flag. One that changed in training has all its values, as text."""
        made = recipe(self.settings, asdict(self.summary.data), self.summary.code)
        return with_earlier(made, self.summary.earlier)

    @property
    def changed_code(self) -> list[str]:
        """The user's own modules that are no longer as they were in training, or that are gone."""
        now = own_code(self.settings)
        return [name for name, digest in self.summary.code.items() if now.get(name) != digest]

    @cached_property
    def summary(self) -> Summary:
        """The content of ``summary.json``.

        Raises:
            RunError: if the file is missing or damaged.
        """
        path = self.files.summary
        if not path.is_file():
            why = "" if self._is_saved else ": the run ended before its first step"
            raise RunError(f"{path} is missing{why}; {self._restore}")
        try:
            return Summary.from_json(path.read_text(encoding="utf-8-sig"))  # an editor may have added the mark
        except ValueError as error:
            raise RunError(f"{path} is damaged ({error}); {self._restore}") from error

    @property
    def _is_saved(self) -> bool:
        return self.files.last.is_file() or self.files.previous.is_file()

    @property
    def _restore(self) -> str:
        """What writes ``summary.json`` again."""
        if self._is_saved:
            return f"this writes it again: {resume_command(self.folder)}"
        return f"begin a new run: {self._new_run}"

    @property
    def status(self) -> str:
        """The summary's status; ``unknown`` if the summary is lost."""
        try:
            return self.summary.status
        except RunError:
            return "unknown"

    @property
    def finished(self) -> bool:
        """True if the run was trained to its end and tested."""
        return self.status == "finished" and self.summary.test is not None

    def check_classes(self, name: str, classes: Sequence[str]) -> None:
        """Check that the data called ``name`` have the classes that the run tells apart.

        Raises:
            RunError: if they have others.
        """
        known = self.summary.data.classes
        if [*classes] != known:
            raise RunError(f"{self.folder} tells apart {', '.join(known)}; {name} has {', '.join(classes)}")

    @property
    def why_unfinished(self) -> str:
        """The reason why the run is not finished, and the command that finishes it; empty for a finished run."""
        if self.finished:
            return ""
        remedy = resume_command(self.folder)
        if self.status == "finished":
            why = self.summary.untested
            flag = " --trainer.limit_test_batches 1.0" if "limit_test_batches" in (why or "") else ""
            untested = f"{self.folder} was trained but not tested{f' ({why})' if why else ''}"
            if self.lost:
                return f"{untested}, and its checkpoints are gone; begin a new run: {self._new_run}"
            return f"{untested}; test it: {remedy}{flag}"
        why = f": {self.summary.reason}" if self.summary.reason else f" (its status is {self.status})"
        return f"{self.folder} has not finished{why}; resume it: {remedy}"

    @property
    def lost(self) -> bool:
        """True if the run was saved, but no checkpoint to resume from is there."""
        if self._is_saved:
            return False
        epochs = len(self.records) if self.status == "unknown" else self.summary.epochs
        return self.status == "finished" or epochs > 1

    @property
    def usable(self) -> bool:
        """True if the run has finished, or can be resumed."""
        return self.status != "unknown" and (self.finished or not self.lost)

    @cached_property
    def records(self) -> list[EpochRecord]:
        """The rows of ``metrics.csv``.

        Raises:
            RunError: if the file is damaged, or a finished run lacks rows.
        """
        whole = self.status == "finished"
        records = read_records(self.files.metrics, whole=whole)
        if whole and len(records) < self.summary.epochs:
            raise RunError(f"{self.files.metrics} has {len(records)} epochs of {self.summary.epochs}: restore the file")
        return records

    @cached_property
    def images(self) -> Mapping[str, NDArray[Any]]:
        """The arrays of ``images.npz``, which ``ImageRecord`` describes; empty if the file is missing.

        Raises:
            RunError: if the file is damaged.
        """
        path = self.files.images
        if not path.is_file():
            return {}
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except (ValueError, OSError, EOFError, BadZipFile) as error:
            raise RunError(
                f"{path} is damaged; restore it, or remove it: the results without single images are left"
            ) from error

    @cached_property
    def test_probabilities(self) -> NDArray[np.floating] | None:
        """The probabilities for the test images, [N, classes], to three digits; ``None`` if they were not kept.

        Raises:
            RunError: if ``images.npz`` is damaged.
        """
        if "test_logits" in self.images:
            return np.asarray(np.exp(self.images["test_logits"].astype(np.float32)))
        return self.images.get("test_probabilities")  # of an earlier version, float16

    def newest_checkpoint(self) -> Path | None:
        """Return the checkpoint to resume from; ``None`` if the run ended before its first one.

        Raises:
            RunError: if the checkpoint is damaged or gone.
        """
        last, previous = self.files.last, self.files.previous
        if self.lost:
            raise RunError(
                f"{last} is gone; begin a new run with the same settings: --config {self.files.config} "
                "(--keep weights discards it)"
            )
        if not last.is_file():
            return checked_checkpoint(previous, with_state=True) if previous.is_file() else None
        try:
            return checked_checkpoint(last, with_state=True)
        except RunError as error:
            remedy = f"; the one before it is there: --ckpt_path {previous}" if previous.is_file() else ""
            raise RunError(f"{error}{remedy}") from error

    @property
    def temperature(self) -> float:
        """The temperature that minimizes the validation loss of the best checkpoint.

        Raises:
            RunError: if it is unknown.
        """
        if self.why_unfinished:
            raise RunError(f"no temperature: {self.why_unfinished}")
        if self.summary.test is None or self.summary.test.temperature is None:
            raise RunError(
                f"{self.files.summary} has no temperature: the run had no validation, was not tested with its best "
                "checkpoint, no temperature minimizes the validation loss (all images are right, or most are wrong), "
                f"or it is of an older version; begin a new run: {self._new_run}"
            )
        return self.summary.test.temperature

    @property
    def calibration_error(self) -> float | None:
        """The expected calibration error on the test images; ``None`` if it is unknown.

        Summaries of earlier versions lack it. It is computed from ``images.npz`` then.

        Raises:
            RunError: if ``images.npz`` is damaged.
        """
        test = self.summary.test
        if test is None:
            return None
        if test.calibration_error is not None or self.test_probabilities is None:
            return test.calibration_error
        return calibration(self.test_probabilities, self.images["test_labels"]).error

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint of the best validation by the run's monitor, which can be loaded.

        Raises:
            RunError: if it is missing or damaged.
        """
        path = self.files.best
        if path.is_file():
            return checked_checkpoint(path)
        if self.status != "finished":
            why = "the run has not come to its first checkpoint"
        elif self.summary.best is None:
            why = "the run had no validation, which chooses it; train without --trainer.limit_val_batches 0"
        else:
            why = f"it was removed; train it again: {self._new_run}"
        raise RunError(f"{path} is missing: {why}")


def runs_of(experiment: Path) -> list[Run]:
    """Return the runs in an experiment's folder, the newest first."""
    named = [(re.fullmatch(r"version_(\d+)", path.name), path) for path in experiment.glob("version_*")]
    numbered = sorted(((int(match[1]), path) for match, path in named if match), reverse=True)
    return [Run(path) for _, path in numbered if RunFiles(path).config.is_file()]


def runs_with(experiment: Path, recipe: Mapping[str, Any], fingerprint: str) -> list[Run]:
    """Return the runs of use in an experiment's folder that have a recipe and data, the newest first."""
    same = [run for run in runs_of(experiment) if run.usable and run.summary.data.fingerprint == fingerprint]
    return [run for run in same if _recipe_of(run) == recipe]


def _recipe_of(run: Run) -> dict[str, Any] | None:
    """Return a run's recipe; ``None`` if its configuration cannot be read."""
    try:
        return run.recipe
    except RunError:
        return None
