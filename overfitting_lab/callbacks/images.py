"""The record of single images: when a training image was learned, and how a test image was classified."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from lightning_modules.errors import ModelError
from overfitting_lab.callbacks.epochs import recorder_of
from overfitting_lab.callbacks.logger import RunLogger
from overfitting_lab.runs.files import replace_file
from overfitting_lab.runs.notes import attempt

SHOWN = 24  # pictures kept of each kind
UNSEEN, NEVER_WRONG = -2, -1  # in place of an epoch
SMALLEST = torch.finfo(torch.float32).tiny  # lower bound of a probability before its logarithm
NOT_VISITED = -1  # in place of right, 0, or wrong, 1


class AnswerCollector(Callback):
    """Collect a network's answers for the test images.

    ``tested`` holds, after the test, the labels int64 [M] and the probabilities float32 [M, classes] of all processes'
    images, in the order of the test set, on the CPU.
    """

    def __init__(self) -> None:
        self._answers: list[tuple[Tensor, Tensor, Tensor]] = []  # indices, labels and probabilities of a batch
        self.tested: tuple[Tensor, Tensor] | None = None

    @property
    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The labels and the probabilities as arrays, after the test."""
        assert self.tested is not None
        labels, probabilities = self.tested
        return labels.numpy(), probabilities.numpy()

    def on_test_batch_end(self, trainer: Trainer, model: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        """Keep the predictions."""
        self._answers.append((batch.indices, batch.labels, _probabilities(model, outputs, "test_step")))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect the answers of all processes."""
        self.tested = _in_order(trainer, self._answers)
        self._answers.clear()


class ImageRecord(AnswerCollector):
    """Write ``images.npz``, an archive of named arrays.

    Of the N training images, written when training ends:

    - ``train_indices`` int64 [N], ``train_labels`` int16 [N]: place in the training set, and class;
    - ``train_learned`` int32 [N]: the epoch, counted from 0, from which on every prediction was right; the number of
      epochs if the last prediction was wrong; -1 if the image was never visited. Predictions are made with dropout,
      augmentation and mixing on, before the step that the image is part of (after Toneva et al. 2019, sec. 3). Of a
      mixed image, at least half is the image itself, and its own label is the right prediction;
    - ``train_forgotten`` int32 [N]: how often a right prediction was followed by a wrong one (Toneva et al. 2019, sec.
      3.1); missing if the run was resumed from a checkpoint of a version that did not count it;
    - ``train_shown`` int64 [n], ``train_pictures`` uint8 [n, 32, 32, 3]: the images learned last, as indices into the
      arrays above, and their pixels;
    - ``train_most_forgotten``, ``train_most_forgotten_pictures``: the images forgotten most often, in the same form;
    - ``train_least_forgotten``, ``train_least_forgotten_pictures``: the images forgotten least often, and among equals
      the images learned first.

    Of the V validation images, written when training ends:

    - ``val_labels`` int16 [V], ``val_logits`` float32 [V, classes]: logarithms of the probabilities in the best
      validation, which are the logits up to a constant for each image.

    Of the M images that were tested, written after the test:

    - ``test_labels`` int16 [M], ``test_predictions`` int16 [M], ``test_logits`` float16 [M, classes]: as those of the
      validation images, in the order of the test set;
    - ``test_shown`` int64 [m], ``test_pictures`` uint8 [m, 32, 32, 3]: the most confident mistakes, as indices and
      pixels.

    A run that starts from a checkpoint without the record of past predictions has no arrays of training images.
    """

    def __init__(self, logger: RunLogger) -> None:
        super().__init__()
        self._logger = logger
        self._visits: list[tuple[Tensor, Tensor]] = []  # indices, and if the prediction was wrong
        # By index in the training set. None if the epochs before are unknown.
        self._last_wrong: Tensor | None = None  # int32: the epoch
        self._right: Tensor | None = None  # bool: the last prediction was right
        self._forgotten: Tensor | None = None  # int32: how often
        self._validated: list[tuple[Tensor, Tensor, Tensor]] = []  # indices, labels and logits of a batch
        self.best_validation: tuple[Tensor, Tensor] | None = None  # labels and logits of the best validation
        self._arrays: dict[str, NDArray[Any]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count, unless the epochs before are unknown."""
        if trainer.global_step == 0:
            size = len(trainer.datamodule.images.train_labels)  # type: ignore[attr-defined]
            self._last_wrong = torch.full((size,), UNSEEN, dtype=torch.int32)
            self._right = torch.zeros(size, dtype=torch.bool)
            self._forgotten = torch.zeros(size, dtype=torch.int32)
        device = pl_module.device
        self._last_wrong, self._right, self._forgotten = (
            None if each is None else each.to(device) for each in (self._last_wrong, self._right, self._forgotten)
        )

    def on_train_batch_end(self, trainer: Trainer, model: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        """Note which predictions were wrong, without waiting for the device."""
        self._visits.append((batch.indices, outputs["logits"].argmax(dim=1) != batch.labels))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count(trainer)

    def _count(self, trainer: Trainer) -> None:
        """Count the visits since the last call, over all processes. Each epoch, another process may visit an image."""
        if self._last_wrong is None:
            self._visits.clear()
            return
        answers = torch.full_like(self._last_wrong, NOT_VISITED)
        if self._visits:
            indices, wrong = map(torch.cat, zip(*self._visits, strict=True))
            answers[indices] = wrong.int()
            self._visits.clear()
        answers = trainer.strategy.reduce(answers, reduce_op="max")
        right, wrong = answers == 0, answers == 1
        if self._right is not None and self._forgotten is not None:
            self._forgotten += wrong & self._right
            self._right = (self._right | right) & ~wrong
        self._last_wrong[right] = self._last_wrong[right].clamp(min=NEVER_WRONG)
        self._last_wrong[wrong] = trainer.current_epoch

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._count(trainer)
        checkpoint["last_wrong"] = None if self._last_wrong is None else self._last_wrong.cpu()
        if self._right is not None and self._forgotten is not None:
            checkpoint["right"], checkpoint["forgotten"] = self._right.cpu(), self._forgotten.cpu()
        checkpoint["best_validation"] = self.best_validation

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._last_wrong = checkpoint.get("last_wrong")
        self._right, self._forgotten = checkpoint.get("right"), checkpoint.get("forgotten")
        self.best_validation = checkpoint.get("best_validation")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated.clear()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the outputs for validation images."""
        if dataloader_idx == 0:
            probabilities = _probabilities(pl_module, outputs, "validation_step")
            self._validated.append((batch.indices, batch.labels, probabilities.clamp(min=SMALLEST).log()))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the outputs of the best validation."""
        if not trainer.sanity_checking and recorder_of(trainer).is_best:
            self.best_validation = _in_order(trainer, self._validated)
        self._validated.clear()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the arrays of the training and validation images."""
        self._count(trainer)
        if not trainer.is_global_zero:
            return
        if self.best_validation is not None:
            labels, logits = self.best_validation
            self._arrays |= {"val_labels": labels.numpy().astype(np.int16), "val_logits": logits.numpy()}
        if self._last_wrong is not None:
            self._arrays |= self._of_training(trainer, self._last_wrong)
        self._write()

    def _of_training(self, trainer: Trainer, last_wrong: Tensor) -> dict[str, NDArray[Any]]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        indices = data.train_indices
        wrong = last_wrong.cpu()[indices].numpy()
        learned = wrong + 1
        if self._right is not None:  # an image may not be seen again after its last mistake
            still_wrong = ~self._right.cpu()[indices].numpy() & (wrong > UNSEEN)
            learned[still_wrong] = max(learned.max(initial=0), trainer.current_epoch)

        def pictures(order: NDArray[Any], name: str) -> dict[str, NDArray[Any]]:
            shown = order[:SHOWN]
            pixels = data.images.train_images[indices[shown]].numpy()
            return {f"train_{name}": shown, f"train_{'' if name == 'shown' else f'{name}_'}pictures": pixels}

        arrays = {
            "train_indices": indices.numpy(),
            "train_labels": data.images.train_labels[indices].numpy().astype(np.int16),
            "train_learned": learned,
            **pictures(np.argsort(-learned, kind="stable"), "shown"),
        }
        if self._forgotten is None:
            return arrays
        forgotten = self._forgotten.cpu()[indices].numpy()
        visited = np.flatnonzero(learned >= 0)
        keys = np.stack([learned[visited], forgotten[visited]])  # lexsort sorts by the last key first
        return {
            **arrays,
            "train_forgotten": forgotten,
            **pictures(visited[np.lexsort(-keys)], "most_forgotten"),
            **pictures(visited[np.lexsort(keys)], "least_forgotten"),
        }

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the arrays of the test images."""
        if self.tested is None or not trainer.is_global_zero:
            return
        labels, probabilities = self.arrays
        predictions = probabilities.argmax(axis=1)
        confidence = np.where(predictions == labels, -1, probabilities.max(axis=1))
        shown = np.argsort(-confidence, kind="stable")[: min(SHOWN, int((confidence >= 0).sum()))]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        images = data.images.test_images
        self._arrays |= {
            "test_labels": labels.astype(np.int16),
            "test_predictions": predictions.astype(np.int16),
            "test_logits": np.log(np.maximum(probabilities, SMALLEST)).astype(np.float16),
            "test_shown": shown,
            "test_pictures": images[data.test_indices[shown]].numpy(),
        }
        self._write()

    def _write(self) -> None:
        if not self._logger.is_open:
            return

        def save(path: Path) -> None:
            with path.open("wb") as file:  # NumPy would append .npz to a path
                np.savez_compressed(file, allow_pickle=False, **self._arrays)

        with attempt("images.npz"):
            replace_file(self._logger.files.images, save)


def images_of(trainer: Trainer) -> ImageRecord | None:
    """Return the Trainer's record of single images; ``None`` if nothing is kept."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, ImageRecord)), None)


def _probabilities(model: LightningModule, outputs: object, step: str) -> Tensor:
    """Return the probabilities of what a step of the network returned.

    Raises:
        ModelError: if these are no logits.
    """
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"{type(model).__name__}.{step} does not return the logits: let it end with return super().{step}(...)"
        )
    return model.probabilities(outputs)  # type: ignore[no-any-return, operator]


def _in_order(trainer: Trainer, mine: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
    """Return labels and outputs in the order of the images' indices, from all processes, on the CPU."""
    parts: list[Any] = [[tuple(each.cpu() for each in batch) for batch in mine]]
    if trainer.world_size > 1:
        parts, gathered = [None] * trainer.world_size, parts[0]
        torch.distributed.all_gather_object(parts, gathered)
    batches = [batch for part in parts for batch in part]
    if not batches:
        return None
    indices, labels, outputs = (torch.cat(each) for each in zip(*batches, strict=True))
    order = indices.argsort()
    return labels[order], outputs[order].float()
