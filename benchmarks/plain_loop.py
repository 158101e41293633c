"""The recipe of overfit.yaml as one would write it down first: no Lightning, nothing of this project.

``python -m benchmarks.plain_loop ARRAYS`` trains AlexNet on the first 1,000 images and tests it, in float32, image by
image through PIL; ARRAYS is a folder of train_images.npy, train_labels.npy, test_images.npy and test_labels.npy.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class PILImages(Dataset[tuple[Any, int]]):
    """Arrays in memory, an image at a time, as ``torchvision.datasets.CIFAR10`` gives them.

    Args:
        images: uint8 [N, height, width, 3].
        labels: int64 [N].
        transform: from a PIL image to a tensor.
    """

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], transform: Callable[[Any], Tensor]
    ) -> None:
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def to_tensor() -> list[Any]:
    """What every image goes through."""
    return [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]


def alexnet() -> nn.Module:
    """AlexNet for 32x32 pixels, without dropout."""
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
    network: nn.Module,
    loader: DataLoader[Any],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    after_step: Callable[[int], None] = lambda images: None,
) -> tuple[float, float]:
    """Trains an epoch; mean loss and accuracy."""
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
        after_step(len(labels))
    return total_loss / seen, correct / seen


@torch.no_grad()
def evaluate(network: nn.Module, loader: DataLoader[Any], device: torch.device) -> float:
    """The accuracy."""
    network.eval()
    correct, seen = 0, 0
    for images, labels in loader:
        correct += (network(images.to(device)).argmax(1) == labels.to(device)).sum().item()
        seen += len(labels)
    return correct / seen


def main() -> None:
    """Trains, validates after every epoch, tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arrays", type=Path)
    parser.add_argument("--train_size", type=int, default=1000)
    parser.add_argument("--val_size", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    images, labels, tests, test_labels = (np.load(arguments.arrays / f"{name}.npy", mmap_mode="r") for name in names)
    transform = transforms.Compose(to_tensor())
    size, end = arguments.train_size, arguments.train_size + arguments.val_size
    train_loader = DataLoader(PILImages(images[:size], labels[:size], transform), arguments.batch_size, shuffle=True)
    val_loader = DataLoader(PILImages(images[size:end], labels[size:end], transform), arguments.batch_size)
    test_loader = DataLoader(PILImages(tests, test_labels, transform), arguments.batch_size)
    network = alexnet().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    for epoch in range(arguments.epochs):
        loss, accuracy = train_epoch(network, train_loader, optimizer, device)
        validated = evaluate(network, val_loader, device)
        print(f"epoch {epoch + 1} loss {loss:.4f} training {accuracy:.1%} validation {validated:.1%}", flush=True)
    print(f"test {evaluate(network, test_loader, device):.2%}")
    torch.save(network.state_dict(), "plain_loop.pth")


if __name__ == "__main__":
    main()
