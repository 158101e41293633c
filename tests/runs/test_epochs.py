from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from overfitting_lab.runs import Run, RunError
from overfitting_lab.runs.epochs import EpochRecord, best_epoch, last_gap, over_fits_since, read_records, write_records
from tests.conftest import ROOT

REFERENCE = sorted((ROOT / "lightning_logs" / "reference").glob("*/version_*"))
SINCE = {"overfit": 8, "long_all_remedies": 80, "images_45000": 3, "regularized": None, "vgg16_32": None}

SEVEN_WORSE = [1.2, 1.3, 1.2, 1.3, 1.2, 1.3, 1.2]


def records(val_losses: Sequence[float | None], train_losses: list[float] | None = None) -> list[EpochRecord]:
    """Return a record for each validation loss. The training loss falls unless it is given."""
    falling = train_losses or [1 / (epoch + 1) for epoch in range(len(val_losses))]
    return [
        EpochRecord(epoch, falling[epoch], 0.5, loss, None if loss is None else 0.5, 1, 0.1, 1.0)
        for epoch, loss in enumerate(val_losses)
    ]


@pytest.mark.parametrize(
    ("val_losses", "since"),
    [
        ([2.0, 1.0, *SEVEN_WORSE, 1.1], 1),
        ([2.0, 1.0, *SEVEN_WORSE, 1.09], None),  # not a tenth above the lowest
        ([2.0, 1.0, *SEVEN_WORSE], None),  # one validation too few
        ([2.0, 1.0, *(each for loss in SEVEN_WORSE for each in (None, loss)), None, 1.4], 1),
        ([1.0, *SEVEN_WORSE, 1.4, 0.9], None),
        ([1.0, float("inf"), *SEVEN_WORSE, 1.5], 0),  # an infinite loss is no validation
        ([None, None], None),
        ([], None),
    ],
)
def test_over_fitting(val_losses: Sequence[float | None], since: int | None) -> None:
    found = over_fits_since(records(val_losses))
    assert (found and found.epoch) == since


def test_a_training_loss_that_does_not_fall_is_no_over_fitting() -> None:
    losses = [1.0, *SEVEN_WORSE, 1.4]
    falling = [0.5, *[0.4] * 7]
    assert over_fits_since(records(losses, [*falling, 0.5])) is None
    assert over_fits_since(records(losses, [*falling, 0.4])) is not None


@pytest.mark.parametrize("folder", REFERENCE, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_the_rule_never_contradicts_itself_on_the_reference_runs(folder: Path) -> None:
    rows = Run(folder).records
    found = [over_fits_since(rows[:number]) for number in range(len(rows) + 1)]
    epochs = [record.epoch if record else None for record in found]
    assert {*epochs} <= {None, epochs[-1]}
    if folder.parent.name in SINCE and folder.name == "version_0":
        assert epochs[-1] == SINCE[folder.parent.name]


def test_the_first_of_equal_epochs_is_the_best() -> None:
    assert best_epoch(records([None, 2.0, 1.0])) == records([None, 2.0, 1.0])[1]
    assert best_epoch(records([None])) is None
    assert best_epoch(records([2.0, float("nan"), 1.0, 1.0]), "val_loss") == records([2.0, float("nan"), 1.0])[2]


def test_what_is_best_depends_on_what_is_asked_for() -> None:
    rows = read_records(ROOT / "lightning_logs/reference/long_all_remedies/version_0/metrics.csv")
    by_accuracy, by_loss = best_epoch(rows, "val_acc"), best_epoch(rows, "val_loss")
    assert by_accuracy is not None
    assert by_loss is not None
    assert (by_accuracy.epoch, by_loss.epoch) == (232, 80), "counted from 0"
    assert (by_accuracy.val_acc, by_loss.val_acc) == (0.538, 0.482)


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    path, rows = tmp_path / "metrics.csv", records([1.5, None, 0.1])
    rows[0] = replace(rows[0], probe_loss=0.25, probe_acc=0.75)
    write_records(path, rows[:1])
    write_records(path, rows[1:], mode="a")
    assert read_records(path) == rows
    assert path.read_text().startswith("epoch,step,train_loss,train_acc,val_loss,val_acc,learning_rate,seconds,probe_")
    assert read_records(tmp_path / "none.csv") == []


def test_a_row_that_was_cut_off_does_not_count_and_another_damage_is_named(tmp_path: Path) -> None:
    rows, path = records([0.5, 0.4]), tmp_path / "metrics.csv"
    write_records(path, rows)
    text = path.read_text()
    for cut in (text + "2,3,1e-", text + "2,3,0.5"):
        path.write_text(cut)
        assert read_records(path) == rows
    path.write_text(text, encoding="utf-8-sig")
    assert read_records(path) == rows, "a spreadsheet begins a file with a mark"
    for content, fault in (
        (text.encode() + b"much,3,0.5\n", r"could not convert string to float: 'much'"),
        (text.encode() + b"\xff,3,0.5\n", "'utf-8' codec can't decode byte 0xff"),
        (text.encode().replace(b"epoch,", b"epochs,"), "no column 'epoch'"),
    ):
        path.write_bytes(content)
        with pytest.raises(RunError, match=rf"metrics.csv is damaged \(.*{fault}"):
            read_records(path)


def test_the_gap_is_measured_on_the_probe_if_there_is_one() -> None:
    rows = records([2.0, 1.0, 1.5])
    assert last_gap(rows) == (0.0, 2, "training")
    rows[1] = replace(rows[1], probe_acc=0.875)
    assert last_gap(rows) == (0.375, 1, "probe")
    assert last_gap(records([None])) is None
