"""The doctor names each fault that is planted in a short run, raises no alarm in sound runs, and changes nothing."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from overfitting_lab.callbacks import doctor
from overfitting_lab.runs import Run
from overfitting_lab.runs.epochs import over_fits_since
from tests.conftest import Flags, Outcome, Script, events_of, summary_of, timeless, weights_of, write_images
from tests.scripts.test_errors import check_one_message

RUN = Path("lightning_logs/unnamed/version_0")
FAULT = "--trainer.callbacks=tests.faults."


@pytest.fixture(scope="session")
def bright(tmp_path_factory: pytest.TempPathFactory) -> Flags:
    """Return flags for 600 training and 300 validation images of three classes, and a small network."""
    root = write_images(tmp_path_factory.mktemp("data") / "bright", 900, 30)
    return (
        "--model=tests.networks.Small",
        "--model.optimizer=torch.optim.Adam",
        "--model.optimizer.lr=1e-3",
        "--data.source=folder",
        f"--data.root={root}",
        "--data.split=overfit",
        "--data.train_size=600",
        "--data.val_size=300",
        "--data.batch_size=100",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        "--trainer.enable_model_summary=false",
    )


Fit = Callable[..., tuple[Outcome, dict[str, dict[str, Any]]]]


@pytest.fixture
def fit(run_script: Script, bright: Flags, tmp_path: Path) -> Fit:
    """Fit, and return the script's outcome and the findings by code."""

    def run(*flags: str) -> tuple[Outcome, dict[str, dict[str, Any]]]:
        outcome = run_script("fit", *bright, *flags)
        assert (tmp_path / RUN).exists(), outcome.err
        return outcome, {found["code"]: found for found in summary_of(tmp_path / RUN)["diagnosis"]}

    return run


def alarms(found: dict[str, dict[str, Any]]) -> set[str]:
    return {code for code, diagnosis in found.items() if diagnosis["severity"] != "note"}


@pytest.mark.parametrize(
    ("flags", "code", "layers", "severity"),
    [
        (["--model.softmax=true"], "softmax_before_cross_entropy", ["8"], "fatal"),
        (["--model.weight_std=3"], "activations_explode", ["4", "6"], "warning"),
        (["--model.weight_std=100"], "activations_explode", ["2", "4", "6"], "fatal"),
        (["--model.weight_std=1e-3"], "activations_vanish", ["4"], "warning"),
        (["--model.weight_std=1e-5"], "activations_vanish", ["2", "4"], "fatal"),
        (["--model.bias=-100"], "dead_relus", ["3", "5"], "fatal"),
        ([f"{FAULT}Poison", "--trainer.callbacks.layer=4", "--trainer.callbacks.step=3"], "not_finite", ["4"], "fatal"),
        ([f"{FAULT}LeakedImages", "--trainer.callbacks.number=30"], "duplicate_images", [], "warning"),
        ([f"{FAULT}LeakedImages", "--trainer.callbacks.number=2"], "duplicate_images", [], "note"),
        (
            [f"{FAULT}LeakedImages", "--trainer.callbacks.number=20", "--trainer.callbacks.test=true"],
            "duplicate_test_images",
            [],
            "warning",
        ),
        ([f"{FAULT}RareClass", "--trainer.callbacks.label=1"], "class_imbalance", [], "warning"),
    ],
)
def test_faults_that_first_steps_show(fit: Fit, flags: list[str], code: str, layers: list[str], severity: str) -> None:
    outcome, found = fit(*flags)
    assert code in found, outcome.out
    assert (found[code]["layers"], found[code]["severity"]) == (layers, severity)
    assert len(re.findall(rf"^doctor     {code} \({severity}, step", outcome.out, re.MULTILINE)) == 1


