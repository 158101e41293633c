"""The verdict on each parameter of Lightning's Trainer, and the checks of its values.

Some limits and intervals depend on the size of the data. :mod:`overfitting_lab.callbacks.limits` checks them.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pydoc import locate
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from lightning.pytorch.plugins import CheckpointIO, Precision
from lightning.pytorch.strategies import DDPStrategy

Verdict = Literal["honoured", "honoured within a range", "refused"]
# Returns what is wrong with a value in a configuration of fit.py, and the remedy, or None.
Problem = Callable[[Any, Namespace], str | None]

DURATION = "must be above zero, as DD:HH:MM:SS, such as 00:08:00:00 for eight hours, or as {hours: 8}"
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
CHECKPOINTS = {"checkpoint_minutes": 5.0, "checkpoint_steps": None, "keep": "all"}  # flags and their defaults
PROFILERS = ("simple", "advanced", "pytorch")


@dataclass(frozen=True)
class Flag:
    """A parameter of the Trainer: the verdict, a sentence for the documentation, and the check of a value."""

    verdict: Verdict
    effect: str
    problem: Problem


def honoured(effect: str) -> Flag:
    """Return a flag whose every value does what Lightning documents."""
    return Flag("honoured", effect, lambda value, config: None)


def limited(effect: str, problem: Problem) -> Flag:
    """Return a flag of which some values are refused."""
    return Flag(
        "honoured within a range", effect, lambda value, config: None if value is None else problem(value, config)
    )


def refused(effect: str, unset: Any = None) -> Flag:
    """Return a flag that must be left out; ``unset`` is the value that equals leaving it out."""
    return Flag("refused", effect, lambda value, config: None if value in (None, unset) else effect)


def at_least(least: int, words: str = "") -> Problem:
    """Return a check of a number that must be at least ``least``; ``words`` name what else is allowed."""
    return lambda value, _: None if value >= least else f"must be at least {least}{words}"


def batches(zero: str | None = None) -> Problem:
    """Return a check of a number of batches or a fraction; ``zero`` is the message that refuses 0, if it is refused."""

    def problem(value: float, config: Namespace) -> str | None:
        if value == 0 and zero is not None:
            return zero
        if value < 0 or not math.isfinite(value) or (value > 1 and value % 1):
            return "must be a whole number of batches, or a fraction of them up to 1.0"
        return None

    return problem


def seconds(duration: Any) -> float:
    """Return the seconds of DD:HH:MM:SS or of a dictionary of ``timedelta``'s arguments; 0 if it is not a duration."""
    if isinstance(duration, timedelta):
        return duration.total_seconds()
    if isinstance(duration, str):
        match = re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", duration.strip())
        duration = (
            dict(zip(("days", "hours", "minutes", "seconds"), map(int, match.groups()), strict=True)) if match else {}
        )
    try:
        return timedelta(**duration).total_seconds()
    except (TypeError, OverflowError):
        return 0


def duration(value: Any, config: Namespace) -> str | None:
    """Check a duration."""
    return None if seconds(value) > 0 else DURATION


def _is(value: Any, kind: type) -> bool:
    """Return True if a parsed value names a class of a kind."""
    named = locate(value.class_path) if isinstance(value, Namespace) else None
    return isinstance(named, type) and issubclass(named, kind)


def on_cpu(config: Namespace) -> bool:
    """Return True if the configured accelerator is the CPU here."""
    accelerator = config.trainer.accelerator
    return accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())


def _max_epochs(value: int, config: Namespace) -> str | None:
    if value < 1 and value != -1:
        return "must be at least 1, or -1 to train until --trainer.max_steps or --trainer.max_time"
    return None


def _max_steps(value: int, config: Namespace) -> str | None:
    return None if value >= 1 or value == -1 else "must be at least 1, or -1 to train until --trainer.max_epochs"


def at_most(maximum: str) -> Problem:
    """Return a check of a minimum: at least 0, and at most the flag ``maximum``, which would end training first."""

    def problem(value: int, config: Namespace) -> str | None:
        most = config.trainer[maximum]
        if value < 0:
            return "must be at least 0"
        if most is not None and 0 <= most < value:
            return f"is above --trainer.{maximum} {most}, which ends training first: give at most {most}"
        return None

    return problem


