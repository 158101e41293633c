import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from overfitting_lab.callbacks import recovery
from overfitting_lab.callbacks.checkpoints import AtomicCheckpointIO
from overfitting_lab.runs import Run
from tests.conftest import FinishedRun, Outcome, execute

FIRST = "lightning_logs/overfit/version_0"


@pytest.fixture(scope="module")
def trained(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        assert execute(monkeypatch, "fit", "--config=overfit", *tiny) == 0
    return folder / FIRST


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """A copy of a run of two epochs, in the working directory of ``run_script``."""
    return Path(shutil.copytree(trained, tmp_path / FIRST))


def test_a_finished_run_is_complete(run_script: Callable[..., Outcome], finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    outcome = run_script("fit", "--resume", FIRST)
    assert (outcome.status, outcome.out) == (0, f"{FIRST} is already complete\n")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_finished_run_trains_longer(
    run_script: Callable[..., Outcome], tiny: tuple[str, ...], finished: Path, tmp_path: Path
) -> None:
    outcome = run_script("fit", f"--resume={FIRST}", "--trainer.max_epochs=4")
    assert outcome.status == 0
    assert "changed    trainer.max_epochs: 2 -> 4" in outcome.out
    assert run_script("fit", "--config=overfit", *tiny, "--trainer.max_epochs=4").status == 0
    longer, through = (Run(finished.with_name(f"version_{number}")) for number in (0, 1))
    for one, other in zip(longer.records, through.records, strict=True):
        assert replace(one, seconds=0) == replace(other, seconds=0)
    assert longer.summary.test == through.summary.test


def test_ckpt_path_starts_a_new_run_from_a_state(
    run_script: Callable[..., Outcome], tiny: tuple[str, ...], finished: Path
) -> None:
    state = f"--ckpt_path={FIRST}/checkpoints/last.ckpt"
    outcome = run_script("fit", "--config=overfit", *tiny, "--trainer.max_epochs=3", state)
    assert outcome.status == 0, outcome.err
    new = Run(finished.with_name("version_1"))
    assert [row.epoch for row in new.records] == [0, 1, 2]
    assert new.records[:2] == Run(finished).records


@pytest.mark.parametrize("there", [True, False])
def test_a_run_from_a_state_has_best_weights_of_its_own(
    there: bool, run_script: Callable[..., Outcome], tiny: tuple[str, ...], finished_run: FinishedRun, tmp_path: Path
) -> None:
    before = Path(shutil.copytree(finished_run.folder / "checkpoints", tmp_path / "of another run"))
    best = before / "best.ckpt"  # not of the last epoch, which is its worst
    content = best.read_bytes()
    if not there:
        best.unlink()
    state = f"--ckpt_path={before / 'last.ckpt'}"
    schedule = [f"--model.lr_scheduler{setting}" for setting in ("=torch.optim.lr_scheduler.StepLR", ".step_size=2")]
    outcome = run_script("fit", "--config=overfit", *tiny, *schedule, "--trainer.max_epochs=4", state)
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
        (["--model.hidden_features=8"], "another network"),
        (["--model=lightning_modules.VGG"], "another network"),
    ],
)
def test_resuming_refuses_other_data_and_other_networks(
    flags: list[str], words: str, run_script: Callable[..., Outcome], finished: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    outcome = run_script("fit", "--resume", FIRST, "--trainer.max_epochs=3", *flags)
    assert outcome.status == 1
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_a_damaged_checkpoint_is_named_and_the_one_before_offered(
    run_script: Callable[..., Outcome], finished: Path
) -> None:
    last = finished / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:10_000])
    outcome = run_script("fit", "--resume", FIRST, "--trainer.max_epochs=3")
    previous = f"{FIRST}/checkpoints/previous.ckpt"
    assert outcome.status == 1
    assert f"{FIRST}/checkpoints/last.ckpt is no checkpoint" in outcome.err
    assert f"--ckpt_path {previous}" in outcome.err
    assert run_script("fit", "--resume", FIRST, "--trainer.max_epochs=3", "--ckpt_path", previous).status == 0
    assert [row.epoch for row in Run(finished).records] == [0, 1, 2]


def test_a_run_without_a_checkpoint_begins_anew_in_its_folder(
    run_script: Callable[..., Outcome], finished: Path
) -> None:
    rows = [replace(row, seconds=0) for row in Run(finished).records]
    shutil.rmtree(finished / "checkpoints")
    (finished / "summary.json").unlink()
    metrics = finished / "metrics.csv"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:2]))  # killed within its second epoch
    assert run_script("fit", "--resume", FIRST).status == 0
    assert [replace(row, seconds=0) for row in Run(finished).records] == rows


