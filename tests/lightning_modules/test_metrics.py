"""Metrics of torchmetrics in the configuration stand wherever loss and accuracy stand."""

import csv
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from datamodules import Batch
from lightning_modules import ImageClassifier
from overfitting_lab.runs import Run
from tests.conftest import Flags, Script, events_of, scalars_of, summary_of, timeless
from tests.scripts.test_errors import check_one_message

RUN = Path("lightning_logs/overfit/version_0")
METRICS = """
model:
  init_args:
    metrics:
      f1: {class_path: torchmetrics.classification.MulticlassF1Score, init_args: {average: macro}}
      top2: {class_path: torchmetrics.classification.MulticlassAccuracy, init_args: {top_k: 2, average: micro}}
      calibration_error: {class_path: torchmetrics.classification.MulticlassCalibrationError, init_args: {n_bins: 5}}
"""
CLASSIFICATION = "torchmetrics.classification"


class Constant(Metric):
    """A metric that is 0.5 whatever it is given."""

    full_state_update: bool | None = False
    seen: torch.Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("seen", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        self.seen += len(target)

    def compute(self) -> torch.Tensor:
        return torch.full((), 0.5)


class OtherNames(Constant):
    """A metric whose update names its arguments as it likes."""

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        super().update(logits, labels)


class Unmerged(Constant):
    """A metric as it is first written, without a word on how its state is updated."""

    full_state_update = None


class Mean(Constant):
    """A metric whose state is a mean, of which a merged one has lost the number of updates."""

    mean: torch.Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.add_state("mean", torch.tensor(0.0), dist_reduce_fx="mean")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        self.mean = self.mean + 0.5

    def compute(self) -> torch.Tensor:
        return self.mean


class Once(Constant):
    """A metric that fails on its second batch."""

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        if self.seen:
            raise ValueError("once")
        super().update(preds, target)


@pytest.fixture
def fit(tiny: Flags, tmp_path: Path) -> list[str]:
    (tmp_path / "metrics.yaml").write_text(METRICS)
    return ["--config=overfit", "--config=metrics.yaml", *tiny]


def macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    scores = []
    for each in range(3):
        right = ((labels == each) & (predictions == each)).sum()
        scores.append(2 * right / max(1, (labels == each).sum() + (predictions == each).sum()))
    return float(np.mean(scores))


def test_own_metrics_stand_where_accuracy_stands(run_script: Script, fit: list[str], tmp_path: Path) -> None:
    flags = ["--monitor=val_f1", "--trainer.max_epochs=3"]
    stop = ("+=EarlyStopping", ".monitor=val_calibration_error", ".patience=9")
    flags += [f"--trainer.callbacks{word}" for word in stop]
    outcome = run_script("fit", *fit, *flags)
    assert outcome.status == 0, outcome.err
    run = Run(tmp_path / RUN)
    scores = [record.own["val_f1"] for record in run.records]
    assert len(scores) == 3
    assert run.summary.best
    assert (run.summary.best.epoch, run.summary.best.own["val_f1"]) == (int(np.argmax(scores)), max(scores))
    assert {"train_f1", "val_f1", "val_top2", "val_calibration_error"} <= run.summary.best.own.keys()
    assert summary_of(run.folder)["best"]["own"]["val_f1"] == max(scores)

    images = run.images
    expected = macro_f1(images["test_labels"], images["test_predictions"])
    assert run.summary.test
    assert run.summary.test.own["f1"] == pytest.approx(expected, rel=1e-5)
    line = next(line for line in outcome.out.splitlines() if line.startswith("test "))
    assert f", f1 {expected:.4f}, top2 " in line
    for record in run.records:
        assert f" f1 {record.own['train_f1']:.4f} top2 {record.own['train_top2']:.4f}" in outcome.out
        assert 0 <= record.own["val_f1"] <= 1
        assert (record.val_acc or 0) <= record.own["val_top2"], "the right class is one of two"
    rows = list(csv.DictReader((run.folder / "metrics.csv").read_text().splitlines()))
    assert [float(row["val_f1"]) for row in rows] == scores
    assert {"train_top2", "probe_f1"} <= rows[0].keys()
    assert [y for _, y in scalars_of(run.folder / "val")["curves/f1"]] == pytest.approx(scores)
    assert any("result/test_f1" in tag for tag in events_of(run.folder).Tags()["scalars"])

    outcome = run_script("compare", RUN, "--output", "page")
    assert outcome.status == 0, outcome.err
    assert "test f1" in (tmp_path / "page/report.md").read_text()


def test_a_schedule_follows_an_own_metric_alone(run_script: Script, fit: list[str], tmp_path: Path) -> None:
    plateau = ("=lightning.pytorch.cli.ReduceLROnPlateau", ".monitor=val_f1", ".mode=max", ".patience=0", ".factor=0.5")
    constant = ("--model.metrics.f1=tests.lightning_modules.test_metrics.Constant",)
    flags = [*constant, "--trainer.max_epochs=3", *(f"--model.lr_scheduler{word}" for word in plateau)]
    outcome = run_script("fit", *fit, *flags)
    assert outcome.status == 0, outcome.err
    rates = [record.learning_rate for record in Run(tmp_path / RUN).records]
    assert rates == [rates[0], rates[0], rates[0] / 2], "the second validation is not better"
    losses = [record.val_loss or 0 for record in Run(tmp_path / RUN).records]
    assert losses[1] < losses[0], "a schedule that followed the loss would not have halved the rate"


@pytest.mark.thorough
def test_a_resumed_run_counts_own_metrics_as_well(run_script: Script, fit: list[str], tmp_path: Path) -> None:
    fit.append("--config=schedule/one_cycle")
    assert run_script("fit", *fit).status == 0
    kill = ("place=step", "step=7", f"mark={tmp_path / 'mark'}", f"number={int(signal.SIGTERM)}")
    killer = ["--trainer.callbacks+=tests.faults.KillOnce", *(f"--trainer.callbacks.{each}" for each in kill)]
    assert run_script("fit", *fit, *killer, "--experiment=second").status == 143
    second = Path("lightning_logs/second/version_0")
    outcome = run_script("fit", "--resume", second)
    assert outcome.status == 0, outcome.err
    assert "changed" not in outcome.out
    assert timeless(tmp_path / second) == timeless(tmp_path / RUN)
    assert (second / "metrics.csv").read_text().partition("\n")[0].endswith("probe_calibration_error")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"acc": "MulticlassF1Score"}, "and is not loss, acc"),
        ({"update": "MulticlassF1Score"}, "update or another method"),
        ({"a b": "MulticlassF1Score"}, "a metric's name begins with a letter"),
        ({"f1": "MulticlassConfusionMatrix"}, "f1 gives no single number; average it"),
        ({"f1": "BinaryF1Score"}, "f1 cannot be measured"),
        ({"calibration": "MulticlassCalibrationError"}, "less of MulticlassCalibrationError is better"),
        ({"f1_loss": "MulticlassF1Score"}, "so let its name not end in loss or error"),
        ({"f1": "NoSuchScore"}, "NoSuchScore"),
        ({"f1": "tests.lightning_modules.test_metrics.Unmerged"}, "write full_state_update = False in its class"),
        ({"f1": "tests.lightning_modules.test_metrics.OtherNames"}, "whose update takes preds and target"),
        ({"f1": "tests.lightning_modules.test_metrics.Mean"}, "keep sums and counts in add_state"),
        ({"f1": "tests.lightning_modules.test_metrics.Once"}, "f1 cannot be measured twice: ValueError: once"),
    ],
)
def test_a_metric_that_does_not_work_is_refused(
    flags: dict[str, str], words: str, run_script: Script, tiny: Flags
) -> None:
    ((name, kind),) = flags.items()
    path = kind if "." in kind else f"{CLASSIFICATION}.{kind}"
    outcome = run_script("fit", "--config=overfit", *tiny, f'--model.metrics={{"{name}": "{path}"}}')
    assert outcome.status in (1, 2)
    check_one_message(outcome, outcome.status)
    assert words in outcome.err
    assert not RUN.exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--monitor=val_f2", "--monitor val_f2: no validation measures it; give one of val_loss, val_acc, val_f1"),
        ("--monitor=train_f1", "give one of val_loss, val_acc"),
        (
            "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val_f1",
            "this metric is to be maximized; give --trainer.callbacks.mode=max",
        ),
    ],
)
def test_monitors_of_own_metrics_are_checked(flags: str, words: str, run_script: Script, fit: list[str]) -> None:
    outcome = run_script("fit", *fit, *flags.split())
    check_one_message(outcome, 2)
    assert words in outcome.err


