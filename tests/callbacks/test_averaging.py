"""The overlays of averaged weights and of early stopping: alone, together, and with every other setting."""

import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import nll_loss
from torch.optim.swa_utils import AveragedModel, update_bn

from datamodules import CIFAR10DataModule
from datamodules.sampling import epoch_order
from overfitting_lab.export import load_predictor
from overfitting_lab.runs import Run
from tests.conftest import Flags, Parse, Script, weights_of
from tests.networks import Normalized
from tests.scripts.test_errors import check_one_message
from tests.scripts.test_resume import FIRST, assert_same, differences

EMA, SWA, EARLY = "averaging/ema", "averaging/swa", "early_stopping"
CALLBACKS = {EMA: "EMAWeightAveraging", SWA: "MeanOfLastEpochs", EARLY: "EarlyStopping"}
NORMALIZED = ("--model=tests.networks.Normalized", "--model.optimizer.lr=1e-2", "--data.stand_in=false")
START = "--trainer.callbacks.start=0.4"


@pytest.fixture
def fit(short: Flags) -> list[str]:
    """Return flags for four epochs of five steps of a network with batch normalization."""
    return ["--config=overfit", *short, *NORMALIZED, "--trainer.max_epochs=4"]


@pytest.mark.parametrize(
    ("config", "own", "overlays"),
    [("overfit", [], (EMA, EARLY)), *(("vgg16_32", ["PlateauSchedule"], pair) for pair in permutations(CALLBACKS, 2))],
)
def test_overlays_add_their_callbacks(config: str, own: list[str], overlays: tuple[str, ...], parse: Parse) -> None:
    flags = [f"--config={name}" for name in (config, *overlays)]
    given = parse(*flags, "--trainer.callbacks+=LearningRateMonitor").trainer.callbacks
    names = [callback.class_path.rpartition(".")[2] for callback in given]
    assert names == [*own, *(CALLBACKS[name] for name in overlays), "LearningRateMonitor"]


def test_a_configuration_does_not_remove_what_an_overlay_added(run_script: Script, tmp_path: Path) -> None:
    outcome = run_script("fit", f"--config={EARLY}", "--config=vgg16_32")
    check_one_message(outcome, 2)
    assert "vgg16_32.yaml would replace the callbacks of " in outcome.err
    assert not list(tmp_path.iterdir())


def test_the_last_network_is_the_average_although_the_best_validation_came_before(
    run_script: Script, fit: list[str], tmp_path: Path
) -> None:
    still = ("--model.optimizer.lr=0", "--trainer.enable_checkpointing=false")
    outcome = run_script("fit", *fit, f"--config={SWA}", START, *still)
    assert outcome.status == 0, outcome.err
    test = Run(tmp_path / FIRST).summary.test
    assert test is not None
    assert (test.checkpoint, test.averaged) == ("last", True)
    assert "the best validation, of epoch 1, is of the trained network" in outcome.out


def test_two_averages_are_refused(run_script: Script, fit: list[str]) -> None:
    outcome = run_script("fit", *fit, f"--config={EMA}", f"--config={SWA}")
    check_one_message(outcome, 2)
    assert "two averages" in outcome.err


@pytest.mark.parametrize(
    ("flags", "words", "status"),
    [
        (["--trainer.callbacks.start=1"], "start must be in [0, 1), not 1", 2),
        (["--trainer.max_epochs=-1", "--trainer.max_time=00:00:00:09"], "give its length by --trainer.max_epochs", 1),
    ],
)
def test_no_last_part_is_one_message(
    flags: list[str], words: str, status: int, run_script: Script, fit: list[str], tmp_path: Path
) -> None:
    outcome = run_script("fit", *fit, f"--config={SWA}", *flags)
    check_one_message(outcome, status)
    assert words in outcome.err
    assert not list(tmp_path.glob("lightning_logs/*/*"))


def data_of(run: Run) -> CIFAR10DataModule:
    data = CIFAR10DataModule.load_from_checkpoint(run.files.last, weights_only=True)
    data.prepare_data()
    data.setup("fit")
    return data


def raw(images: Tensor) -> Tensor:
    """Return images as uint8 [N, 3, 32, 32]."""
    return images.permute(0, 3, 1, 2)


