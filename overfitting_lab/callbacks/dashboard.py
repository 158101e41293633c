"""TensorBoard's content beside the curves: learning rate, images, confusion matrices, settings with results."""

from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from overfitting_lab.callbacks.epochs import recorder_of
from overfitting_lab.callbacks.logger import TENSORBOARD, RunLogger
from overfitting_lab.runs.figures import confusion_matrix, plain_text
from overfitting_lab.runs.notes import attempt

IMAGES = 32
DECIDED = ("augment", "train_size", "val_size", "test_size", "fingerprint")  # by the data, if they are not given


class Dashboard(Callback):
    """Add to a run's TensorBoard what the epoch metrics lack.

    These are the loss and learning rate of single steps, a grid of training images as the network sees them, the
    confusion matrices of the last validation and of the test, and the final metrics beside the ``settings``, by flag,
    with the values that the data decides, and the data's fingerprint. TensorBoard shows the first ones of these in
    alphabetical order, so ``settings`` should be those that decide a result. The loss of single steps is the one that
    training minimizes, with label smoothing and mixing. It has a point every ``step_interval`` steps; ``None`` is a
    tenth of an epoch.
    """

    def __init__(self, logger: RunLogger, settings: dict[str, Any], step_interval: int | None = None) -> None:
        self._logger = logger
        self._settings = settings
        self._step_interval = step_interval
        self._results: dict[str, float] = {}
        self._step = 0
        self._losses: list[Tensor] = []  # of the batches of a step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, model: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        """Write the step's loss and learning rate, and once the images."""
        self._losses.append(outputs["loss"])
        if trainer.global_step == self._step:  # the step still accumulates gradients
            return
        self._step = trainer.global_step
        losses, self._losses = self._losses, []
        if self._step == 1 and trainer.is_global_zero:
            data = trainer.datamodule.images.name  # type: ignore[attr-defined]
            tag = f"training images of {data}, as the network sees them"
            with attempt(TENSORBOARD):
                self._logger.writer().add_image(tag, image_grid(batch.images), 0)
        batches = trainer.accumulate_grad_batches
        interval = self._step_interval or max(1, int(trainer.num_training_batches) // batches // 10)
        if self._step % interval == 0:
            own = batches * torch.stack(losses).mean()  # Lightning has divided each by their number
            loss = trainer.strategy.reduce(own, reduce_op="mean")
            if trainer.is_global_zero:
                self._write_step(float(loss), recorder_of(trainer).learning_rate)

    def _write_step(self, loss: float, learning_rate: float) -> None:
        with attempt(TENSORBOARD):
            self._logger.writer().add_scalar("steps/loss", loss, self._step)
            self._logger.writer().add_scalar("steps/learning rate", learning_rate, self._step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last validation's confusion matrix, and remember the last epoch's metrics."""
        self._draw_confusion(trainer, "validation", pl_module.val_confusion)
        self._results = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the test's confusion matrix, and write the settings with the results."""
        self._draw_confusion(trainer, "test", pl_module.test_confusion)
        if trainer.is_global_zero:
            self._results |= {name: float(value) for name, value in trainer.callback_metrics.items()}
            results = {f"result/{name}": value for name, value in self._results.items()}
            data = trainer.datamodule.description()  # type: ignore[attr-defined]
            decided = {f"data.{name}": data[name] for name in DECIDED}
            with attempt(TENSORBOARD):
                writer = self._logger.writer()
                writer.flush()  # TensorBoard reads a folder's event files one after the other, and add_hparams adds one
                writer.add_hparams({**self._settings, **decided}, results, run_name=".")

    def _draw_confusion(self, trainer: Trainer, split: str, confusion: Any) -> None:
        if not confusion.update_called:
            return
        counts = cast(Tensor, confusion.compute()).cpu().numpy()  # adds up over processes: each must call it
        if trainer.is_global_zero:
            images = trainer.datamodule.images  # type: ignore[attr-defined]
            with attempt(TENSORBOARD):
                figure = confusion_matrix(counts, images.classes, f"{split} images of {images.name}")
                writer = self._logger.writer()
                writer.add_figure(f"predictions/confusion, {split} images", plain_text(figure), trainer.current_epoch)


def image_grid(images: Tensor) -> Tensor:
    """Return up to 32 images, float [N, 3, H, W], as one picture, float [3, height, width] in [0, 1].

    The images' common range of values is stretched to [0, 1].
    """
    from torchvision.utils import make_grid  # not at the top: slow to import

    return cast(Tensor, make_grid(images[:IMAGES].detach().to("cpu", torch.float32), normalize=True))