@pytest.mark.parametrize(
    ("flags", "code", "layers"),
    [
        (["--model.factor=1e6", "--model.optimizer.lr=1e-6"], "gradients_explode", "2"),
        (["--model.layers=9", "--model.sigmoid=true", "--model.weight_std=0.05"], "gradients_vanish", "2"),
        (["--model.optimizer.lr=1e-9", "--model.weight_std=0.1"], "learning_rate_too_low", ""),
        (["--model.optimizer.lr=10"], "learning_rate_too_high", ""),
        (["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1e6"], "learning_rate_too_high", ""),
        (
            ["--model.weight_std=1e-5", "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1e-3"],
            "stuck_at_chance",
            "",
        ),
        ([f"{FAULT}WrongLabels", "--model.width=512"], "shuffled_labels", ""),
        (
            [f"{FAULT}WrongLabels", "--trainer.callbacks.share=0.4", "--trainer.callbacks.val=false"],
            "validation_above_training",
            "",
        ),
    ],
)
def test_faults_that_many_steps_show(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, flags: list[str], code: str, layers: str
) -> None:
    monkeypatch.setattr(doctor, "EVERY", 10)
    outcome, found = fit("--trainer.max_epochs=14", *flags)
    assert code in found, outcome.out
    assert found[code]["layers"][:1] == [layers] * bool(layers)
    assert found[code]["severity"] != "note"
    assert outcome.out.count(f"doctor     {code} (") <= 3, "said more than once at a severity, and at the end"


