import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from overfitting_lab.runs import Run, RunFiles, runs_of
from tests.conftest import FinishedRun, Flags, Script
from tests.made_runs import make_run
from tests.processes import PATHS, start

LOGS = Path("lightning_logs")


@pytest.mark.pictures
@pytest.mark.thorough
def test_configurations_are_trained_once_and_compared(
    run_script: Script, quick: Flags, fitted: list[list[str]], tmp_path: Path
) -> None:
    outcome = run_script("compare", "overfit", "random_labels.yaml", *quick)
    assert outcome.status == 0, outcome.err
    assert [command[:2] for command in fitted] == [["--config", "overfit"], ["--config", "random_labels.yaml"]]
    assert "training   no finished run has these settings, so this trains one: --config overfit " in outcome.out
    assert "Not ranked: the training labels differ (0% and 100% drawn at random)" in outcome.out
    report = Path("report/overfit-random_labels/report")
    assert f"written {report}.html {report}.md {report}.png" in outcome.out
    for ending in ("html", "md", "png"):
        assert (tmp_path / f"{report}.{ending}").stat().st_size > 1000
    text = (tmp_path / f"{report}.md").read_text()
    assert "| data.label_noise | 0.0 | 1.0 |" in text

    again = run_script("compare", "overfit", LOGS / "random_labels/version_0", *quick, "--output", "other")
    assert again.status == 0, again.err
    assert len(fitted) == 2, "a finished run of these settings was there"
    assert (tmp_path / "other/report.html").is_file()

    moved = [flag for flag in quick if not flag.startswith("--trainer.accelerator")]
    assert run_script("compare", "overfit", *moved, "--trainer.accelerator=auto").status == 0
    assert len(fitted) == 2, "the device decides nothing of what comes out"
    assert run_script("compare", "overfit", *quick, "--seed_everything=1").status == 0
    assert len(fitted) == 3, "another seed is another run"


def test_a_run_that_was_stopped_goes_on(
    run_script: Script, quick: Flags, fitted: list[list[str]], tmp_path: Path
) -> None:
    assert run_script("fit", "--config=overfit", *quick).status == 0
    path = tmp_path / LOGS / "overfit/version_0/summary.json"
    summary = json.loads(path.read_text())
    del summary["test"]
    path.write_text(json.dumps({**summary, "status": "running"}))
    outcome = run_script("compare", "overfit", *quick)
    assert outcome.status == 0, outcome.err
    assert fitted == [["--resume", str(LOGS / "overfit/version_0"), "--config", "overfit", *quick]]
    assert Run(tmp_path / LOGS / "overfit/version_0").finished


def test_what_cannot_be_compared_is_said(
    run_script: Script, finished_run: FinishedRun, fitted: list[list[str]], tmp_path: Path
) -> None:
    for arguments, words in (
        (
            ["nothing"],
            "nothing is neither a run's folder, such as lightning_logs/overfit/version_0, nor a configuration",
        ),
        ([str(tmp_path)], "is not a run's folder"),
        ([str(finished_run.folder)] * 2, "is given twice"),
        (["overfit", "--model.dropout=2"], "dropout must be in [0, 1), not 2"),
        (
            [str(finished_run.folder), "--trainer.max_epochs", "2", "overfit"],
            "flags go to fit.py, but all of these runs exist",
        ),
    ):
        outcome = run_script("compare", *arguments)
        assert outcome.status != 0
        assert words in " ".join(outcome.err.split())
        assert "Traceback" not in outcome.err
    assert fitted == []
    assert not (tmp_path / "report").exists()


@pytest.mark.thorough
def test_a_run_on_other_data_is_another_run(
    run_script: Script, quick: Flags, fitted: list[list[str]], image_folder: Path, tmp_path: Path
) -> None:
    assert run_script("compare", "overfit", *quick).status == 0
    shutil.copytree(image_folder, tmp_path / "moved" / image_folder.name)
    assert run_script("compare", "overfit", *quick, f"--data.root=moved/{image_folder.name}").status == 0
    assert len(fitted) == 1, "the same images elsewhere"
    (tmp_path / "moved" / image_folder.name / "train/cat/00002.png").unlink()
    assert run_script("compare", "overfit", *quick, f"--data.root=moved/{image_folder.name}").status == 0
    assert len(fitted) == 2


def test_runs_that_cannot_be_compared_are_refused_before_another_is_trained(
    run_script: Script, quick: Flags, fitted: list[list[str]]
) -> None:
    run = LOGS / "overfit/version_0"
    assert run_script("fit", "--config=overfit", *quick).status == 0
    twice = run_script("compare", "random_labels", run, f"{run}/", *quick)
    assert twice.status == 1
    assert "overfit/version_0 is given twice" in twice.err
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "status": "running"}))
    refused = run_script("compare", "random_labels", run, *quick)
    assert refused.status == 1
    assert "has not finished" in refused.err
    assert not fitted


def test_a_run_that_another_process_trains_is_waited_for(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    assert run_script("fit", "--config=overfit", *quick).status == 0
    files = RunFiles(tmp_path / LOGS / "overfit/version_0")
    complete = files.summary.read_text()
    files.summary.write_text(json.dumps({**json.loads(complete), "status": "running"}))
    with FileLock(files.lock):
        process = start("compare", ["overfit", *quick], tmp_path)
        waiting, deadline = f"waiting for the process that trains {LOGS / 'overfit/version_0'}", time.monotonic() + 120
        while not (tmp_path / "output.txt").exists() or waiting not in (tmp_path / "output.txt").read_text():
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        files.summary.write_text(complete)
    process.join(120)
    assert process.exitcode == 0, (tmp_path / "output.txt").read_text()
    assert len(runs_of(tmp_path / LOGS / "overfit")) == 1


@pytest.mark.thorough
def test_a_run_that_fails_ends_it(run_script: Script, monkeypatch: pytest.MonkeyPatch, quick: Flags) -> None:
    monkeypatch.setenv("PYTHONPATH", PATHS)  # so that the process of fit.py finds tests.faults
    kill = {"": "tests.faults.KillOnce", ".place": "step", ".step": 2, ".mark": "killed"}
    stops = [f"--trainer.callbacks{key}={value}" for key, value in kill.items()]
    outcome = run_script("compare", "overfit", *quick, *stops)
    assert outcome.status == 1
    assert "run        lightning_logs/overfit/version_0" in outcome.out, "it has the same output"
    assert "ended with exit status -9, and no finished run" in outcome.err


def test_no_report_is_replaced_silently(run_script: Script, tmp_path: Path) -> None:
    runs = {name: make_run(tmp_path / name / "version_0", np.ones(30, dtype=bool)) for name in ("a_0.5", "b c")}
    for name in (*runs, "a_0.5"):
        assert run_script("compare", runs[name]).status == 0
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["a_0.5", "a_0.5-2", "b_c"]
    assert "# b c\n" in (tmp_path / "report/b_c/report.md").read_text()
    for word in ("written", "replaced"):
        assert f"{word} mine/report.html" in run_script("compare", runs["a_0.5"], "--output=mine").out
