"""Places that images come from: the CIFAR-10 archive, a folder of files, or synthetic images."""

from datamodules.sources.archive import CIFAR10
from datamodules.sources.base import Images, Source
from datamodules.sources.folder import Folder
from datamodules.sources.synthetic import Synthetic

SOURCES: dict[str, type[Source]] = {source.KEY: source for source in (CIFAR10, Folder, Synthetic)}

__all__ = ["CIFAR10", "SOURCES", "Folder", "Images", "Source", "Synthetic"]
