from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from overfitting_lab.callbacks.logger import RunLogger
from tests.conftest import Flags, Script, events_of


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    folder = tmp_path / "overfit"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("taken", "version"),
    [
        ([], "version_0"),
        (["version_0"], "version_1"),
        (["version_0", "version_3"], "version_4"),  # a run that was deleted is not replaced by a newer one
        (["version_9", "version_10"], "version_11"),
        (["version_x", "version_7b", "best"], "version_0"),
    ],
)
def test_next_version(experiment: Path, taken: list[str], version: str) -> None:
    for name in taken:
        (experiment / name).mkdir()
    logger = RunLogger(experiment.parent, experiment.name)
    assert logger.version == logger.version == version
    assert logger.folder == experiment / version
    assert sorted(path.name for path in experiment.iterdir()) == sorted([*taken, version])


def test_a_callback_may_draw_into_tensorboard_as_with_lightnings_logger(
    run_script: Script, quick: Flags, tmp_path: Path
) -> None:
    outcome = run_script("fit", "--config=overfit", *quick, "--trainer.callbacks+=tests.observers.Draws")
    assert outcome.status == 0, outcome.err
    assert "first batch" in events_of(tmp_path / "lightning_logs/overfit/version_0").Tags()["images"]


def test_no_folder_is_claimed_before_something_reads_its_name(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "lightning_logs", "overfit")
    assert (logger.name, logger.save_dir) == ("overfit", str(tmp_path / "lightning_logs"))
    logger.log_hyperparams({"lr": 1})
    logger.finalize("failed")
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_another_run_claims_in_between(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (0, 1):
        (experiment / f"version_{number}").mkdir()
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(()))  # as if both were made after the folder was listed
    assert RunLogger(experiment.parent, experiment.name).version == "version_2"


def test_runs_that_start_at_once(experiment: Path) -> None:
    runs = 16
    ready = Barrier(runs)

    def start(_: int) -> str:
        ready.wait(30)
        return RunLogger(experiment.parent, experiment.name).version

    with ThreadPoolExecutor(runs) as pool:
        claimed = list(pool.map(start, range(runs)))
    assert sorted(claimed) == sorted(f"version_{number}" for number in range(runs))
