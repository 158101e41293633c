"""``summary.json``: what a run was, how it ended and what came of it, for other programs."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

from overfitting_lab.runs.epochs import EpochMetrics

Status = Literal["running", "finished", "interrupted", "failed"]
T = TypeVar("T")


@dataclass(frozen=True)
class DataSummary:
    """The data of a run.

    Attributes:
        source: ``cifar10``, ``folder`` or ``synthetic``.
        name: what people call the data.
        fingerprint: sha256 of the images, the split and labels drawn anew.
        split: ``overfit`` or ``full``.
        train_size: number of training images.
        val_size: number of validation images.
        test_size: number of test images.
        augment: policy of the training images.
        classes: names, in the order of the labels.
        identity: sha256 of the images and labels; ``None`` in old runs.
        label_noise: fraction of the training labels that were drawn at random.
    """

    source: str
    name: str
    fingerprint: str
    split: str
    train_size: int
    val_size: int
    test_size: int
    augment: str
    classes: list[str]
    identity: str | None = None
    label_noise: float = 0.0


@dataclass(frozen=True)
class ModelSummary:
    """The network of a run: the import path of its class and the number of its parameters."""

    class_path: str
    parameters: int


@dataclass(frozen=True)
class TestSummary:
    """The result on the test images.

    Attributes:
        checkpoint: ``best`` or ``last``.
        loss: mean cross-entropy in nats.
        acc: fraction of 1.
        images: number of test images.
    """

    checkpoint: str
    loss: float
    acc: float
    images: int


@dataclass(frozen=True)
class Summary:
    """The content of ``summary.json``. A key whose value is ``None`` is left out.

    Attributes:
        experiment: name of the experiment.
        status: ``running``, ``finished``, ``interrupted`` or ``failed``.
        seed: of ``seed_everything``.
        data: the images.
        model: the network.
        optimizer: ``class_path`` and the plain settings of the optimizer.
        versions: versions of Python and of the libraries.
        git_commit: commit of the project, with ``-dirty`` if files differed from it; empty outside a checkout.
        epochs: number of epochs that have ended.
        global_step: number of optimizer steps.
        seconds: time that training took, over all resumes.
        train_images_per_second: speed of the training steps.
        best: epoch with the highest validation accuracy.
        last: last epoch with a validation.
        generalization_gap: training minus validation accuracy of ``last``.
        test: result of the test.
        device: type of the device, such as ``cpu``.
        precision: the Trainer's precision.
        world_size: number of processes.
        diagnosis: findings of the doctor.
        reason: why a run failed or was interrupted.
    """

    experiment: str
    status: Status
    seed: int
    data: DataSummary
    model: ModelSummary
    optimizer: dict[str, Any]
    versions: dict[str, str]
    git_commit: str
    epochs: int = 0
    global_step: int = 0
    seconds: float = 0.0
    train_images_per_second: float | None = None
    best: EpochMetrics | None = None
    last: EpochMetrics | None = None
    generalization_gap: float | None = None
    test: TestSummary | None = None
    device: str | None = None
    precision: str | None = None
    world_size: int | None = None
    diagnosis: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None

    def to_json(self) -> str:
        """Return the content of ``summary.json``. NaN and infinity, which JSON lacks, become ``null``."""
        present = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(_without_nan(present), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Summary":
        """Return the summary in a text. Unknown keys are ignored.

        Raises:
            ValueError: if the text is no summary.
        """
        values = json.loads(text)
        try:
            nested: dict[str, Any] = {"data": _make(DataSummary, values["data"])}
            nested["model"] = _make(ModelSummary, values["model"])
            for name, kind in (("best", EpochMetrics), ("last", EpochMetrics), ("test", TestSummary)):
                if name in values:
                    nested[name] = _make(kind, values[name])
            return _make(cls, {**values, **nested})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


def _make(kind: type[T], values: Mapping[str, Any]) -> T:
    return kind(**{each.name: values[each.name] for each in fields(kind) if each.name in values})  # type: ignore[arg-type]


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
