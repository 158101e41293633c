"""The run's folder and what TensorBoard shows of its numbers."""

import re
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


TAGS = {"acc": "accuracy"}


class RunLogger(Logger):
    """Claims ``<root>/<experiment>/version_N`` and writes metrics there as TensorBoard events.

    Metrics named ``train_*`` and ``val_*`` go to two sub-folders under one tag, so that TensorBoard draws both curves
    in one chart; their x is the epoch. All others go to the run's folder itself, at the optimizer step.

    Args:
        root: the folder of all experiments.
        experiment: the folder of this one's runs.
    """

    def __init__(self, root: Path, experiment: str) -> None:
        super().__init__()
        self._root = root
        self._experiment = experiment
        self._version: str | None = None
        self._writers: dict[str, SummaryWriter] = {}

    @property
    def name(self) -> str:
        """The experiment."""
        return self._experiment

    @property
    def version(self) -> str:
        """``version_N`` with the next free N; claimed on first use, so that a run that fails early leaves none."""
        if self._version is None:
            self._version = self._claim() if getattr(rank_zero_only, "rank", 0) == 0 else "version_of_process_0"
        return self._version

    def _claim(self) -> str:
        experiment = self._root / self._experiment
        experiment.mkdir(parents=True, exist_ok=True)
        taken = [int(match[1]) for path in experiment.iterdir() if (match := re.fullmatch(r"version_(\d+)", path.name))]
        number = max(taken, default=-1) + 1
        while True:
            try:
                (experiment / f"version_{number}").mkdir()
            except FileExistsError:  # by another run that started at the same moment
                number += 1
            else:
                return f"version_{number}"

    @property
    def save_dir(self) -> str:
        """The folder of all experiments."""
        return str(self._root)

    @property
    def folder(self) -> Path:
        """The run's folder; process 0 alone may ask."""
        return self._root / self._experiment / self.version

    def writer(self, sub_run: str = "") -> "SummaryWriter":
        """The event file of the run, or of its sub-folder ``train`` or ``val``; process 0 alone may ask."""
        if sub_run not in self._writers:
            from torch.utils.tensorboard import SummaryWriter  # not at the top: slow to import

            self._writers[sub_run] = SummaryWriter(str(self.folder / sub_run))
        return self._writers[sub_run]

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Writes scalars; see the class for where they go."""
        metrics = dict(metrics)
        epoch = metrics.pop("epoch", None)
        for name, value in metrics.items():
            split, _, tag = name.partition("_")
            if split in ("train", "val"):
                self.writer(split).add_scalar(f"curves/{TAGS.get(tag, tag)}", value, int(epoch or 0))
            else:
                self.writer().add_scalar(name, value, step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing at the start of a run: the dashboard writes them at the end, together with what came of them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the event files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
