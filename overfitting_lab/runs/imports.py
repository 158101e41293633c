"""Classes that a configuration or a checkpoint names by import path, and the modules beside a configuration."""

import os
import re
import shlex
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NAME = re.compile(r"(?<![\w./-])([A-Za-z_]\w*)\.[A-Za-z_]")  # of a top-level module, in a text
PROJECT = Path(__file__).resolve().parents[2]
# Where modules lie that a version or a commit identifies.
VERSIONED = [
    *(Path(sysconfig.get_paths()[kind]).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")),
    *(PROJECT / name for name in ("datamodules", "lightning_modules", "overfitting_lab")),
]
DIGITS = 12  # of the digest of a module
_added: list[str] = []  # folders in which Python finds modules because they lie beside a configuration


def why_not_imported(class_path: str) -> str | None:
    """Return why Python cannot import a class, and what to do, in one line; ``None`` if it can."""
    module, _, name = class_path.rpartition(".")
    top = module.partition(".")[0]
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name == top:
            return (
                f"there is no module {top}: lay {top}.py beside the configuration that --config names, or put its "
                "folder in front of the command: PYTHONPATH=FOLDER python ..."
            )
        return f"{module} needs {error.name}, which is not there: install it, or correct the name"
    except Exception as error:  # of any code
        return f"the module {module} fails: {type(error).__name__}: {error}"
    return None if hasattr(found, name) else f"{module} ({getattr(found, '__file__', '')}) has no {name}"


def code_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of each module of a user's own that settings name: of its file, or of a package's files.

    Installed packages and this project have versions. Modules that such a module imports are not in its digest.
    """
    names = sorted({match for value in settings.values() for match in NAME.findall(str(value))})
    found = {name: _own_files(name) for name in names}
    contents = {name: b"\0".join(file.read_bytes() for file in files) for name, files in found.items() if files}
    return {name: sha256(content).hexdigest()[:DIGITS] for name, content in contents.items()}


def _own_files(name: str) -> list[Path]:
    """Return the files of a user's own module or package; none if it is no module, or has a version."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return []
    folders = [*(spec.submodule_search_locations or [])] if spec else []
    place = Path(next(iter(folders), spec and spec.origin) or "").resolve()
    if any(place.is_relative_to(folder) for folder in VERSIONED):
        return []
    return sorted(place.rglob("*.py")) if folders else [place] if place.suffix == ".py" else []


def python_path() -> str:
    """Return what must stand in front of a command without these configurations; empty if they had no module beside."""
    needed = [folder for folder in dict.fromkeys(_added) if folder in sys.path]
    return f"PYTHONPATH={shlex.quote(os.pathsep.join(needed))} " if needed else ""


def find_modules_beside(config: Path, texts: Iterable[str]) -> None:
    """Let Python import the modules beside a configuration that texts name, here and in processes that this one starts.

    Modules that are installed come first.

    Raises:
        ValueError: if Python would import another module of the name.
    """
    folder = config.resolve().parent
    for name in {match for text in texts for match in NAME.findall(text)}:
        places = (folder / f"{name}.py", folder / name / "__init__.py")
        beside = next((path for path in places if path.is_file()), None)
        if beside is None and not any((folder / name).glob("*.py")):  # a package may lack its __init__.py
            continue
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
            _added.append(str(folder))
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(folder))))
        spec = find_spec(name)
        if spec is not None and spec.origin is not None and Path(spec.origin).resolve() != beside:
            mine = beside or folder / name
            raise ValueError(f"{config} names {name}, but Python imports it from {spec.origin}: rename {mine}")


def class_path(kind: type) -> str:
    """Return the import path of a class in its shortest form: ``torch.optim.Adam``."""
    package = kind.__module__.rpartition(".")[0]
    public = getattr(sys.modules.get(package), kind.__name__, None) is kind
    return f"{package if public else kind.__module__}.{kind.__name__}"