def _fast_dev_run(value: int, config: Namespace) -> str | None:
    if value < 0:
        return "must be true, or a number of batches of at least 1"
    if value and (config.resume or config.ckpt_path):
        return "would train nothing: it ends after a few steps, and the checkpoint has more steps already; leave it out"
    return None


def _logger(value: Any, config: Namespace) -> str | None:
    if value is False and config.resume:
        return "keeps nothing, but a resumed run is written to its folder: leave it out"
    return None


def _checkpointing(value: Any, config: Namespace) -> str | None:
    if value is not False:
        return None
    if config.resume:
        return "keeps no state, but a resumed run replaces its checkpoints: leave it out"
    idle = [name for name, default in CHECKPOINTS.items() if config[name] != default]
    return f"writes no checkpoint, so that --{idle[0]} does nothing: leave one of the two out" if idle else None


def _val_check_interval(value: Any, config: Namespace) -> str | None:
    if not isinstance(value, int | float):
        return duration(value, config)
    if value > 0 and isinstance(value, float) and config.trainer.check_val_every_n_epoch is None:
        return "must be a whole number of batches or a duration, because --trainer.check_val_every_n_epoch is null"
    return batches("would never validate: to turn validation off, give --trainer.limit_val_batches 0")(value, config)


def _devices(value: int | str | list[int], config: Namespace) -> str | None:
    """Check a number of devices, or their indices, which only GPUs have."""
    number = int(str(value)) if re.fullmatch(r"-?\d+", str(value)) else None
    if value == "auto" or (number is not None and number >= 1):
        return None
    if on_cpu(config):
        return "must be a number of processes of at least 1, or auto: a CPU has no numbered devices"
    indices = value if isinstance(value, list) else str(value).strip("[]").removesuffix(",").split(",")
    if number == -1 or (number is None and indices and all(str(index).strip().isdigit() for index in indices)):
        return None
    return "must be a number of GPUs of at least 1, their indices such as 0,1, auto, or -1 for all"


def _accelerator(value: str, config: Namespace) -> str | None:
    if value not in ACCELERATORS:
        return f"must be one of {', '.join(ACCELERATORS)}"
    there = {"gpu": torch.accelerator, "cuda": torch.cuda, "mps": torch.backends.mps}.get(value)
    if there is not None and not there.is_available():
        return "this machine has no GPU that torch can use: leave it out, or say cpu"
    return None


def _strategy(value: Any, config: Namespace) -> str | None:
    name = value if isinstance(value, str) else value.class_path
    start = "" if isinstance(value, str) else value.get("init_args.start_method", "")
    if any(word in f"{name} {start}" for word in ("spawn", "fork", "notebook")):
        return "starts processes that do not share the run's folder: use ddp"
    if "single" in name:
        return "is what auto chooses for one device: leave it out, and give --trainer.devices 1"
    if name in STRATEGIES or _is(value, DDPStrategy):
        return None
    return f"must be one of {', '.join(STRATEGIES)}: every device can hold these networks, so ddp is enough"


def _precision(value: str | int, config: Namespace) -> str | None:
    if str(value).startswith("transformer-engine"):
        return "needs a package that this project does not use: say bf16-mixed"
    if on_cpu(config) and str(value).startswith("16"):
        return "needs a GPU: say bf16-mixed or 32-true"
    return None


def _plugins(value: Any, config: Namespace) -> str | None:
    for plugin in value if isinstance(value, list) else [value]:
        if _is(plugin, CheckpointIO):
            return "would replace the writer of checkpoints that survive a crash: leave it out"
        if _is(plugin, Precision):
            return "sets the precision, which --trainer.precision decides: leave it out"
    return None


def _clip_value(value: float, config: Namespace) -> str | None:
    return None if 0 <= value < math.inf else "must be a number of at least 0, where 0 does not clip"


def _clip_algorithm(value: str, config: Namespace) -> str | None:
    if value.lower() not in ("norm", "value"):
        return "must be norm or value"
    if not config.trainer.gradient_clip_val:
        return "clips nothing without --trainer.gradient_clip_val"
    return None


