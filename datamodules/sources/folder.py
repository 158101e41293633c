"""Folders of image files."""

import hashlib
import os
from collections import Counter
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from datamodules import images
from datamodules.errors import DataError
from datamodules.images import SIZE, UnreadableError, named_as_image, read_images, refuse
from datamodules.sources.base import Labelled, Source
from datamodules.sources.layout import (
    advice,
    class_folders,
    closest,
    files,
    folder_names,
    holds_images,
    listed,
    loose_files,
    natural,
)
from overfitting_lab.runs.text import readable


@final
class Folder(Source):
    """``train/<class>/*`` and ``test/<class>/*``, in any format that Pillow reads, any number of classes.

    Images may lie in folders within a class's folder. What is surely no image or no class is left out, and counted on
    the screen when the folder is first decoded. The images of a split stand in the order of their file names, whatever
    their class, and numbers count by value: files named by their index keep their order. Images are cut to a centred
    square and resized to 32x32. The prepared arrays lie beside the folder, or in ``data/prepared`` of the working
    directory if that place is read-only.
    """

    KEY = "folder"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._left_out = Counter[str]()  # files that are no images, by the ending of their names
        self._noted = Counter[str]()  # images that the account mentions
        self._without_images = set[str]()  # folders
        self._unreadable: list[UnreadableError] = []

    @property
    def name(self) -> str:
        """Name of the folder."""
        return readable(self.root.resolve().name)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the folders under ``train`` in which images lie, or in ``test`` under the same name, sorted.

        Raises:
            DataError: if there are fewer than two such folders, or no images in ``train``.
        """
        train, test = (class_folders(self.root / split) for split in ("train", "test"))
        if not train:
            raise self._missing("train", "holds no folder of images")
        with_images = {name for name, folders in train.items() if holds_images(folders)}
        if not with_images:
            raise self._missing("train", "holds no images")
        classes = sorted(name for name in train if name in with_images or holds_images(test.get(name, [])))
        if len(classes) == 1:
            within = {name for folder in train[classes[0]] for name in class_folders(folder)}
            hint = f"; if the classes are the folders in it, move them up: {listed(within)}" if within else ""
            fault = f"has one class, {classes[0]}: it needs a folder for each class, two or more"
            raise DataError(f"{self.root / 'train'} {fault}{hint}")
        return tuple(classes)

    @property
    def cache(self) -> Path:
        """See the base class."""
        root = self.root.resolve()
        beside = root.with_name(f".{root.name}.prepared")
        return beside if self._writable(beside) == beside else self._fallback

    def version(self) -> str:
        """Return a digest of the code that reads images, and of every file's name, size and time of change."""
        digest = hashlib.sha256(Path(images.__file__).read_bytes())
        digest.update(ascii((SIZE, self.classes)).encode())
        root = os.path.join(self.root, "")  # noqa: PTH118  # of ".", no path begins with it
        for split in ("train", "test"):
            for file, _ in self._files(split):
                try:
                    stat = file.stat()
                    changed = stat.st_size, stat.st_mtime_ns
                except OSError:  # a link to nothing, or to itself
                    changed = 0, 0
                digest.update(b"%b\0%d\0%d\n" % (os.fsencode(os.sep + file.path.removeprefix(root)), *changed))
        return digest.hexdigest()

    def prepare(self) -> None:
        """Decode the images if they are not prepared, and print what was read.

        Raises:
            DataError: if there are too few images, or some cannot be read.
        """
        super().prepare()
        if self._noted:
            print(_lines(self.name, self._stored()["read"]), flush=True)

    def make(self, split: Literal["train", "test"]) -> Labelled:
        """Decode every image on all cores, with progress on standard error."""
        from rich.console import Console  # not at the top: needed once, when a folder is first read
        from rich.progress import track

        found = self._files(split, self._left_out)
        paths, folder = [Path(file.path) for file, _ in found], self.root / split
        console = Console(stderr=True)
        shown: Any = {"console": console, "transient": True, "disable": not console.is_terminal}
        tracked = partial(track, description=f"decoding {self.name}/{split}", total=len(paths), **shown)
        read = read_images(paths, skip_others=True, tracked=tracked)
        self._unreadable += read.unreadable
        if split == "test":  # the last: all are named at once
            refuse(self._unreadable, self.root)
        if not read.indices and not read.unreadable:
            raise self._missing(split, "holds no images")
        self._left_out.update(_kind(paths[index]) for index in set(range(len(paths))).difference(read.indices))
        self._left_out.update(_kind(path) for path in loose_files(folder) if not named_as_image(path.name))
        self._without_images |= folder_names(folder) - set(self.classes)
        self._noted["transparent"] += read.transparent
        self._noted["deeper"] += sum(paths[index].parents[1] != folder for index in read.indices)
        self._noted["outside"] += sum(named_as_image(path.name) for path in loose_files(folder))
        labels = {name: label for label, name in enumerate(self.classes)}
        return read.images, np.array([labels[found[index][1]] for index in read.indices], dtype=np.int64)

    def account(self) -> dict[str, Any]:
        """See the base class."""
        return {
            "unreadable": 0,  # or else there are no arrays
            **self._noted,
            "left_out": dict(self._left_out),
            "folders_without_images": sorted(self._without_images),
            "folders_not_read": sorted(class_folders(self.root).keys() - {"train", "test"}),
        }

    def _files(self, split: str, left_out: Counter[str] | None = None) -> list[tuple["os.DirEntry[str]", str]]:
        """Return a split's files and their classes, in the order of the files' names."""
        folder, known = self.root / split, self.classes
        if not folder.is_dir():
            raise self._missing(split, "is missing")
        folders = class_folders(folder)
        unknown = [name for name in folders if name not in known and holds_images(folders[name])]
        if unknown:
            meant = closest(unknown[0], known)
            hint = f"; train has {meant}: rename one of the two" if meant else ""
            raise DataError(f"{folder} has classes that train lacks: {listed(unknown)}{hint}")
        found = [(file, name) for name in known for path in folders.get(name, []) for file in files(path, left_out)]
        if not found:
            raise self._missing(split, "holds no images")
        return sorted(found, key=lambda pair: (natural(pair[0].name), pair[0].path))

    def _missing(self, split: str, fault: str) -> DataError:
        folder = self.root / split
        loose = sum(named_as_image(path.name) for path in loose_files(folder))
        hint = f"{loose} images lie in {folder} itself, outside of any class" if loose else advice(self.root)
        return DataError(f"{folder} {fault}; a folder source needs train/<class>/* and test/<class>/*; {hint}")