@pytest.mark.parametrize("status", ["finished", "interrupted"])
def test_a_run_whose_checkpoints_are_gone_is_left_alone(
    status: str, run_script: Callable[..., Outcome], finished: Path
) -> None:
    shutil.rmtree(finished / "checkpoints")
    summary = finished / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "status": status}))
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    outcome = run_script("fit", "--resume", FIRST, "--trainer.max_epochs=3")
    assert outcome.status == 1
    assert f"last.ckpt is gone; begin a new run with the same settings: --config {FIRST}/config.yaml" in outcome.err
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_lost_loss_ends_the_run(run_script: Callable[..., Outcome], tiny: tuple[str, ...], tmp_path: Path) -> None:
    flags = ["--trainer.max_epochs=5", "--model.lr_scheduler=torch.optim.lr_scheduler.StepLR"]
    schedule = ["--model.lr_scheduler.step_size=1", "--model.lr_scheduler.gamma=1e30", "--trainer.precision=32-true"]
    outcome = run_script("fit", "--config=overfit", *tiny, *flags, *schedule)
    assert outcome.status == 1
    assert "the loss is NaN or infinite at step 7 (learning rate 1e+26)" in outcome.err
    run = Run(tmp_path / FIRST)
    assert run.status == "failed"
    assert "step 7" in str(run.summary.reason)
    for path in (run.files.last, run.best_checkpoint):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())


def test_too_little_room_is_known_before_the_first_step(
    run_script: Callable[..., Outcome], tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    outcome = run_script("fit", "--config=overfit", *tiny)
    assert outcome.status == 1
    assert "0.0 GB left" in outcome.err
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 60 MB, which a run of the tiny network fills; root alone can have it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_costs_no_checkpoint(
    run_script: Callable[..., Outcome],
    tiny: tuple[str, ...],
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage(small_disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**12))  # room that is gone later
    flags = [*tiny, f"--trainer.default_root_dir={small_disk}", "--trainer.max_epochs=3"]
    outcome = run_script("fit", "--config=overfit", *flags)
    assert outcome.status == 1
    assert "No space left on device" in outcome.err
    assert "Traceback" not in outcome.err
    run = small_disk / FIRST
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["epoch"] >= 0
    assert not list(run.rglob(".*.new"))
    assert json.loads((run / "summary.json").read_text())["status"] in ("failed", "running")


def test_weights_alone_are_no_state_to_go_on_from(
    run_script: Callable[..., Outcome], tiny: tuple[str, ...], finished: Path
) -> None:
    best = finished / "checkpoints" / "best.ckpt"
    outcome = run_script("fit", "--config=overfit", *tiny, f"--ckpt_path={best}")
    assert outcome.status == 1
    assert "best.ckpt holds weights alone" in outcome.err


@pytest.mark.parametrize("lost", ["checkpoints/last.ckpt", "summary.json"])
def test_what_is_lost_is_made_again(lost: str, run_script: Callable[..., Outcome], finished: Path) -> None:
    rows = [replace(row, seconds=0) for row in Run(finished).records]
    test = Run(finished).summary.test
    (finished / lost).write_text("")
    if lost != "summary.json":
        (finished / lost).unlink()
        (finished / "summary.json").unlink()
    outcome = run_script("fit", "--resume", FIRST)
    assert outcome.status == 0, outcome.err
    assert [replace(row, seconds=0) for row in Run(finished).records] == rows
    assert Run(finished).summary.test == test


def test_one_process_at_a_time_trains_a_run(run_script: Callable[..., Outcome], finished: Path) -> None:
    with FileLock(finished / ".lock"):
        before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
        outcome = run_script("fit", "--resume", FIRST, "--trainer.max_epochs=3")
        assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before
    assert outcome.status == 1
    assert f"another process trains {FIRST}" in outcome.err
    assert len(Run(finished).records) == 2


@pytest.mark.parametrize(("pause", "saved"), [(0, 4), (10**9, 2)])
def test_short_epochs_do_not_all_leave_a_checkpoint(
    pause: float,
    saved: int,
    run_script: Callable[..., Outcome],
    tiny: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    states: list[int] = []
    save = AtomicCheckpointIO.save_checkpoint

    def counted(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Path, **options: Any) -> None:
        save(self, checkpoint, path, **options)
        if Path(path).name == "last.ckpt":
            states.append(checkpoint["epoch"])

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", counted)
    monkeypatch.setattr(recovery, "PAUSE", pause)
    assert run_script("fit", "--config=overfit", *tiny, "--trainer.max_epochs=4").status == 0
    assert len(states) == saved
    assert (states[0], states[-1]) == (0, 3)


def test_a_run_that_stopped_early_does_not_go_on(
    run_script: Callable[..., Outcome], tiny: tuple[str, ...], tmp_path: Path
) -> None:
    early = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val_loss", "--trainer.max_epochs=5"]
    flags = [*early, "--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=100"]
    assert run_script("fit", "--config=overfit", *tiny, *flags).status == 0
    run = tmp_path / FIRST
    rows = Run(run).records
    assert len(rows) == 2
    (run / "summary.json").unlink()  # as if it had been killed before it could say that it was finished
    assert run_script("fit", "--resume", FIRST).status == 0
    assert Run(run).records == rows
