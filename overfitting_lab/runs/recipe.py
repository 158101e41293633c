"""The recipe of a run: the settings that decide its result, as opposed to the circumstances it was made in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml import CSafeLoader

from overfitting_lab.runs.files import RunError

# Every setting of fit.py: does it decide the result, up to rounding? The others say where and on what a run is made,
# how often it is saved, or what is shown of it. The settings of a class, such as model.dropout, follow the class.
DECIDES = {
    "config": False,
    "experiment": False,
    "resume": False,
    "ckpt_path": False,
    "checkpoint_minutes": False,
    "checkpoint_steps": False,
    "compile": False,
    "doctor": False,
    "check": False,
    "seed_everything": True,
    "model": True,
    "data.root": False,
    "data.source": True,
    "data.stand_in": False,
    "data.split": True,
    "data.train_size": True,
    "data.val_size": True,
    "data.augment": True,
    "data.label_noise": True,
    "data.batch_size": True,
    "data.image_size": True,
    "data.mean": True,
    "data.std": True,
    "data.seed": True,
    "data.split_seed": True,
    "trainer.accelerator": False,
    "trainer.strategy": False,
    "trainer.devices": False,
    "trainer.num_nodes": False,
    "trainer.precision": False,
    "trainer.logger": False,
    "trainer.callbacks": True,
    "trainer.fast_dev_run": True,
    "trainer.max_epochs": True,
    "trainer.min_epochs": True,
    "trainer.max_steps": True,
    "trainer.min_steps": True,
    "trainer.max_time": True,
    "trainer.limit_train_batches": True,
    "trainer.limit_val_batches": True,
    "trainer.limit_test_batches": True,
    "trainer.limit_predict_batches": True,
    "trainer.overfit_batches": True,
    "trainer.val_check_interval": True,
    "trainer.check_val_every_n_epoch": True,
    "trainer.num_sanity_val_steps": False,
    "trainer.log_every_n_steps": False,
    "trainer.enable_checkpointing": True,
    "trainer.enable_progress_bar": False,
    "trainer.enable_model_summary": False,
    "trainer.accumulate_grad_batches": True,
    "trainer.gradient_clip_val": True,
    "trainer.gradient_clip_algorithm": True,
    "trainer.deterministic": False,
    "trainer.benchmark": False,
    "trainer.inference_mode": False,
    "trainer.use_distributed_sampler": False,
    "trainer.profiler": False,
    "trainer.detect_anomaly": True,
    "trainer.barebones": False,
    "trainer.plugins": False,
    "trainer.sync_batchnorm": True,
    "trainer.reload_dataloaders_every_n_epochs": True,
    "trainer.default_root_dir": False,
    "trainer.enable_autolog_hparams": False,
    "trainer.model_registry": True,
}

# Import paths in configurations of earlier versions, and what they are now.
RENAMED = {"callbacks.plateau.StopAfterPlateaus": "overfitting_lab.callbacks.plateau.PlateauSchedule"}


def decides(setting: str) -> bool:
    """Tell if a setting decides the result. An unknown one does: training again is better than a wrong result."""
    parts = setting.split(".")
    known = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((DECIDES[name] for name in known if name in DECIDES), True)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested configuration to flags, such as ``model.optimizer.lr``; a class stands under its parent's."""
    settings: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix.removesuffix(".") if key == "class_path" else prefix if key == "init_args" else f"{prefix}{key}"
        if isinstance(value, Mapping):
            settings |= flat(value, name if key == "init_args" else f"{name}.")
        else:
            settings[name] = value
    return settings


def recipe(settings: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the settings that decide the result.

    Args:
        settings: all settings by flag; see :func:`flat`.
        data: the data module's description. It has the values of settings that the data decides if they are not given.
    """
    decided = {f"data.{name}": data[name] for name in ("augment", "train_size", "val_size")} if data else {}
    return {name: value for name, value in settings.items() if decides(name)} | decided


def read_config(path: Path) -> str:
    """Return the text of a configuration, with the import paths of today."""
    text = path.read_text(encoding="utf-8")
    for before, now in RENAMED.items():
        text = text.replace(f"class_path: {before}\n", f"class_path: {now}\n")
    return text


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a configuration by flag; see :func:`flat`.

    Raises:
        RunError: if the file is no configuration.
    """
    try:
        content = yaml.load(read_config(path), CSafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no configuration")
    return flat(content)
