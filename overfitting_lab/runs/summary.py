"""``summary.json``: what a run was, how it ended and what came of it, for other programs."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from overfitting_lab.runs.epochs import BestMetrics, EpochMetrics

Status = Literal["running", "finished", "interrupted", "failed"]
T = TypeVar("T")


@dataclass(frozen=True)
class DataSummary:
    """The data of a run, as ``CIFAR10DataModule.description()`` gives it."""

    source: str  # cifar10, folder or synthetic
    name: str
    fingerprint: str  # sha256 of the images, the split and labels drawn anew
    split: str
    train_size: int
    val_size: int
    test_size: int
    augment: str
    classes: list[str]  # in the order of the labels
    identity: str | None = None  # sha256 of the images and labels; old runs lack it
    cutout: int = 0  # side of the square that training images lose, in pixels
    mixup: float = 0.0  # alpha; 0: off
    cutmix: float = 0.0  # alpha; 0: off
    label_noise: float = 0.0  # fraction of the training labels that were drawn at random
    subset: int = 0  # which of the disjoint sets of training and validation images
    test_available: int | None = None  # images in the test set, of which test_size are used; old runs lack it


@dataclass(frozen=True)
class ModelSummary:
    """The network of a run."""

    class_path: str
    parameters: int  # how many


@dataclass(frozen=True)
class TestSummary:
    """The result on the test images, counted once each."""

    checkpoint: str  # best or last
    loss: float  # mean cross-entropy in nats: the mean negative log-likelihood
    acc: float  # fraction of 1
    images: int  # how many
    confidence: float | None = None  # mean largest probability; old runs lack this and the following
    calibration_error: float | None = None  # expected calibration error, 15 bins
    temperature: float | None = None  # minimizes the validation loss; missing if none does
    calibration_error_at_temperature: float | None = None
    own: dict[str, float] = field(default_factory=dict)  # metrics of model.metrics, by their names
    averaged: bool | None = None  # True if the network is an average of weights


@dataclass(frozen=True)
class Times:
    """The time of each part of a run in seconds, over all resumes."""

    start: float  # from the command to the first step, with the imports of Python's packages
    training: float
    validation: float  # with the probe
    test: float | None = None

    @property
    def total(self) -> float:
        """The time of all parts."""
        return self.start + self.training + self.validation + (self.test or 0.0)


@dataclass(frozen=True)
class Summary:
    """The content of ``summary.json``. Keys without a value are left out."""

    experiment: str
    status: Status
    seed: int
    data: DataSummary
    model: ModelSummary
    optimizer: dict[str, Any]  # class_path and plain settings
    versions: dict[str, str]  # of Python and of the libraries
    git_commit: str  # with -dirty if files differed from it; empty outside a checkout
    code: dict[str, str] = field(default_factory=dict)  # digests of the user's own modules that the settings name
    # Of the settings that decide the result: what a part of the training had instead, in its order. A run that began
    # from a checkpoint has ckpt_path.
    earlier: dict[str, list[Any]] = field(default_factory=dict)
    epochs: int = 0  # that have ended
    global_step: int = 0
    seconds: float = 0.0  # of training with validation, over all resumes
    seconds_of: Times | None = None  # of all parts, each alone; old runs lack it
    train_images_per_second: float | None = None
    best: BestMetrics | None = None  # the validation that chose best.ckpt
    last: EpochMetrics | None = None  # the last epoch with a validation
    generalization_gap: float | None = None  # of the last epoch that has one, a fraction of 1
    gap_instrument: Literal["probe", "training"] | None = None  # whose accuracy minus validation; old runs: training
    test: TestSummary | None = None
    device: str | None = None
    precision: str | None = None
    world_size: int | None = None
    diagnosis: list[dict[str, Any]] = field(default_factory=list)  # findings of the doctor
    reason: str | None = None  # why training ended, or why the run failed or was interrupted
    untested: str | None = None  # why a run that was trained to its end has no test
    notes: list[str] = field(default_factory=list)  # what failed beside training: a figure, a logger, the screen

    @property
    def total_seconds(self) -> float:
        """The time of the whole run. For an old run it is the time of training with validation."""
        return self.seconds_of.total if self.seconds_of else self.seconds

    @property
    def tested_on(self) -> str:
        """The number of tested images, such as ``1,000 of 10,000`` if images of the test set were left out."""
        return "0" if self.test is None else out_of(self.test.images, self.data.test_available)

    def to_json(self) -> str:
        """Return the content of ``summary.json``. NaN and infinity, which JSON lacks, become ``null``."""
        return json.dumps(_without_nan(_present(self)), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Summary":
        """Return the summary in a text. Unknown keys are ignored.

        Raises:
            ValueError: if the text is no summary.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it holds no summary")
        try:
            values |= {name: _make(kind, values[name]) for name, kind in _NESTED.items() if name in values}
            return _make(cls, values)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


_NESTED: dict[str, type[Any]] = {
    "data": DataSummary, "model": ModelSummary, "best": BestMetrics, "last": EpochMetrics, "test": TestSummary,
    "seconds_of": Times,
}  # fmt: skip


def out_of(number: int, whole: int | None) -> str:
    """Return a number as text, such as ``1,000 of 10,000`` if it is less than the whole."""
    return f"{number:,}" if whole in (None, number) else f"{number:,} of {whole:,}"


def _present(thing: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, without optional fields that have no value, and without empty dictionaries."""
    values = {each.name: (getattr(thing, each.name), each.default) for each in fields(thing)}
    return {
        name: _present(value) if is_dataclass(value) else value
        for name, (value, default) in values.items()
        if (value is not None or default is not None) and value != {}
    }


def _make(kind: type[T], values: Mapping[str, Any]) -> T:
    for name, hint in get_type_hints(kind).items():
        if isinstance(values.get(name), str) and {int, float} & {hint, *get_args(hint)}:
            raise TypeError(f"{name} is {values[name]!r}, which is no number")
        if name in values and not _fits(values[name], hint):
            raise TypeError(f"{name} cannot be {values[name]!r}")
    return kind(**{each.name: values[each.name] for each in fields(kind) if each.name in values})  # type: ignore[arg-type]


def _fits(value: Any, hint: Any) -> bool:
    """Tell if a value of JSON is of a type. ``null`` stands for a number that was NaN or infinite."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or (value is None and hint is float):
        return True
    if origin is Literal:
        return value in arguments
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, arguments[1]) for each in value.values())
    if origin is list:
        return isinstance(value, list) and all(_fits(each, arguments[0]) for each in value)
    if origin is not None:  # X | None
        return any(value is None if each is NoneType else _fits(value, each) for each in arguments)
    return isinstance(value, int | float if hint is float else hint)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
