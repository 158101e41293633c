from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import cast

import pytest
from lightning.pytorch.strategies import Strategy
from lightning_utilities.core.rank_zero import rank_zero_only

from overfitting_lab.callbacks.logger import RunLogger
from tests.conftest import scalars_of


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    folder = tmp_path / "overfit"
    folder.mkdir()
    return folder


def claim(experiment: Path) -> str:
    return RunLogger(experiment.parent, experiment.name).version


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


def test_nothing_is_claimed_before_it_is_asked_for(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "lightning_logs", "overfit")
    assert (logger.name, logger.save_dir) == ("overfit", str(tmp_path / "lightning_logs"))
    logger.log_hyperparams({"lr": 1})
    logger.finalize("failed")
    assert list(tmp_path.iterdir()) == []


def test_version_that_another_run_took_in_between(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (0, 1):
        (experiment / f"version_{number}").mkdir()

    def nothing_yet(self: Path) -> Iterator[Path]:
        return iter(())

    monkeypatch.setattr(Path, "iterdir", nothing_yet)
    assert claim(experiment) == "version_2"


def test_runs_that_start_at_once(experiment: Path) -> None:
    runs = 16
    ready = Barrier(runs)

    def start(_: int) -> str:
        ready.wait(30)
        return claim(experiment)

    with ThreadPoolExecutor(runs) as pool:
        claimed = list(pool.map(start, range(runs)))
    assert sorted(claimed) == sorted(f"version_{number}" for number in range(runs))


def test_other_processes_claim_and_write_nothing(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    logger = RunLogger(experiment.parent, experiment.name)
    logger.share(cast(Strategy, SimpleNamespace(is_global_zero=False, broadcast=lambda _: "version_7")))
    assert logger.version == "version_7"
    logger.log_metrics({"train_loss": 1.0, "epoch": 0}, step=1)
    logger.finalize("success")
    assert list(experiment.iterdir()) == []


def test_metrics_go_where_tensorboard_draws_them_together(experiment: Path) -> None:
    logger = RunLogger(experiment.parent, experiment.name)
    logger.log_metrics({"train_loss": 2.0, "train_acc": 0.25, "epoch": 3}, step=40)
    logger.log_metrics({"val_loss": 4.0, "val_acc": 0.5, "epoch": 3}, step=40)
    logger.log_metrics({"test_acc": 0.75, "epoch": 3}, step=40)
    logger.finalize("success")
    shown = {
        (name, tag): points for name in ("", "train", "val") for tag, points in scalars_of(logger.folder / name).items()
    }
    assert shown == {
        ("train", "curves/loss"): [(3, 2.0)],
        ("train", "curves/accuracy"): [(3, 0.25)],
        ("val", "curves/loss"): [(3, 4.0)],
        ("val", "curves/accuracy"): [(3, 0.5)],
        ("", "test_acc"): [(40, 0.75)],
    }