def test_what_is_kept_is_the_mean_that_was_validated(run_script: Script, fit: list[str], tmp_path: Path) -> None:
    steps = ("--trainer.callbacks+=tests.observers.StepWeights", "--monitor=val_loss")
    outcome = run_script("fit", *fit, f"--config={SWA}", START, *steps)
    assert outcome.status == 0, outcome.err
    shown = [line for line in outcome.out.splitlines() if line.startswith("average")]
    assert shown == [
        "average    not begun: the trained network is validated",
        "average    validated from epoch 2 on",
        "average    of 3 networks; the best validation, of epoch 4, is of the average",
    ]

    run = Run(tmp_path / FIRST)
    assert run.summary.test is not None
    assert run.summary.test.averaged
    data = data_of(run)
    order = data.train_indices[epoch_order(100, 0, 3)]
    network = Normalized(3, 8)
    reference = AveragedModel(network)
    weights = torch.load("weights.pt", weights_only=True)
    for step in (9, 14, 19):
        network.load_state_dict(weights[step])
        reference.update_parameters(network)
    batches = [data.network_input(raw(data.images.train_images[batch])) for batch in torch.split(order, 20)]
    update_bn(batches, reference)
    last, best = (torch.load(path, weights_only=True) for path in (run.files.last, run.files.best))
    for kept in (last["state_dict"], best["state_dict"]):
        assert kept.keys() == reference.module.state_dict().keys()
        for name, value in reference.module.state_dict().items():
            torch.testing.assert_close(kept[name], value)
    assert differences(last["current_model_state"], weights[19]) == []
    network_of_best = {f"network.{name}": value for name, value in weights_of(run.folder).items()}
    assert differences(network_of_best, best["state_dict"]) == []

    assert run_script("export", run.folder, "--formats", "pth").status == 0
    probabilities = load_predictor(run.folder / "export/model.pth").probabilities
    labels = data.images.train_labels[data.val_indices]
    answers = probabilities(raw(data.images.train_images[data.val_indices]))
    assert run.summary.best is not None
    assert run.summary.best.epoch == 3
    assert float((answers.argmax(dim=1) == labels).double().mean()) == pytest.approx(run.summary.best.val_acc)
    assert float(nll_loss(answers.log(), labels)) == pytest.approx(run.summary.best.val_loss, rel=1e-4)
    with np.load(run.folder / "images.npz") as images:
        validated = torch.from_numpy(images["val_logits"]).softmax(dim=1)
        tested = torch.from_numpy(images["test_logits"]).float().exp()
    torch.testing.assert_close(answers, validated, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probabilities(raw(data.images.test_images)), tested, rtol=1e-2, atol=1e-3)  # float16
    again = run_script("test", run.folder)
    assert run.summary.test is not None
    assert f"accuracy {run.summary.test.acc:.2%}, loss {run.summary.test.loss:.4f}" in again.out
    assert float((tested.argmax(dim=1) == data.images.test_labels).double().mean()) == pytest.approx(
        run.summary.test.acc
    )


@pytest.mark.parametrize(
    ("overlay", "setting"),
    [(SWA, START), pytest.param(EMA, "--trainer.callbacks.decay=0.8", marks=pytest.mark.long)],
)
def test_an_average_with_every_setting_is_resumed_exactly(
    overlay: str, setting: str, run_script: Script, fit: list[str], tmp_path: Path
) -> None:
    fit += [f"--config={overlay}", setting, f"--config={EARLY}", "--trainer.callbacks.patience=9"]
    fit += ["--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=0.5", "--data.label_noise=0.2"]
    fit += ["--trainer.precision=bf16-mixed", "--monitor=val_acc", "--data.augment=flip_crop", "--data.image_size=32"]
    assert run_script("fit", *fit).status == 0
    whole = Path(shutil.move(FIRST, "whole"))
    kill = ("=tests.faults.KillOnce", ".place=step", ".step=7", f".mark={tmp_path / 'mark'}", ".number=15")
    flags = [f"--trainer.callbacks{'+' * (word[0] == '=')}{word}" for word in kill]
    assert run_script("fit", *fit, *flags).status == 143  # within the third epoch, after the average has begun
    assert len(Run(tmp_path / FIRST).records) == 2
    outcome = run_script("fit", "--resume", FIRST)
    assert outcome.status == 0, outcome.err
    assert_same(Path(FIRST), whole)


def test_a_run_that_trains_longer_begins_its_average_later(run_script: Script, fit: list[str], tmp_path: Path) -> None:
    overlay = (f"--config={SWA}", "--trainer.callbacks.start=0.5")
    assert run_script("fit", *fit, *overlay, "--trainer.max_epochs=2").status == 0
    outcome = run_script("fit", "--resume", FIRST, *overlay, "--trainer.max_epochs=4")  # the overlay is not added twice
    assert outcome.status == 0, outcome.err
    assert "average    of 2 networks" in outcome.out
    assert run_script("fit", *fit, *overlay).status == 0
    states = [torch.load(Path(run) / "checkpoints/last.ckpt", weights_only=True) for run in (FIRST, f"{FIRST[:-1]}1")]
    for key in ("state_dict", "current_model_state", "averaging_state"):
        assert differences(states[0][key], states[1][key]) == []


def test_early_stopping_keeps_the_lowest_loss_and_says_when_it_stopped(
    run_script: Script, fit: list[str], tmp_path: Path
) -> None:
    jump = ("=torch.optim.lr_scheduler.StepLR", ".step_size=2", ".gamma=1000")
    flags = [f"--model.lr_scheduler{word}" for word in jump]
    outcome = run_script("fit", *fit, *flags, f"--config={EARLY}", "--trainer.callbacks.patience=1")
    assert outcome.status == 0, outcome.err
    run = Run(tmp_path / FIRST)
    losses = [float(record.val_loss or 0) for record in run.records]
    assert len(losses) == 3
    assert losses[2] > losses[1]
    assert run.summary.best is not None
    assert (run.summary.best.epoch, run.summary.best.val_loss) == (1, losses[1])
    why = "EarlyStopping after epoch 3: Monitored metric val_loss did not improve in the last 1 records. Best score: "
    assert str(run.summary.reason).startswith(f"{why}{losses[1]:.3f}")
    assert f"ended      {why}" in outcome.out
    assert "is already complete: EarlyStopping after epoch 3: " in run_script("fit", "--resume", FIRST).out
