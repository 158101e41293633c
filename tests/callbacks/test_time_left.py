"""What a run says of the time that it will take: in the first epoch, and after each."""

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from overfitting_lab.callbacks.epochs import recorder_of
from tests.conftest import Flags, Script, summary_of

RUN = "lightning_logs/overfit/version_0"

PAUSE = 0.2
LINE = re.compile(
    r"^left       (\d):(\d\d):(\d\d)(?: to (\d):(\d\d):(\d\d))?: (\d) steps? took (\S+) to (\S+) s each", re.M
)


class SlowSteps(Callback):
    """Wait in every step."""

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(PAUSE)


def seconds(groups: tuple[str, ...]) -> int:
    hours, minutes, rest = map(int, groups)
    return 3600 * hours + 60 * minutes + rest


@pytest.fixture
def said(run_script: Script, quick: Flags, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains with slow steps, five in an epoch, as if every run were worth the line. Returns the output."""
    monkeypatch.setattr("overfitting_lab.callbacks.time_left.WORTH_SAYING", 0)

    def run(*flags: str) -> str:
        slow = f"--trainer.callbacks={__name__}.SlowSteps"
        outcome = run_script("fit", "--config=overfit", *quick, slow, *flags)
        assert outcome.status == 0, outcome.err
        return outcome.out

    return run


@pytest.mark.thorough
def test_the_first_epoch_says_how_long_the_rest_will_take(said: Any, run_script: Script) -> None:
    out = said()
    (match,) = LINE.finditer(out)
    assert match.start() < out.index("epoch   1/2")
    assert int(match[7]) == 2, "half of the epoch's steps, without the first"
    assert PAUSE <= float(match[8]) <= float(match[9])
    low, high = seconds(match.groups()[:3]), seconds(match.groups()[3:6]) if match[4] else 0
    assert low >= 1, "seven steps"
    assert not high or high >= low
    resumed = run_script("fit", "--resume=lightning_logs/overfit/version_0", "--trainer.max_epochs=3")
    assert resumed.status == 0, resumed.err
    (match,) = LINE.finditer(resumed.out)
    assert match.start() < resumed.out.index("epoch   3/3")


@pytest.mark.thorough
@pytest.mark.parametrize("end", ["--trainer.max_epochs=1000", "--trainer.max_epochs=-1"])
def test_a_clock_that_ends_the_run_is_known(end: str, said: Any) -> None:
    matches = [*LINE.finditer(said(end, "--trainer.max_time=00:00:00:02"))]
    if end.endswith("-1"):
        assert not matches, "the run has no other end, and its user knows the clock's"
    else:
        (match,) = matches
        high = seconds(match.groups()[3:6] if match[4] else match.groups()[:3])
        assert high <= 3 + 2 * float(match[9]), "two seconds, and a test that takes about a step"


def test_a_run_of_seconds_needs_no_line(run_script: Script, quick: Flags) -> None:
    outcome = run_script("fit", "--config=overfit", *quick)
    assert "epoch   2/2" in outcome.out
    assert not LINE.search(outcome.out)


def test_the_epochs_that_are_left_after_a_resume_with_smaller_batches(run_script: Script, quick: Flags) -> None:
    """The run ends at a step, and today's epochs have more steps than those before."""
    assert run_script("fit", "--config=overfit", *quick, "--trainer.max_epochs=2").status == 0
    steps = summary_of(Path(RUN))["global_step"]
    flags = (f"--trainer.max_steps={6 * steps}", "--trainer.max_epochs=-1", "--data.batch_size=5")
    outcome = run_script("fit", f"--resume={RUN}", *flags)
    assert outcome.status == 0, outcome.err
    epochs = re.findall(r"^epoch +(\d+)/(\d+) ", outcome.out, re.M)
    assert epochs == [("3", "5"), ("4", "5"), ("5", "5")]


class OneLongEpoch(Callback):
    """Let each epoch take ten seconds, and the third one a hundred."""

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        records = recorder_of(trainer).records
        records[-1] = replace(records[-1], seconds=100.0 if trainer.current_epoch == 2 else 10.0)


def test_an_epoch_that_took_long_does_not_stretch_the_rest(run_script: Script, quick: Flags) -> None:
    flags = (*quick, "--trainer.max_epochs=6", f"--trainer.callbacks={__name__}.OneLongEpoch")
    out = run_script("fit", "--config=overfit", *flags).out
    assert re.findall(r"^epoch   \d/6.* (\d+\.\d s), (\S+) left$", out, re.M) == [
        ("10.0 s", "0:00:50"),
        ("10.0 s", "0:00:40"),
        ("100.0 s", "0:00:30"),
        ("10.0 s", "0:00:20"),
        ("10.0 s", "0:00:10"),
        ("10.0 s", "0:00:00"),
    ]
