"""The measurements of each epoch of a run, and the conclusions that they allow."""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from overfitting_lab.runs.files import RunError

METRICS = ("train_loss", "train_acc", "val_loss", "val_acc")
PROBE = ("probe_loss", "probe_acc", "probe_clean_acc", "probe_memorized_acc", "probe_true_acc")  # not of every epoch
PATIENCE = 8  # validations in a row that must be worse than the best one
SPLITS = ("train", "val", "probe")  # of which each epoch logs metrics
MINIMIZED = ("loss", "error")  # a metric is minimized if its name ends so
Monitor = str  # the validation metric that chooses the best validation, such as val_acc
WORSE = 1.1  # times the lowest validation loss


@dataclass(frozen=True)
class EpochMetrics:
    """The metrics of one epoch. Losses are mean cross-entropies in nats, accuracies fractions of 1.

    Training metrics are measured while the weights change, with dropout, augmentation and mixing on, for the images'
    own labels and without label smoothing. Validation metrics are ``None`` if the epoch had no validation. Probe
    metrics are measured on some of the training images, in the same way as validation metrics. They are ``None`` if the
    epoch did not evaluate the probe. The last three need label noise.

    ``own`` holds the metrics that ``model.metrics`` adds, by names such as ``val_f1``.
    """

    epoch: int  # counted from 0
    train_loss: float
    train_acc: float
    val_loss: float | None
    val_acc: float | None
    probe_loss: float | None = field(default=None, kw_only=True)
    probe_acc: float | None = field(default=None, kw_only=True)
    probe_clean_acc: float | None = field(default=None, kw_only=True)  # of the images that have their true label
    probe_memorized_acc: float | None = field(default=None, kw_only=True)  # of the others, against the drawn label
    probe_true_acc: float | None = field(default=None, kw_only=True)  # of the others, against the true label
    own: dict[str, float] = field(default_factory=dict, kw_only=True)

    @property
    def measured(self) -> dict[str, float]:
        """All values by their names, with the epoch, without values that are ``None``."""
        return {name: value for name, value in _row(self.metrics).items() if value is not None}

    @property
    def metrics(self) -> "EpochMetrics":
        """The metrics alone."""
        return EpochMetrics(**{each.name: getattr(self, each.name) for each in fields(EpochMetrics)})

    @property
    def gap(self) -> float | None:
        """Probe minus validation accuracy; ``None`` if the epoch lacks one of them."""
        return None if self.probe_acc is None or self.val_acc is None else self.probe_acc - self.val_acc

    @property
    def training_gap(self) -> float | None:
        """Training minus validation accuracy. Dropout and augmentation lower the training accuracy, and so this gap."""
        return None if self.val_acc is None else self.train_acc - self.val_acc


Instrument = Literal["probe", "training"]  # what stands for the training images in a gap


class Gap(NamedTuple):
    """The generalization gap of a run, and the metric that stands for the training images in it."""

    value: float  # a fraction of 1
    epoch: int  # counted from 0
    instrument: Instrument


@dataclass(frozen=True)
class Validation:
    """One validation, at the end of an epoch or within it."""

    epoch: int  # counted from 0
    val_loss: float | None  # mean cross-entropy in nats; None if it was not finite
    val_acc: float  # fraction of 1
    step: int | None = None  # optimizer steps of the run before the validation; the summaries of old runs lack it
    own: dict[str, float] = field(default_factory=dict)  # as in EpochMetrics

    def is_better_than(self, other: "Validation", monitor: Monitor) -> bool:
        """Tell if this validation replaces another one as the best. Of equals, the first stays the best."""
        return score(self, monitor) > score(other, monitor)


@dataclass(frozen=True)
class BestMetrics(Validation):
    """The validation that chose ``best.ckpt``, with the training metrics of its epoch once that epoch has ended."""

    train_loss: float | None = None
    train_acc: float | None = None


@dataclass(frozen=True)
class EpochRecord(EpochMetrics):
    """One row of ``metrics.csv``."""

    step: int  # optimizer steps of the run at the end of the epoch
    learning_rate: float  # of the epoch's last step
    seconds: float  # with validation


COLUMNS = ("epoch", "step", *METRICS, "learning_rate", "seconds", *PROBE)


def names_of(own: Iterable[str]) -> list[str]:
    """Return the names by which epochs log own metrics: ``train_f1``, ``val_f1``, ``probe_f1`` for ``f1``."""
    return [f"{split}_{name}" for name in own for split in SPLITS]


def own_of(records: Iterable[EpochMetrics]) -> list[str]:
    """Return the own metrics of records, such as ``f1``."""
    return list(dict.fromkeys(name.partition("_")[2] for record in records for name in record.own))


