"""The counts of the training metrics in a checkpoint within an epoch."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from overfitting_lab.callbacks.progress import is_of_epochs_end

State = dict[str, Tensor | list[Tensor]]
Counts = dict[str, State]  # of each metric, of one process


class TrainingCounts(Callback):
    """Save the counts of each process in the running epoch, so that a resumed epoch counts every image once."""

    def __init__(self) -> None:
        self._loaded: list[Counts] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the counts of all processes. At an epoch's end the next epoch counts from 0."""
        if is_of_epochs_end(checkpoint):
            return
        metrics = pl_module.train_metrics.items(keep_base=True)  # type: ignore[operator, union-attr]
        mine = {name: _moved(metric.metric_state, torch.device("cpu")) for name, metric in metrics}
        counted = [mine] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(counted, mine)
        checkpoint["counted"] = counted

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._loaded = checkpoint.get("counted")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the counts. With another number of processes than before, the first one gets all of them."""
        if self._loaded is None:
            return
        mine = self._loaded if trainer.is_global_zero else []
        if len(self._loaded) == trainer.world_size:
            mine = [self._loaded[trainer.global_rank]]
        for name, metric in pl_module.train_metrics.items(keep_base=True):  # type: ignore[operator, union-attr]
            for counts in mine:
                if name in counts:  # else the resumed run has a metric more
                    metric.merge_state(_moved(counts[name], metric.device))


def _moved(state: State, device: torch.device) -> State:
    """Return a metric's state on a device: tensors, and lists of tensors."""
    return {
        key: [each.to(device) for each in value] if isinstance(value, list) else value.to(device)
        for key, value in state.items()
    }
