import csv
import json
from pathlib import Path

import numpy as np
import pytest

from overfitting_lab.double_descent.regression import sizes
from tests.conftest import Script


@pytest.fixture
def small(image_folder: Path) -> tuple[str, ...]:
    return (
        "--data.source=folder", f"--data.root={image_folder}", "--data.train_size=40", "--data.val_size=5",
        "--data.image_size=8",
    )  # fmt: skip


@pytest.mark.pictures
def test_points_summary_figure_and_page_are_written(run_script: Script, small: tuple[str, ...], tmp_path: Path) -> None:
    outcome = run_script("double_descent", *small, "--seeds=3", "--ridge=2", "--output=out/here")
    assert outcome.status == 0, outcome.err
    assert "data       tiny, split overfit: 40 training" in outcome.out
    assert "seed       2 of 0 to 2" in outcome.out
    files = [f"out/here/double_descent.{ending}" for ending in ("csv", "json", "png", "md")]
    assert f"written {' '.join(files)}" in outcome.out
    table, numbers, picture, page = (tmp_path / name for name in files)
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 4 * len(sizes(40))
    summary = json.loads(numbers.read_text())
    assert summary["seeds"] == [0, 1, 2]
    assert summary["ridge"] == 2
    assert summary["data"]["train_size"] == 40
    assert 0 < summary["wrong_labels"] <= 8
    for curve in summary["curves"]:
        for metric in ("train_error", "train_acc", "test_error", "test_acc"):
            own = [
                float(row[metric]) for row in rows
                if (float(row["label_noise"]), float(row["ridge"]), int(row["features"]))
                == (curve["label_noise"], curve["ridge"], 40)
            ]  # fmt: skip
            place = summary["features"].index(40)
            found = [curve[metric][name][place] for name in ("low", "median", "high")]
            assert found == [min(own), np.median(own), max(own)]
    assert picture.stat().st_size > 10_000
    text = page.read_text()
    assert "| 20 % label noise, ridge 2 |" in text
    assert "the error is highest with 40 features" in text
    assert "python scripts/double_descent.py --data.source=folder --data.root=FOLDER" in text


def test_clean_labels_alone_and_one_seed_have_a_page_too(
    run_script: Script, small: tuple[str, ...], tmp_path: Path
) -> None:
    outcome = run_script("double_descent", *small, "--seeds=1", "--data.label_noise=0")
    assert outcome.status == 0, outcome.err
    text = (tmp_path / "double_descent" / "double_descent.md").read_text()
    assert "label noise" not in text.lower()
    assert "median of 1 seed:" in text


@pytest.mark.parametrize(
    ("flag", "status", "words"),
    [
        ("--data.augment=flip_crop", 2, "data.augment"),  # a setting of training
        ("--trainer.max_epochs=3", 2, "trainer.max_epochs"),
        ("--seed=3", 2, "did you mean --seeds?"),
        ("--seeds=0", 2, "seeds"),
        ("--ridge=0", 2, "ridge"),
        ("--data.label_noise=2", 2, "data.label_noise must be in [0, 1], not 2"),
        ("--data.train_size=19", 2, "19 training images do not suit least squares"),
        ("--data.source=synthetic --data.train_size=5001", 2, "give --data.train_size 20 to 5000"),
        ("--data.train_size=500", 1, "500 training and 5 validation images were asked for"),
    ],
)
def test_what_cannot_be_done_is_said(
    run_script: Script, small: tuple[str, ...], tmp_path: Path, flag: str, status: int, words: str
) -> None:
    outcome = run_script("double_descent", *small, *flag.split())
    assert outcome.status == status
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.rglob("double_descent.*"))
