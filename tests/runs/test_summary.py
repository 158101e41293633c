import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from overfitting_lab.runs import Run
from overfitting_lab.runs.epochs import EpochMetrics
from overfitting_lab.runs.summary import Summary
from tests.made_runs import make_run


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    summary = Run(make_run(tmp_path / "made" / "version_0", np.array([True, False]))).summary
    assert Summary.from_json(summary.to_json()) == summary


def test_json_has_neither_nan_nor_keys_without_a_value(tmp_path: Path) -> None:
    summary = Run(make_run(tmp_path / "made" / "version_0", np.array([True, False]))).summary
    lost = replace(summary, test=None, last=EpochMetrics(2, float("nan"), 0.1, float("inf"), 0.1))
    content = json.loads(lost.to_json())
    assert "test" not in content
    assert "reason" not in content
    assert content["last"] == {"epoch": 2, "train_loss": None, "train_acc": 0.1, "val_loss": None, "val_acc": 0.1}


def test_keys_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "made" / "version_0", np.array([True, False]), a_key_of_tomorrow=1)
    assert Run(folder).finished
