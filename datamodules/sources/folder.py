"""Folders of image files."""

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from datamodules.errors import DataError
from datamodules.images import SIZE, read_image
from datamodules.sources.base import Labelled, Source
from overfitting_lab.runs.text import readable


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
        return readable(self.root.resolve().name)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the folders under ``train``, sorted.

        Raises:
            DataError: if there are fewer than two such folders.
        """
        train = self.root / "train"
        classes = tuple(sorted(set(map(readable, _folders(train))))) if train.is_dir() else ()
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
        return beside if self._writable(beside) == beside else self._fallback

    def version(self) -> str:
        """Return a digest of every file's name, size and time of change."""
        digest = hashlib.sha256(repr((SIZE, self.classes)).encode())
        for split in ("train", "test"):
            for file in self._files(split):
                stat, name = file.stat(), file.path.removeprefix(str(self.root))
                digest.update(os.fsencode(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"))
        return digest.hexdigest()

    def make(self, split: Literal["train", "test"]) -> Labelled:
        """Decode every image on all cores, with progress on standard error."""
        from rich.console import Console  # not at the top: needed once, when a folder is first read
        from rich.progress import track

        paths, classes = [Path(file.path) for file in self._files(split)], self.classes
        labels = np.array([classes.index(readable(path.parent.name)) for path in paths], dtype=np.int64)
        images = np.empty((len(paths), SIZE, SIZE, 3), dtype=np.uint8)
        description, console = f"decoding {self.name}/{split}", Console(stderr=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                shown: Any = {"console": console, "transient": True, "disable": not console.is_terminal}
                decoded = track(pool.map(read_image, paths), description, len(paths), **shown)
                for place, image in zip(images, decoded, strict=True):
                    place[:] = image
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return images, labels

    def _files(self, split: str) -> list["os.DirEntry[str]"]:
        """Return a split's files in the order of their names."""
        folder, known = self.root / split, self.classes
        if not folder.is_dir():
            raise self._missing(folder, "is missing")
        found = _folders(folder)
        if unknown := set(map(readable, found)).difference(known):
            raise DataError(f"{folder} has classes that train has not: {', '.join(sorted(unknown))}")
        entries = (entry for name in found for entry in os.scandir(folder / name))
        files = [entry for entry in entries if entry.is_file() and not entry.name.startswith(".")]
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
    """Return a sort key that puts 2.png before 10.png."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
