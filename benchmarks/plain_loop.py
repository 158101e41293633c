"""Train by the recipe of overfit.yaml in a first, plain version: without Lightning or anything of this project.

``python -m benchmarks.plain_loop ARRAYS`` trains AlexNet on the first 1,000 images and tests it, in float32, image by
image through PIL. ARRAYS is a folder of train_images.npy, train_labels.npy, test_images.npy and test_labels.npy.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Images(Dataset[tuple[Tensor, int]]):
    """Images and labels in memory, an image at a time, as in ``torchvision.datasets.CIFAR10``."""

    def __init__(self, images: Any, labels: Any, transform: Callable[[Any], Tensor]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def pil_transform(*augmentations: Any) -> Callable[[Any], Tensor]:
    """Return PIL transforms from an image, uint8 [height, width, 3], to a normalized tensor."""
    end = (transforms.ToTensor(), transforms.Normalize(MEAN, STD))
    return transforms.Compose([Image.fromarray, *augmentations, *end])  # type: ignore[no-any-return]


def alexnet() -> nn.Module:
    """Return AlexNet for 32x32 pixels, without dropout."""
    layers: list[nn.Module] = []
    for inputs, outputs, pool in ((3, 64, 1), (64, 192, 1), (192, 384, 0), (384, 256, 0), (256, 256, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), *[nn.MaxPool2d(2)] * pool]
    layers += [nn.Flatten(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 10)]
    network = nn.Sequential(*layers)
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return network


def train_epoch(
    network: nn.Module, loader: DataLoader[Any], optimizer: Optimizer, on_step: Callable[[int], None] = lambda _: None
) -> tuple[float, float]:
    """Train an epoch, and return mean loss and accuracy. ``on_step`` gets each step's number of images."""
    device = next(network.parameters()).device
    network.train()
    total_loss, correct, seen = 0.0, 0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = network(images)
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total_loss += loss.item() * len(labels)
        correct += (logits.argmax(1) == labels).sum().item()
        seen += len(labels)
        on_step(len(labels))
    return total_loss / seen, correct / seen


@torch.no_grad()
def evaluate(network: nn.Module, loader: DataLoader[Any], device: torch.device) -> float:
    """Return the accuracy."""
    network.eval()
    correct, seen = 0, 0
    for images, labels in loader:
        correct += (network(images.to(device)).argmax(1) == labels.to(device)).sum().item()
        seen += len(labels)
    return correct / seen


def main() -> None:
    """Train, validate after every epoch, and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arrays", type=Path)
    for name, default in (("train_size", 1000), ("val_size", 500), ("batch_size", 128), ("epochs", 40)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    arguments = parser.parse_args()
    device = arguments.device
    torch.manual_seed(0)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    images, labels, tests, test_labels = (np.load(arguments.arrays / f"{name}.npy", mmap_mode="r") for name in names)
    size, batch_size, end = arguments.train_size, arguments.batch_size, arguments.train_size + arguments.val_size
    train_loader = DataLoader(Images(images[:size], labels[:size], pil_transform()), batch_size, shuffle=True)
    val_loader = DataLoader(Images(images[size:end], labels[size:end], pil_transform()), batch_size)
    test_loader = DataLoader(Images(tests, test_labels, pil_transform()), batch_size)
    network = alexnet().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    for epoch in range(arguments.epochs):
        loss, accuracy = train_epoch(network, train_loader, optimizer)
        validated = evaluate(network, val_loader, device)
        print(f"epoch {epoch + 1} loss {loss:.4f} training {accuracy:.1%} validation {validated:.1%}", flush=True)
    print(f"test {evaluate(network, test_loader, device):.2%}")
    torch.save(network.state_dict(), "plain_loop.pth")


if __name__ == "__main__":
    main()
