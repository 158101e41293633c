import json
import pickle
from pathlib import Path

import pytest
import torch

from overfitting_lab.runs.run import Run, RunError, read_metrics, readable_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").touch()
    return tmp_path


def test_reads_what_a_run_left(folder: Path) -> None:
    (folder / "summary.json").write_text(json.dumps({"status": "finished"}))
    (folder / "metrics.csv").write_text("epoch,train_loss,val_loss\n0,2.5,\n1,1.25,3e-1\n")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    run = Run(folder)
    assert run.config == folder / "config.yaml"
    assert run.summary == {"status": "finished"}
    assert run.metrics == [
        {"epoch": 0.0, "train_loss": 2.5, "val_loss": None},
        {"epoch": 1.0, "train_loss": 1.25, "val_loss": 0.3},
    ]
    assert run.checkpoint("last") == folder / "checkpoints" / "last.ckpt"


def test_folder_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run's folder .* lightning_logs/overfit/version_0"):
        Run(tmp_path)


def test_run_that_has_only_begun(folder: Path) -> None:
    run = Run(folder)
    assert run.metrics == read_metrics(folder / "none.csv") == []
    with pytest.raises(RunError, match=r"summary\.json is missing"):
        _ = run.summary
    with pytest.raises(RunError, match=r"best\.ckpt is missing"):
        run.checkpoint()


def test_a_checkpoint_that_was_removed_is_told_from_one_that_is_to_come(folder: Path) -> None:
    (folder / "summary.json").write_text(json.dumps({"status": "running"}))
    with pytest.raises(RunError, match="has not come to its first"):
        Run(folder).checkpoint()
    (folder / "summary.json").write_text(json.dumps({"status": "finished", "best": {}}))
    with pytest.raises(RunError, match=r"was removed; train it again: .*config\.yaml"):
        Run(folder).checkpoint()
    (folder / "summary.json").write_text(json.dumps({"status": "finished"}))
    with pytest.raises(RunError, match="the run had no validation"):
        Run(folder).checkpoint()


@pytest.mark.parametrize("content", ["", '{"status": ', "[]", "{}"])
def test_a_run_whose_summary_is_lost_keeps_its_curves(folder: Path, content: str) -> None:
    (folder / "summary.json").write_text(content)
    with pytest.raises(RunError, match=r"summary\.json is damaged.*begin a new run: .*config\.yaml"):
        _ = Run(folder).summary
    assert Run(folder).newest_checkpoint() is None
    (folder / "metrics.csv").write_text("epoch,train_loss\n0,2.5\n1,1.25\n")
    with pytest.raises(RunError, match=r"last\.ckpt is gone; begin a new run"):
        Run(folder).newest_checkpoint()


def test_a_damaged_configuration_is_named(folder: Path) -> None:
    (folder / "config.yaml").write_text("data: [1,\nmodel: }\n")
    with pytest.raises(RunError, match=r"config\.yaml is damaged: .* line 2"):
        _ = Run(folder).settings


def test_readable_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "whole.ckpt"
    weights = {"weight": torch.ones(1000)}
    torch.save({"state_dict": weights, "hyper_parameters": {}, "pytorch-lightning_version": "2.6.4"}, path)
    assert readable_checkpoint(path) == path
    whole = path.read_bytes()
    for name, content in {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"no checkpoint",
        "pickle": pickle.dumps(print),
    }.items():
        damaged = tmp_path / f"{name}.ckpt"
        damaged.write_bytes(content)
        with pytest.raises(RunError, match=f"{name}.ckpt is no checkpoint, or a damaged one"):
            readable_checkpoint(damaged)
    with pytest.raises(RunError, match=r"none\.ckpt: no such file"):
        readable_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(RunError, match=f"{tmp_path.name} is no checkpoint"):
        readable_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [{"weight": torch.ones(2)}, [1, 2]])
def test_file_of_torch_that_is_no_checkpoint(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(RunError, match=r"weights\.pth is no checkpoint"):
        readable_checkpoint(tmp_path / "weights.pth")


def test_an_empty_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(RunError, match="holds no configuration"):
        _ = Run(tmp_path).settings
