import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from lightning.pytorch import Callback, LightningModule, Trainer

from overfitting_lab.callbacks import recovery
from overfitting_lab.runs import Run, RunFiles
from overfitting_lab.runs.epochs import best_epoch
from tests.conftest import FinishedRun, Flags, Script, execute, scalars_of, timeless
from tests.scripts.test_failures import callback

FIRST = "lightning_logs/overfit/version_0"


@pytest.fixture(scope="module")
def trained(tiny: Flags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        assert execute(monkeypatch, "fit", "--config=overfit", *tiny, "--data.probe_every=1") == 0
    return folder / FIRST


def files_of(run: Path) -> dict[Path, int]:
    """Return when each file of a run was last written."""
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """Copy a run of two epochs to the working directory of ``run_script``."""
    return Path(shutil.copytree(trained, tmp_path / FIRST))


def test_a_finished_run_is_complete(run_script: Script, finished: Path) -> None:
    before = files_of(finished)
    outcome = run_script("fit", "--resume", FIRST)
    why = "all 2 epochs are done (--trainer.max_epochs). Give this setting another value to train longer"
    assert (outcome.status, outcome.out) == (0, f"{FIRST} is already complete: {why}\n")
    again = run_script("fit", "--resume", FIRST, f"--config={FIRST}/config.yaml")
    assert (again.status, again.out) == (0, outcome.out), "a configuration of the same settings changes nothing"
    assert files_of(finished) == before


def test_a_finished_run_trains_longer(run_script: Script, tiny: Flags, finished: Path, tmp_path: Path) -> None:
    outcome = run_script("fit", f"--resume={FIRST}", "--trainer.max_epochs=4")
    assert outcome.status == 0
    assert "changed    trainer.max_epochs: 2 -> 4" in outcome.out
    assert run_script("fit", "--config=overfit", *tiny, "--trainer.max_epochs=4", "--data.probe_every=1").status == 0
    through = finished.with_name("version_1")
    assert timeless(finished) == timeless(through)
    assert Run(finished).summary.test == Run(through).summary.test


def test_a_run_that_steps_end_at_an_epochs_end_trains_longer(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    flags = ("--config=overfit", *quick, "--data.probe_every=1")
    assert run_script("fit", *flags, "--trainer.max_steps=5").status == 0
    assert run_script("fit", f"--resume={FIRST}", "--trainer.max_steps=10").status == 0
    assert run_script("fit", *flags, "--trainer.max_steps=10").status == 0
    resumed = tmp_path / FIRST
    assert timeless(resumed) == timeless(resumed.with_name("version_1"))
    assert [record.step for record in timeless(resumed)] == [5, 10]


def test_a_state_that_lightnings_own_callback_saved_within_an_epoch_has_the_epochs_counts(
    run_script: Script, quick: Flags, tmp_path: Path
) -> None:
    settings = ("+=ModelCheckpoint", ".every_n_train_steps=3", ".save_top_k=-1", ".filename=state-{step}")
    saves = [f"--trainer.callbacks{setting}" for setting in settings]
    assert run_script("fit", "--config=overfit", *quick, *saves).status == 0
    whole = tmp_path / FIRST
    (state,) = whole.rglob("state-step=3.ckpt")
    assert run_script("fit", "--config=overfit", *quick, f"--ckpt_path={state}").status == 0
    assert timeless(whole.with_name("version_1")) == timeless(whole)


@pytest.mark.parametrize("batch_size", [10, 50])
def test_another_batch_size_within_an_epoch_is_refused(
    batch_size: int, run_script: Script, quick: Flags, tmp_path: Path
) -> None:
    assert run_script("fit", "--config=overfit", *quick, "--trainer.max_steps=3").status == 0
    before = contents(tmp_path / FIRST)
    longer = ("--trainer.max_steps=-1", f"--data.batch_size={batch_size}")
    outcome = run_script("fit", "--resume", FIRST, *longer)
    assert outcome.status == 1
    assert "resume with --data.batch_size 20" in outcome.err
    assert contents(tmp_path / FIRST) == before


def test_fewer_epochs_than_were_trained_are_refused(run_script: Script, finished: Path) -> None:
    before = contents(finished)
    outcome = run_script("fit", "--resume", FIRST, "--trainer.max_epochs=1")
    assert outcome.status == 2
    assert "--trainer.max_epochs 1: the run has trained 2 epochs already" in outcome.err
    assert contents(finished) == before


def test_averaged_weights_are_not_trained_on(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    average = ("--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.9")
    assert run_script("fit", "--config=overfit", *quick, *average).status == 0
    before = contents(tmp_path / FIRST)
    outcome = run_script("fit", "--resume", FIRST, "--trainer.max_epochs=3", "--trainer.callbacks=null")
    assert outcome.status == 1
    assert "the checkpoint holds averaged weights" in outcome.err
    assert contents(tmp_path / FIRST) == before


def test_the_monitor_chooses_the_best_checkpoint(run_script: Script, short: Flags, tmp_path: Path) -> None:
    rate = ("--model.optimizer.lr=3e-3", "--model.optimizer=torch.optim.SGD", "--trainer.max_epochs=6")
    noisy = ("--data.label_noise=0.5", "--model=tests.networks.Small", "--model.width=512")
    outcome = run_script("fit", "--config=overfit", *short, *rate, *noisy, "--monitor=val_loss")
    assert outcome.status == 0, outcome.err
    run = Run(tmp_path / FIRST)
    best = best_epoch(run.records, "val_loss")
    assert best is not None
    assert run.summary.best is not None
    assert (run.summary.best.epoch, run.summary.best.val_loss) == (best.epoch, best.val_loss)
    assert torch.load(run.best_checkpoint, weights_only=True)["epoch"] == best.epoch
    refused = run_script("fit", "--resume", FIRST, "--trainer.max_epochs=7", "--monitor=val_acc")
    assert refused.status == 1
    assert "val_loss chose the best checkpoint so far" in refused.err


def test_ckpt_path_starts_a_new_run_from_a_state(run_script: Script, tiny: Flags, finished: Path) -> None:
    state = f"--ckpt_path={FIRST}/checkpoints/last.ckpt"
    outcome = run_script("fit", "--config=overfit", *tiny, "--trainer.max_epochs=3", state)
    assert outcome.status == 0, outcome.err
    new = Run(finished.with_name("version_1"))
    assert [row.epoch for row in new.records] == [0, 1, 2]
    assert new.records[:2] == Run(finished).records


class FailsInThirdEpoch(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise ValueError("as asked for")


@pytest.mark.parametrize("known", [True, False], ids=["best_before.ckpt", "no earlier weights"])
@pytest.mark.parametrize(
    "resumed",
    [
        ["--resume", FIRST, "--trainer.max_steps=7", "--trainer.callbacks=null"],
        ["--resume", FIRST, "--model.optimizer.lr=1e-30", "--trainer.callbacks=null"],
        ["--config=overfit", "--ckpt_path", f"{FIRST}/checkpoints/last.ckpt", "--trainer.max_steps=7"],
    ],
    ids=["fewer steps", "another rate", "another run"],
)
def test_the_best_weights_are_no_newer_than_the_state(
    resumed: list[str], known: bool, run_script: Script, quick: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overfitting_lab.callbacks.recovery.PAUSE", 1e9)  # the first epoch and the last are saved
    flags = [*quick, "--monitor=val_loss", "--trainer.max_epochs=4", "--model.optimizer.lr=1e-3"]
    fails = "--trainer.callbacks=tests.scripts.test_recovery.FailsInThirdEpoch"
    assert run_script("fit", "--config=overfit", *flags, fails).status == 1
    files = Run(tmp_path / FIRST).files
    state, best, before = (torch.load(path, weights_only=True) for path in (files.last, files.best, files.best_before))
    assert [each["global_step"] for each in (state, best, before)] == [5, 10, 5], "the test needs newer weights"
    if not known:
        files.best_before.unlink()
    outcome = run_script("fit", *resumed, *(flags if "--config=overfit" in resumed else ()))
    assert outcome.status == 0, outcome.err
    run = max(Path("lightning_logs/overfit").glob("version_*"))
    summary, best_file = Run(run).summary, Run(run).files.best
    steps = 5 if known else 10 if "--model.optimizer.lr=1e-30" in resumed else None  # a cut epoch is not validated
    assert (summary.best and summary.best.step) == steps
    assert (best_file.is_file() and torch.load(best_file, weights_only=True)["global_step"]) == (steps or False)
    assert [path.name for path in run.rglob("*before*")] == []


@pytest.mark.parametrize("there", [True, False])
def test_a_run_from_a_state_starts_with_the_best_weights_beside_it(
    there: bool, run_script: Script, short: Flags, finished_run: FinishedRun, tmp_path: Path
) -> None:
    before = Path(shutil.copytree(finished_run.folder / "checkpoints", tmp_path / "of another run"))
    best = before / "best.ckpt"  # not of the last epoch, which is its worst
    content = best.read_bytes()
    if not there:
        best.unlink()
    state = f"--ckpt_path={before / 'last.ckpt'}"
    words = ("=torch.optim.lr_scheduler.StepLR", ".step_size=2", ".gamma=1000")
    schedule = [f"--model.lr_scheduler{setting}" for setting in words]
    sizes = ("--data.image_size=32", "--model.hidden_features=16")  # those of the other run
    outcome = run_script("fit", "--config=overfit", *short, *schedule, "--trainer.max_epochs=4", state, *sizes)
    assert outcome.status == 0, outcome.err
    new = Run(tmp_path / FIRST)
    if there:
        assert new.best_checkpoint.read_bytes() == content
        assert new.summary.best
        assert new.summary.best.epoch < 3
        assert new.summary.test == Run(finished_run.folder).summary.test
    else:
        assert torch.load(new.best_checkpoint, weights_only=True)["epoch"] == 3
    assert (new.folder / "weights.pth").is_file()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data.train_size=90"], "another split"),
        (["--data.split_seed=1", "--data.split=full"], "another split"),
        (
            ["--model.hidden_features=64"],
            r"another network than AlexNet .*: network\.\d+\.\w+ is \(16.*\) there and \(8.*\) here; "
            r"use the checkpoint with the config\.yaml of the run",
        ),
        (["--model=lightning_modules.VGG", "--data.image_size=32"], "of another network than VGG"),
    ],
)
def test_resuming_refuses_other_data_and_other_networks(
    flags: list[str], words: str, run_script: Script, finished: Path
) -> None:
    before = files_of(finished)
    outcome = run_script("fit", "--resume", FIRST, "--trainer.max_epochs=3", *flags)
    assert outcome.status == 1
    assert re.search(words, outcome.err)
    assert "Traceback" not in outcome.err
    assert files_of(finished) == before


def test_a_damaged_checkpoint_is_named_and_the_one_before_offered(run_script: Script, finished: Path) -> None:
    last = finished / "checkpoints" / "last.ckpt"
    shutil.copy(last, last.with_name("previous.ckpt"))  # which a run that was killed leaves
    last.write_bytes(last.read_bytes()[:10_000])
    outcome = run_script("fit", "--resume", FIRST, "--trainer.max_epochs=3")
    previous = f"{FIRST}/checkpoints/previous.ckpt"
    assert outcome.status == 1
    assert f"{FIRST}/checkpoints/last.ckpt is no checkpoint" in outcome.err
    assert f"--ckpt_path {previous}" in outcome.err
    outcome = run_script("fit", "--resume", FIRST, "--trainer.max_epochs=3", "--ckpt_path", previous)
    assert outcome.status == 0, outcome.err
    assert [row.epoch for row in Run(finished).records] == [0, 1, 2]


def test_a_run_without_a_checkpoint_starts_again_in_its_folder(run_script: Script, finished: Path) -> None:
    rows = timeless(finished)
    shutil.rmtree(finished / "checkpoints")
    (finished / "summary.json").unlink()
    metrics = finished / "metrics.csv"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:2]))  # killed within its second epoch
    assert run_script("fit", "--resume", FIRST).status == 0
    assert timeless(finished) == rows


