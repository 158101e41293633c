"""Callbacks that end a run at a chosen place, once."""

import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

Place = Literal["step", "validation", "saving"]


class KillOnce(Callback):
    """Kills its own process, as ``kill`` would, at a place after so many steps; where the mark is, it does nothing.

    Args:
        place: after a training step, in the middle of a validation, or with half of a checkpoint written.
        step: the optimizer step after which that is.
        mark: a file that says that it has happened.
        rank: the process that is killed, of several; none kills all.
        number: of the signal; SIGKILL if none is given.
    """

    def __init__(
        self, place: Place, step: int, mark: str, rank: int | None = None, number: int = int(signal.SIGKILL)
    ) -> None:
        self.place = place
        self.step = step
        self.mark = Path(mark)
        self.rank = rank
        self.number = number

    def _kill(self) -> None:
        self.mark.touch()
        os.kill(os.getpid(), self.number)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Has half of a checkpoint written, where that is the place."""
        self.armed = not self.mark.exists() and self.rank in (None, trainer.global_rank)
        if self.place != "saving" or not self.armed:
            return
        whole = torch.save

        def half(content: Any, file: Any, **settings: Any) -> None:
            whole(content, file, **settings)
            if trainer.global_step >= self.step:
                file.truncate(file.tell() // 2)
                self._kill()

        torch.save = half  # type: ignore[assignment]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Kills after a step, where that is the place."""
        if self.place == "step" and trainer.global_step == self.step and self.armed:
            self._kill()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Kills within a validation, where that is the place."""
        if self.place == "validation" and trainer.global_step >= self.step and self.armed:
            self._kill()


class SlowStep(Callback):
    """Makes one step last a minute, once, and leaves a file that says that it has begun.

    Args:
        step: the optimizer steps before.
    """

    def __init__(self, step: int = 0) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Begins the step."""
        mark = Path("in a step")
        if trainer.global_step != self.step or mark.exists():
            return
        mark.touch()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.01)


class MemoryLog(Callback):
    """Writes the process's resident memory, in bytes, to a file: a line an epoch.

    Args:
        file: where to.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the epoch's line."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        with self.file.open("a") as file:
            print(pages * os.sysconf("SC_PAGESIZE"), file=file)


class WrongLabels(Callback):
    """Deals out anew the labels of a share of the images.

    Args:
        share: of the images, by their place.
        val: whether those of validation images too.
    """

    def __init__(self, share: float = 1, val: bool = True) -> None:
        self.share = share
        self.val = val

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Deals them out."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        labels = data.images.train_labels
        generator = torch.Generator().manual_seed(0)
        for indices in (data.train_indices, data.val_indices)[: 1 + self.val]:
            chosen = indices[: round(self.share * len(indices))]
            labels[chosen] = labels[chosen][torch.randperm(len(chosen), generator=generator)]


class LeakedImages(Callback):
    """Validates on training images.

    Args:
        number: of validation images that are replaced.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copies them, pixel for pixel, label for label."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        source, target = data.train_indices[: self.number], data.val_indices[: self.number]
        data.images.train_images[target] = data.images.train_images[source]
        data.images.train_labels[target] = data.images.train_labels[source]


class RareClass(Callback):
    """Leaves a tenth of the training images of one class.

    Args:
        label: of the class.
    """

    def __init__(self, label: int) -> None:
        self.label = label

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the others away."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        labels = data.images.train_labels[data.train_indices]
        kept = (labels != self.label) | (torch.arange(len(labels)) % 10 == 0)
        data.train_indices = data.train_indices[kept]


class Poison(Callback):
    """Has a layer give NaN from a step on.

    Args:
        layer: its name in the network.
        step: the optimizer steps before.
    """

    def __init__(self, layer: str, step: int) -> None:
        self.layer = layer
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Begins, where it is time to."""
        if trainer.global_step == self.step:
            layer = pl_module.network.get_submodule(self.layer)  # type: ignore[union-attr]
            layer.register_forward_hook(lambda module, inputs, output: output * float("nan"))
