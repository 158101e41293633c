"""The probe's accuracy under label noise: true classes that the network knows, and labels that it memorizes."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class LabelNoiseProbe(Callback):
    """Measure the probe's accuracy for true labels and for noisy labels apart (Arpit et al. 2017, sec. 3).

    Log fractions of 1:

    - ``probe_clean_acc``: accuracy on the images that have their true label;
    - ``probe_memorized_acc``: on the images that drew another label, the accuracy against the drawn label;
    - ``probe_true_acc``: on the same images, the accuracy against the true label.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(5)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._counts = torch.zeros(5, device=pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count right answers if the batch is of the probe."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if dataloader_idx != 1 or not data.label_noise:
            return
        true_labels: Tensor = data.true_labels
        true, answers = true_labels.to(batch.indices.device)[batch.indices], outputs.argmax(dim=1)
        clean = batch.labels == true
        right, said_true = answers == batch.labels, answers == true
        self._counts += torch.stack(
            [clean.sum(), (clean & right).sum(), (~clean).sum(), (~clean & right).sum(), (~clean & said_true).sum()]
        )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the accuracies of a probe, over all processes."""
        if not (pl_module.probed and trainer.datamodule.label_noise):  # type: ignore[attr-defined]
            return
        clean, clean_right, noisy, memorized, true = trainer.strategy.reduce(self._counts, reduce_op="sum").tolist()
        if clean:
            pl_module.log("probe_clean_acc", clean_right / clean)
        if noisy:
            pl_module.log_dict({"probe_memorized_acc": memorized / noisy, "probe_true_acc": true / noisy})
