"""A run's folder as an object: the one interface between training and everything that comes after."""

import csv
import json
import pickle
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from yaml import CSafeLoader


class RunError(Exception):
    """A folder is no run, or lacks what is asked of it; the message names the remedy."""


class Run:
    """What a run left behind.

    Args:
        folder: ``lightning_logs/<experiment>/version_N``.

    Raises:
        RunError: if that is not a run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not self.config.is_file():
            raise RunError(
                f"{folder} is not a run's folder (it has no config.yaml); "
                "give one such as lightning_logs/overfit/version_0"
            )

    @property
    def config(self) -> Path:
        """The complete configuration, as YAML."""
        return self.folder / "config.yaml"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The complete configuration in plain values, by the names that they have on the command line."""
        try:
            content = yaml.load(self.config.read_text(), CSafeLoader)
        except yaml.YAMLError as error:
            raise RunError(f"{self.config} is damaged: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise RunError(f"{self.config} holds no configuration")
        return flat(content)

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings that decide what comes out, up to rounding: not where and on what the run was made.

        Of settings that the data decides where they are not given, the values that it decided on.
        """
        return recipe(self.settings, self.summary["data"])

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """``summary.json``."""
        path = self.folder / "summary.json"
        if not path.is_file():
            raise RunError(f"{path} is missing: the run ended before its first step; begin a new one: {self._again}")
        try:
            summary = json.loads(path.read_text())
        except ValueError as error:
            raise RunError(f"{path} is damaged ({error}); begin a new run: {self._again}") from error
        if not isinstance(summary, dict) or "status" not in summary:
            raise RunError(f"{path} is damaged; begin a new run: {self._again}")
        return summary

    @property
    def _again(self) -> str:
        return f"python scripts/fit.py --config {self.config}"

    @property
    def status(self) -> str:
        """``running``, ``finished``, ``interrupted`` or ``failed``; ``unknown`` where the summary is lost."""
        try:
            return str(self.summary["status"])
        except RunError:
            return "unknown"

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end, and tested."""
        return self.status == "finished" and "test" in self.summary

    @cached_property
    def metrics(self) -> list[dict[str, float | None]]:
        """The rows of ``metrics.csv``, one an epoch; none where a value was not taken."""
        return read_metrics(self.folder / "metrics.csv")

    @cached_property
    def images(self) -> Mapping[str, NDArray[Any]]:
        """The arrays of ``images.npz``, as :class:`callbacks.images.ImageRecord` has them; empty where it is missing.

        Raises:
            RunError: if it is damaged.
        """
        path = self.folder / "images.npz"
        if not path.is_file():
            return {}
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except (ValueError, OSError, EOFError, BadZipFile) as error:
            raise RunError(f"{path} is damaged: {error}") from error

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint that the run goes on from; none where it has not come to its first.

        Raises:
            RunError: if it is damaged, or gone.
        """
        last, previous = (self.folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
        if not last.is_file():
            if previous.is_file():
                return readable_checkpoint(previous, whole=True)
            epochs = len(self.metrics) if self.status == "unknown" else self.summary.get("epochs", 0)
            if self.status == "finished" or epochs > 1:
                raise RunError(f"{last} is gone; begin a new run with the same settings: --config {self.config}")
            return None
        try:
            return readable_checkpoint(last, whole=True)
        except RunError as error:
            remedy = f"; the one before it is there: --ckpt_path {previous}" if previous.is_file() else ""
            raise RunError(f"{error}{remedy}") from error

    def checkpoint(self, name: str = "best") -> Path:
        """A checkpoint's path.

        Raises:
            RunError: if there is none of that name.
        """
        path = self.folder / "checkpoints" / f"{name}.ckpt"
        if not path.is_file():
            if self.status != "finished":
                why = "the run has not come to its first checkpoint"
            elif name == "best" and "best" not in self.summary:
                why = "the run had no validation, which chooses it; train without --trainer.limit_val_batches 0"
            else:
                why = f"it was removed; train it again: {self._again}"
            raise RunError(f"{path} is missing: {why}")
        return path


# Settings that say where and on what a run is made, and what is shown of it.
_CIRCUMSTANCES = re.compile(
    r"experiment|config|resume|ckpt_path|check|checkpoint_.*|compile|doctor|data\.root|data\.stand_in"
    r"|trainer\.(accelerator|strategy|devices|num_nodes|precision|default_root_dir|enable_progress_bar|enable_model_summary"
    r"|enable_autolog_hparams|log_every_.*|logger.*|plugins|profiler|benchmark|deterministic|num_sanity_val_steps|barebones|inference_mode|use_distributed_sampler)"
)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as ``model.optimizer.lr: 0.1``; a class stands under the name of what it is."""
    settings: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix.removesuffix(".") if key == "class_path" else prefix if key == "init_args" else f"{prefix}{key}"
        if isinstance(value, Mapping):
            settings |= flat(value, name if key == "init_args" else f"{name}.")
        else:
            settings[name] = value
    return settings


def recipe(settings: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """See :attr:`Run.recipe`; ``data`` is the data module's description."""
    decided = {f"data.{name}": data[name] for name in ("augment", "train_size", "val_size") if name in data}
    return {name: value for name, value in settings.items() if not _CIRCUMSTANCES.fullmatch(name)} | decided


def runs_of(experiment: Path) -> list["Run"]:
    """The runs in an experiment's folder, the newest first."""
    numbers = [
        int(path.name.removeprefix("version_"))
        for path in (experiment.iterdir() if experiment.is_dir() else ())
        if re.fullmatch(r"version_\d+", path.name) and (path / "config.yaml").is_file()
    ]
    return [Run(experiment / f"version_{number}") for number in sorted(numbers, reverse=True)]


def readable_checkpoint(path: Path, *, whole: bool = False) -> Path:
    """The path, if an undamaged checkpoint lies there.

    Args:
        path: of the file.
        whole: whether it has to hold the state of training, beside the weights.

    Raises:
        RunError: if there is none, or one that is damaged or would run code when loaded.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except (RuntimeError, OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise RunError(
            f"{path} is no checkpoint, or a damaged one, or one that would run code when loaded; "
            "take another, or train the run again"
        ) from error
    if not (isinstance(content, dict) and content.keys() >= {"state_dict", "pytorch-lightning_version"}):
        raise RunError(f"{path} is no checkpoint of a run; give one such as best.ckpt or last.ckpt in its checkpoints/")
    if whole and "optimizer_states" not in content:
        raise RunError(f"{path} holds weights alone, no state to go on from; give a last.ckpt or previous.ckpt")
    return path


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """The rows of a ``metrics.csv``; empty where there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{name: float(value) if value else None for name, value in row.items()} for row in csv.DictReader(file)]
