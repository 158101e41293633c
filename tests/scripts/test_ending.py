"""The reason why a run ended, the step from which it resumes, and the messages of a run that was not tested."""

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from overfitting_lab.runs import Run
from tests.conftest import Flags, Script, execute, summary_of
from tests.scripts.test_resume import FIRST, RECIPE, assert_same

STOPPED = [f"--trainer.callbacks{word}" for word in ("=tests.faults.StopAt", ".batch=3")]
UNEVEN = ("--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=2")  # of 5 batches
Through = Callable[..., Path]


@pytest.fixture(scope="module")
def small(quick: Flags) -> Flags:
    """Return flags for epochs of five small steps."""
    sizes = ("--data.train_size=50", "--data.val_size=20", "--data.batch_size=10")
    return (*quick, *sizes, "--trainer.precision=32-true", "--trainer.enable_model_summary=false")


@pytest.fixture(scope="module")
def through(small: Flags, tmp_path_factory: pytest.TempPathFactory) -> Through:
    """Return the run of two epochs that was not stopped, with more flags."""
    folders: dict[tuple[str, ...], Path] = {}

    def run(*more: str) -> Path:
        if more not in folders:
            folders[more] = tmp_path_factory.mktemp("through")
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.chdir(folders[more])
                assert execute(monkeypatch, "fit", *RECIPE, *small, "--checkpoint_steps=null", *more) == 0
        return folders[more] / FIRST

    return run


EARLY = [f"--trainer.callbacks{word}" for word in ("=EarlyStopping", ".monitor=val_loss", ".min_delta=100")]
LONGER = ["--trainer.max_steps=10"]
STEPS = "all {} steps are done (--trainer.max_steps)"


@pytest.mark.parametrize(
    ("stop", "reason", "resume", "more"),
    [
        (["--trainer.max_steps=3"], STEPS.format(3), LONGER, ()),
        # Within an accumulated step, whose last batch is followed by a scheduled validation.
        (STOPPED, "StopAt stopped it (--trainer.callbacks)", ["--trainer.callbacks.batch=100"], UNEVEN),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                (STOPPED, "StopAt stopped it (--trainer.callbacks)", ["--trainer.callbacks.batch=100"], ()),
                (["--trainer.max_steps=1"], STEPS.format(1), ["--trainer.max_steps=6"], UNEVEN),
                (["--trainer.max_steps=2"], STEPS.format(2), LONGER, UNEVEN[1:]),
                (["--trainer.max_steps=3"], STEPS.format(3), LONGER, UNEVEN[1:]),
                ([*EARLY, "--trainer.callbacks.patience=1"], None, ["--trainer.callbacks=null"], UNEVEN[1:]),
                (
                    STOPPED,
                    "StopAt stopped it (--trainer.callbacks)",
                    ["--trainer.callbacks.batch=100"],
                    ("--trainer.check_val_every_n_epoch=2",),
                ),
                (
                    ["--trainer.max_steps=4"],
                    STEPS.format(4),
                    LONGER,
                    ("--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=3"),
                ),
            )
        ),
    ],
)
def test_a_run_that_stops_within_an_epoch_is_resumed_within_it(
    stop: list[str],
    reason: str | None,
    resume: list[str],
    more: tuple[str, ...],
    run_script: Script,
    small: Flags,
    through: Through,
    tmp_path: Path,
) -> None:
    outcome = run_script("fit", *RECIPE, *small, "--checkpoint_steps=null", *more, *stop)
    assert outcome.status == 0, outcome.err
    run = tmp_path / FIRST
    assert f"ended      {Run(run).summary.reason}\n" in outcome.out
    assert reason in (Run(run).summary.reason, None)
    assert [row.epoch for row in Run(run).records] == [0]
    steps = Run(run).summary.global_step
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == steps < 5
    time.sleep(1 - time.time() % 1)  # event files are read in the order of the second in which they began
    outcome = run_script("fit", "--resume", FIRST, *resume)
    assert outcome.status == 0, outcome.err
    assert f"resumed    in epoch 1 after step {steps}\n" in outcome.out
    whole = through(*more)
    summary = whole / "summary.json"
    text = summary.read_text()
    ended = str(Run(run).summary.reason)
    summary.write_text(text.replace("all 2 epochs are done (--trainer.max_epochs)", ended))
    assert_same(run, whole, curves=not more)
    summary.write_text(text)


