"""Two processes of one run that cannot meet, or one of them fails: both end soon, and the message names the cause."""

import signal
import socket
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, Flags, Script, summary_of
from tests.processes import run_python

TWO = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.precision=32-true")
RUN = "lightning_logs/overfit/version_0"


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        (
            "GLOO_SOCKET_IFNAME",
            "eth9",
            "GLOO_SOCKET_IFNAME=eth9 is not a network interface of this machine, which has lo",
        ),
        ("MASTER_ADDR", "nowhere.invalid", "MASTER_ADDR=nowhere.invalid cannot be resolved"),
        ("MASTER_ADDR", "192.0.2.1", "MASTER_ADDR=192.0.2.1 is not an address of this machine: unset it"),
        ("MASTER_PORT", "http", "MASTER_PORT=http is not a port"),
        ("MASTER_PORT", "taken", "Address already in use. Set it to a free port, or unset it"),
    ],
)
def test_processes_that_cannot_meet(
    run_script: Script,
    tiny: Flags,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    named: str,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv(variable, str(server.getsockname()[1]) if value == "taken" else value)
        outcome = run_script("fit", "--config=overfit", *tiny, *TWO)
    assert outcome.status == 1
    assert named in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / RUN).exists()


def others(folder: Path) -> list[int]:
    """Return the ids of the processes that work in a folder."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and (process / "cwd").readlink() == folder:
                found.append(int(process.name))
        except OSError:  # it has just ended, or belongs to another user
            continue
    return found


@pytest.mark.thorough
def test_a_process_that_fails_before_the_first_step(quick: Flags, tmp_path: Path) -> None:
    fault = "--trainer.callbacks+=tests.faults.Unprepared"
    failed = run_python(tmp_path, str(ROOT / "scripts" / "fit.py"), "--config=overfit", *quick, *TWO, fault)
    assert failed.returncode == 1
    message = "error: process 1 of 2 ended with exit status 1: no room for this process"
    said = [line for line in failed.stderr.splitlines() if line]
    assert said[0] == message
    assert said[1].startswith("raised in ")
    assert len(said) == 2
    assert others(tmp_path) == []


HANG = ("--trainer.callbacks+=tests.faults.Hang", "--trainer.callbacks.step=2")


@pytest.mark.long  # it waits for 45 s
def test_a_process_that_hangs(tiny: Flags, tmp_path: Path) -> None:
    hung = run_python(tmp_path, str(ROOT / "scripts" / "fit.py"), "--config=overfit", *tiny, *TWO, *HANG)
    assert hung.returncode == 1
    reason = (
        "another process does not answer: it hangs, or is more than 45 s behind; "
        f"resume with: python scripts/fit.py --resume {RUN}"
    )
    assert [line for line in hung.stderr.splitlines() if line] == [f"error: {reason}"]
    assert (summary_of(tmp_path / RUN)["status"], summary_of(tmp_path / RUN)["reason"]) == ("failed", reason)
    assert others(tmp_path) == []


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are counted in /proc")
def test_the_first_process_leaves_none_behind(quick: Flags, tmp_path: Path) -> None:
    kill = (
        "--trainer.callbacks+=tests.faults.KillOnce",
        "--trainer.callbacks.place=step",
        "--trainer.callbacks.step=2",
    )
    mark = ("--trainer.callbacks.mark", str(tmp_path / "mark"), "--trainer.callbacks.rank=0")
    flags = (*quick, *TWO, *HANG, *kill, *mark)
    killed = run_python(tmp_path, str(ROOT / "scripts" / "fit.py"), "--config=overfit", *flags)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while others(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert others(tmp_path) == []


@pytest.mark.thorough
def test_two_runs_are_tested_one_after_the_other(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    for seed in (0, 1):
        trained = run_script("fit", "--config=overfit", *quick, f"--seed_everything={seed}", "--experiment=two")
        assert trained.status == 0, trained.err
    runs = [f"lightning_logs/two/version_{number}" for number in (0, 1)]
    tested = run_python(tmp_path, str(ROOT / "scripts" / "test.py"), *runs, *TWO)
    assert tested.returncode == 0, tested.stderr
    assert [line.split()[1] for line in tested.stdout.splitlines() if line.startswith("run ")] == runs
    assert tested.stdout.count("\ntest ") == 2
    assert "\ntogether" in tested.stdout
