import re
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from overfitting_lab import began
from overfitting_lab.runs import Run
from overfitting_lab.runs.summary import Times
from tests.conftest import Flags, Script, summary_of

RUN = Path("lightning_logs/overfit/version_0")
HOOKS = {
    "start": "setup",
    "training": "on_train_epoch_start",
    "validation": "on_validation_epoch_start",
    "test": "on_test_epoch_start",
}
PAUSE = 0.3  # seconds


class Slow(Callback):
    """Wait in a hook of each part of a run."""

    def __init__(self) -> None:
        for hook in HOOKS.values():
            setattr(self, hook, lambda *_, **__: time.sleep(PAUSE))


class SlowAfterTest(Callback):
    """Draw something after the test."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        time.sleep(PAUSE)


def parts(folder: Path) -> Times:
    times = Run(folder).summary.seconds_of
    assert times is not None
    return times


@pytest.mark.thorough
def test_each_part_of_a_run_has_its_time_and_a_resumed_run_adds_to_it(run_script: Script, quick: Flags) -> None:
    slow = f"--trainer.callbacks={__name__}.Slow"
    first = run_script("fit", "--config=overfit", *quick, "--trainer.max_epochs=1", slow)
    assert first.status == 0, first.err
    before = parts(RUN)
    assert min(before.start, before.training, before.validation, before.test or 0) >= PAUSE
    assert "\ntesting    best.ckpt\n" in first.out
    (line,) = (line for line in first.out.splitlines() if line.startswith("time "))
    assert [word for word in line.split() if word in HOOKS] == [*HOOKS]
    saved = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["Clock"]["seconds"]
    assert min(saved["start"], saved["training"], saved["validation"]) >= PAUSE
    assert run_script("fit", "--resume", RUN, "--trainer.max_epochs=2").status == 0
    after = parts(RUN)
    assert after.start >= saved["start"] + PAUSE
    assert after.training >= saved["training"] + PAUSE
    assert after.validation >= saved["validation"] + PAUSE
    assert after.total > sum(saved.values()) + 3 * PAUSE


def test_the_start_of_a_process_counts_its_imports_and_the_test_counts_its_pictures(
    run_script: Script, quick: Flags
) -> None:
    began[:] = [time.perf_counter() - 1000]
    outcome = run_script("fit", "--config=overfit", *quick, "--check")
    assert re.search(r"\n +start 0:16:4\d, training ", outcome.out), outcome.out
    began[:] = [time.perf_counter() - 1000]
    outcome = run_script("fit", "--config=overfit", *quick, f"--trainer.callbacks={__name__}.SlowAfterTest")
    first = parts(RUN)
    assert 1000 < first.start < 1100
    assert first.test is not None
    assert first.test >= PAUSE
    run_script("fit", "--resume", RUN, "--trainer.max_epochs=3")
    assert first.start < parts(RUN).start < 1100, "a process that goes on has imported them already"


def test_a_run_that_began_without_a_clock_says_no_time_of_its_parts(run_script: Script, quick: Flags) -> None:
    assert run_script("fit", "--config=overfit", *quick, "--trainer.max_epochs=1").status == 0
    last = RUN / "checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)
    del state["callbacks"]["Clock"]
    torch.save(state, last)
    outcome = run_script("fit", "--resume", RUN, "--trainer.max_epochs=2")
    assert outcome.status == 0, outcome.err
    assert "seconds_of" not in summary_of(RUN)
    assert "\ntime " not in outcome.out
    assert Run(RUN).summary.total_seconds == Run(RUN).summary.seconds > 0
