"""A source of images. Every source ends as memory-mapped uint8 arrays of one layout."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from datamodules.errors import DataError
from overfitting_lab.runs.text import readable

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images [N, 32, 32, 3] and their labels [N]


@dataclass(frozen=True)
class Images:
    """A labelled data set in memory."""

    name: str  # that people call it by
    classes: tuple[str, ...]  # names, in the order of the labels
    train_images: Tensor  # uint8 [N, 32, 32, 3]
    train_labels: Tensor  # int64 [N], in [0, len(classes))
    test_images: Tensor  # uint8 [M, 32, 32, 3]
    test_labels: Tensor  # int64 [M], in [0, len(classes))
    identity: str  # sha256 of the arrays, in hexadecimal


class Source(ABC):
    """A place that images come from.

    They are made once, as arrays in :attr:`cache`, and mapped into memory from there: several processes share them.
    """

    ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
    KEY: ClassVar[str]  # the source's name on the command line

    def __init__(self, root: Path) -> None:
        self.root = root  # folder that holds the data

    @property
    @abstractmethod
    def name(self) -> str:
        """Name that people call the data by."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels; known before anything is downloaded or decoded."""

    @property
    def cache(self) -> Path:
        """Folder of the prepared arrays: in the data's folder if that can be written to."""
        return self._writable(self.root / "prepared" / self.KEY)

    def _writable(self, place: Path) -> Path:
        """Return a place if it is there or can be made, else one in ``data/prepared`` of the working directory."""
        above = next(folder for folder in place.absolute().parents if folder.exists())
        return place if place.exists() or os.access(above, os.W_OK) else self._fallback / place.name

    @property
    def _fallback(self) -> Path:
        """Folder in the working directory for what belongs into the data's folder."""
        root = self.root.resolve()
        return Path("data/prepared") / f"{readable(root.name)}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"

    @abstractmethod
    def version(self) -> str:
        """Return a text that changes when the arrays have to be made again."""

    @abstractmethod
    def make(self, split: Literal["train", "test"]) -> Labelled:
        """Read or draw the images of a split. The training images come first."""

    def account(self) -> dict[str, Any]:
        """Return in plain values what else :meth:`make` found, for the file beside the arrays."""
        return {}

    def present(self) -> bool:
        """Return whether the data needs no download."""
        return True

    def prepare(self) -> None:
        """Make the arrays if they are missing or out of date. Of several processes at once, one makes them.

        Raises:
            DataError: if the data cannot be had or used.
        """
        version = self.version()
        if self._stored().get("version") == version:
            return
        try:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.cache}.lock"):
                if self._stored().get("version") != version:
                    self._store(version)
        except OSError as error:
            raise DataError(
                f"cannot keep the prepared images in {self.cache}: {error.strerror or error}; "
                "make the folder writable, or put the data on a disk with room, where you may write"
            ) from error

    def load(self) -> Images:
        """Map the prepared arrays into memory.

        Raises:
            DataError: if they have not been prepared.
        """
        stored = self._stored()
        if not stored:
            raise DataError(f"{self.cache} holds no prepared images; call prepare_data() first")
        # Copy-on-write, because torch warns of tensors over read-only memory; nothing here writes.
        arrays = {name: torch.from_numpy(np.load(self.cache / f"{name}.npy", mmap_mode="c")) for name in self.ARRAYS}
        return Images(name=self.name, classes=self.classes, identity=stored["identity"], **arrays)

    def load_or_compute(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """Load a tensor that was once computed from the prepared arrays, or compute it and write it beside them.

        The name contains the arrays' identity, as :attr:`cache` may hold other arrays by now. New arrays discard the
        file. A damaged file is replaced. A tensor that cannot be written is computed each time.
        """
        path = self.cache / f"{name}.npy"
        with contextlib.suppress(OSError, ValueError, EOFError):  # missing or damaged
            return torch.from_numpy(np.load(path, allow_pickle=False))
        computed = compute()
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=self.cache, prefix=f".{name}.") as folder:
            np.save(Path(folder) / path.name, computed.numpy(), allow_pickle=False)
            (Path(folder) / path.name).replace(path)
        return computed

    def _stored(self) -> dict[str, Any]:
        """Describe the prepared arrays in plain values; nothing if they are missing or damaged."""
        try:
            stored = json.loads((self.cache / "meta.json").read_text(encoding="utf-8"))
            return stored if isinstance(stored, dict) and stored.get("bytes") == self._sizes(self.cache) else {}
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}

    def _sizes(self, folder: Path) -> dict[str, int]:
        return {name: (folder / f"{name}.npy").stat().st_size for name in self.ARRAYS}

    def _store(self, version: str) -> None:
        """Make the arrays and write them to a folder beside the cache, then put it in the cache's place."""
        arrays: dict[str, NDArray[Any]] = {}
        for split in ("train", "test"):
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = self.make(split)
        labels = np.concatenate([arrays["train_labels"], arrays["test_labels"]])
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise DataError(
                f"{self.root}: labels run from {labels.min()} to {labels.max()}, "
                f"but there are {len(self.classes)} classes (0 to {len(self.classes) - 1})"
            )
        digest = hashlib.sha256()
        new = self.cache.with_name(f"{self.cache.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            for name, array in arrays.items():
                digest.update(repr((name, array.shape)).encode())
                digest.update(np.ascontiguousarray(array).data)
                np.save(new / f"{name}.npy", array, allow_pickle=False)
            pixels = [arrays[f"{split}_images"] for split in ("train", "test")]
            read = {
                "images": {"train": len(pixels[0]), "test": len(pixels[1])},
                "classes": len(self.classes),
                "values": [min(int(part.min()) for part in pixels), max(int(part.max()) for part in pixels)],
                **self.account(),
            }
            stored = {"version": version, "identity": digest.hexdigest(), "bytes": self._sizes(new), "read": read}
            (new / "meta.json").write_text(json.dumps(stored), encoding="utf-8")
            shutil.rmtree(self.cache, ignore_errors=True)
            new.rename(self.cache)
        finally:
            shutil.rmtree(new, ignore_errors=True)