@pytest.mark.parametrize("status", ["finished", "interrupted"])
def test_a_run_whose_checkpoints_are_gone_is_not_changed(status: str, run_script: Script, finished: Path) -> None:
    shutil.rmtree(finished / "checkpoints")
    summary = finished / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "status": status}))
    before = files_of(finished)
    outcome = run_script("fit", "--resume", FIRST, "--trainer.max_epochs=3")
    assert outcome.status == 1
    assert f"last.ckpt is gone; begin a new run with the same settings: --config {FIRST}/config.yaml" in outcome.err
    assert files_of(finished) == before


def test_a_loss_that_is_not_finite_ends_the_run(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    flags = ["--trainer.max_epochs=5", "--model.lr_scheduler=torch.optim.lr_scheduler.StepLR"]
    schedule = ["--model.lr_scheduler.step_size=1", "--model.lr_scheduler.gamma=1e30", "--trainer.precision=32-true"]
    outcome = run_script("fit", "--config=overfit", *quick, *flags, *schedule)
    assert outcome.status == 1
    assert "the loss is NaN or infinite at step 7 (learning rate 1e+26)" in outcome.err
    run = Run(tmp_path / FIRST)
    assert run.status == "failed"
    assert "step 7" in str(run.summary.reason)
    for path in (run.files.last, run.best_checkpoint):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("more", ["enable_checkpointing", "logger"])
def test_so_does_one_without_checkpoints(more: str, run_script: Script, quick: Flags) -> None:
    flags = ("--model.optimizer.lr=1e30", "--doctor=off", "--trainer.limit_val_batches=0", f"--trainer.{more}=false")
    outcome = run_script("fit", "--config=overfit", *quick, *flags)
    assert outcome.status == 1
    assert "the loss is NaN or infinite at step 2 (learning rate 1e+30)" in outcome.err


def test_dropout_draws_the_same_without_checkpoints(run_script: Script, quick: Flags) -> None:
    flags = ("--config=overfit", *quick, "--model.dropout=0.5")
    assert run_script("fit", *flags).status == 0
    assert run_script("fit", *flags, "--trainer.enable_checkpointing=false").status == 0
    first = Path(FIRST)
    assert timeless(first) == timeless(first.with_name("version_1"))


@pytest.mark.parametrize("more", [(), ("--trainer.enable_checkpointing=false",)])
def test_so_does_a_validation_loss_after_the_last_step(more: Flags, run_script: Script, quick: Flags) -> None:
    flags = ("--trainer.max_steps=1", "--trainer.limit_train_batches=1", "--model.optimizer.lr=1e30", "--doctor=off")
    outcome = run_script("fit", "--config=overfit", *quick, *flags, *more)
    assert outcome.status == 1
    assert "the validation loss is NaN or infinite after step 1 (learning rate 1e+30); the check" in outcome.err
    assert not list(Path(FIRST).rglob("*.ckpt"))


def test_the_step_of_a_loss_that_is_not_finite_is_an_optimizer_step(run_script: Script, quick: Flags) -> None:
    flags = ("--trainer.accumulate_grad_batches=2", "--model.optimizer.lr=1e30", "--doctor=off")
    outcome = run_script("fit", "--config=overfit", *quick, *flags)
    assert outcome.status == 1
    assert "the loss is NaN or infinite at step 2 (learning rate 1e+30)" in outcome.err


def test_too_little_disk_space_is_refused_before_the_first_step(
    run_script: Script, tiny: Flags, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    outcome = run_script("fit", "--config=overfit", *tiny)
    assert outcome.status == 1
    assert "has 0.01 MB left, and checkpoints of this network need up to " in outcome.err
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 60 MB, which a run of AlexNet fills. Only root can."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_costs_no_checkpoint(
    run_script: Script,
    tiny: Flags,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage(small_disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**12))  # space that is gone later
    flags = [*tiny, f"--trainer.default_root_dir={small_disk}", "--trainer.max_epochs=3", "--model.width=1"]
    outcome = run_script("fit", "--config=overfit", *flags)
    assert outcome.status == 1
    assert "No space left on device" in outcome.err
    assert "Traceback" not in outcome.err
    run = small_disk / FIRST
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] in (5, 10)
    assert not list(run.rglob(".*.new"))
    assert json.loads((run / "summary.json").read_text())["status"] in ("failed", "running")