def test_best_is_one_validation(through: Through) -> None:
    run = Run(through(*UNEVEN))
    best = torch.load(run.files.best, weights_only=True)
    assert run.summary.best
    assert (run.summary.best.epoch, run.summary.best.step) == (best["epoch"], best["global_step"])
    assert run.summary.best.val_acc > max(row.val_acc or 0 for row in run.records) - 1e-9


class SignalAfterTheLastStep(Callback):
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_after_the_last_step_is_obeyed(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    flag = f"--trainer.callbacks+={__name__}.SignalAfterTheLastStep"
    outcome = run_script("fit", "--config=overfit", *quick, flag)
    assert outcome.status == 143
    assert f"stopped by SIGTERM; resume with: python scripts/fit.py --resume {FIRST}" in outcome.out + outcome.err
    assert summary_of(tmp_path / FIRST)["status"] == "interrupted"
    again = run_script("fit", "--resume", FIRST)
    assert again.status == 0, again.err
    assert summary_of(tmp_path / FIRST)["test"]["images"] == 45


def test_the_clock(run_script: Script, small: Flags, tmp_path: Path) -> None:
    endless = ["--trainer.max_epochs=4000", "--trainer.max_time=00:00:00:01"]
    assert run_script("fit", "--config=overfit", *small, *endless).status == 0
    why = "the time of 0:00:01 is up (--trainer.max_time, or the duration of Timer)"
    run = Run(tmp_path / FIRST)
    assert (run.summary.status, run.summary.reason) == ("finished", why)
    outcome = run_script("fit", "--resume", FIRST)
    assert outcome.out.startswith(f"{FIRST} is already complete: {why}. ")
    steps = run.summary.global_step + 2
    more = [f"--trainer.max_steps={steps}", "--trainer.max_time=01:00:00:00"]
    assert run_script("fit", "--resume", FIRST, *more).status == 0
    again = Run(run.folder)
    assert (again.summary.global_step, again.summary.reason) == (
        steps,
        f"all {steps} steps are done (--trainer.max_steps)",
    )
    assert [row.epoch for row in again.records] == list(range(len(again.records)))


def test_early_stopping_says_why_and_stays_stopped(
    run_script: Script, small: Flags, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"": "EarlyStopping", ".monitor": "val_loss", ".patience": 1, ".min_delta": 100, ".verbose": "true"}
    early = [f"--trainer.callbacks{name}={value}" for name, value in settings.items()]
    with caplog.at_level(logging.INFO):
        outcome = run_script(
            "fit", "--config=overfit", *small, *early, "--trainer.max_epochs=5", "--trainer.profiler=simple"
        )
    assert outcome.status == 0, outcome.err
    shown = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("lightning"))
    assert "Metric val_loss improved. New best score" in shown
    assert "FIT Profiler Report" in shown
    for noise in ("GPU available", "Trainer.fit` stopped", "Loaded model weights", "litlogger", "Seed set"):
        assert noise not in shown
    run = Run(tmp_path / FIRST)
    why = str(run.summary.reason)
    assert why.startswith(
        "EarlyStopping after epoch 2: Monitored metric val_loss did not improve in the last 1 records. Best score: "
    )
    assert f"ended      {why}\n" in outcome.out
    outcome = run_script("fit", "--resume", FIRST, "--trainer.max_epochs=6")
    assert f"ended      {why}\n" in outcome.out
    assert len(Run(run.folder).records) == 2
    outcome = run_script("fit", "--resume", FIRST, "--trainer.callbacks.patience=2")
    assert outcome.status == 0, outcome.err
    assert "did not improve in the last 2 records" in str(Run(run.folder).summary.reason)
    assert len(Run(run.folder).records) == 3


