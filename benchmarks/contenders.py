"""Three ways to train the same experiment, each in its own process that waits for its turn."""

import contextlib
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.machine import synchronize
from benchmarks.plain_loop import Images, pil_transform, train_epoch
from lightning_modules.convolution import Convolution
from lightning_modules.schedules import optimizer_and_schedule
from overfitting_lab.cli import ExperimentCLI
from overfitting_lab.cli.memory import keep_freed_memory


class Gate(Callback):
    """Let a contender train a number of steps at a time, and time them.

    The clock stops between the steps of two epochs, for validation and checkpoints. The ``connection`` receives numbers
    of steps, and sends images, seconds and the peak memory in bytes.
    """

    def __init__(self, connection: "Connection[Any, Any]", device: torch.device) -> None:
        self._connection = connection
        self._device = device
        self._left = self._images = 0
        self._seconds = self._since = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        """Begin an epoch's steps."""
        if not self._left:
            self._left, self._images, self._seconds = self._connection.recv(), 0, 0.0
        synchronize(self._device)
        self._since = time.perf_counter()

    start = on_train_epoch_start  # as the loops call it

    def stop(self) -> None:
        """End an epoch's steps."""
        synchronize(self._device)
        self._seconds += time.perf_counter() - self._since

    def step(self, images: int) -> None:
        """Count a step of so many images."""
        self._left -= 1
        self._images += images
        if not self._left:
            self.stop()
            self._connection.send((self._images, self._seconds, peak_memory(self._device)))
            self.start()

    def on_train_batch_end(self, trainer: Trainer, _: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Call :meth:`step` and, after an epoch's last batch, :meth:`stop`."""
        self.step(batch.total)
        if batch_idx + 1 == trainer.num_training_batches:
            self.stop()


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that the process has held so far: of GPU memory on a GPU, else of resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage includes the memory of the parent when it started this process
        (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def prepared(arguments: list[str]) -> ExperimentCLI:
    """Return an experiment with its data ready, as on the command line of fit.py; it writes no run."""
    cli = ExperimentCLI(arguments, keep=False)
    cli.datamodule.trainer = cli.trainer
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    return cli


def optimizer_of(cli: ExperimentCLI) -> torch.optim.Optimizer:
    """Return an experiment's optimizer without its schedule."""
    optimizer, _ = optimizer_and_schedule(cli.model)
    return optimizer


def augmentations(name: str, image_size: int) -> list[Any]:
    """Return an augmentation of the data module as PIL transforms, without the colour shift."""
    if name == "flip_crop":
        return [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    if name == "vgg":
        rescaled = transforms.Resize(round(image_size * 256 / 224))
        return [rescaled, transforms.RandomCrop(image_size), transforms.RandomHorizontalFlip()]
    return []


def plain_loop(arguments: list[str], gate: Callable[[torch.device], Gate]) -> None:
    """Train with a DataLoader, PIL transforms image by image, torch's convolutions, float32, ``.item()`` every step."""
    cli = prepared([*arguments, "--trainer.precision=32-true", "--model.optimizer.fused=false"])
    data, device = cli.datamodule, cli.trainer.strategy.root_device
    network = cli.model.to(device).network.to(memory_format=torch.contiguous_format)
    for layer in network.modules():
        if isinstance(layer, Convolution):
            layer.__class__ = nn.Conv2d  # type: ignore[assignment]
    optimizer = optimizer_of(cli)
    picked = data.train_indices
    images, labels = data.images.train_images[picked].numpy(), data.images.train_labels[picked].numpy()
    transform = pil_transform(*augmentations(data.augment, data.image_size))
    loader = DataLoader(Images(images, labels, transform), data.batch_size, shuffle=True)
    turns = gate(device)
    while True:
        turns.start()
        train_epoch(network, loader, optimizer, turns.step)
        turns.stop()


def hand_written(arguments: list[str], gate: Callable[[torch.device], Gate]) -> None:
    """Train with this project's network, data, precision and memory, but no Lightning, callbacks or metric objects."""
    keep_freed_memory()
    cli = prepared(arguments)
    data, device = cli.datamodule, cli.trainer.strategy.root_device
    network = cli.model.to(device).network
    optimizer = optimizer_of(cli)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=cli.trainer.precision == "bf16-mixed")
    total_loss, correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.long, device=device)
    turns = gate(device)
    network.train()
    while True:
        turns.start()
        for batch in data.train_dataloader():
            batch = data.to_network(batch.to(device), training=True)
            optimizer.zero_grad()
            with autocast:
                logits = network(batch.images)
            loss = cli.model.training_losses(logits, batch).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total_loss += loss.detach()
            correct += (logits.argmax(1) == batch.labels).sum()
            turns.step(batch.total)
        turns.stop()


def fit(arguments: list[str], gate: Callable[[torch.device], Gate]) -> None:
    """Train as ``scripts/fit.py`` does, with all its callbacks."""
    keep_freed_memory()
    cli = ExperimentCLI([*arguments, "--trainer.max_epochs=-1", "--trainer.limit_val_batches=1"])
    cli.trainer.callbacks.append(gate(cli.trainer.strategy.root_device))  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)


class Contender(NamedTuple):
    """A way to train without end through a gate."""

    train: Callable[[list[str], Callable[[torch.device], Gate]], None]
    arguments: tuple[str, ...] = ()  # added to the command line
    float32_precision: str = "highest"  # of matrix products; "high" is TF32


@contextlib.contextmanager
def running(contender: Contender, arguments: list[str], folder: Path) -> Iterator[Callable[[int], tuple[float, int]]]:
    """Run a contender in its own process, on the experiment of fit.py's arguments, with an empty folder for its output.

    Yield a function that trains so many steps, and returns images a second and the peak memory in bytes. It raises a
    ``ChildProcessError`` if the process has died; the process's own message is on standard error.
    """
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    process = context.Process(target=_train, args=(contender, arguments, folder, theirs), daemon=True)
    process.start()
    theirs.close()  # so that the death of the process is noticed

    def train(steps: int) -> tuple[float, int]:
        try:
            connection.send(steps)
            images, seconds, memory = connection.recv()
        except (ConnectionError, EOFError):
            raise ChildProcessError("a contender of the benchmark has died; its message is above") from None
        return images / seconds, memory

    try:
        yield train
    finally:
        process.kill()
        process.join()


def _train(contender: Contender, arguments: list[str], folder: Path, connection: "Connection[Any, Any]") -> None:
    os.chdir(folder)
    torch.set_float32_matmul_precision(contender.float32_precision)
    with Path("output.txt").open("w", encoding="utf-8") as output, contextlib.redirect_stdout(output):
        contender.train([*arguments, *contender.arguments], lambda device: Gate(connection, device))
