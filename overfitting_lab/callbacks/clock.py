"""The time that the parts of a run take."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from overfitting_lab.runs.summary import Times


class Clock(Callback):
    """Measure start, training, validation and test, over all resumes.

    At each moment one part is running. This callback stands first, so that the work of another callback counts for the
    part in which it happens. Saving a checkpoint counts for training. ``begun`` is when the start began, by
    ``time.perf_counter()``.
    """

    def __init__(self, begun: float) -> None:
        self._seconds = {"start": 0.0, "training": 0.0, "validation": 0.0, "test": 0.0}
        self._running, self._since = "start", begun
        self._complete = True  # False if the run began in a version that did not measure the parts

    @property
    def times(self) -> Times | None:
        """The time of each part so far; ``None`` if a part is unknown."""
        self._turn_to(self._running)
        seconds = {part: round(taken, 3) for part, taken in self._seconds.items()}
        return Times(**seconds | {"test": seconds["test"] or None}) if self._complete else None  # type: ignore[arg-type]

    def _turn_to(self, part: str) -> None:
        now = time.perf_counter()
        self._seconds[self._running] += now - self._since
        self._running, self._since = part, now

    def state_dict(self) -> dict[str, Any]:
        self._turn_to(self._running)
        return {"seconds": dict(self._seconds), "seconds_are_complete": self._complete}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the times of a run that is resumed."""
        if trainer.state.fn == "fit":
            saved = checkpoint["callbacks"].get(self.state_key, {"seconds": {}, "seconds_are_complete": False})
            for part, taken in saved["seconds"].items():
                self._seconds[part] += taken
            self._complete = saved["seconds_are_complete"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "test":
            self._turn_to("test")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._turn_to("training")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._running == "training":  # not for the sanity check, which is part of the start
            self._turn_to("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._running == "validation":
            self._turn_to("training")


def clock_of(trainer: Trainer) -> Clock:
    """Return the Trainer's clock."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, Clock))  # type: ignore[attr-defined]