def test_metrics_that_are_equal_at_first_stay_apart() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Identity())
    top2 = partial(MulticlassAccuracy, top_k=2, average="micro")
    model = ImageClassifier(network, 3, 1, partial(torch.optim.SGD, lr=1), None, "epoch", metrics={"top2": top2})
    model.network.weight = torch.nn.Parameter(torch.ones(1))
    right, second = (
        torch.tensor([[3.0, 2.0, 1.0]]).reshape(1, 3, 1, 1),
        torch.tensor([[2.0, 3.0, 1.0]]).reshape(1, 3, 1, 1),
    )
    for images in (right, second):
        model.test_step(Batch(images, torch.tensor([0]), torch.tensor([0]), 1), 0)
    measured = model.test_metrics.compute()
    assert (float(measured["test_acc"]), float(measured["test_top2"])) == (0.5, 1.0)


class Undefined(Constant):
    """A metric that is NaN, as a ratio of nothing is."""

    def compute(self) -> torch.Tensor:
        return torch.full((), torch.nan)


def test_a_metric_without_a_value_cannot_choose_and_the_run_says_so(
    run_script: Script, tiny: Flags, tmp_path: Path
) -> None:
    config = tmp_path / "metrics.yaml"
    config.write_text(f"model: {{init_args: {{metrics: {{ratio: {{class_path: {__name__}.Undefined}}}}}}}}\n")
    outcome = run_script("fit", "--config=overfit", *tiny, f"--config={config}", "--monitor=val_ratio")
    assert outcome.status == 0, outcome.err
    said = "choosing the best validation: val_ratio is NaN or infinite in epoch 1"
    assert f"note       {said}\n" in outcome.err
    assert summary_of(RUN)["notes"] == [said]
