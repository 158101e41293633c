"""SLURM itself, on this machine with two nodes: the commands of docs/howto.md end as without an interruption.

``tests/slurm.py`` says what such a cluster lacks.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from overfitting_lab.runs import Run, runs_of
from tests.conftest import ROOT, Flags, summary_of, weights_of
from tests.processes import PATHS, start
from tests.scripts.test_resume import FIRST, RECIPE, TWO, assert_same, finish, finish_two, start_two
from tests.slurm import cluster, missing

pytestmark = pytest.mark.slurm
PACE = ("--trainer.callbacks+=tests.faults.Pace", "--trainer.callbacks.seconds")
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL")


class Cluster:
    """SLURM's commands, in a folder of their own for each job."""

    def __init__(self, environment: dict[str, str], flags: Flags) -> None:
        self._environment = {**environment, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
        self._flags = " ".join(flags)

    def ask(self, command: str, folder: Path | None = None) -> str:
        settings: dict[str, Any] = {"env": self._environment, "cwd": folder, "capture_output": True, "text": True}
        done = subprocess.run(["bash", "-c", command], **settings)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def submit(self, documented: str, folder: Path, *flags: str) -> str:
        """Submit a command or a script of the page on one CPU a node, and return the job's number."""
        folder.mkdir(exist_ok=True)
        (folder / "hpc_ckpt_1.ckpt").write_text("the end of another run")
        for before, after in {
            " --gpus-per-node 4": "",
            "--ntasks-per-node 4": "--ntasks-per-node 1",
            "--trainer.devices 4": "--trainer.devices 1",
            "--time 8:00:00 --signal USR1@120": "--time 1:00:00 --signal USR1@10",
            "python scripts/": f"{sys.executable} {ROOT}/scripts/",
        }.items():
            documented = documented.replace(before, after)
        documented = re.sub(r"--config \S+", f"--config overfit {self._flags} {' '.join(flags)}", documented)
        if documented.startswith("#!"):
            (folder / "job.sh").write_text(documented)
            documented = "sbatch job.sh"
        return self.ask(documented, folder).split()[-1]

    def states(self, job: str) -> set[str]:
        shown = self.ask(f"squeue --noheader --array --states all --jobs {job} --format %T").split()
        return set(shown)

    def finish(self, job: str, folder: Path) -> str:
        """Wait for a job's end, and return what it printed. A requeued job starts at once, not after two minutes."""
        deadline = time.monotonic() + 240
        while not (states := self.states(job)) <= {*ENDED}:
            assert time.monotonic() < deadline, (states, self._output(folder))
            if states == {"PENDING"} and "BeginTime" in self.ask(f"squeue --noheader --jobs {job} --format %r"):
                self.ask(f"scontrol update JobId={job} StartTime=now TimeLimit=60")
            time.sleep(0.5)
        assert states == {"COMPLETED"}, self._output(folder)
        return self._output(folder)

    def _output(self, folder: Path) -> str:
        return "\n".join(path.read_text() for path in folder.glob("slurm-*.out"))


def documented(beginning: str) -> str:
    """Return the command, or the whole block, of the page that begins so."""
    page = (ROOT / "docs" / "howto.md").read_text(encoding="utf-8")
    found = re.findall(rf"^{re.escape(beginning)}(?:.*\\\n)*.*", page, re.MULTILINE)
    if beginning.startswith("#!"):
        found = re.findall(rf"^```bash\n({re.escape(beginning)}.*?)^```", page, re.MULTILINE | re.DOTALL)
    (text,) = found
    return str(text)


@pytest.fixture(scope="module")
def slurm(short: Flags) -> Iterator[Cluster]:
    if lacking := missing():
        packages = "slurmctld slurmd slurm-client munge"
        pytest.skip(f"SLURM is not installed (no {lacking}): apt-get install --no-install-recommends {packages}")
    with cluster() as environment:
        yield Cluster(environment, (*RECIPE[1:], *short, "--trainer.max_epochs=4"))


@pytest.fixture(scope="module")
def limited(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A job of the page's script on one node that will not end before its time limit."""
    folder = tmp_path_factory.mktemp("limited")
    script = documented("#!/bin/bash").replace("--nodes 2", "--nodes 1").replace("--trainer.num_nodes 2", "")
    script = script.replace("--trainer.strategy ddp", "")
    return slurm.submit(script, folder, *PACE[:1], f"{PACE[1]}=8"), folder


@pytest.fixture(scope="module")
def through(short: Flags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without SLURM."""
    folder = tmp_path_factory.mktemp("through")
    finish(start("fit", [*RECIPE, *short, "--trainer.max_epochs=4"], folder), folder)
    return folder / FIRST


def wait_for(run: Path, epochs: int) -> None:
    """Wait until a run has trained so many epochs; 0: until it is about to train its first step."""
    deadline = time.monotonic() + 240
    while not (run / "summary.json").exists() or summary_of(run)["epochs"] < epochs:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_job_that_is_requeued_amid_training(slurm: Cluster, short: Flags, tmp_path: Path) -> None:
    job = slurm.submit(documented("#!/bin/bash"), tmp_path / "job", *PACE[:1], f"{PACE[1]}=1.5")
    run = tmp_path / "job" / FIRST
    wait_for(run, epochs=1)
    slurm.ask(f"scontrol requeue {job}")
    output = slurm.finish(job, tmp_path / "job")
    assert f"stopped by SIGTERM; resume with: python scripts/fit.py --resume {FIRST}" in output
    assert "DUE TO JOB REQUEUE" in output
    assert "resumed    in epoch" in output
    (whole := tmp_path / "whole").mkdir()
    finish_two(start_two([*RECIPE, *short, "--trainer.max_epochs=4", *TWO], whole), whole)
    assert_same(run, whole / FIRST)


def test_two_nodes_train_as_one_process(slurm: Cluster, short: Flags, tmp_path: Path) -> None:
    flags = [*RECIPE, *short, "--trainer.max_epochs=4", "--model.dropout=0"]
    (one := tmp_path / "one").mkdir()
    process = start("fit", flags, one)
    slurm.finish(slurm.submit(documented("sbatch --nodes 2"), tmp_path, "--model.dropout=0"), tmp_path)
    finish(process, one)
    summaries = [summary_of(folder / FIRST) for folder in (tmp_path, one)]
    assert [summary["world_size"] for summary in summaries] == [2, 1]
    assert summaries[0]["data"]["fingerprint"] == summaries[1]["data"]["fingerprint"]
    weights = (weights_of(folder / FIRST) for folder in (tmp_path, one))
    two, alone = (torch.cat([value.flatten() for value in each.values()]) for each in weights)
    assert (two - alone).norm() < 2e-4 * alone.norm()
    assert [path.name for path in tmp_path.rglob("hpc_ckpt*")] == ["hpc_ckpt_1.ckpt"]


def test_an_array_of_three_seeds(slurm: Cluster, through: Path, tmp_path: Path) -> None:
    command = documented("sbatch --array")
    slurm.finish(slurm.submit(command, tmp_path), tmp_path)
    runs = {run.summary.seed: run for run in runs_of((tmp_path / FIRST).parent)}
    assert [(seed, run.finished) for seed, run in sorted(runs.items())] == [(0, True), (1, True), (2, True)]
    assert_same(runs[0].folder, through)


def test_a_job_that_meets_its_time_limit(slurm: Cluster, limited: tuple[str, Path], through: Path) -> None:
    job, folder = limited
    wait_for(folder / FIRST, epochs=0)
    hours, minutes, seconds = slurm.ask(f"squeue --noheader --jobs {job} --format 0:0:%M").strip().split(":")[-3:]
    soon = (int(hours) * 60 + int(minutes)) * 60 + int(seconds) + 15
    slurm.ask(f"scontrol update JobId={job} TimeLimit={soon // 60 + 1}")
    output = slurm.finish(job, folder)
    assert f"stopped by SIGUSR1; resume with: python scripts/fit.py --resume {FIRST}" in output
    assert "resumed    in epoch" in output
    assert Run(folder / FIRST).finished
    assert_same(folder / FIRST, through)
