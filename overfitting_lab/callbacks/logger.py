"""The run's folder, and its metrics as TensorBoard events."""

import contextlib
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from lightning_utilities.core.rank_zero import rank_zero_only

from overfitting_lab.runs.epochs import PROBE, EpochRecord
from overfitting_lab.runs.files import RunFiles
from overfitting_lab.runs.notes import attempt

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TENSORBOARD = "TensorBoard's files"
CURVES = ("train", "val", *(name.rpartition("_")[0] for name in PROBE[1:]))  # sub-folders
TAGS = {"loss": "loss", "acc": "accuracy"}


class RunLogger(Logger):
    """Claim ``<root>/<experiment>/version_N`` and write metrics there as TensorBoard events.

    Metrics named ``train_*``, ``val_*`` and ``probe_*`` go to sub-folders under one tag, so that TensorBoard draws
    their curves in one chart over epochs, which are counted from 1 there. All other metrics go to the run's folder
    itself, at the optimizer step. ``version`` is the name of the folder of a resumed run; ``None`` claims a new one.

    The folder of a resumed run is closed until :meth:`open`: events wait, and no callback may change a file in it.
    """

    def __init__(self, root: Path, experiment: str, version: str | None = None) -> None:
        super().__init__()
        self._root = root
        self._experiment = experiment
        self._version = version
        self.resumed = version is not None
        self.is_open = not self.resumed
        self._waiting: list[tuple[str, str, Any, Any]] = []  # sub-folder, method and arguments of each event
        self._writers: dict[str, SummaryWriter] = {}
        self._purge: dict[str, int] = {}

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self._experiment

    @property
    def version(self) -> str:
        """``version_N`` with the next free N, claimed on first use: a run that fails early leaves no folder."""
        if self._version is None:
            self._version = self._claim()
        return self._version

    def share(self, strategy: Strategy) -> None:
        """Give the version of process 0 to all processes."""
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
        """Folder of all experiments."""
        return str(self._root)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._root / self._experiment / self.version

    def folder_with_files(self) -> Path | None:
        """Return the run's folder; ``None`` if it is not claimed, is gone, or is empty. Remove an empty one."""
        if self._version is None:
            return None
        for empty in (RunFiles(self.folder).checkpoints, self.folder):
            with contextlib.suppress(OSError):  # gone, or not empty
                empty.rmdir()
        return self.folder if self.folder.is_dir() else None

    @property
    def files(self) -> RunFiles:
        """The files in the run's folder.

        Raises:
            FileNotFoundError: in process 0, if another program removed the folder or moved it.
        """
        if rank_zero_only.rank == 0 and not self.folder.is_dir():  # type: ignore[attr-defined]
            raise FileNotFoundError(f"{self.folder} is gone: another program removed the run's folder or moved it")
        return RunFiles(self.folder)

    def writer(self, sub_run: str = "") -> "SummaryWriter":
        """Return the event file of the run, or of a sub-folder such as ``train``. Only process 0 may call this."""
        if not self.is_open:
            return cast("SummaryWriter", _WaitingWriter(self._waiting, sub_run))
        if sub_run not in self._writers:
            from torch.utils.tensorboard import SummaryWriter  # not at the top: slow to import

            self._writers[sub_run] = SummaryWriter(
                str(self.files.folder / sub_run), purge_step=self._purge.pop(sub_run, None)
            )
        return self._writers[sub_run]

    @property
    @rank_zero_experiment
    def experiment(self) -> "SummaryWriter":
        """The run's event file, for a callback's own images and histograms, as in Lightning's TensorBoardLogger.

        Lightning asks for it before the run may have a folder. So only a call of a method opens the file.
        """
        return cast("SummaryWriter", _LazyWriter(self))

    def open(self) -> None:
        """Let callbacks change the folder, and write the events that wait."""
        self.is_open = True
        for sub_run, method, arguments, settings in self._waiting:
            getattr(self.writer(sub_run), method)(*arguments, **settings)
        self._waiting.clear()

    def discard_events_after(self, step: int, records: Sequence[EpochRecord]) -> None:
        """Discard the events that a resumed run wrote after its checkpoint.

        What the checkpoint's last epoch measured in training is written again: Lightning logs it after the checkpoint.
        A curve without an event file gets all epochs before the checkpoint, ``records``.
        """
        done = len(records) and records[-1].epoch + 1
        self._purge = {"": step + 1, **dict.fromkeys(CURVES, done + 1), "train": done}
        lacking = {curve for curve in CURVES if not list((self.files.folder / curve).glob("events.out.tfevents*"))}
        for record in records:
            again = lacking | ({"train"} if record is records[-1] else set())
            kept = {
                name: value for name, value in record.measured.items() if name == "epoch" or _curve(name)[0] in again
            }
            self.log_metrics(kept)

    def flush(self) -> None:
        """Hand all events to the operating system."""
        with attempt(TENSORBOARD):
            for writer in self._writers.values():
                writer.flush()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write scalars. The class says where they go."""
        metrics = dict(metrics)
        epoch = metrics.pop("epoch", None)
        with attempt(TENSORBOARD):
            for name, value in metrics.items():
                split, tag = _curve(name)
                if split in CURVES:
                    self.writer(split).add_scalar(f"curves/{TAGS.get(tag, tag)}", value, int(epoch or 0) + 1)
                else:
                    self.writer().add_scalar(name, value, step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the dashboard writes the settings at the end, together with the results."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        for writer in self._writers.values():
            with attempt(TENSORBOARD):
                writer.close()
        self._writers.clear()


def _curve(metric: str) -> tuple[str, str]:
    """Return the curve of a metric, such as ``train``, if it has one, and its name in there."""
    split, _, tag = metric.rpartition("_") if metric in PROBE else metric.partition("_")
    return split, tag


class _LazyWriter:
    """Stand-in for an event file that is opened when it is written to."""

    def __init__(self, logger: RunLogger) -> None:
        self._logger = logger

    def __getattr__(self, method: str) -> Any:
        return getattr(self._logger.writer(), method)


class _WaitingWriter:
    """Stand-in for an event file that may not be written yet. It collects the calls."""

    def __init__(self, waiting: list[tuple[str, str, Any, Any]], sub_run: str) -> None:
        self._waiting = waiting
        self._sub_run = sub_run

    def __getattr__(self, method: str) -> Any:
        return lambda *arguments, **settings: self._waiting.append((self._sub_run, method, arguments, settings))
