from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from overfitting_lab.runs.figures import plain_text
from overfitting_lab.sweeps import search_charts

LR, WIDTH, AUGMENT = "model.optimizer.lr", "model.hidden_features", "data.augment"


def trial(number: int, value: float, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    made = create_trial(
        state=state,
        value=value,
        params={LR: 0.01, WIDTH: 5, AUGMENT: "flip_crop"},
        distributions={
            LR: FloatDistribution(1e-3, 1e-1, log=True),
            WIDTH: IntDistribution(4, 20),
            AUGMENT: CategoricalDistribution(("none", "flip_crop")),
        },
        intermediate_values={0: 0.25, 1: 0.5},
    )
    made.number = number
    return made


def ticks(figure: Figure, place: int = 0) -> list[str]:
    """Return the labels within the x axis of one of the figure's axes."""
    plain_text(figure).draw_without_rendering()
    axes = figure.axes[place]
    low, high = axes.get_xlim()
    return [label.get_text() for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_axes_of_one_trial_count_in_whole_numbers() -> None:
    history = search_charts.history([trial(0, 0.5)], 0, "val_acc")
    assert ticks(history) == ["1"]
    assert legend(history) == ["best so far", "winner, trial 1"]


def test_epochs_count_from_1_and_each_kind_of_line_is_named_once() -> None:
    trials = [trial(0, 0.5), trial(1, 0.75), trial(2, 0.5), trial(3, 0.5, TrialState.PRUNED)]
    figure = search_charts.epochs(trials, 1, "val_acc")
    assert ticks(figure) == ["1", "2"]
    assert legend(figure) == ["complete trials", "pruned trials", "winner, trial 2"]
    assert np.array(figure.axes[0].lines[0].get_xydata()).tolist() == [[1, 25], [2, 50]]


@pytest.mark.parametrize(("place", "labels"), [(0, ["0.001", "0.01", "0.1"]), (2, ["none", "flip_crop"])])
def test_slices_show_the_searched_values(place: int, labels: list[str]) -> None:
    figure = search_charts.slices([trial(0, 2.5), trial(1, 1.5)], 1, "val_loss")
    assert ticks(figure, place) == labels
    assert [axes.get_xlabel() for axes in figure.axes] == [LR, WIDTH, AUGMENT]
    assert figure.axes[0].get_ylabel() == "val_loss (nats)"
    names = [axes.xaxis.label.get_window_extent() for axes in figure.axes]
    assert all(right.x0 - left.x1 > 20 for left, right in pairwise(names))
