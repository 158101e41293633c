from pathlib import Path

import pytest

from overfitting_lab.cli import ExperimentCLI
from overfitting_lab.runs import Run
from tests.conftest import Flags, Script
from tests.scripts.test_errors import check_one_message

STOP = "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor="
SAVE = "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.monitor="
PLATEAU = "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau --model.lr_scheduler.monitor="
RARELY = "--trainer.check_val_every_n_epoch=2"
WRONG = {
    "negative patience": (
        f"{STOP}val_loss --trainer.callbacks.patience=-1",
        "of EarlyStopping must be at least 0",
    ),
    "a name that nothing logs": (
        f"{STOP}val_accuracy",
        "EarlyStopping monitors 'val_accuracy', which nothing logs in training; logged are train_loss, train_acc, "
        "val_loss, val_acc; give --trainer.callbacks.monitor=val_acc",
    ),
    "of the test": (f"{SAVE}test_acc", "ModelCheckpoint monitors 'test_acc', which nothing logs in training"),
    "of a schedule": (f"{PLATEAU}val_f1", "monitors 'val_f1', which no epoch logs"),
    "an accuracy to minimize": (
        f"{STOP}val_acc",
        "EarlyStopping monitors val_acc with mode=min, but an accuracy is to be maximized; "
        "give --trainer.callbacks.mode=max",
    ),
    "not in every epoch": (f"{STOP}probe_acc", "give --trainer.callbacks.monitor=val_acc"),
    "not in every epoch, in a schedule": (f"{PLATEAU}probe_loss", "monitors 'probe_loss', which no epoch logs"),
    "a loss to maximize": (f"{SAVE}val_loss --trainer.callbacks.mode=max", "give --trainer.callbacks.mode=min"),
    "in a schedule": (f"{PLATEAU}train_acc", "give --model.lr_scheduler.mode=max"),
    "no validation": (f"{STOP}val_loss --trainer.limit_val_batches=0", "the run has no validation"),
    "never a validation": (f"{SAVE}val_loss --trainer.check_val_every_n_epoch=3", "the run has no validation"),
    "a schedule without validation": (f"{PLATEAU}val_loss --trainer.limit_val_batches=0", "the run has no validation"),
    "before it is logged": (f"{STOP}train_loss {RARELY}", "give --trainer.callbacks.check_on_train_epoch_end=true"),
    "between validations": (
        f"{SAVE}val_loss --trainer.callbacks.save_on_train_epoch_end=true {RARELY}",
        "leave --trainer.callbacks.save_on_train_epoch_end out",
    ),
}
RIGHT = (
    f"{SAVE}step --trainer.callbacks.mode=max",
    f"{STOP}lr-Adam --trainer.callbacks.strict=false --trainer.callbacks+=LearningRateMonitor",
    f"{PLATEAU}val_acc --model.lr_scheduler.mode=max",
    f"{STOP}val_acc --trainer.callbacks.mode=max --trainer.val_check_interval=00:00:00:10",
)


@pytest.fixture
def fit(tiny: Flags) -> list[str]:
    return ["--config=overfit", *tiny, "--trainer.precision=32-true", "--trainer.max_epochs=2"]


@pytest.mark.parametrize(("flags", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_monitor_is_refused_before_any_work(
    flags: str, words: str, run_script: Script, fit: list[str], tmp_path: Path
) -> None:
    outcome = run_script("fit", *fit, *flags.split())
    check_one_message(outcome, 2)
    assert words in outcome.err
    assert not list(tmp_path.glob("lightning_logs/*/*"))


@pytest.mark.parametrize("flags", RIGHT)
def test_a_right_monitor_is_not_refused(
    flags: str, fit: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    ExperimentCLI([*fit, *flags.split()])  # exits if it refuses


@pytest.fixture
def others(short: Flags, tmp_path: Path) -> list[str]:
    """Return flags that train a user's own network, which logs val_f1."""
    config = tmp_path / "own.yaml"
    config.write_text("model: tests.observers.LogsMore\n")
    return [f"--config={config}", *short]


@pytest.mark.parametrize("monitor", ["val_f1", "val_f2"])
@pytest.mark.parametrize("who", [STOP, PLATEAU])
def test_a_users_network_may_log_more(who: str, monitor: str, run_script: Script, others: list[str]) -> None:
    outcome = run_script("fit", *others, *f"{who}{monitor}".split())
    run = Run(Path("lightning_logs/unnamed/version_0"))
    if monitor == "val_f1":
        assert outcome.status == 0, outcome.err
        assert run.finished
        return
    check_one_message(outcome, 1)
    assert "val_f2" in outcome.err
    assert "val_f1" in outcome.err, "what is logged"
    assert len(run.records) <= 1
