"""The recipe of a run: the settings that decide its result, as opposed to the circumstances it was made in."""

import codecs
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml import CSafeLoader

from overfitting_lab.runs.files import RunError
from overfitting_lab.runs.imports import code_of

# Every setting of fit.py is in one of these two. The settings of a class, such as model.dropout, follow the class.
DECISIVE = (
    "seed_everything", "monitor", "model", "data.source", "data.split", "data.train_size", "data.val_size",
    "data.test_size", "data.subset", "data.augment", "data.cutout", "data.mixup", "data.cutmix", "data.label_noise",
    "data.batch_size", "data.image_size", "data.mean", "data.std", "data.seed", "data.split_seed",
    "trainer.accumulate_grad_batches", "trainer.callbacks", "trainer.check_val_every_n_epoch",
    "trainer.enable_checkpointing", "trainer.fast_dev_run", "trainer.gradient_clip_algorithm",
    "trainer.gradient_clip_val", "trainer.limit_test_batches", "trainer.limit_train_batches",
    "trainer.limit_val_batches", "trainer.max_epochs", "trainer.max_steps", "trainer.max_time",
    "trainer.min_epochs", "trainer.min_steps", "trainer.overfit_batches", "trainer.sync_batchnorm",
    "trainer.val_check_interval",
)  # fmt: skip
# These say where and on what a run is made, how often it is saved, and what is shown of it. Up to rounding, the result
# is the same, except that processes draw dropout's masks and measure batch normalization each by itself.
CIRCUMSTANTIAL = (
    "config", "experiment", "resume", "ckpt_path", "checkpoint_minutes", "checkpoint_steps", "keep", "compile",
    "doctor", "check", "data.on_device", "data.probe_every", "data.root", "data.stand_in", "trainer.accelerator",
    "trainer.barebones", "trainer.benchmark", "trainer.default_root_dir", "trainer.detect_anomaly",
    "trainer.deterministic", "trainer.devices", "trainer.enable_autolog_hparams", "trainer.enable_model_summary",
    "trainer.enable_progress_bar", "trainer.inference_mode", "trainer.limit_predict_batches",
    "trainer.log_every_n_steps", "trainer.logger", "trainer.model_registry", "trainer.num_nodes",
    "trainer.num_sanity_val_steps", "trainer.plugins", "trainer.precision", "trainer.profiler",
    "trainer.reload_dataloaders_every_n_epochs", "trainer.strategy", "trainer.use_distributed_sampler",
)  # fmt: skip

# These decide how long a run trains, or what it is tested on. If they change on the way, only the last value counts.
LAST_COUNTS = (
    "data.test_size", "trainer.limit_test_batches", "trainer.max_epochs", "trainer.max_steps", "trainer.max_time",
    "trainer.min_epochs", "trainer.min_steps",
)  # fmt: skip

# Settings that configurations of earlier versions lack, and the values that those versions trained with.
LATER = {
    "monitor": "val_acc", "data.subset": 0, "data.cutout": 0, "data.mixup": 0.0, "data.cutmix": 0.0,
    "data.label_noise": 0.0, "model.label_smoothing": 0.0, "model.batch_norm": False, "model.width": 1.0,
    "model.decay_biases": True,
}  # fmt: skip

# Import paths in configurations of earlier versions, and what they are now.
RENAMED = {
    "callbacks.plateau.StopAfterPlateaus": "overfitting_lab.callbacks.plateau.PlateauSchedule",
    "overfitting_lab.cli.processes.TogetherStrategy": "overfitting_lab.distributed.together.TogetherStrategy",
}


def decides(setting: str) -> bool:
    """Return True if a setting affects the result. An unknown one counts: training again beats a wrong result."""
    return not any(f"{setting}.".startswith(f"{name}.") for name in CIRCUMSTANTIAL)


def own_code(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of a user's own modules, as they are now, that the decisive settings name."""
    return code_of({name: value for name, value in settings.items() if decides(name)})


def setting_name(flag: str) -> str:
    """Return a flag's setting as a recipe names it: ``model.dropout`` for ``--model.init_args.dropout=0.5``."""
    return flag.partition("=")[0].removeprefix("--").replace(".init_args", "")


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


def recipe(
    settings: Mapping[str, Any], data: Mapping[str, Any] | None = None, code: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the settings, by flag, that decide the result, and the digests of a user's own modules.

    ``data`` is the data module's description. It has the values that the data decides if they are not given. A setting
    that a configuration of an earlier version lacks has the value of that version. ``code`` has the digests; by default
    they are those of the modules as they are now.
    """
    mine = {name: value for name, value in settings.items() if decides(name)}
    digests = {f"code.{name}": digest for name, digest in (own_code(settings) if code is None else code).items()}
    decided = {f"data.{name}": data[name] for name in ("augment", "train_size", "val_size")} if data else {}
    ours = str(settings.get("model")).startswith("lightning_modules.")  # another network may have no such settings
    later = {name: value for name, value in LATER.items() if ours or not name.startswith("model.")}
    return later | mine | decided | digests


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the decisive settings that differ, by flag: their values before and after.

    A setting that one of the two lacks is ``None``: a run's ``config.yaml`` leaves out those that are ``None`` by
    default. A configuration of an earlier version has the value of that version.
    """
    one, other = recipe(before, code={}), recipe(after, code={})
    pairs = {name: (one.get(name), other.get(name)) for name in [*one, *other]}
    return {name: values for name, values in pairs.items() if values[0] != values[1]}


def change_lines(changes: Mapping[str, tuple[Any, Any]]) -> Iterator[str]:
    """Yield a line for each setting that changed, from its values before and after."""
    for name, (before, after) in changes.items():
        yield f"changed    {name}: {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def with_earlier(recipe: Mapping[str, Any], earlier: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Return a recipe that names all values with which a run was trained, such as ``0.0, then 0.3``."""
    then = {name: [*values, *([recipe[name]] if name in recipe else [])] for name, values in earlier.items()}
    return {**recipe, **{name: ", then ".join(map(str, values)) for name, values in then.items()}}


def read_config(path: Path) -> str:
    """Return the text of a configuration, UTF-8 or with the mark of UTF-16, with the import paths of today."""
    content = path.read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if marked else "utf-8-sig").replace("\r\n", "\n")
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
