"""Checkpoints and other files of torch, loaded without running code from them."""

import pickle
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from overfitting_lab.runs.files import RunError


def load_saved(path: Path, kind: str = "file of torch") -> Any:
    """Return what ``torch.save`` wrote, on the CPU, with tensors mapped into memory.

    A message calls the file a ``kind``.

    Raises:
        RunError: if there is no such file, or it is damaged or would run code when loaded.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except PermissionError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except (RuntimeError, OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
        unloaded = re.search(r"GLOBAL ([\w.]+)", str(error))
        held = f" ({unloaded[1]})" if unloaded else ""
        raise RunError(
            f"{path} is no {kind}, or a damaged one, or one that would run code when loaded{held}; "
            "use another one, or train the run again"
        ) from error


def imported(name: str) -> Any:
    """Return what an import path names, if its module is imported already; ``None`` otherwise."""
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module), attribute, None)


def foreign_names(settings: Any) -> Iterator[str]:
    """Yield the import paths among a checkpoint's settings of packages that are installed but not imported yet."""
    if isinstance(settings, dict | list | tuple):
        for each in settings.values() if isinstance(settings, dict) else settings:
            yield from foreign_names(each)
    elif isinstance(settings, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", settings):
        package = settings.partition(".")[0]
        if package not in sys.modules and find_spec(package) is not None:
            yield settings


def load_checkpoint(path: Path, *, with_state: bool = False) -> dict[str, Any]:
    """Return the content of a Lightning checkpoint, which must hold the state of training if ``with_state``.

    Raises:
        RunError: if the file cannot be used.
    """
    wanted = "last.ckpt or previous.ckpt" if with_state else "best.ckpt or last.ckpt"
    if path.is_dir():
        raise RunError(f"{path} is a folder; give {wanted} from a run's checkpoints/")
    content = load_saved(path, "checkpoint")
    if not (isinstance(content, dict) and content.keys() >= {"state_dict", "pytorch-lightning_version"}):
        raise RunError(f"{path} is no checkpoint of a run; give {wanted} from a run's checkpoints/")
    if with_state and "optimizer_states" not in content:
        raise RunError(f"{path} holds weights only and no state to resume from; give a {wanted}")
    return content


def checked_checkpoint(path: Path, *, with_state: bool = False) -> Path:
    """Return the path of a checkpoint that :func:`load_checkpoint` can load; it raises otherwise."""
    load_checkpoint(path, with_state=with_state)
    return path