def _kind(path: Path) -> str:
    return path.suffix.lower() or path.name


def _lines(name: str, read: dict[str, Any]) -> str:
    """Say what was read of a folder, as :meth:`Folder.account` and the base class describe it."""
    images, (least, greatest) = read["images"], read["values"]
    lines = [
        f"{name}: {images['train']:,} training and {images['test']:,} test images of {read['classes']} classes, "
        f"{read['unreadable']} unreadable, values from {least} to {greatest}"
    ]
    if read["transparent"]:
        lines.append(f"{read['transparent']:,} images are transparent in part: they are laid on white")
    if read["deeper"]:
        lines.append(f"{read['deeper']:,} images lie in folders within the folder of their class")
    if read["outside"]:
        lines.append(f"not read: {read['outside']:,} images in train or test, but outside of any class")
    if read["left_out"]:
        kinds = [f"{number:,} {kind}" for kind, number in sorted(read["left_out"].items())]
        lines.append(f"left out, as they are no images: {listed(kinds)}")
    if read["folders_without_images"]:
        lines.append(f"not used as classes, because they contain no images: {listed(read['folders_without_images'])}")
    if read["folders_not_read"]:
        lines.append(f"not read: {listed(read['folders_not_read'])} beside train and test")
    return "read       " + "\n           ".join(lines)
