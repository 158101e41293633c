"""Callbacks and a schedule that plant faults in a run."""

import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Place = Literal["step", "validation", "saving"]


class KillOnce(Callback):
    """Send a signal to the own process, or to the one with a rank, once: the file ``mark`` says that it was sent.

    The place is after a training step, within a validation, or with half of a checkpoint written.
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
        if self.place == "step" and trainer.global_step == self.step and self.armed:
            self._kill()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.place == "validation" and trainer.global_step >= self.step and self.armed:
            self._kill()


class SlowStep(Callback):
    """Make the step after ``step`` steps last a minute, once, and leave a file when it has begun."""

    def __init__(self, step: int = 0) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        mark = Path("in a step")
        if trainer.global_step != self.step or mark.exists():
            return
        mark.touch()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.01)


class SlowSave(Callback):
    """Make the first process write one checkpoint slowly, once, and leave a file when it has begun."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        mark = Path("saving")
        if trainer.is_global_zero and trainer.global_step > 10 and not mark.exists():
            mark.touch()
            time.sleep(4)


class Pace(Callback):
    """Make each step last so many seconds, in the first attempt of a job of SLURM alone."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if "SLURM_JOB_ID" in os.environ and "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(self.seconds)


class MemoryLog(Callback):
    """Write the process's resident memory, in bytes, to a file: a line an epoch."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        with self.file.open("a") as file:
            print(pages * os.sysconf("SC_PAGESIZE"), file=file)


class WrongLabels(Callback):
    """Shuffle the labels of a share of the training images and, unless ``val`` is false, of the validation images."""

    def __init__(self, share: float = 1, val: bool = True) -> None:
        self.share = share
        self.val = val

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        labels = data.images.train_labels
        generator = torch.Generator().manual_seed(0)
        for indices in (data.train_indices, data.val_indices)[: 1 + self.val]:
            chosen = indices[: round(self.share * len(indices))]
            labels[chosen] = labels[chosen][torch.randperm(len(chosen), generator=generator)]


class LeakedImages(Callback):
    """Replace a number of validation or test images by training images, pixel for pixel, label for label."""

    def __init__(self, number: int, test: bool = False) -> None:
        self.number = number
        self.test = test

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self.test:
            source, target = data.train_indices[: self.number], data.test_indices[: self.number]
            data.images.test_images[target] = data.images.train_images[source]
            return
        source, target = data.train_indices[: self.number], data.val_indices[: self.number]
        data.images.train_images[target] = data.images.train_images[source]
        data.images.train_labels[target] = data.images.train_labels[source]


class RareClass(Callback):
    """Remove nine tenths of the training images of one class."""

    def __init__(self, label: int) -> None:
        self.label = label

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        labels = data.images.train_labels[data.train_indices]
        kept = (labels != self.label) | (torch.arange(len(labels)) % 10 == 0)
        data.train_indices = data.train_indices[kept]


class Poison(Callback):
    """Make a layer return NaN after ``step`` optimizer steps."""

    def __init__(self, layer: str, step: int) -> None:
        self.layer = layer
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            layer = pl_module.network.get_submodule(self.layer)  # type: ignore[union-attr]
            layer.register_forward_hook(lambda module, inputs, output: output * float("nan"))


class StopAt(Callback):
    """Ask training to stop after a batch, counted over all epochs from 1."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            trainer.should_stop = True


class StopBefore(Callback):
    """Ask training to stop before it starts."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True


class StopAtStart(Callback):
    """Ask training to stop when an epoch starts, counted from 0."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.should_stop = True


class Break(Callback):
    """Raise an error in a hook."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._break)
        self.hook = hook

    def _break(self, *_: Any) -> None:
        raise OSError(f"broken in {self.hook}")


class Unprepared(Callback):
    """Fail before the first step, in the second process alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.global_rank == 1:
            raise OSError("no room for this process")


class Hang(Callback):
    """Stop working before a step, in the second process alone, without an end."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        while trainer.global_rank == 1 and trainer.global_step == self.step:
            time.sleep(1)


class Breaking(LRScheduler):
    """A schedule whose second step fails."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        if self.last_epoch > 1:
            raise KeyError("no such rate")
        return [group["lr"] for group in self.optimizer.param_groups]