def test_weights_alone_cannot_be_resumed_from(run_script: Script, tiny: Flags, finished: Path) -> None:
    best = finished / "checkpoints" / "best.ckpt"
    for path, words in (
        (best, "best.ckpt holds weights only and no state to resume from; give a last.ckpt or previous.ckpt"),
        (finished, "is a folder; give last.ckpt or previous.ckpt from a run's checkpoints/"),
        (finished / "weights.pth", "is no checkpoint of a run; give last.ckpt or previous.ckpt"),
    ):
        outcome = run_script("fit", "--config=overfit", *tiny, f"--ckpt_path={path}")
        assert outcome.status == 1
        assert words in outcome.err


@pytest.mark.parametrize("lost", [True, False])
def test_a_summary_that_is_lost_or_damaged_is_written_again(lost: bool, run_script: Script, finished: Path) -> None:
    rows = timeless(finished)
    test = Run(finished).summary.test
    (finished / "summary.json").write_text("")
    if lost:
        (finished / "summary.json").unlink()
    outcome = run_script("fit", "--resume", FIRST)
    assert outcome.status == 0, outcome.err
    assert timeless(finished) == rows
    assert Run(finished).summary.test == test


def test_one_process_at_a_time_trains_a_run(run_script: Script, finished: Path) -> None:
    with FileLock(finished / ".lock"):
        before = files_of(finished)
        outcome = run_script("fit", "--resume", FIRST, "--trainer.max_epochs=3")
        assert files_of(finished) == before
    assert outcome.status == 1
    assert f"another process trains {FIRST}" in outcome.err
    assert len(Run(finished).records) == 2


