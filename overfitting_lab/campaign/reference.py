"""``lightning_logs/reference/``: the small files of the campaign's runs."""

import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from overfitting_lab.campaign.plan import Entry
from overfitting_lab.cli.replay import as_yaml
from overfitting_lab.runs import Run, RunFiles
from overfitting_lab.runs.figures import reduce_colours
from overfitting_lab.runs.files import experiments_folder

LOGS = experiments_folder(None)
REFERENCE = LOGS / "reference"
LARGEST = 45 * 2**20  # bytes of the whole folder
STANDS_FOR_ROOT = "FOLDER"
PICTURE_NAMES = ("_pictures", "_shown", "_most_forgotten", "_least_forgotten")  # ends of names in images.npz


def folder_of(entry: Entry, seed: int) -> Path:
    """Return the folder of a reference run: the number of its version is its seed."""
    return REFERENCE / entry.name / f"version_{seed}"


def reference_runs(entry: Entry) -> dict[int, Run]:
    """Return the finished reference runs of an entry by seed, as far as they were made with its settings."""
    found = {}
    for path in (REFERENCE / entry.name).glob("version_*"):
        if RunFiles(path).config.is_file():
            run = Run(path)
            if run.finished and not entry.differences(run):
                found[run.summary.seed] = run
    return dict(sorted(found.items()))


def collect(run: Run, folder: Path, *, whole: bool) -> None:
    """Copy a run's small files, in place of an older copy. ``whole`` copies its curves, event files and pictures too.

    The copy names no place of this machine: ``FOLDER`` stands for the folder of the images, and an event file that
    names a place is left out. TensorBoard then lacks the table of settings.
    """
    root, here = str(run.settings["data.root"]), str(Path.cwd())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        files = RunFiles(Path(place, folder.name))
        files.folder.mkdir()
        files.config.write_text(_without_places(_config(run), root, here), encoding="utf-8")
        files.summary.write_text(
            _without_places(run.files.summary.read_text(encoding="utf-8"), root, here), encoding="utf-8"
        )
        if run.images:
            _write_images(files.images, run.images if whole else _without_pictures(run.images))
        for path in (run.files.metrics, *(_shown(run) if whole else ())):
            if path.is_file() and not any(name.encode() in path.read_bytes() for name in (root, here)):
                copy = files.folder / path.relative_to(run.folder)
                copy.parent.mkdir(exist_ok=True)
                (reduce_colours if path == run.files.curves else shutil.copy)(path, copy)
        if folder.exists():
            shutil.rmtree(folder)
        files.folder.rename(folder)


def reference_bytes() -> int:
    """Return the size of all reference runs, also while another worker replaces one."""
    size = 0
    for folder, _, names in os.walk(REFERENCE):
        for name in names:
            with suppress(FileNotFoundError):
                size += Path(folder, name).stat().st_size
    return size


def _shown(run: Run) -> Iterator[Path]:
    yield run.files.curves
    yield from sorted(run.folder.rglob("events.out.tfevents*"))


def _write_images(path: Path, images: Mapping[str, NDArray[Any]]) -> None:
    """Write an ``images.npz`` that is an eighth smaller than NumPy's, and that NumPy reads too."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        for name, array in images.items():
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            file.writestr(f"{name}.npy", content.getvalue())


def _without_pictures(images: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return the arrays of ``images.npz`` but pictures and their places; see ``callbacks.images``."""
    return {name: array for name, array in images.items() if not name.endswith(PICTURE_NAMES)}


def _config(run: Run) -> str:
    config = yaml.safe_load(run.files.config.read_text(encoding="utf-8"))
    config["data"]["root"] = STANDS_FOR_ROOT
    config["trainer"].pop("default_root_dir", None)
    return as_yaml(config)


def _without_places(text: str, root: str, here: str) -> str:
    return text.replace(root, STANDS_FOR_ROOT).replace(f"{here}/", "").replace(here, ".")