def _benchmark(value: bool, config: Namespace) -> str | None:
    return (
        "contradicts --trainer.deterministic: leave one of them out" if value and config.trainer.deterministic else None
    )


def _profiler(value: Any, config: Namespace) -> str | None:
    if isinstance(value, str) and value.lower() not in PROFILERS:
        return f"must be one of {', '.join(PROFILERS)}, or a class of lightning.pytorch.profilers"
    return None


def _sync_batchnorm(value: bool, config: Namespace) -> str | None:
    if value and on_cpu(config) and config.trainer.devices not in (1, "1", "auto"):
        return "needs GPUs: leave it out"
    return None


def _default_root_dir(value: Any, config: Namespace) -> str | None:
    return "must be a folder of this machine: runs cannot be kept at a URL" if "://" in str(value) else None


TRAINER_FLAGS: dict[str, Flag] = {
    "accelerator": limited(f"One of {', '.join(ACCELERATORS)}, if the machine has it.", _accelerator),
    "strategy": limited(
        "`auto`, or `ddp` and its variants for several devices. Strategies that spawn or fork processes would lose the "
        "run's folder. Strategies that shard the network gain nothing here. Use `ddp` instead.",
        _strategy,
    ),
    "devices": limited(
        "The default is 1. On GPUs: a number, indices such as `0,1`, `auto` or `-1`. On a CPU: a number of processes.",
        _devices,
    ),
    "num_nodes": limited("At least 1. Start the same command on every node, for example with `torchrun`.", at_least(1)),
    "precision": limited(
        "The default suits the machine: `bf16-mixed` if its hardware multiplies faster in bf16, else `32-true`. "
        "float16 is refused on a CPU: Lightning would use bf16 instead, or train slower by orders of magnitude.",
        _precision,
    ),
    "logger": limited(
        "Loggers beside the project's own. `false` keeps nothing, so it is refused with `--resume`.", _logger
    ),
    "callbacks": honoured(
        "Callbacks of Lightning or your own, beside the project's. callbacks.md lists those that are refused."
    ),
    "fast_dev_run": limited(
        "A number runs so many batches, `true` runs one. Nothing is kept. Refused with `--resume` and `--ckpt_path`: "
        "the checkpoint already has more steps.",
        _fast_dev_run,
    ),
    "max_epochs": limited("At least 1, or -1 for no limit.", _max_epochs),
    "min_epochs": limited(
        "Callbacks and `max_time` cannot stop training earlier. Refused above `max_epochs`.", at_most("max_epochs")
    ),
    "max_steps": limited("At least 1, or -1 for no limit. Optimizer steps are counted.", _max_steps),
    "min_steps": limited(
        "Callbacks and `max_time` cannot stop training earlier. Refused above `max_steps` or the steps of all epochs.",
        at_most("max_steps"),
    ),
    "max_time": limited("A duration above zero: `DD:HH:MM:SS`, or keys such as `{hours: 8}`.", duration),
    "limit_train_batches": limited(
        "A number of batches, or a fraction up to 1.0 that leaves at least one. 0 is refused: it would train nothing.",
        batches("trains nothing: give a number of batches of at least 1, or a fraction above 0"),
    ),
    "limit_val_batches": limited(
        "A number of batches, or a fraction up to 1.0 that leaves at least one. 0 turns validation off: there is no "
        "best epoch, and the last weights are tested.",
        batches(),
    ),
    "limit_test_batches": limited(
        "A number of batches, or a fraction up to 1.0 that leaves at least one. 0 turns the test off.", batches()
    ),
    "limit_predict_batches": refused(
        "has no effect here: leave it out; scripts/predict.py predicts the images that you name"
    ),
    "overfit_batches": refused(
        "would train on other images in every epoch: to fit a few images, give --data.train_size, and a "
        "--data.batch_size that is not larger",
        unset=0,
    ),
    "val_check_interval": limited(
        "A number of batches, at most all of an epoch; a fraction of an epoch up to 1.0; or a duration, as in "
        "`max_time`. A fraction is rounded down to whole batches, at least one. With `check_val_every_n_epoch null` "
        "batches are counted across epochs, and the number must be reached before the run ends.",
        _val_check_interval,
    ),
    "check_val_every_n_epoch": limited(
        "At least 1 and at most the run's epochs, or `null` (see `val_check_interval`).", at_least(1, ", or null")
    ),
    "num_sanity_val_steps": limited("At least 0, or -1 for all validation batches.", at_least(-1)),
    "log_every_n_steps": limited(
        "At least 1. The default logs the loss and learning rate of ten steps an epoch.",
        at_least(1, "; the curves of the epochs do not depend on it"),
    ),
    "enable_checkpointing": limited(
        "`false` writes no checkpoints: the last weights are tested. Refused with `--resume`, `--keep weights`, "
        "`--checkpoint_steps` and `--checkpoint_minutes`.",
        _checkpointing,
    ),
    "enable_progress_bar": honoured("The default is a bar on a terminal, and a line an epoch elsewhere."),
    "enable_model_summary": honoured("`false` leaves the table of layers out."),
    "accumulate_grad_batches": limited(
        "At least 1 and at most an epoch's batches. An epoch's last step accumulates the batches that are left. Each "
        "has the same weight as in a whole step. More than 1 is refused with `--compile reduce-overhead` and "
        "`max-autotune`.",
        at_least(1),
    ),
    "gradient_clip_val": limited(
        "At least 0, where 0 does not clip. Works in every precision, with fused optimizers too.", _clip_value
    ),
    "gradient_clip_algorithm": limited(
        "`norm`, the default, or `value`. Refused without `gradient_clip_val`.", _clip_algorithm
    ),
    "deterministic": honoured(
        "With `true`, torch refuses operations that are not deterministic. With `warn`, it warns of them."
    ),
    "benchmark": limited("Chooses cuDNN's kernels by measuring. Refused with `deterministic`.", _benchmark),
    "inference_mode": honoured("`false` tests under `torch.no_grad`, as validation in training always does."),
    "use_distributed_sampler": honoured("Changes nothing: the project's loader divides batches among the processes."),
    "profiler": limited(
        f"One of {', '.join(PROFILERS)}, or a class of `lightning.pytorch.profilers`. Its report is shown. If it "
        "writes files, they go into the run's folder.",
        _profiler,
    ),
    "detect_anomaly": honoured("Says which operation's gradient is NaN. Slow."),
    "barebones": refused(
        "turns off the checkpoints, metrics and logs that a run consists of: to measure speed, use "
        "scripts/benchmark.py",
        unset=False,
    ),
    "plugins": limited(
        "Cluster environments and layer synchronization. A precision is chosen by `precision`, and the project's own "
        "writer of checkpoints cannot be replaced.",
        _plugins,
    ),
    "sync_batchnorm": limited(
        "For several GPUs. Refused for several processes on a CPU: torch cannot synchronize there.", _sync_batchnorm
    ),
    "reload_dataloaders_every_n_epochs": limited(
        "At least 0. Builds the loaders anew. The images and their order stay the same.", at_least(0)
    ),
    "default_root_dir": limited(
        "The folder of `lightning_logs/`, by default the working directory. `~` is your home. A URL is refused.",
        _default_root_dir,
    ),
    "enable_autolog_hparams": honoured("`false` keeps hyper-parameters from loggers beside the project's own."),
    "model_registry": refused(
        "has no effect here, since nothing is uploaded: leave it out, and export a run with scripts/export.py"
    ),
}


def problems(config: Namespace, names: Iterable[str] = TRAINER_FLAGS) -> list[str]:
    """Return a line for each flag of the Trainer that is wrong in a configuration of ``fit.py``."""
    found = []
    for name in names:
        value = config.trainer.get(name)
        problem = TRAINER_FLAGS[name].problem(value, config)
        if problem is not None:
            found.append(f"--trainer.{name} {_typed(value)}: {problem}")
    return found


def typed_flags(arguments: Iterable[str]) -> list[str]:
    """Return the names of the Trainer's flags on a command line."""
    typed = {match[1] for argument in arguments if (match := re.match(r"--trainer\.(\w+)", argument))}
    return [name for name in TRAINER_FLAGS if name in typed]


def _typed(value: Any) -> str:
    """Return a value as a user types it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_typed, value))}]"
    if isinstance(value, Namespace):
        return str(value.get("class_path", value))
    return value if isinstance(value, str) else json.dumps(value, default=str)
