import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from overfitting_lab.runs.epochs import EpochMetrics
from overfitting_lab.runs.figures import TRAINING, VALIDATION, answers, confusion_matrix, curves, plain_text

EPOCHS = [
    EpochMetrics(0, 2.0, 0.25, 2.5, 0.2),
    EpochMetrics(1, 1.0, 0.5, None, None),
    EpochMetrics(2, 0.5, 1.0, 3.0, 0.4),
]


def lines(axes: Axes) -> dict[str, tuple[str, Any, Any]]:
    return {
        str(line.get_label()): (to_hex(line.get_color()).upper(), *np.asarray(line.get_data()).tolist())
        for line in axes.get_lines()
    }


def test_curves_are_drawn_in_the_same_axes() -> None:
    figure = curves(EPOCHS, "overfit: 1,000 training images")
    loss, accuracy = figure.axes
    assert figure.get_suptitle() == "overfit: 1,000 training images"
    assert lines(loss) == {"training": (TRAINING, [1, 2, 3], [2, 1, 0.5]), "validation": (VALIDATION, [1, 3], [2.5, 3])}
    assert lines(accuracy) == {
        "training": (TRAINING, [1, 2, 3], [25, 50, 100]),
        "validation": (VALIDATION, [1, 3], [20, 40]),
    }
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "cross-entropy (nats)")
    assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ("epoch", "accuracy (%)")
    assert accuracy.get_ylim() == (0, 100)
    assert loss.get_ylim()[0] == 0
    for axes in figure.axes:
        styles = {str(line.get_label()): line.get_linestyle() for line in axes.get_lines()}
        assert styles == {"training": "--", "validation": "-"}, "as in a report"
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]


def test_curves_without_validation() -> None:
    epochs = [replace(each, val_loss=None, val_acc=None) for each in EPOCHS]
    assert [list(lines(axes)) for axes in curves(epochs, "").axes] == [["training"], ["training"]]


def test_a_first_training_loss_that_dwarfs_the_others_is_told_and_not_drawn() -> None:
    loss = curves([replace(EPOCHS[0], train_loss=9.0), *EPOCHS[1:]], "").axes[0]
    assert loss.get_ylim() == pytest.approx((0, 1.1 * 3.0))
    assert loss.get_title(loc="left") == "training loss of the first epoch, 9.0, not shown"
    assert curves(EPOCHS, "").axes[0].get_title(loc="left") == ""


def test_confusion_matrix_is_in_per_cent_of_the_row() -> None:
    figure = confusion_matrix(np.array([[3, 1], [0, 0]]), ("cat", "dog"), "test images")
    (axes,) = figure.axes
    assert axes.get_title() == "test images: 3 of 4 right"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "75",
        (1, 0): "25",
        (0, 1): "0",
        (1, 1): "0",
    }
    (image,) = axes.get_images()
    assert np.asarray(image.get_array()).tolist() == [[75, 25], [0, 0]]
    assert image.get_clim() == (0, 100)


@pytest.mark.parametrize(("classes", "texts"), [(20, 400), (21, 0)])
def test_large_confusion_matrix_has_no_numbers(classes: int, texts: int) -> None:
    counts = np.eye(classes, dtype=np.int64)
    (axes,) = confusion_matrix(counts, [str(number) for number in range(classes)], "").axes
    assert len(axes.texts) == texts


def test_answers_stand_beside_their_images() -> None:
    pictures = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
    best = [[("cat", 0.75), ("a $dog", 0.25)], [("a $dog", 0.995), ("cat", 0.005)]]
    figure = answers(pictures, ["one.png", "x" * 100 + "two.png"], best, "a/model.onnx")
    assert figure.get_suptitle() == "a/model.onnx"
    rows = [figure.axes[:2], figure.axes[2:]]
    for (left, right), picture, title, texts in zip(
        rows,
        pictures,
        ("one.png", "…" + "x" * 67 + "two.png"),
        (["cat", "75.0 %", "a $dog", "25.0 %"], ["a $dog", "99.5 %", "cat", "0.5 %"]),
        strict=True,
    ):
        (image,) = left.get_images()
        assert np.asarray(image.get_array()).tolist() == picture.tolist()
        assert image.get_interpolation() == "nearest"
        assert right.get_title(loc="left") == title
        assert [text.get_text() for text in right.texts] == texts
        widths = [bar.get_width() for bar in right.patches if isinstance(bar, Rectangle)]
        shares = [float(text.removesuffix(" %")) for text in texts[1::2]]
        assert widths == pytest.approx([0.6 * share for share in shares])
    figure.draw_without_rendering()


def test_figures_touch_no_global_state() -> None:
    curves(EPOCHS, "")
    answers(np.zeros((1, 32, 32, 3), dtype=np.uint8), [""], [[("cat", 1)]], "")
    confusion_matrix(np.eye(2), ("cat", "dog"), "")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_names_in_another_script_get_another_font() -> None:
    own, other = (get_font(findfont(name)).get_charmap() for name in ("DejaVu Sans", "STIXGeneral"))
    names = [chr(letter) for letter in sorted(other.keys() - own.keys()) if chr(letter).isalpha()][:2]
    figure = plain_text(confusion_matrix(np.eye(2, dtype=np.int64), names, "both letters are shown"))
    figure.draw_without_rendering()  # it would warn of a missing glyph
    assert {text.get_fontfamily()[-1] for text in figure.findobj(Text) if text.get_text() in names} == {"STIXGeneral"}
    assert {len(text.get_fontfamily()) for text in figure.findobj(Text) if text.get_text() not in names} == {1}
