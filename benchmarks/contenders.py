"""Three ways to train the same experiment, each in a process of its own that waits for its turn."""

import contextlib
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.machine import synchronize
from benchmarks.plain_loop import PILImages, to_tensor, train_epoch
from overfitting_lab.cli import ExperimentCLI
from overfitting_lab.cli.memory import keep_freed_memory


class Gate:
    """Lets a contender train so many steps at a time, and says how long they took.

    What lies between the steps of two epochs, validation and checkpoints, is not counted.

    Args:
        connection: numbers of steps come in; images, seconds and the peak memory in bytes go out.
        device: where the contender trains.
    """

    def __init__(self, connection: "Connection[Any, Any]", device: torch.device) -> None:
        self._connection = connection
        self._device = device
        self._left = self._images = 0
        self._seconds = self._since = 0.0

    def start(self) -> None:
        """An epoch's steps begin."""
        if not self._left:
            self._left, self._images, self._seconds = self._connection.recv(), 0, 0.0
        synchronize(self._device)
        self._since = time.perf_counter()

    def stop(self) -> None:
        """An epoch's steps end."""
        synchronize(self._device)
        self._seconds += time.perf_counter() - self._since

    def step(self, images: int) -> None:
        """A step of so many images has ended."""
        self._left -= 1
        self._images += images
        if not self._left:
            self.stop()
            self._connection.send((self._images, self._seconds, peak_memory(self._device)))
            self.start()


class GateCallback(Callback):
    """The gate of a run by Lightning."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See :class:`Gate`."""
        self._gate.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """See :class:`Gate`."""
        self._gate.step(batch.total)
        if batch_idx + 1 == trainer.num_training_batches:
            self._gate.stop()


def peak_memory(device: torch.device) -> int:
    """The most bytes that the process has held so far: of the GPU where it trains on one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage has what the parent held when it started this process
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _prepared(arguments: list[str]) -> tuple[ExperimentCLI, torch.device, torch.optim.Optimizer]:
    cli = ExperimentCLI(arguments, keep=False)
    cli.datamodule.trainer = cli.trainer
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    device = cli.trainer.strategy.root_device
    cli.model.to(device)
    return cli, device, optimizer_of(cli)


def optimizer_of(cli: ExperimentCLI) -> torch.optim.Optimizer:
    """An experiment's optimizer, without its schedule."""
    made: Any = cli.model.configure_optimizers()
    return made["optimizer"] if isinstance(made, dict) else made  # type: ignore[no-any-return]


def pil_transform(augment: str, image_size: int) -> Callable[[Any], torch.Tensor]:
    """The PIL transforms of an augmentation of the data module, without the colour shift."""
    changes: list[Any] = []
    if augment == "flip_crop":
        changes = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    elif augment == "vgg":
        rescaled = transforms.Resize(round(image_size * 256 / 224))
        changes = [rescaled, transforms.RandomCrop(image_size), transforms.RandomHorizontalFlip()]
    return transforms.Compose([*changes, *to_tensor()])  # type: ignore[no-any-return]


def plain_loop(arguments: list[str], gate: Callable[[torch.device], Gate]) -> None:
    """DataLoader, PIL transforms image by image, float32, ``.item()`` every step."""
    cli, device, optimizer = _prepared([*arguments, "--trainer.precision=32-true", "--model.optimizer.fused=false"])
    data = cli.datamodule
    network = cli.model.network.to(memory_format=torch.contiguous_format)
    picked = data.train_indices
    images, labels = data.images.train_images[picked].numpy(), data.images.train_labels[picked].numpy()
    transform = pil_transform(data.augment, data.image_size)
    loader = DataLoader(PILImages(images, labels, transform), data.batch_size, shuffle=True)
    turns = gate(device)
    while True:
        turns.start()
        train_epoch(network, loader, optimizer, device, turns.step)
        turns.stop()


def hand_written(arguments: list[str], gate: Callable[[torch.device], Gate]) -> None:
    """This project's network, data, precision and memory in a loop without Lightning, callbacks or metrics objects."""
    keep_freed_memory()
    cli, device, optimizer = _prepared(arguments)
    data, network = cli.datamodule, cli.model.network
    precision = cli.trainer.precision
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
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
            loss = F.cross_entropy(logits.float(), batch.labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total_loss += loss.detach()
            correct += (logits.argmax(1) == batch.labels).sum()
            turns.step(batch.total)
        turns.stop()


def fit(arguments: list[str], gate: Callable[[torch.device], Gate]) -> None:
    """What ``scripts/fit.py`` does, with every callback of it."""
    keep_freed_memory()
    cli = ExperimentCLI([*arguments, "--trainer.max_epochs=-1", "--trainer.limit_val_batches=1"])
    cli.trainer.callbacks.append(GateCallback(gate(cli.trainer.strategy.root_device)))  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)


@dataclass(frozen=True)
class Contender:
    """A way to train an experiment.

    Attributes:
        name: for a person.
        train: trains without end, step by step through the gate.
        arguments: of the command line, beyond the experiment's.
        environment: variables that its process starts with.
    """

    name: str
    train: Callable[[list[str], Callable[[torch.device], Gate]], None]
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


class Process:
    """A contender in a process of its own; ends with the ``with`` statement.

    Args:
        contender: what trains.
        arguments: the experiment, as on the command line of fit.py.
        folder: an empty one, for what it writes.
    """

    def __init__(self, contender: Contender, arguments: list[str], folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, self._theirs = context.Pipe()
        self._process = context.Process(target=_train, args=(contender, arguments, folder, self._theirs), daemon=True)
        self._environment = dict(contender.environment)
        self.peak_memory = 0

    def __enter__(self) -> "Process":
        before = dict(os.environ)
        os.environ.update(self._environment)  # torch reads them when it is imported, which is before _train begins
        self._process.start()
        os.environ.clear()
        os.environ.update(before)
        self._theirs.close()  # so that its death is noticed
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def images_per_second(self, steps: int) -> float:
        """Has it train so many steps, and waits for it.

        Raises:
            ChildProcessError: if it has died; its own message is on standard error.
        """
        try:
            self._connection.send(steps)
            images, seconds, self.peak_memory = self._connection.recv()
        except (ConnectionError, EOFError):
            raise ChildProcessError("a contender of the benchmark has died; see above what it said") from None
        return float(images / seconds)


def _train(contender: Contender, arguments: list[str], folder: Path, connection: "Connection[Any, Any]") -> None:
    os.chdir(folder)
    with Path("output.txt").open("w") as output, contextlib.redirect_stdout(output):
        contender.train([*arguments, *contender.arguments], lambda device: Gate(connection, device))