def write_records(path: Path, records: Iterable[EpochRecord], mode: str = "w", own: Iterable[str] = ()) -> None:
    """Write records as CSV. A new file begins with the columns' names; ``mode="a"`` appends rows to a file.

    ``own`` are the run's own metrics, such as ``f1``. Each has a column for each split.
    """
    with path.open(mode, newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, (*COLUMNS, *names_of(own)), extrasaction="ignore")
        if mode == "w":
            writer.writeheader()
        writer.writerows(map(_row, records))


def _row(record: EpochMetrics) -> dict[str, Any]:
    """Return a record's values by their names, own metrics beside the others."""
    values: dict[str, Any] = asdict(record)
    own = values.pop("own")
    return {**values, **own}


def read_records(path: Path, *, whole: bool = False) -> list[EpochRecord]:
    """Read the rows of a ``metrics.csv``; none if there is no such file.

    A last row without an end counts if it is ``whole``, as in a file that an editor has saved. Of a run that was
    killed, it may have been cut off.

    Raises:
        RunError: if a column of the epochs is missing, or a row holds what is no number.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # an editor may have begun it with a mark
            lines = file.readlines()
        lines = lines if whole or (lines and lines[-1].endswith(("\n", "\r"))) else lines[:-1]
        return [_record(row) for row in csv.DictReader(lines)]
    except KeyError as error:
        raise RunError(f"{path} is damaged (no column {error}); restore it") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise RunError(f"{path} is damaged ({error}); remove what does not belong there") from error


def _record(row: dict[str, str]) -> EpochRecord:
    def value(field: str) -> float | None:
        text = row.get(field) if field in PROBE else row[field]
        if text:
            return float(text)
        return None if field in ("val_loss", "val_acc", *PROBE) else math.nan

    values = {field.name: value(field.name) for field in fields(EpochRecord) if field.name != "own"}
    whole = {name: int(float(row[name] or 0)) for name in ("epoch", "step")}
    own = {name: float(text) for name, text in row.items() if name not in COLUMNS and name and text}
    return EpochRecord(**{**values, **whole, "own": own})  # type: ignore[arg-type]


def has_probe(records: Iterable[EpochMetrics]) -> bool:
    """Tell if a run evaluated a probe of its training images; older runs did not."""
    return any(record.probe_acc is not None for record in records)


def last_gap(records: Sequence[EpochMetrics], instrument: Instrument | None = None) -> Gap | None:
    """Return the gap of the last epoch that has one: from the probe, or from training if the run has no probe."""
    if instrument is None:
        instrument = "probe" if has_probe(records) else "training"
    for record in reversed(records):
        value = record.gap if instrument == "probe" else record.training_gap
        if value is not None:
            return Gap(value, record.epoch, instrument)
    return None


def is_maximized(metric: str) -> bool:
    """Tell if more of a metric is better. Its name says so."""
    return not metric.endswith(MINIMIZED)


def value_of(measured: EpochMetrics | Validation, metric: str) -> float | None:
    """Return the value of a metric by its name; ``None`` if it was not measured."""
    value: float | None = measured.own.get(metric, getattr(measured, metric, None))
    return value


def score(measured: EpochMetrics | Validation, monitor: Monitor) -> float:
    """Return a number that is larger for the better validation; minus infinity without a finite value."""
    value = value_of(measured, monitor)
    if value is None or not math.isfinite(value):
        return -math.inf
    return value if is_maximized(monitor) else -value


def best_epoch(records: Iterable[EpochRecord], monitor: Monitor = "val_acc") -> EpochRecord | None:
    """Return the epoch with the best validation, the first of equals; ``None`` without a validation."""
    validated = [record for record in records if record.val_acc is not None]
    return max(validated, key=lambda record: score(record, monitor), default=None)


def over_fits_since(records: Sequence[EpochRecord]) -> EpochRecord | None:
    """Return the epoch after which a run over-fits, or ``None`` if it does not.

    It is the epoch of the lowest validation loss, if each of the last eight validations is at least a tenth above that
    loss while the training loss is below that epoch's.

    The two constants were chosen so that, on every run in ``lightning_logs/reference``, an epoch that the rule names
    while the run trains is also the epoch that it names at the end. Five validations would wrongly name an epoch of
    ``small_data_other`` while its learning rate is high, and one would name one of ``regularized`` for one epoch.
    """
    validated = [record for record in records if record.val_loss is not None and math.isfinite(record.val_loss)]
    if not validated:
        return None
    lowest = min(validated, key=_val_loss)
    since = [_val_loss(record) for record in validated if record.epoch > lowest.epoch][-PATIENCE:]
    worse = len(since) == PATIENCE and min(since) >= WORSE * _val_loss(lowest)
    return lowest if worse and records[-1].train_loss < lowest.train_loss else None


def _val_loss(record: EpochRecord) -> float:
    return math.inf if record.val_loss is None else record.val_loss