def test_labels_drawn_at_random_on_purpose_are_no_alarm(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EVERY", 10)
    outcome, found = fit("--data.label_noise=1", "--model.width=512", "--trainer.max_epochs=14")
    assert found["shuffled_labels"]["severity"] == "note", outcome.out
    assert alarms(found) == set()


def test_a_schedule_of_steps_in_a_run_of_steps(run_script: Script, tiny: Flags) -> None:
    schedule = ("--model.lr_scheduler=torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size=30")
    steps = ("--model.lr_scheduler_interval=step", "--trainer.max_epochs=-1", "--trainer.max_steps=8")
    outcome = run_script("fit", "--config=overfit", *tiny, *schedule, *steps)
    assert "StepLR needs 31 steps, the run has 8" in outcome.out
    outcome = run_script("fit", "--config=overfit", *tiny, *schedule, *steps, "--check")
    assert "steps      5 an epoch, 8 in 2 epochs" in outcome.out
    assert "StepLR needs 31 steps, the run has 8" in outcome.out


def test_the_steps_end_a_run_before_its_epochs(run_script: Script, quick: Flags) -> None:
    schedule = ("--model.lr_scheduler=torch.optim.lr_scheduler.CosineAnnealingLR", "--model.lr_scheduler.T_max=40")
    ends = ("--trainer.max_epochs=40", "--trainer.max_steps=8")
    for check in ((), ("--check",)):
        outcome = run_script("fit", "--config=overfit", *quick, *schedule, *ends, *check)
        assert "CosineAnnealingLR needs 40 epochs, the run has 2" in outcome.out
        assert check or "epoch   1/2  " in outcome.out


ONE_CYCLE = ("--model.lr_scheduler=torch.optim.lr_scheduler.OneCycleLR", "--model.lr_scheduler.max_lr=0.01")


@pytest.mark.parametrize("check", [(), ("--check",)])
@pytest.mark.parametrize(("interval", "there"), [("step", 10), ("epoch", 2)])
def test_a_schedule_that_torch_would_step_once_too_often(
    interval: str, there: int, check: Flags, run_script: Script, quick: Flags, tmp_path: Path
) -> None:
    flags = (*ONE_CYCLE, f"--model.lr_scheduler_interval={interval}", f"--model.lr_scheduler.total_steps={there - 1}")
    outcome = run_script("fit", "--config=overfit", *quick, *flags, *check)
    check_one_message(outcome, 2)
    assert f"OneCycleLR: has {there - 1} {interval}s, but the run has {there}," in outcome.err
    assert list(tmp_path.glob("*/*/version_0")) == []


def test_check_steps_the_schedule_as_often_as_the_run(run_script: Script, quick: Flags) -> None:
    outcome = run_script("fit", "--config=overfit", *quick, "--check", "--model.lr_scheduler=tests.faults.Breaking")
    assert outcome.status == 1
    assert "error: this run cannot succeed: Breaking fails after epoch 2 of 2: KeyError: 'no such rate'" in outcome.err


def test_training_images_of_a_single_class(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    root = write_images(tmp_path / "by_class", 120, 3)
    for image in sorted(root.glob("train/*/*.png")):
        image.rename(image.with_name(f"{image.parent.name}_{image.name}"))
    flags = (*quick, f"--data.root={root}", "--data.train_size=30", "--data.val_size=20")
    outcome = run_script("fit", "--config=overfit", *flags, "--check")
    assert outcome.status == 1
    assert "doctor     single_class (fatal, step 0)" in outcome.out
    assert "30 of airplane, none of the other 2" in outcome.out
    assert "chance level is 0.000" in outcome.out
    assert "error: this run cannot succeed: single_class" in outcome.err


def test_images_that_cannot_be_learned(fit: Fit) -> None:
    wrong = (f"{FAULT}WrongLabels", "--trainer.callbacks.share=0.5")
    small = ("--model.width=1", "--data.cutout=2")
    outcome, found = fit(*wrong, *small, "--model.optimizer.lr=0.01", "--trainer.max_epochs=25")
    assert "cannot_fit" in found, outcome.out
    assert "cutout 2 make it harder" in found["cannot_fit"]["evidence"]
    assert "shuffled_labels" not in found


@pytest.mark.thorough
def test_over_fitting_is_a_note_with_its_epoch(fit: Fit) -> None:
    wrong = (f"{FAULT}WrongLabels", "--trainer.callbacks.share=0.5")
    outcome, found = fit(*wrong, "--model.width=1024", "--model.optimizer.lr=3e-3", "--trainer.max_epochs=40")
    assert "over_fitting" in found, outcome.out
    records = Run(Path(RUN)).records
    since = over_fits_since(records)
    assert since
    assert found["over_fitting"]["epoch"] == since.epoch + 1
    assert f"since epoch {since.epoch + 2}:" in outcome.out
    assert alarms(found) == set()


def test_a_schedule_that_never_ends(fit: Fit) -> None:
    schedule = ("--model.lr_scheduler=torch.optim.lr_scheduler.MultiStepLR", "--model.lr_scheduler.milestones=[1,9]")
    _, found = fit(*schedule, "--trainer.max_epochs=2")
    assert "MultiStepLR needs 10 epochs, the run has 2" in found["schedule_cut_short"]["evidence"]
    assert "--trainer.max_epochs 10" in found["schedule_cut_short"]["remedy"]


MIXED = ["--data.mixup=1", "--data.cutmix=1", "--model.label_smoothing=0.9"]  # no smoothed loss is below 99 % of ln 3


@pytest.mark.parametrize("flags", [[], ["--model.layers=6"], ["--model.optimizer.lr=0.01"], MIXED])
def test_sound_runs_raise_no_alarm(fit: Fit, monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    monkeypatch.setattr(doctor, "EVERY", 10)
    outcome, found = fit("--trainer.max_epochs=15", *flags)
    assert outcome.status == 0
    assert alarms(found) == set(), outcome.out
    assert found or outcome.out.count("doctor     nothing to report") == 1


def test_verdicts_are_in_tensorboard(fit: Fit, tmp_path: Path) -> None:
    fit("--model.softmax=true")
    assert "doctor/text_summary" in events_of(tmp_path / RUN).Tags()["tensors"]


def test_a_run_that_cannot_succeed_is_stopped_on_request(fit: Fit) -> None:
    outcome, found = fit("--doctor=stop", "--model.softmax=true")
    assert outcome.status == 1
    assert outcome.err.strip().startswith("error: this run cannot succeed: softmax_before_cross_entropy: the network")
    assert "Traceback" not in outcome.err
    run = Run(Path(RUN))
    assert run.status == "failed"
    assert "softmax_before_cross_entropy" in str(run.summary.reason)
    assert (run.summary.global_step, run.records) == (0, [])
    assert "softmax_before_cross_entropy" in found


def test_a_doctor_that_is_off_says_nothing(fit: Fit) -> None:
    outcome, found = fit("--doctor=off", "--model.softmax=true")
    assert (outcome.status, found) == (0, {})
    assert "doctor" not in outcome.out


@pytest.mark.parametrize("checkpoints", ["true", "false"])
def test_probes_change_nothing(
    run_script: Script,
    tiny: Flags,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpoints: str,
) -> None:
    monkeypatch.setattr(doctor, "EVERY", 2)
    data = ("--data.image_size=32", "--data.batch_size=5", "--data.train_size=10", "--data.val_size=5")
    vgg = ("--model.configuration=A", "--model.batch_norm=true", f"--trainer.enable_checkpointing={checkpoints}")
    flags = ("--config=vgg16_32", *tiny, *data, *vgg)
    for mode in ("off", "advise"):
        assert run_script("fit", *flags, f"--doctor={mode}").status == 0
    off, on = (tmp_path / "lightning_logs" / "vgg16_32" / f"version_{number}" for number in (0, 1))
    assert timeless(off) == timeless(on)
    if checkpoints == "true":
        one, other = weights_of(off), weights_of(on)
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert any("running_mean" in name for name in one)


def test_a_resumed_run_says_the_same_once(fit: Fit, run_script: Script, bright: Flags, tmp_path: Path) -> None:
    wrong = (f"{FAULT}WrongLabels", "--trainer.callbacks.share=0.4", "--trainer.callbacks.val=false")
    assert run_script("fit", *bright, *wrong, "--trainer.max_epochs=8", "--experiment=through").status == 0
    through = summary_of(tmp_path / "lightning_logs/through/version_0")["diagnosis"]
    first, _ = fit(*wrong, "--trainer.max_epochs=7")
    second = run_script("fit", f"--resume={RUN}", "--trainer.max_epochs=8")
    assert second.status == 0, second.err
    assert summary_of(tmp_path / RUN)["diagnosis"] == through
    assert through
    said = "doctor     validation_above_training (warning, step"
    assert (first.out + second.out).count(said) == 1


def test_check_of_a_sound_experiment(run_script: Script, bright: Flags, tmp_path: Path) -> None:
    outcome = run_script("fit", *bright, "--check")
    assert outcome.status == 0, outcome.err
    assert list(tmp_path.iterdir()) == []
    for words in (
        "data       bright, split overfit: 600 training",
        "3 x 32 x 32",
        "first loss ",
        "chance level is 1.099",
        "steps      6 an epoch, 6 in 1 epochs",
        "schedule   none",
        " s a step (measured in 3 steps of ",
        "           start 0:0",
        ", training 0:0",
        ", validation 0:0",
        ", test 0:0",
        "memory     ",
        " MB for checkpoints",
        "check      nothing to report",
    ):
        assert words in outcome.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.monitor=val_accuracy", "give --trainer.callbacks"),
        ("--trainer.callbacks+=overfitting_lab.callbacks.plateau.PlateauSchedule", "needs lightning.pytorch.cli.Red"),
        ("--model.optimizer.lr=0", "cannot succeed: the learning rate is 0; --model.optimizer.lr"),
    ],
)
def test_check_refuses_what_cannot_succeed(flags: str, words: str, run_script: Script, tiny: Flags) -> None:
    outcome = run_script("fit", "--config=overfit", *tiny, *flags.split(), "--check")
    assert outcome.status != 0
    assert words in outcome.err


def test_check_foretells_no_time_below_zero(run_script: Script, quick: Flags) -> None:
    for length in ("--trainer.max_epochs=3", "--trainer.max_epochs=-1"):
        outcome = run_script("fit", "--config=overfit", *quick, length, "--check")
        assert outcome.status == 0, outcome.err
        (time,) = re.findall(r"^time .*\n(?: +start.*\n)?", outcome.out, re.MULTILINE)
        assert "-" not in time
        low, high = map(float, re.findall(r"(\S+) to (\S+) s a step", time)[0])
        assert 0 < low <= high


def test_check_of_images_that_show_nothing(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    root = write_images(tmp_path / "alike", 60, 15)
    for path in root.rglob("*.png"):
        Image.new("RGB", (32, 32), (200, 30, 0)).save(path)
    sizes = ("--data.train_size=40", "--data.val_size=20")
    outcome = run_script("fit", "--config=overfit", *quick, f"--data.root={root}", *sizes, "--check")
    assert outcome.status == 1
    assert "read       alike: 60 training and 15 test images of 3 classes, 0 unreadable" in outcome.out
    assert "doctor     images_alike (fatal, step 0): all training images show the same" in outcome.out
    assert "doctor     images_of_one_colour (warning, step 0)" in outcome.out
    assert "error: this run cannot succeed: images_alike" in outcome.err


def test_check_of_one_that_cannot_succeed(run_script: Script, bright: Flags, tmp_path: Path) -> None:
    outcome = run_script("fit", *bright, "--check", "--model.softmax=true")
    assert outcome.status == 1
    assert "doctor     softmax_before_cross_entropy (fatal, step 0)" in outcome.out
    assert "error: this run cannot succeed: softmax_before_cross_entropy" in outcome.err
    assert list(tmp_path.iterdir()) == []
