import re
from pathlib import Path

from overfitting_lab.runs import Run
from tests.conftest import FinishedRun, Script


def result(out: str) -> str:
    (line,) = re.findall(r"^test  .*$", out, re.MULTILINE)
    return str(line)


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_repeats_the_runs_result_and_leaves_its_folder(
    run_script: Script, finished_run: FinishedRun, tmp_path: Path
) -> None:
    before = contents(finished_run.folder)
    outcome = run_script("test", finished_run.folder)
    assert outcome.status == 0, outcome.err
    assert result(outcome.out) == result(finished_run.out)
    summary = Run(finished_run.folder).summary
    assert summary.test is not None
    assert f"accuracy {summary.test.acc:.2%}" in outcome.out
    assert contents(finished_run.folder) == before
    assert list(tmp_path.iterdir()) == []


def test_takes_another_checkpoint_and_other_settings(run_script: Script, finished_run: FinishedRun) -> None:
    last = finished_run.folder / "checkpoints" / "last.ckpt"  # the fixture's worst
    outcome = run_script("test", finished_run.folder, "--ckpt_path", last, "--data.batch_size=7")
    assert outcome.status == 0, outcome.err
    assert "on 45 test images of tiny" in outcome.out
    assert result(outcome.out) != result(finished_run.out)
