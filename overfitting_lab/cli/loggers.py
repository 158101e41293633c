"""The loggers that a configuration names beside the run's own: check them, and choose their folders and runs."""

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from pydoc import locate
from typing import Any

import yaml
from jsonargparse import Namespace

from overfitting_lab.runs.files import RunError
from overfitting_lab.runs.run import Run

# The package that a logger of Lightning writes with, and the module in it.
PACKAGES = {
    "CometLogger": ("comet-ml", "comet_ml"),
    "MLFlowLogger": ("mlflow-skinny", "mlflow"),
    "WandbLogger": ("wandb", "wandb"),
}
# Why a logger of Lightning is refused.
REFUSED = {
    "LitLogger": "Lightning 2.6 cannot build it from a command line",
    "NeptuneLogger": "Neptune was shut down",
}
HINT = (
    "--trainer.logger accepts true, false, or a logger's class before its settings, as in "
    "--trainer.logger CSVLogger --trainer.logger.save_dir FOLDER"
)
FOLDERS = ("save_dir", "dir", "offline_directory")  # settings that say where a logger writes
RUN_ID = {"CometLogger": "experiment_key", "MLFlowLogger": "run_id"}  # the settings that name a run; else version


def as_list(given: Any) -> list[Namespace]:
    """Return the configured loggers, without the run's own, from the value of ``--trainer.logger``."""
    loggers = given if isinstance(given, list) else [given]
    return [logger for logger in loggers if isinstance(logger, Namespace)]


def prepared(given: Any, root: Path, resumed: Run | None, has_model_checkpoint: bool) -> list[Namespace]:
    """Return the loggers' configurations to build them from: each with its folder, and with the run that it resumes.

    Args:
        given: the value of ``--trainer.logger``.
        root: the folder of all experiments. A logger without a folder of its own writes there.
        resumed: the run to resume. Its ``loggers.json`` names the loggers' runs.
        has_model_checkpoint: True if a ``ModelCheckpoint`` is configured. ``log_model`` uploads its files.

    Raises:
        ValueError: if a logger's package is missing, or if a setting would have no effect or destroy an earlier log.
    """
    known = _recorded(resumed) if resumed else []
    loggers = [deepcopy(logger) for logger in as_list(given)]
    for logger in loggers:
        name = logger.class_path.rpartition(".")[2]
        settings = logger.init_args = logger.get("init_args") or Namespace()  # type: ignore[no-untyped-call]
        if missing := missing_package([name]):
            raise ValueError(missing)
        if settings.get("log_model") and not has_model_checkpoint:
            raise ValueError(
                "trainer.logger.log_model uploads the files of a ModelCheckpoint, and none is configured: add "
                "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.monitor=val_acc --trainer.callbacks.mode=max"
            )
        if settings.get("log_model") and settings.get("offline"):
            raise ValueError("trainer.logger.log_model cannot upload offline: leave it or trainer.logger.offline out")
        _place(logger.class_path, settings, root)
        record = next((record for record in known if record["class_path"].rpartition(".")[2] == name), None)
        if record is not None:
            known.remove(record)
            settings[RUN_ID.get(name, "version")] = record["version"]
        elif settings.get("version") is not None and name in ("CSVLogger", "TensorBoardLogger"):
            _check_unused(settings)
    return loggers


def with_absolute_paths(given: Any) -> Any:
    """Return the value of ``--trainer.logger`` with absolute paths, so that it is valid in every working directory.

    A default path stays as it is: it means the folder of all experiments, which may be moved.
    """
    given = deepcopy(given)
    for logger in as_list(given):
        settings = logger.get("init_args") or {}
        for key in _given_folders(logger.class_path, settings):
            if "://" not in settings[key]:
                settings[key] = str(Path(settings[key]).resolve())
        for scheme in ("file:", "sqlite:///"):
            path = str(settings.get("tracking_uri")).removeprefix(scheme)
            if path != str(settings.get("tracking_uri")) and not path.startswith("/"):
                settings["tracking_uri"] = f"{scheme}{Path(path).resolve()}"
    return given


def without_logger(text: str) -> str:
    """Return a configuration's text without its loggers, so that nothing imports their packages."""
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:  # the parser reports it
        return text
    trainer = config.get("trainer") if isinstance(config, dict) else None
    if not isinstance(trainer, dict) or isinstance(trainer.get("logger"), bool | None):
        return text
    trainer["logger"] = False
    return str(yaml.safe_dump(config, sort_keys=False))


def explained(message: str) -> str:
    """Add to a message about ``--trainer.logger`` why a logger is refused, or which values the flag accepts."""
    for name, reason in REFUSED.items():
        if name in message:
            return f"trainer.logger: {name} does not work here: {reason}\n{HINT}"
    kept = (line for line in message.splitlines() if "Iterable" not in line and "<class 'bool'>" not in line)
    return "\n".join([*kept, HINT])


def missing_package(words: Sequence[str]) -> str | None:
    """Return a message if one of the words ends with a logger whose package is not installed."""
    for name, (package, module) in PACKAGES.items():
        if any(word.endswith(name) for word in words) and find_spec(module) is None:
            return f"trainer.logger: {name} needs a package that is not installed: pip install {package}"
    return None


def _default(class_path: str, key: str) -> Any:
    parameter = inspect.signature(locate(class_path)).parameters.get(key)  # type: ignore[arg-type]
    return parameter.default if parameter else None


def _given_folders(class_path: str, settings: Mapping[str, Any] | Namespace) -> list[str]:
    return [key for key in FOLDERS if settings.get(key) and settings[key] != _default(class_path, key)]


def _place(class_path: str, settings: Namespace, root: Path) -> None:
    """Give a folder to a logger that would write into the working directory."""
    name = class_path.rpartition(".")[2]
    given = _given_folders(class_path, settings)
    if name == "WandbLogger":
        folder = settings[given[0]] if given else os.environ.get("WANDB_DIR", str(root))
        settings.save_dir = folder  # with Lightning's default of save_dir, dir has no effect
    elif name == "MLFlowLogger":
        # From version 3.7 on MLflow refuses a folder unless this says that one is wanted.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        if not given:
            settings.save_dir = str(root.resolve() / "mlruns")
        if str(settings.get("tracking_uri")).startswith("sqlite:") and not settings.get("artifact_location"):
            settings.artifact_location = str(root.resolve() / "mlruns")
    elif name == "CometLogger" and not given:
        settings.offline_directory = str(root / "comet")


def _check_unused(settings: Namespace) -> None:
    """Refuse the folder of an earlier log: Lightning's logger would delete the log, or mix two runs in it."""
    version = settings.version if isinstance(settings.version, str) else f"version_{settings.version}"
    folder = Path(settings.save_dir, settings.get("name") or "", version)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} has another run's log; leave trainer.logger.version out, or give a new one")


def _recorded(run: Run) -> list[dict[str, Any]]:
    """Return class path and version of each logger's run, in the loggers' order; empty if the run has no record.

    Raises:
        RunError: if the record is damaged.
    """
    path = run.files.loggers
    if not path.is_file():
        return []
    try:
        records: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return [record for record in records if record["version"] is not None and record["class_path"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}); remove it, and the loggers begin new runs") from error
