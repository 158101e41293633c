"""Two machines of one run, in network namespaces that the tests make: torchrun's processes meet over a cable."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from overfitting_lab.runs import Run
from tests.conftest import Flags, Script, summary_of, weights_of
from tests.hosts import Hosts, reason_to_skip, two_hosts

RUN = "lightning_logs/overfit/version_0"
PATIENCE = 240  # seconds for the start of four programs, on a machine that has other work
# Adam would blow up the difference of the sums' order: its first steps divide by gradients near 0.
SGD = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1e-4")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if reason := reason_to_skip():
        pytest.skip(reason)
    with two_hosts(tmp_path) as hosts:
        yield hosts


def ended(started: list[subprocess.Popen[str]], hosts: Hosts, seconds: float) -> list[str]:
    """Wait for the end of both hosts' programs. Return what they said."""
    deadline = time.monotonic() + seconds
    try:
        for program in started:
            program.wait(max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        pytest.fail(f"{hosts.output(0).read_text()}\n{hosts.output(1).read_text()}")
    return [hosts.output(number).read_text() for number in range(2)]


def assert_close(run: Path, other: Path) -> None:
    """Compare the weights of two runs that sum their gradients in another order."""
    ones, others = (torch.cat([value.flatten() for value in weights_of(folder).values()]) for folder in (run, other))
    assert float((ones - others).norm() / others.norm()) < 1e-5
    assert summary_of(run)["test"]["images"] == summary_of(other)["test"]["images"] == 45
    assert len(Run(run).records) == len(Run(other).records)


@pytest.mark.thorough
def test_two_hosts_train_as_one_process(run_script: Script, quick: Flags, hosts: Hosts, tmp_path: Path) -> None:
    flags = ("--config=overfit", *quick, *SGD)
    said = ended(hosts.torchrun(*flags), hosts, PATIENCE)
    assert summary_of(tmp_path / RUN)["status"] == "finished", said
    assert summary_of(tmp_path / RUN)["world_size"] == 2
    assert run_script("fit", *flags, f"--trainer.default_root_dir={tmp_path / 'one'}").status == 0
    assert_close(tmp_path / RUN, tmp_path / "one" / RUN)


@pytest.mark.long  # the first one waits for the second one for 45 s
@pytest.mark.parametrize("amid", ["epoch", "checkpoint"])
def test_a_host_is_unplugged(amid: str, run_script: Script, quick: Flags, hosts: Hosts, tmp_path: Path) -> None:
    """Amid a checkpoint, the second process waits for the first one, which may take as long as a slow disk needs."""
    slow = ("--trainer.callbacks=tests.faults.SlowSave",) if amid == "checkpoint" else ()
    flags = ("--config=overfit", *quick, *SGD, "--trainer.max_epochs=200", "--checkpoint_steps=3", *slow)
    started = hosts.torchrun(*flags)
    deadline = time.monotonic() + PATIENCE
    metrics = tmp_path / RUN / "metrics.csv"
    while not ((tmp_path / "saving").exists() if slow else metrics.is_file() and metrics.read_text().count("\n") >= 5):
        assert time.monotonic() < deadline
        assert all(program.poll() is None for program in started), hosts.output(0).read_text()
        time.sleep(0.1)
    hosts.plug(False)
    unplugged = time.time()
    said = ended(started, hosts, 120)  # where nothing else runs, less than a minute as well
    assert (tmp_path / RUN / "summary.json").stat().st_mtime < unplugged + 60
    assert all(program.returncode == 1 for program in started)
    for words in said:
        assert "error: another process " in words
    assert f"resume with: python scripts/fit.py --resume {RUN}" in said[0]
    assert summary_of(tmp_path / RUN)["status"] == "failed"

    hosts.plug(True)
    said = ended(hosts.torchrun("--resume", RUN), hosts, PATIENCE)
    assert "resumed    in epoch " in said[0]
    assert summary_of(tmp_path / RUN)["status"] == "finished", said
    assert run_script("fit", *flags, f"--trainer.default_root_dir={tmp_path / 'one'}").status == 0
    assert_close(tmp_path / RUN, tmp_path / "one" / RUN)
