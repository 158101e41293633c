"""A failure outside of the project ends as one message; a defect of the project keeps its trace."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_modules import ImageClassifier
from tests.conftest import Flags, Script, summary_of
from tests.scripts.test_errors import check_one_message

RUN = Path("lightning_logs/overfit/version_0")
HERE = Path(__file__)
FAILURES: dict[str, Callable[[], object]] = {
    "message": lambda: throw(KeyError("no such key")),
    "memory": lambda: torch.empty(10**15),
    "files": lambda: throw(OSError(24, "Too many open files", "a/file")),
    "worker": lambda: throw(RuntimeError("in worker 0\nTraceback (most recent call last)\n  x\nown words")),
}


def throw(error: Exception) -> None:
    raise error


class Failing(Callback):
    """Fail in a hook."""

    def __init__(self, hook: str, failure: str = "message") -> None:
        setattr(self, hook, lambda *_, **__: FAILURES[failure]())


class Vanishing(Callback):
    """Remove the run's folder."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, lambda trainer, *_, **__: shutil.rmtree(trainer.loggers[0].folder))


class FailingLayer(nn.Module):
    """Fail in training, as a user's own layer may."""

    def forward(self, images: Any) -> Any:
        if self.training:
            raise IndexError("no such channel")
        return images


class FailingNetwork(ImageClassifier):
    """A network of the user's own."""

    def __init__(self, num_classes: int = 10, image_size: int = 32) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes), FailingLayer())
        super().__init__(network, num_classes, image_size, partial(torch.optim.Adam, lr=1e-3), None, "epoch")


class Failure(NamedTuple):
    """Flags with which a run fails, and words of its message."""

    flags: str
    words: tuple[str, ...]


def callback(name: str, *settings: str) -> str:
    flags = [f"--trainer.callbacks+=tests.scripts.test_failures.{name}"]
    return " ".join([*flags, *(f"--trainer.callbacks.{setting}" for setting in settings)])


MINE = (f"raised in {HERE}, line",)
BY_FLAGS = {
    "step": Failure(callback("Failing", "hook=on_train_batch_end"), ("error: KeyError: 'no such key'", *MINE)),
    "memory": Failure(
        callback("Failing", "hook=on_train_start", "failure=memory"), ("allocate memory", "a smaller --data.batch_size")
    ),
    "files": Failure(callback("Failing", "hook=on_train_start", "failure=files"), ("[Errno 24]", "ulimit -n")),
    "worker": Failure(callback("Failing", "hook=on_train_start", "failure=worker"), ("in worker 0\nown words",)),
    "hidden by another": Failure(
        f"{callback('Failing', 'hook=on_train_start')} {callback('Failing', 'hook=on_exception')}",
        ("on_exception of the callback Failing", "error: KeyError: 'no such key'"),
    ),
    "layer": Failure("--model=tests.scripts.test_failures.FailingNetwork", ("IndexError: no such channel", *MINE)),
    "schedule": Failure("--model.lr_scheduler=tests.faults.Breaking", ("error: KeyError: 'no such rate'",)),
    "optimizer": Failure("--model.optimizer=torch.optim.SparseAdam", ("RuntimeError: SparseAdam does not support",)),
}


@pytest.mark.parametrize("failure", [pytest.param(failure, id=name) for name, failure in BY_FLAGS.items()])
def test_a_failure_is_one_message(
    failure: Failure, run_script: Script, short: Flags, tiny: Flags, tmp_path: Path
) -> None:
    flags = short if "--model=" in failure.flags else tiny
    outcome = run_script("fit", "--config=overfit", *flags, "--trainer.precision=32-true", *failure.flags.split())
    check_one_message(outcome, 1)
    for word in failure.words:
        assert word in outcome.err
    trace = RUN / "traceback.txt"
    assert f"the whole trace is in {trace}" in outcome.err
    assert "Traceback (most recent call last)" in (tmp_path / trace).read_text()
    summary = summary_of(tmp_path / RUN)
    assert summary["status"] == "failed"
    assert summary["reason"] in outcome.err
    assert not (tmp_path / RUN / ".lock").exists()


@pytest.mark.parametrize("hook", ["setup", "on_fit_start"])
def test_a_failure_before_the_run_leaves_no_folder(hook: str, run_script: Script, quick: Flags, tmp_path: Path) -> None:
    outcome = run_script("fit", "--config=overfit", *quick, *callback("Failing", f"hook={hook}").split())
    check_one_message(outcome, 1)
    assert "JSONARGPARSE_DEBUG=true" in outcome.err
    assert not (tmp_path / RUN).exists()


def test_a_folder_that_vanishes(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    flags = callback("Vanishing", "hook=on_train_epoch_end").split()
    outcome = run_script("fit", "--config=overfit", *quick, "--trainer.max_epochs=1", *flags)
    check_one_message(outcome, 1)
    assert f"error: {RUN} is gone" in outcome.err
    assert not (tmp_path / RUN).exists(), "half a run"


def test_a_defect_keeps_its_trace(
    run_script: Script, quick: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overfitting_lab.callbacks.epochs.EpochRecord", None)
    with pytest.raises(TypeError):
        run_script("fit", "--config=overfit", *quick)
    assert "TypeError" in (tmp_path / RUN / "traceback.txt").read_text(), "the screen may be gone"


def test_a_value_that_contains_itself(run_script: Script, tmp_path: Path) -> None:
    (tmp_path / "circle.yaml").write_text("data: &data\n  root: x\n  source: *data\n")
    outcome = run_script("fit", "--config=overfit", "--config=circle.yaml")
    check_one_message(outcome, 2)
    assert "circle.yaml, line 1" in outcome.err
