import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from overfitting_lab.runs import Run, RunError, runs_of
from overfitting_lab.runs.checkpoints import load_checkpoint
from overfitting_lab.runs.epochs import EpochRecord, last_gap, read_records
from tests.conftest import ROOT
from tests.made_runs import make_run

REFERENCE = sorted((ROOT / "lightning_logs" / "reference").glob("*/version_0"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a run that has ended, without checkpoints."""
    return make_run(tmp_path / "made" / "version_0", np.array([True] * 9))


@pytest.mark.parametrize("folder", REFERENCE, ids=lambda folder: folder.parent.name)
def test_reads_the_runs_of_earlier_versions(folder: Path) -> None:
    run = Run(folder)
    assert run.finished
    assert len(run.records) == run.summary.epochs
    assert run.summary.last == run.records[-1].metrics
    assert run.summary.best
    best = {**vars(run.summary.best)}
    step = best.pop("step")
    assert (step is None) == (run.summary.gap_instrument is None), "old runs noted neither"
    assert best in [{name: vars(record.metrics)[name] for name in best} for record in run.records]
    gap = last_gap(run.records)
    assert gap is not None
    assert gap.instrument == (run.summary.gap_instrument or "training"), "old runs have no probe"
    assert run.summary.generalization_gap == pytest.approx(gap.value)
    assert run.summary.test is not None
    assert run.summary.test.images == 10_000
    assert run.recipe["data.train_size"] == run.summary.data.train_size


def test_a_value_that_was_not_measured_is_none(folder: Path) -> None:
    (folder / "metrics.csv").write_text(
        "epoch,step,train_loss,train_acc,val_loss,val_acc,learning_rate,seconds\n0,5,2.5,0.2,,,1e-4,1.5\n"
    )
    expected = [EpochRecord(0, 2.5, 0.2, None, None, step=5, learning_rate=1e-4, seconds=1.5)]
    assert read_records(folder / "metrics.csv") == expected


def test_rows_that_a_finished_run_lacks_are_named(folder: Path) -> None:
    path, records = folder / "metrics.csv", Run(folder).records
    text = path.read_text()
    for saved in (text.rstrip(), text.replace("\n", "\r")):  # by an editor
        path.write_bytes(saved.encode())
        assert Run(folder).records == records
    for lines in (text.splitlines()[:-1], text.splitlines()[:1], []):
        path.write_text("".join(f"{line}\n" for line in lines))
        with pytest.raises(RunError, match=rf"metrics.csv has {max(0, len(lines) - 1)} epochs of {len(records)}"):
            _ = Run(folder).records
    path.unlink()
    with pytest.raises(RunError, match=rf"metrics.csv has 0 epochs of {len(records)}: restore the file"):
        _ = Run(folder).records
    path.write_text(text.replace("val_acc", "validation accuracy", 1))
    with pytest.raises(RunError, match="no column 'val_acc'"):
        _ = Run(folder).records


@pytest.mark.parametrize(
    "changes",
    [
        *({"code": None}, {"epochs": None}, {"earlier": [1]}, {"git_commit": None}, {"versions": None}, {"status": 7}),
        *({"diagnosis": None}, {"diagnosis": [1]}, {"status": "perhaps"}, {"notes": "word"}, {"world_size": "2"}),
    ],
)
def test_values_of_another_kind_are_damage(changes: dict[str, Any], folder: Path) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(RunError, match=r"summary.json is damaged"):
        _ = Run(folder).summary


def test_folder_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run's folder .* lightning_logs/overfit/version_0"):
        Run(tmp_path)


def test_run_that_has_only_begun(folder: Path) -> None:
    for name in ("summary.json", "metrics.csv", "images.npz"):
        (folder / name).unlink()
    run = Run(folder)
    assert (run.records, run.images, run.status, run.finished) == ([], {}, "unknown", False)
    with pytest.raises(RunError, match=r"summary\.json is missing"):
        _ = run.summary


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "running"}, "has not come to its first"),
        ({}, r"was removed; train it again: .*config\.yaml"),
        ({"best": None}, "the run had no validation"),
    ],
)
def test_why_there_is_no_best_checkpoint(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "made" / "version_0", np.array([True] * 9), **changes)
    with pytest.raises(RunError, match=rf"best\.ckpt is missing: .*{message}"):
        _ = Run(folder).best_checkpoint


def test_a_summary_that_an_editor_has_changed_is_read_or_its_fault_is_named(folder: Path) -> None:
    path = folder / "summary.json"
    text, summary = path.read_text(), Run(folder).summary
    path.write_text(text, encoding="utf-8-sig")
    assert Run(folder).summary == summary
    for name in ("seconds", "acc"):
        path.write_text(re.sub(rf'"{name}": [^,}}\n]+', f'"{name}": "0,99"', text))
        with pytest.raises(RunError, match=f"damaged .TypeError: {name} is '0,99', which is no number"):
            _ = Run(folder).summary
    for value in (None, "word", [1]):
        path.write_text(json.dumps(json.loads(text) | {"best": value}))
        with pytest.raises(RunError, match=r"summary.json is damaged"):
            _ = Run(folder).summary


@pytest.mark.parametrize("content", ["", '{"status": ', "[]", "{}"])
def test_a_run_whose_summary_is_lost_keeps_its_curves(folder: Path, content: str) -> None:
    (folder / "summary.json").write_text(content)
    with pytest.raises(RunError, match=r"summary\.json is damaged.*begin a new run: .*config\.yaml"):
        _ = Run(folder).summary
    with pytest.raises(RunError, match=r"last\.ckpt is gone; begin a new run"):
        Run(folder).newest_checkpoint()
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "last.ckpt").touch()
    with pytest.raises(RunError, match=rf"summary\.json is damaged.*this writes it again: .* --resume {folder}"):
        _ = Run(folder).summary
    (folder / "summary.json").unlink()
    with pytest.raises(RunError, match=rf"summary\.json is missing; this writes it again: .* --resume {folder}"):
        _ = Run(folder).summary
    shutil.rmtree(checkpoints)
    (folder / "metrics.csv").unlink()
    assert Run(folder).newest_checkpoint() is None


@pytest.mark.parametrize(
    ("content", "message"),
    [("data: [1,\nmodel: }\n", r"is damaged: .* line 2"), ("", "holds no configuration")],
)
def test_a_configuration_that_cannot_be_used_is_named(content: str, message: str, folder: Path) -> None:
    (folder / "config.yaml").write_text(content)
    with pytest.raises(RunError, match=rf"config\.yaml {message}"):
        _ = Run(folder).settings


def test_checkpoints_that_cannot_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "whole.ckpt"
    weights = {"weight": torch.ones(1000)}
    torch.save({"state_dict": weights, "hyper_parameters": {}, "pytorch-lightning_version": "2.6.4"}, path)
    assert load_checkpoint(path)["state_dict"].keys() == weights.keys()
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
            load_checkpoint(damaged)
    with pytest.raises(RunError, match=r"none\.ckpt: no such file"):
        load_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(RunError, match=f"{tmp_path.name} is a folder; give best.ckpt"):
        load_checkpoint(tmp_path)
    with pytest.raises(RunError, match="holds weights only and no state to resume from"):
        load_checkpoint(path, with_state=True)


@pytest.mark.parametrize("content", [{"weight": torch.ones(2)}, [1, 2]])
def test_file_of_torch_that_is_no_checkpoint(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(RunError, match=r"weights\.pth is no checkpoint"):
        load_checkpoint(tmp_path / "weights.pth")


def test_the_newest_run_comes_first(folder: Path) -> None:
    for number in (10, 9):
        make_run(folder.with_name(f"version_{number}"), np.array([True]))
    folder.with_name("version_11").mkdir()  # without a configuration
    assert [run.folder.name for run in runs_of(folder.parent)] == ["version_10", "version_9", "version_0"]
    assert runs_of(folder / "none") == []