def test_its_folder_is_its_own_until_the_test_has_ended(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    outcome = run_script("fit", "--config=overfit", *quick, "--trainer.callbacks+=tests.observers.FolderLock")
    assert outcome.status == 0, outcome.err
    assert "held after training" in outcome.out
    assert "held in the test" in outcome.out
    with FileLock(tmp_path / FIRST / ".lock", timeout=0):
        pass
    failing = callback("Failing", "hook=on_test_start").split()
    assert run_script("fit", "--config=overfit", *quick, *failing).status == 1
    with FileLock(tmp_path / "lightning_logs/overfit/version_1/.lock", timeout=0):
        pass


@pytest.mark.parametrize(("pause", "previous"), [(0, 2), (10**9, 0)])
def test_short_epochs_do_not_all_leave_a_checkpoint(
    pause: float, previous: int, run_script: Script, quick: Flags, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(recovery, "PAUSE", pause)
    fails = callback("Failing", "hook=on_fit_end").split()  # before the checkpoint before the last is discarded
    assert run_script("fit", "--config=overfit", *quick, "--trainer.max_epochs=4", *fails).status == 1
    folder = tmp_path / FIRST / "checkpoints"
    epochs = [torch.load(folder / f"{name}.ckpt", weights_only=True)["epoch"] for name in ("previous", "last")]
    assert epochs == [previous, 3]


def test_a_run_that_stopped_early_is_not_trained_further(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    early = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val_loss", "--trainer.max_epochs=5"]
    flags = [*early, "--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=100"]
    assert run_script("fit", "--config=overfit", *quick, *flags).status == 0
    run = tmp_path / FIRST
    rows = Run(run).records
    assert len(rows) == 2
    (run / "summary.json").unlink()  # as if it had been killed before it could say that it was finished
    assert run_script("fit", "--resume", FIRST).status == 0
    assert Run(run).records == rows
    assert Run(run).finished


def contents(run: Path) -> dict[Path, bytes]:
    """Return the bytes of a run's files, except for the trace of an error."""
    files = (path for path in run.rglob("*") if path.is_file() and path != RunFiles(run).traceback)
    return {path: path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("hook", "flags"),
    [
        ("on_train_start", ["--trainer.max_epochs=3"]),
        ("on_train_batch_end", ["--trainer.max_epochs=3"]),  # the callback stands before those that write
        ("on_test_start", []),  # nothing is left to train
    ],
)
def test_a_resume_that_fails_before_its_first_step_changes_nothing(
    hook: str, flags: list[str], run_script: Script, finished: Path
) -> None:
    before = contents(finished)
    broken = ["--trainer.callbacks=tests.faults.Break", f"--trainer.callbacks.hook={hook}"]
    outcome = run_script("fit", "--resume", FIRST, *broken, *flags)
    assert outcome.status == 1
    assert f"broken in {hook}" in outcome.err
    assert contents(finished) == before


def test_a_resume_with_nothing_to_train_only_tests(run_script: Script, finished: Path) -> None:
    before, summary = (
        contents(finished),
        replace(Run(finished).summary, seconds_of=None),
    )  # the test takes its time again
    outcome = run_script("fit", "--resume", FIRST, "--trainer.log_every_n_steps=4")
    assert outcome.status == 0, outcome.err
    assert "ended      all 2 epochs are done" in outcome.out
    for name in ("metrics.csv", "curves.png", "weights.pth", "checkpoints/last.ckpt"):
        assert (finished / name).read_bytes() == before[finished / name], name
    assert replace(Run(finished).summary, seconds_of=None) == summary
    assert Run(finished).settings["trainer.log_every_n_steps"] == 4


def test_a_run_whose_settings_changed_on_the_way_is_no_run_of_the_last_ones(run_script: Script, quick: Flags) -> None:
    changes = ("--trainer.max_epochs=3", "--model.label_smoothing=0.3", "--seed_everything=7")
    clipped = "--trainer.gradient_clip_val=1"  # which config.yaml leaves out while it is null
    assert run_script("fit", "--config=overfit", *quick).status == 0
    assert run_script("fit", "--resume", FIRST, *changes, clipped).status == 0
    run, null = Run(Path(FIRST)), {"trainer.gradient_clip_val": [None]}
    assert run.summary.earlier == {"model.label_smoothing": [0.0], "seed_everything": [0], **null}
    assert run.recipe["model.label_smoothing"] == "0.0, then 0.3"
    assert run_script("fit", "--resume", FIRST, "--model.label_smoothing=0", "--trainer.max_epochs=4").status == 0
    assert Run(Path(FIRST)).summary.earlier == {"model.label_smoothing": [0.0, 0.3], "seed_everything": [0], **null}

    anew = run_script(
        "fit", "--config=overfit", *quick, "--seed_everything=7", "--trainer.max_epochs=4", clipped, "--resume=auto"
    )
    assert anew.status == 0, anew.err
    second = Path(FIRST).with_name("version_1")
    assert Run(second).summary.earlier == {}
    outcome = run_script("compare", FIRST, second, "--output=report")
    assert outcome.status == 0, outcome.err
    text = Path("report/report.md").read_text()
    assert "| model.label_smoothing | 0.0, then 0.3, then 0.0 | 0.0 |" in text
    assert "| seed_everything | 0, then 7 | 7 |" in text
    assert "| trainer.gradient_clip_val | None, then 1 | 1 |" in text
    assert "answering by the mean" not in text


def test_a_resumed_run_stays_in_its_folder(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    assert run_script("fit", "--config=overfit", *quick).status == 0
    for flag in ("--experiment=other", "--trainer.default_root_dir=elsewhere"):
        refused = run_script("fit", "--resume", FIRST, "--trainer.max_epochs=3", flag)
        assert refused.status == 2
        assert f"{flag.partition('=')[0]}: a resumed run stays in its folder, {FIRST}: leave it out" in refused.err
    (tmp_path / "longer.yaml").write_text("experiment: other\ntrainer: {max_epochs: 3}\n")
    outcome = run_script("fit", "--resume", FIRST, "--config=longer.yaml", "--experiment=overfit")
    assert outcome.status == 0, outcome.err
    run = Run(Path(FIRST))
    assert (run.summary.epochs, run.summary.experiment, run.settings["experiment"]) == (3, "overfit", "overfit")
    assert "experiment" not in outcome.out


def test_a_state_that_cannot_be_loaded_again_is_told_when_it_is_saved(run_script: Script, quick: Flags) -> None:
    keeper = f"--trainer.callbacks={KeepsAnArray.__module__}.KeepsAnArray"
    outcome = run_script("fit", "--config=overfit", *quick, keeper)
    assert outcome.status == 0, outcome.err
    assert outcome.err.count("note       resuming: the checkpoint cannot be loaded again: KeepsAnArray holds ") == 1
    assert "the checkpoint cannot" in Run(Path(FIRST)).summary.notes[0]
    refused = run_script("fit", "--resume", FIRST, "--trainer.max_epochs=3")
    assert refused.status == 1
    assert "would run code when loaded (numpy." in refused.err


class KeepsAnArray(Callback):
    best: object = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.best = np.float64(0.5)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}


class KeepsAPath(KeepsAnArray):
    best = Path("best.txt")


def test_a_state_that_no_resume_could_load_is_refused_at_the_start(run_script: Script, quick: Flags) -> None:
    outcome = run_script("fit", "--config=overfit", *quick, f"--trainer.callbacks={KeepsAPath.__module__}.KeepsAPath")
    assert outcome.status == 1
    assert "error: no run with KeepsAPath could be resumed: its state_dict() holds pathlib." in outcome.err
    assert "keep numbers, texts, lists, dicts and tensors alone" in outcome.err


def test_a_run_is_resumed_wherever_it_lies(
    run_script: Script, quick: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_script("fit", "--config=overfit", *quick).status == 0
    monkeypatch.chdir(tmp_path / FIRST / "..")
    outcome = run_script("fit", "--resume", "version_0", "--trainer.max_epochs=3")
    assert outcome.status == 0, outcome.err
    assert "tensorboard --logdir .. " in outcome.out
    assert Run(tmp_path / FIRST).summary.epochs == 3


def test_curves_of_an_own_metric_outlive_a_resume(run_script: Script, quick: Flags) -> None:
    logs = f"--trainer.callbacks={LogsAnExtra.__module__}.LogsAnExtra"
    assert run_script("fit", "--config=overfit", *quick, logs).status == 0
    assert run_script("fit", "--resume", FIRST, "--trainer.max_epochs=4").status == 0
    for name in ("extra", "accuracy"):
        assert [step for step, _ in scalars_of(Path(FIRST) / "val")[f"curves/{name}"]] == [1, 2, 3, 4]
    assert [step for step, _ in scalars_of(Path(FIRST) / "train")["curves/loss"]] == [1, 2, 3, 4]


class LogsAnExtra(Callback):
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("val_extra", 1.0)


def test_a_run_from_a_checkpoint_says_so(run_script: Script, quick: Flags) -> None:
    assert run_script("fit", "--config=overfit", *quick).status == 0
    state = f"{FIRST}/checkpoints/last.ckpt"
    longer = ("--config=overfit", *quick, "--trainer.max_epochs=3")
    assert run_script("fit", *longer, "--ckpt_path", state).status == 0
    second = Path(FIRST).with_name("version_1")
    assert Run(second).recipe["ckpt_path"] == state
    assert run_script("fit", "--resume", second, "--trainer.max_epochs=4").status == 0
    assert Run(second).summary.earlier == {"ckpt_path": [state]}
