"""A schedule of torch gets its length from the run if it is left out."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from datamodules import CIFAR10DataModule
from lightning_modules.errors import ModelError
from overfitting_lab.cli.finished import planned_experiment
from overfitting_lab.runs import Run
from tests.conftest import Flags, Script
from tests.networks import linear_classifier, quiet_trainer
from tests.scripts.test_errors import check_one_message

RUN = Path("lightning_logs/overfit/version_0")
SCHEDULE = "--model.lr_scheduler"
TORCH = f"{SCHEDULE}=torch.optim.lr_scheduler"
BY_EPOCH = "--model.lr_scheduler_interval=epoch"


@pytest.mark.parametrize(  # a run of 2 epochs and 10 steps
    ("flags", "interval", "expected"),
    [
        (f"{TORCH}.OneCycleLR {SCHEDULE}.max_lr=0.1", "step", {"total_steps": 10, "max_lr": 0.1}),
        (f"{TORCH}.OneCycleLR --model.optimizer.lr=0.02", "step", {"total_steps": 10, "max_lr": 0.02}),
        (f"{TORCH}.OneCycleLR {BY_EPOCH}", "epoch", {"total_steps": 2}),
        (f"{TORCH}.OneCycleLR {SCHEDULE}.epochs=3", "step", {"epochs": 3, "steps_per_epoch": 5}),
        (f"{TORCH}.OneCycleLR {SCHEDULE}.steps_per_epoch=5", "step", {"epochs": 2, "steps_per_epoch": 5}),
        (f"{TORCH}.CosineAnnealingLR", "step", {"T_max": 10}),
        (f"{TORCH}.CosineAnnealingLR {SCHEDULE}.T_max=7", "epoch", {"T_max": 7}),
        (f"{TORCH}.PolynomialLR", "step", {"total_iters": 10}),
        (f"{TORCH}.CosineAnnealingLR --trainer.accumulate_grad_batches=2", "step", {"T_max": 6}),
        (f"{TORCH}.CosineAnnealingLR --trainer.max_epochs=-1 --trainer.max_steps=8", "step", {"T_max": 8}),
        (f"{TORCH}.CosineAnnealingLR --trainer.max_epochs=null", "step", {"T_max": 5000}),  # of 1,000 epochs
        (f"{TORCH}.StepLR {SCHEDULE}.step_size=1", "epoch", {"step_size": 1}),
    ],
)
def test_the_run_decides_what_is_left_out(
    flags: str,
    interval: str,
    expected: dict[str, Any],
    tiny: Flags,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    _, settings, cli = planned_experiment(["--config=overfit", *tiny, *flags.split()])
    assert {name: settings[f"model.lr_scheduler.{name}"] for name in expected} == expected
    assert settings["model.lr_scheduler_interval"] == interval
    assert cli.model.hparams["lr_scheduler_interval"] == interval, "checkpoints of a resumed run say the same"


def test_a_run_without_an_end_decides_nothing(run_script: Script, tiny: Flags) -> None:
    outcome = run_script("fit", "--config=overfit", *tiny, f"{TORCH}.OneCycleLR", "--trainer.max_epochs=-1")
    check_one_message(outcome, 1)
    assert "OneCycleLR needs the length of the run: give --trainer.max_epochs" in outcome.err
    assert not RUN.exists()


def test_steps_of_an_epoch_may_vary(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    varied = ("--trainer.callbacks+=GradientAccumulationScheduler", "--trainer.callbacks.scheduling={0: 1, 1: 2}")
    outcome = run_script("fit", "--config=overfit", *quick, f"{TORCH}.OneCycleLR", *varied)
    assert outcome.status == 0, outcome.err
    stored = yaml.safe_load((tmp_path / RUN / "config.yaml").read_text())
    assert stored["model"]["init_args"]["lr_scheduler"]["init_args"]["total_steps"] == 5 + 3


def test_an_overlay_of_one_cycle_is_stored(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    flags = ("--config=vgg16_bn_32", "--config=schedule/one_cycle", *quick)
    flags += ("--model.optimizer.lr=0.01", "--model.optimizer.nesterov=true", "--experiment=overfit")
    outcome = run_script("fit", *flags)
    assert outcome.status == 0, outcome.err
    stored = yaml.safe_load((tmp_path / RUN / "config.yaml").read_text())
    schedule = stored["model"]["init_args"]["lr_scheduler"]["init_args"]
    assert (schedule["total_steps"], schedule["max_lr"], schedule["pct_start"]) == (10, 0.01, 0.2)
    assert stored["trainer"]["callbacks"] == []
    assert Run(tmp_path / RUN).records[-1].learning_rate == pytest.approx(0.01 / 25e4)


@pytest.mark.thorough
def test_a_trial_with_a_computed_schedule_is_found_again(run_script: Script, tiny: Flags, fitted: list[Any]) -> None:
    small = [flag for flag in tiny if "train_size" not in flag]
    flags = ("--config=overfit", "--config=schedule/cosine", *small, "--train_size=100")
    ablation = ("ablate", "--factor=model.dropout=0,0.5", "--seeds=1", *flags)
    for _ in range(2):
        outcome = run_script(*ablation)
        assert outcome.status == 0, outcome.err
    assert len(fitted) == 2, "the second time, both trials are there"
    folders = [*Path().glob("lightning_logs/ablation/version_*")]
    assert [Run(folder).recipe["model.lr_scheduler.T_max"] for folder in folders] == [10, 10]


@pytest.mark.parametrize(
    ("limits", "steps"), [({"max_epochs": 2}, 8), ({"max_epochs": -1, "max_steps": 6}, 6), ({"max_steps": 6}, 6)]
)
@pytest.mark.parametrize(
    ("schedule", "length"), [(partial(OneCycleLR, max_lr=0.1), "total_steps"), (CosineAnnealingLR, "T_max")]
)
def test_a_plain_trainer_gives_its_length(
    schedule: Any, length: str, limits: dict[str, int], steps: int, image_folder: Path
) -> None:
    data = CIFAR10DataModule(str(image_folder), "folder", train_size=40, val_size=20, batch_size=10, augment="none")
    model = linear_classifier(0.1, schedule, "step")
    quiet_trainer(**limits).fit(model, datamodule=data)  # type: ignore[arg-type]
    assert model.computed_schedule == {length: steps}
    if schedule is CosineAnnealingLR:
        by_epoch = linear_classifier(0.1, schedule, "epoch")
        quiet_trainer(**limits).fit(by_epoch, datamodule=data)  # type: ignore[arg-type]
        assert by_epoch.computed_schedule == {length: 2}, "the second epoch of 4 steps is begun"
    with pytest.raises(ModelError, match="needs the length of the run"):
        quiet_trainer(max_epochs=-1).fit(linear_classifier(0.1, schedule, "step"), datamodule=data)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ((), "does nothing without a schedule"),
        (("--model.lr_scheduler=ReduceLROnPlateau", "--model.lr_scheduler.monitor=val_loss"), "after each epoch"),
    ],
)
def test_an_interval_that_no_schedule_has_is_refused(
    schedule: Flags, words: str, run_script: Script, quick: Flags
) -> None:
    outcome = run_script("fit", "--config=overfit", *quick, *schedule, "--model.lr_scheduler_interval=step")
    check_one_message(outcome, 2)
    assert "--model.lr_scheduler_interval does nothing" in outcome.err
    assert words in outcome.err


@pytest.mark.parametrize("flags", ["StepLR {}.step_size=0", "LambdaLR {}.lr_lambda=math.sqrt"])
def test_a_schedule_that_cannot_be_stepped_or_saved_is_refused_before_training(
    flags: str, run_script: Script, quick: Flags
) -> None:
    schedule = f"{TORCH}.{flags.format(SCHEDULE)}".split()
    outcome = run_script("fit", "--config=overfit", *quick, *schedule)
    check_one_message(outcome, 2)
    assert f"--model.lr_scheduler {flags.split()[0]}: it cannot be stepped and saved (" in outcome.err
    assert not RUN.exists()


def test_a_rate_that_the_schedule_replaces_is_refused(run_script: Script, quick: Flags) -> None:
    schedule = ("--model.lr_scheduler=torch.optim.lr_scheduler.OneCycleLR", "--model.lr_scheduler.max_lr=0.1")
    outcome = run_script("fit", "--config=overfit", *quick, *schedule, "--model.optimizer.lr=0.01")
    assert outcome.status == 2
    assert "--model.optimizer.lr does nothing beside OneCycleLR, whose max_lr sets the rate" in outcome.err
