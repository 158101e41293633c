"""Folders of image files."""

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import DataError
from datamodules.images import SIZE, read_image
from datamodules.sources.base import Arrays, Source


@final
class Folder(Source):
    """``train/<class>/*`` and ``test/<class>/*``, in any format that Pillow reads, any number of classes.

    The images of a split stand in the order of their file names, whatever their class, and numbers count by value:
    files named by their index keep their order. Images are cut to a centred square and resized to 32x32. The prepared
    arrays lie beside the folder, or in ``data/prepared`` of the working directory if that place is read-only.
    """

    KEY = "folder"

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.root.resolve().name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the folders under ``train``, sorted.

        Raises:
            DataError: if there are fewer than two such folders.
        """
        train = self.root / "train"
        classes = tuple(sorted(_folders(train))) if train.is_dir() else ()
        if not classes:
            raise self._missing(train, "holds no folder of images")
        if len(classes) == 1:
            raise DataError(f"{train} has one class, {classes[0]}: it needs a folder for each class, two or more")
        return classes

    @property
    def cache(self) -> Path:
        """See the base class."""
        root = self.root.resolve()
        beside = root.with_name(f".{root.name}.prepared")
        elsewhere = Path("data/prepared") / f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"
        return beside if beside.exists() or os.access(root.parent, os.W_OK) else elsewhere

    def version(self) -> str:
        """Return a digest of every file's name, size and time of change."""
        digest = hashlib.sha256(repr((SIZE, self.classes)).encode())
        for split in ("train", "test"):
            for file in self._files(split):
                stat = file.stat()
                digest.update(
                    f"{file.path.removeprefix(str(self.root))}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode()
                )
        return digest.hexdigest()

    def make(self) -> Arrays:
        """Decode every image on all cores, with progress on standard error."""
        label = {name: index for index, name in enumerate(self.classes)}
        arrays: Arrays = {}
        for split in ("train", "test"):
            paths = [Path(file.path) for file in self._files(split)]
            arrays[f"{split}_images"] = _decode(paths, f"decoding {self.name}/{split}")
            arrays[f"{split}_labels"] = np.array([label[path.parent.name] for path in paths], dtype=np.int64)
        return arrays

    def _files(self, split: str) -> list["os.DirEntry[str]"]:
        """Return a split's files in the order of their names."""
        folder = self.root / split
        if not folder.is_dir():
            raise self._missing(folder, "is missing")
        classes = self.classes
        if unknown := set(_folders(folder)) - set(classes):
            raise DataError(f"{folder} has classes that train has not: {', '.join(sorted(unknown))}")
        files = [
            entry
            for name in classes
            if (folder / name).is_dir()
            for entry in os.scandir(folder / name)
            if entry.is_file() and not entry.name.startswith(".")
        ]
        if not files:
            raise DataError(f"{folder} holds no images")
        return sorted(files, key=lambda file: (_natural(file.name), file.path))

    @staticmethod
    def _missing(folder: Path, fault: str) -> DataError:
        return DataError(
            f"{folder} {fault}; a folder source needs train/<class>/* and test/<class>/*; "
            "if they lie elsewhere, say --data.root FOLDER"
        )


def _folders(path: Path) -> list[str]:
    return [entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith(".")]


def _natural(name: str) -> list[str | int]:
    """Return a key by which 2.png comes before 10.png."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _decode(paths: list[Path], description: str) -> NDArray[np.uint8]:
    """Read images [N, 32, 32, 3] on all cores."""
    from rich.console import Console  # not at the top: needed once, when a folder is first read
    from rich.progress import track

    images = np.empty((len(paths), SIZE, SIZE, 3), dtype=np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            decoded = pool.map(read_image, paths)
            shown = track(decoded, description, len(paths), console=Console(stderr=True), transient=True)
            for place, image in zip(images, shown, strict=True):
                place[:] = image
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images