def test_the_reason_of_a_stop_that_waits_for_the_least_epochs_survives_a_resume(
    run_script: Script, small: Flags, tmp_path: Path
) -> None:
    early = (*EARLY, "--trainer.callbacks.patience=0", "--trainer.min_epochs=3", "--trainer.val_check_interval=2")
    reasons = []
    for stopped in (False, True):
        settings = {
            "": "tests.faults.KillOnce",
            ".place": "step",
            ".step": 8,
            ".mark": tmp_path / "mark",
            ".number": 15,
        }
        kill = [f"--trainer.callbacks{name or '+'}={value}" for name, value in settings.items()] if stopped else []
        outcome = run_script(
            "fit",
            "--config=overfit",
            *small,
            *early,
            *kill,
            "--trainer.max_epochs=6",
            f"--experiment=stopped_{stopped}",
        )
        run = Path(f"lightning_logs/stopped_{stopped}/version_0")
        assert outcome.status == (143 if stopped else 0), outcome.err
        if stopped:
            assert run_script("fit", "--resume", run).status == 0
        reasons.append(Run(run).summary.reason)
    assert "EarlyStopping after epoch 3" in str(reasons[0])
    assert reasons[1] == reasons[0]


def test_a_stop_before_an_epoch_waits_for_its_first_step(run_script: Script, small: Flags, tmp_path: Path) -> None:
    stop = [f"--trainer.callbacks{word}" for word in ("=tests.faults.StopAtStart", ".epoch=1")]
    outcome = run_script("fit", "--config=overfit", *small, *stop)
    assert outcome.status == 0, outcome.err
    assert [(row.epoch, row.step) for row in Run(tmp_path / FIRST).records] == [(0, 5), (1, 6)]
    assert "ended      StopAtStart stopped it" in outcome.out


def test_a_run_that_trained_nothing_is_not_finished(run_script: Script, small: Flags, tmp_path: Path) -> None:
    outcome = run_script("fit", "--config=overfit", *small, "--trainer.callbacks=tests.faults.StopBefore")
    assert outcome.status == 1
    assert "error: nothing was trained: StopBefore stopped it (--trainer.callbacks" in outcome.err
    summary = summary_of(tmp_path / FIRST)
    assert summary["status"] == "failed"
    assert summary["reason"].startswith("nothing was trained: ")
    assert "test" not in summary


def test_a_run_that_was_not_tested_says_so(run_script: Script, small: Flags, tmp_path: Path) -> None:
    outcome = run_script("fit", "--config=overfit", *small, "--trainer.max_epochs=1", "--trainer.limit_test_batches=0")
    assert outcome.status == 0, outcome.err
    assert "test       not done: --trainer.limit_test_batches is 0\n" in outcome.out
    summary = summary_of(tmp_path / FIRST)
    assert (summary["status"], summary["untested"]) == ("finished", "--trainer.limit_test_batches is 0")
    compared = run_script("compare", FIRST)
    assert compared.status == 1
    remedy = f"test it: python scripts/fit.py --resume {FIRST} --trainer.limit_test_batches 1.0"
    assert f"{FIRST} was trained but not tested (--trainer.limit_test_batches is 0); {remedy}" in compared.err

    broken = ["--trainer.callbacks=tests.faults.Break", "--trainer.callbacks.hook=on_test_start"]
    outcome = run_script("fit", "--config=overfit", *small, "--trainer.max_epochs=1", *broken)
    assert outcome.status == 1
    second = Path(FIRST).with_name("version_1")
    summary = summary_of(tmp_path / second)
    assert summary["status"] == "failed"
    assert summary["reason"] == "the test did not come to its end: broken in on_test_start"
    assert f"{second} has not finished: the test did not come to its end" in run_script("compare", second).err
    assert run_script("fit", "--resume", second, "--trainer.callbacks=null").status == 0
    summary = summary_of(tmp_path / second)
    assert (summary["status"], summary["reason"]) == ("finished", "all 1 epochs are done (--trainer.max_epochs)")
    assert "untested" not in summary
    assert summary["test"]["images"] == 45
