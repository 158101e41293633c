"""Drawing, printing and logging never decide how a run ends."""

import errno
import io
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure

from overfitting_lab.cli import reported_errors
from overfitting_lab.runs.figures import LONGEST_SIDE, confusion_matrix, plain_text
from overfitting_lab.runs.notes import notes
from tests.conftest import ROOT, Flags, Script, execute, summary_of, write_images
from tests.processes import PATHS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes, terminals and /dev/full of a POSIX system")
FIT = ("fit", "--config=overfit")
ONE_EPOCH = "--trainer.max_epochs=1"
RUN = Path("lightning_logs/overfit/version_0")


def check_finished(folder: Path, *notes: str) -> None:
    """The run was tested, its files are there, and its summary has one note of each kind."""
    summary = summary_of(folder)
    assert (summary["status"], summary["test"]["images"]) == ("finished", 45)
    assert {"config.yaml", "metrics.csv", "weights.pth", "images.npz"} <= {path.name for path in folder.iterdir()}
    assert sorted(summary["notes"]) == sorted(notes)


class Away(Logger):
    """A logger whose server does not answer."""

    def __init__(self) -> None:
        super().__init__()

    def _fail(self, *_: Any, **__: Any) -> None:
        raise ConnectionError("http://localhost:9 does not answer")

    experiment = property(_fail)
    log_metrics = log_hyperparams = save = after_save_checkpoint = finalize = _fail

    @property
    def name(self) -> str:
        return "away"

    @property
    def version(self) -> str:
        return "0"


def test_loggers_and_figures_that_fail(
    run_script: Script, quick: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no font at all")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    outcome = run_script(*FIT, *quick, ONE_EPOCH, "--trainer.logger=tests.scripts.test_lasting.Away")
    assert outcome.status == 0, outcome.err
    found = (
        "the logger Away: http://localhost:9 does not answer",
        "TensorBoard's files: [Errno 28] No space left on device",
        "curves.png: RuntimeError: no font at all",
    )
    for note in found:
        assert outcome.err.count(note) == 1
    assert "Traceback" not in outcome.err
    check_finished(tmp_path / RUN, *found)
    outcome = run_script("compare", RUN)
    assert outcome.status == 0, outcome.err
    assert "report.png: RuntimeError: no font at all" in outcome.err
    assert "written report/overfit/report.html report/overfit/report.md\n" in outcome.out


@pytest.mark.thorough
@pytest.mark.pictures
def test_names_that_are_no_formula(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    images = write_images(tmp_path / "a$_{$ [red]", 180, 45)
    for split in ("train", "test"):
        (images / split / "cat").rename(images / split / "c$^{at [bold]")
    outcome = run_script(*FIT, *quick, ONE_EPOCH, f"--data.root={images}", "--trainer.enable_progress_bar=true")
    assert (outcome.status, outcome.err.strip()) == (0, "")
    assert "a$_{$ [red]" in outcome.out
    check_finished(tmp_path / RUN)
    assert (tmp_path / RUN / "curves.png").stat().st_size > 10_000
    outcome = run_script("compare", RUN)
    assert (outcome.status, outcome.err.strip()) == (0, "")


@pytest.mark.parametrize("classes", [["$"] * 3, ["a\udce9", "\x1b[31m", "cat\nb"], ["x" * 250] * 2, ["n"] * 300])
@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
def test_any_names_and_number_of_classes_can_be_drawn(classes: list[str]) -> None:
    figure = plain_text(confusion_matrix(np.eye(len(classes), dtype=np.int64), classes, "$"))
    assert max(figure.get_size_inches()) <= LONGEST_SIDE
    figure.set_dpi(20)
    figure.savefig(io.BytesIO())


Screen = tuple[TextIO, str]  # and the note on its loss


def lost_screen(kind: str) -> Screen:
    """Return a standard output that fails at each write."""
    if kind == "full disk":
        return Path("/dev/full").open("w"), "standard output: [Errno 28] No space left on device"
    other, descriptor = os.pipe() if kind == "pipe" else pty.openpty()
    os.close(other)
    gone = "[Errno 32] Broken pipe" if kind == "pipe" else "[Errno 5] Input/output error"
    return os.fdopen(descriptor, "w"), f"standard output: {gone}"


@pytest.fixture
def terminal() -> Iterator[Screen]:
    stream, note = lost_screen("terminal")
    with stream:
        yield stream, note


def test_a_terminal_that_is_gone(
    terminal: Screen, tiny: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with redirect_stdout(terminal[0]):
        status = execute(monkeypatch, *FIT, *tiny, ONE_EPOCH, "--trainer.enable_progress_bar=true")
    err = capfd.readouterr().err
    assert status == 0, err
    assert err.count("Input/output error") == 1
    check_finished(tmp_path / RUN, terminal[1])


def test_what_only_prints_fails_if_nobody_can_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with lost_screen("full disk")[0] as stream, redirect_stdout(stream):
        status = execute(monkeypatch, *FIT, "--print_config")
    assert (status, capfd.readouterr().err) == (1, "error: standard output: No space left on device\n")


@pytest.mark.parametrize("kind", ["pipe", "full disk"])
def test_a_screen_is_lost_once(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    stream, note = lost_screen(kind)
    with redirect_stdout(stream):
        with reported_errors():
            for line in range(3):
                print(line, flush=True)
        assert notes() == [note]
        assert capfd.readouterr().err.count(note) == 1
    stream.close()  # which fails if it still holds something that cannot be written


def test_a_screen_without_the_characters() -> None:
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, "ascii")
    with redirect_stdout(stream), reported_errors():
        print("caf\u00e9")
    assert content.getvalue() == b"caf\\xe9\n"


def test_no_screen_at_all() -> None:
    with redirect_stdout(None), reported_errors():
        print("nothing", sys.stdout.isatty())


@pytest.mark.parametrize("kind", ["pipe", "full disk"])
def test_a_command_that_needs_its_screen(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    stream, _ = lost_screen(kind)
    with redirect_stdout(stream), pytest.raises(SystemExit) as end, reported_errors(needs_screen=True):
        print("the result")
    stream.close()
    err = capfd.readouterr().err
    assert (end.value.code, "error: [Errno 28]" in err) == ((141, False) if kind == "pipe" else (1, True))
    assert "Traceback" not in err


@pytest.mark.thorough
def test_a_run_whose_reader_leaves(tiny: Flags, tmp_path: Path) -> None:
    fit = [sys.executable, str(ROOT / "scripts" / "fit.py"), "--config=overfit", *tiny, ONE_EPOCH]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path}
    with subprocess.Popen(fit, env={**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"AlexNet, ")
        process.stdout.close()
        assert process.stderr is not None
        assert b"Broken pipe" in process.stderr.read()
    assert process.returncode == 0
    check_finished(tmp_path / RUN, "standard output: [Errno 32] Broken pipe")
