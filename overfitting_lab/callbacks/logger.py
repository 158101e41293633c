"""The run's folder and what TensorBoard shows of its numbers."""

import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from lightning_utilities.core.rank_zero import rank_zero_only

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


TAGS = {"acc": "accuracy"}
CURVES = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc")


class RunLogger(Logger):
    """Claims ``<root>/<experiment>/version_N`` and writes metrics there as TensorBoard events.

    Metrics named ``train_*`` and ``val_*`` go to two sub-folders under one tag, so that TensorBoard draws both curves
    in one chart; their x is the epoch. All others go to the run's folder itself, at the optimizer step.

    Args:
        root: the folder of all experiments.
        experiment: the folder of this one's runs.
        version: the folder of a run that goes on; none claims a new one.
    """

    def __init__(self, root: Path, experiment: str, version: str | None = None) -> None:
        super().__init__()
        self._root = root
        self._experiment = experiment
        self._version = version
        self._writers: dict[str, SummaryWriter] = {}
        self._purge: dict[str, int] = {}

    @property
    def name(self) -> str:
        """The experiment."""
        return self._experiment

    @property
    def version(self) -> str:
        """``version_N`` with the next free N; claimed on first use, so that a run that fails early leaves none."""
        if self._version is None:
            self._version = self._claim()
        return self._version

    def share(self, strategy: Strategy) -> None:
        """Tells all processes the version that process 0 has, before any of the others asks for it."""
        self._version = strategy.broadcast(self.version if strategy.is_global_zero else "")

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
        """The run's folder."""
        return self._root / self._experiment / self.version

    def writer(self, sub_run: str = "") -> "SummaryWriter":
        """The event file of the run, or of its sub-folder ``train`` or ``val``; process 0 alone may ask."""
        if sub_run not in self._writers:
            from torch.utils.tensorboard import SummaryWriter  # not at the top: slow to import

            self._writers[sub_run] = SummaryWriter(str(self.folder / sub_run), purge_step=self._purge.get(sub_run))
        return self._writers[sub_run]

    def go_on_from(self, step: int, rows: Sequence[Mapping[str, float | None]]) -> None:
        """Has TensorBoard forget what a run that goes on wrote behind its checkpoint.

        Args:
            step: the optimizer step of the checkpoint.
            rows: the metrics of all epochs before it; their curves are written anew, since what was written last may
                not have come to the disk.
        """
        self._purge = {"": step + 1, "train": 0, "val": 0}
        for row in rows:
            self.log_metrics({name: value for name, value in row.items() if value is not None and name in CURVES})

    def flush(self) -> None:
        """Has all that was written on its way to the disk."""
        for writer in self._writers.values():
            writer.flush()

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
