"""A job that comes back: `--resume auto` is the same command whether a run begins, resumes or is complete."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from tests.conftest import Flags, Script, summary_of, weights_of
from tests.processes import start
from tests.scripts.test_resume import FIRST, RECIPE, TWO, finish, finish_two, killer, start_two

AUTO = "--resume=auto"


@pytest.fixture
def recipe(short: Flags) -> list[str]:
    return [*RECIPE, *short, AUTO]


def runs(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / FIRST).parent.glob("version_*"))


@pytest.mark.parametrize("network", [(), ("--model=AlexNet", "--model.width=0.125")])
def test_a_complete_run_is_told(network: Flags, run_script: Script, quick: Flags, tmp_path: Path) -> None:
    quick = (*quick, *network)
    assert run_script("fit", "--config=overfit", *quick, AUTO).status == 0
    before = summary_of(tmp_path / FIRST)
    again = run_script("fit", "--config=overfit", *quick, AUTO, "--trainer.precision=bf16-true")
    assert again.status == 0, again.err
    assert again.out == f"{FIRST} is already complete: it has the same data and settings\n"
    assert (summary_of(tmp_path / FIRST), runs(tmp_path)) == (before, ["version_0"])
    other = run_script("fit", "--config=overfit", *quick, AUTO, "--model.dropout=0.1", "--trainer.max_epochs=1")
    assert other.status == 0, other.err
    assert runs(tmp_path) == ["version_0", "version_1"]


def test_a_run_that_can_go_on_no_more_is_left_as_it_is(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    command = ["fit", "--config=overfit", *quick, AUTO]
    assert run_script(*command).status == 0
    summary = summary_of(tmp_path / FIRST)
    del summary["test"]  # as a search leaves the trials that did not win
    (tmp_path / FIRST / "summary.json").write_text(json.dumps(summary))
    shutil.rmtree(tmp_path / FIRST / "checkpoints")
    compared = run_script("compare", FIRST)
    assert (compared.status, runs(tmp_path)) == (1, ["version_0"])
    assert f"{FIRST} was trained but not tested, and its checkpoints are gone; begin a new run" in compared.err
    assert run_script(*command).status == 0
    assert (summary_of(tmp_path / FIRST), runs(tmp_path)) == (summary, ["version_0", "version_1"])


def test_a_run_with_a_damaged_configuration_is_passed_over(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    command = ["fit", "--config=overfit", *quick, AUTO]
    assert run_script(*command).status == 0
    shutil.copytree(tmp_path / FIRST, (tmp_path / FIRST).with_name("version_1"))
    ((tmp_path / FIRST).with_name("version_1") / "config.yaml").write_text("data: [1,\n")
    outcome = run_script(*command)
    assert (outcome.status, outcome.out[: len(FIRST)]) == (0, FIRST), outcome.err
    assert "is already complete" in outcome.out


def test_two_runs_to_resume_are_refused(run_script: Script) -> None:
    outcome = run_script("fit", f"--resume={FIRST}", AUTO)
    assert outcome.status == 2
    assert f"--resume {FIRST} --resume auto: name one run, or auto" in outcome.err


def test_a_configuration_names_no_run_to_resume(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"resume: {FIRST}\n")
    outcome = run_script("fit", "--config=overfit", *quick, "--config=mine.yaml")
    assert outcome.status == 2
    assert f"a configuration cannot name the run; give --resume {FIRST}" in outcome.err


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--ckpt_path=last.ckpt", "--resume auto chooses the checkpoint itself: leave --ckpt_path out"),
        ("--trainer.logger=false", "a resumed run is written to its folder: leave it out"),
        ("--trainer.fast_dev_run=true", "leave it out"),
    ],
)
def test_flags_that_contradict_it(flag: str, reason: str, run_script: Script, quick: Flags, tmp_path: Path) -> None:
    outcome = run_script("fit", "--config=overfit", *quick, AUTO, flag)
    assert (outcome.status, [*tmp_path.iterdir()]) == (2, [])
    assert reason in outcome.err


def test_two_that_start_at_once_train_one_run(recipe: list[str], tmp_path: Path) -> None:
    processes = [start("fit", recipe, tmp_path) for _ in range(2)]
    for process in processes:
        output = finish(process, tmp_path)
    output = (tmp_path / "output.txt").read_text()
    assert runs(tmp_path) == ["version_0"]
    assert output.count("waiting for the process that trains these settings in lightning_logs/overfit") == 1
    assert output.count(f"{FIRST} is already complete") == 1


@pytest.mark.long
def test_two_processes_find_the_run_together(recipe: list[str], tmp_path: Path) -> None:
    signalled = killer("step", 3, tmp_path / "mark", "rank=1", f"number={int(signal.SIGUSR1)}")
    for process in start_two([*recipe, *TWO, *signalled], tmp_path):
        finish(process, tmp_path, 128 + signal.SIGUSR1)
    assert summary_of(tmp_path / FIRST)["status"] == "interrupted"
    with FileLock(tmp_path / FIRST / ".lock"):  # as if the first process had not quite ended
        processes = start_two([*recipe, *TWO, *signalled], tmp_path)
        while f"waiting for the process that trains {FIRST}" not in (tmp_path / "output.txt").read_text():
            assert all(process.is_alive() for process in processes), (tmp_path / "output.txt").read_text()
            time.sleep(0.1)
    finish_two(processes, tmp_path)
    assert (tmp_path / "output.txt").read_text().count("resumed    in epoch 1 after step 4") == 1
    summary = summary_of(tmp_path / FIRST)
    assert (summary["status"], summary["epochs"], summary["world_size"]) == ("finished", 2, 2)
    assert runs(tmp_path) == ["version_0"]


def test_the_first_process_fails_before_it_has_found_the_run(recipe: list[str], tmp_path: Path) -> None:
    processes = start_two([*recipe, *TWO, "--data.root=nowhere"], tmp_path)
    said = [finish(process, tmp_path, 1) for process in processes][-1].splitlines()
    assert len(said) == 1, said
    assert said[0].startswith("error: nowhere/train holds no folder of images")


@pytest.mark.parametrize(
    "schedule",
    [
        ("OneCycleLR",),  # the run computes its length, its highest rate and its interval
        pytest.param(("StepLR", "step_size=1"), marks=pytest.mark.long),  # the network decides its interval
    ],
)
def test_a_run_is_found_whatever_its_schedule_leaves_to_it(
    schedule: tuple[str, ...], quick: Flags, tmp_path: Path
) -> None:
    name, *more = schedule
    flags = [
        f"--model.lr_scheduler=torch.optim.lr_scheduler.{name}",
        *(f"--model.lr_scheduler.{each}" for each in more),
    ]
    signalled = killer("step", 7, tmp_path / "mark", f"number={int(signal.SIGUSR1)}")
    command = ["--config=overfit", *quick, *flags, *signalled]
    finish(start("fit", [*command, AUTO], tmp_path), tmp_path, 128 + signal.SIGUSR1)
    resumed = finish(start("fit", [*command, AUTO], tmp_path), tmp_path)
    assert "resumed    in epoch 2 after step 7" in resumed
    assert "changed" not in resumed
    assert "is already complete" in finish(start("fit", [*command, AUTO], tmp_path), tmp_path)
    assert runs(tmp_path) == ["version_0"]
    finish(start("fit", [*command, "--experiment=other"], tmp_path), tmp_path)
    found, through = weights_of(tmp_path / FIRST), weights_of(tmp_path / "lightning_logs/other/version_0")
    assert all(torch.equal(found[layer], through[layer]) for layer in through)
