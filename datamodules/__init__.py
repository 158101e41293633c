"""From a source of images to normalized batches on the device."""

from datamodules.batch import Batch
from datamodules.cifar10 import CIFAR10DataModule
from datamodules.errors import DataError

__all__ = ["Batch", "CIFAR10DataModule", "DataError"]
