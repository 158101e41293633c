from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from datamodules import CIFAR10DataModule
from lightning_modules import ImageClassifier
from overfitting_lab.runs import Run
from overfitting_lab.runs.calibration import at_temperature, calibration
from tests.conftest import FinishedRun, Flags, Script, scalars_of, summary_of

RUN = Path("lightning_logs/overfit/version_0")
HARD = ("--model.dropout=0.5", "--data.augment=flip_crop")  # what the probe does not have


def measured_again(run: Run, folder: Path) -> tuple[torch.Tensor, torch.Tensor, CIFAR10DataModule]:
    """Return labels and outputs of the last weights for the run's probe, by hand."""
    settings = {name.removeprefix("data."): value for name, value in run.settings.items() if name.startswith("data.")}
    data = CIFAR10DataModule(**settings)
    data.prepare_data()
    data.setup("fit")
    model = ImageClassifier.from_checkpoint(run.files.last)
    pixels = data.images.train_images[data.probe_indices].permute(0, 3, 1, 2)
    with torch.inference_mode():
        return data.images.train_labels[data.probe_indices], model(data.network_input(pixels)), data


def test_the_probe_is_evaluated_as_validation_is(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    flags = ("--trainer.max_epochs=4", "--data.probe_every=2", "--trainer.precision=32-true", "--data.val_size=40")
    outcome = run_script("fit", "--config=overfit", *quick, *HARD, *flags)
    assert outcome.status == 0, outcome.err
    run = Run(tmp_path / RUN)
    assert [record.epoch for record in run.records if record.probe_acc is not None] == [0, 2, 3]
    labels, logits, _ = measured_again(run, tmp_path)
    last = run.records[-1]
    assert len(labels) == 40
    assert last.probe_acc == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert last.probe_loss == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-4)
    summary = summary_of(run.folder)
    assert summary["last"]["probe_acc"] == last.probe_acc
    assert (summary["generalization_gap"], summary["gap_instrument"]) == (last.gap, "probe")
    curves = scalars_of(run.folder / "probe")
    assert curves["curves/accuracy"] == [
        (record.epoch + 1, pytest.approx(record.probe_acc)) for record in run.records if record.probe_acc is not None
    ]
    lines = [line for line in outcome.out.splitlines() if line.startswith("epoch ")]
    assert ["probe loss" in line for line in lines] == [True, False, True, True]


def test_without_a_probe_the_gap_is_from_training(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    assert run_script("fit", "--config=overfit", *quick, "--data.probe_every=0").status == 0
    run = Run(tmp_path / RUN)
    assert {record.probe_acc for record in run.records} == {None}
    assert (run.summary.generalization_gap, run.summary.gap_instrument) == (run.records[-1].training_gap, "training")
    assert not (run.folder / "probe").exists()


def test_the_probe_changes_no_weight(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    for every in (0, 1):
        assert run_script("fit", "--config=overfit", *quick, *HARD, f"--data.probe_every={every}").status == 0
    one, other = (
        torch.load(tmp_path / RUN.with_name(f"version_{number}") / "weights.pth", weights_only=True)
        for number in (0, 1)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_label_noise_divides_the_probe(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    flags = ("--data.label_noise=0.5", "--trainer.precision=32-true")
    assert run_script("fit", "--config=overfit", *quick, *flags).status == 0
    run = Run(tmp_path / RUN)
    labels, logits, data = measured_again(run, tmp_path)
    true, answers = data.true_labels[data.probe_indices], logits.argmax(1)
    clean = labels == true
    assert 0 < int(clean.sum()) < len(clean)

    def share(right: Any) -> Any:
        return pytest.approx(float(right.float().mean()))

    last = run.records[-1]
    assert last.probe_clean_acc == share((answers == labels)[clean])
    assert last.probe_memorized_acc == share((answers == labels)[~clean])
    assert last.probe_true_acc == share((answers == true)[~clean])
    assert scalars_of(run.folder / "probe_memorized")["curves/accuracy"][-1][1] == share((answers == labels)[~clean])


def test_a_network_that_is_always_right_has_no_best_temperature(finished_run: FinishedRun) -> None:
    summary = Run(finished_run.folder).summary
    assert summary.best is not None
    assert summary.best.val_acc == 1
    assert summary.test is not None
    assert summary.test.temperature is None


def test_a_network_that_is_not_the_validated_one_has_no_temperature(run_script: Script, quick: Flags) -> None:
    assert run_script("fit", "--config=overfit", *quick, "--trainer.enable_checkpointing=false").status == 0
    test = Run(Path(RUN)).summary.test
    assert test is not None
    assert (test.checkpoint, test.temperature, test.calibration_error_at_temperature) == ("last", None, None)
    assert test.calibration_error is not None


def test_the_summary_says_how_sure_the_network_is(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    assert run_script("fit", "--config=overfit", *quick, "--trainer.max_epochs=1").status == 0
    run = Run(tmp_path / RUN)
    test, images = run.summary.test, run.images
    assert test is not None
    assert test.temperature is not None
    assert run.test_probabilities is not None
    found = calibration(run.test_probabilities, images["test_labels"])
    assert (test.confidence, test.calibration_error) == pytest.approx((found.confidence, found.error), abs=2e-3)
    cooler = at_temperature(images["test_logits"], test.temperature)
    after = calibration(cooler, images["test_labels"]).error
    assert test.calibration_error_at_temperature == pytest.approx(after, abs=1e-3)

    logits, labels = torch.from_numpy(images["val_logits"]), torch.from_numpy(images["val_labels"]).long()
    assert run.summary.best is not None
    assert float(cross_entropy(logits, labels)) == pytest.approx(run.summary.best.val_loss, abs=1e-3)
    at = [float(cross_entropy(logits / (test.temperature * factor), labels)) for factor in (0.9, 1.0, 1.1)]
    assert at[1] == min(at)
