"""The place in training after a batch: the end of a step, an epoch or training, or a scheduled validation.

Each function answers for the batch that was just trained, from ``on_train_batch_end`` until the epoch's end.
"""

from typing import Any

from lightning.pytorch import Trainer


def ends_epoch(trainer: Trainer) -> bool:
    """Tell if the batch is the epoch's last."""
    return trainer.fit_loop.batch_idx + 1 >= trainer.num_training_batches


def is_of_epochs_end(checkpoint: dict[str, Any]) -> bool:
    """Tell if a checkpoint holds the state at the end of an epoch, not within one."""
    epochs: dict[str, int] = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    return epochs["processed"] == epochs["started"]


def ends_step(trainer: Trainer) -> bool:
    """Tell if the batch completes an optimizer step, which may accumulate the gradients of several batches."""
    return (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0 or ends_epoch(trainer)


def stops(trainer: Trainer) -> bool:
    """Tell if training stops after the batch: at ``max_steps``, or if a callback asks for it and may do so."""
    may_stop = trainer.current_epoch >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
    return trainer.global_step == trainer.max_steps or (trainer.should_stop and may_stop)


def validation_is_scheduled(trainer: Trainer) -> bool:
    """Tell if the Trainer's settings schedule a validation after the batch, whether or not training stops there.

    A schedule by the clock (``val_check_interval="00:00:10:00"``) belongs to no batch.
    """
    epochs, batches = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or batches is None:
        return False
    if epochs is None:  # the interval counts batches across epochs
        return (trainer.fit_loop.total_batch_idx + 1) % batches == 0
    return (trainer.current_epoch + 1) % epochs == 0 and (trainer.fit_loop.batch_idx + 1) % batches == 0
