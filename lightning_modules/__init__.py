"""Networks as LightningModules: from a batch on the device to a loss."""

from lightning_modules.alexnet import AlexNet
from lightning_modules.classifier import ImageClassifier
from lightning_modules.vgg import VGG

__all__ = ["VGG", "AlexNet", "ImageClassifier"]
