import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from overfitting_lab.campaign.values import cells_of
from overfitting_lab.comparison.statistics import Estimate
from overfitting_lab.sweeps.charts import draw_worth
from overfitting_lab.sweeps.designs import Design, full_factorial
from overfitting_lab.sweeps.effects import CellMeans, effects, images_for
from overfitting_lab.sweeps.factors import REMEDIES, SIZE
from overfitting_lab.sweeps.names import remedy_name
from overfitting_lab.sweeps.pages import write_page
from overfitting_lab.sweeps.trial import Trial

ORIGIN = {"data": "made", "device": "1 x cpu", "commit": "c"}
EVEN = "as good as 2,000 images without a remedy"
FACTS = {"train_size": 1000, "command": "python scripts/ablate.py"}
FULL = full_factorial(REMEDIES)
remedies_of = FULL.changed


def trial(setting: Mapping[str, Any], accuracy: float, gap: float = 0.5) -> Trial:
    return Trial(setting, accuracy, accuracy + gap, accuracy, gap, 60.0, 40, ORIGIN, "probe", gap / 2)


def write_sizes(curve: list[Trial], remedied: list[Trial], folder: Path) -> list[Path]:
    size = replace(SIZE, levels=tuple(each.setting["size"] for each in curve))
    design = Design("curve", (size,), tuple({"size": level} for level in size.levels))
    return write_page(design, curve, FACTS, folder / "sizes", (FULL, remedied))


def truth(setting: Mapping[str, Any]) -> float:
    """Augmentation buys 4 points, dropout 2, decay nothing, and dropout 1 more with augmentation than without."""
    on = remedies_of(setting)
    return 0.4 + 0.04 * ("augment" in on) + 0.02 * ("dropout" in on) + 0.01 * ({"augment", "dropout"} <= set(on))


@pytest.fixture
def factorial() -> list[Trial]:
    noise = np.random.default_rng(1).normal(0, 0.004, (3, 8))
    return [
        trial({**setting, "seed": seed}, truth(setting) + noise[seed, place], gap=0.5 - 2 * truth(setting) + 0.8)
        for seed in range(3)
        for place, setting in enumerate(FULL.cells)
    ]


def test_the_grid_is_the_full_factorial() -> None:
    settings = list(FULL.cells)
    assert len(settings) == 8
    assert settings[0] == {"dropout": 0.0, "weight_decay": 0.0, "augment": "none"}
    assert len({remedies_of(setting) for setting in settings}) == 8


def test_effects_are_differences_of_means() -> None:
    found = {
        effect.terms[0]: effect.estimate
        for effect in effects(FULL, [trial(s, truth(s)) for s in FULL.cells], "test_acc")
    }
    assert len(found) == 7
    assert found["augment",].value == pytest.approx(0.04 + 0.01 / 2)
    assert found["dropout",].value == pytest.approx(0.02 + 0.01 / 2)
    assert found["weight_decay",].value == pytest.approx(0, abs=1e-12)
    assert found["dropout", "augment"].value == pytest.approx(0.01 / 2)
    assert found["dropout", "weight_decay", "augment"].value == pytest.approx(0, abs=1e-12)
    assert not any(estimate.known for estimate in found.values()), "one run a cell says nothing of noise"


def test_intervals_are_students_of_the_spread_within_cells(factorial: list[Trial]) -> None:
    (dropout, *_) = effects(FULL, factorial, "test_acc")
    groups = [[t.test_acc for t in factorial if t.has(setting)] for setting in FULL.cells]
    variance = np.mean([np.var(group, ddof=1) for group in groups])
    half = 2.119905 * 2 * np.sqrt(variance / 24)  # t for 24 - 8 = 16 degrees of freedom
    on = np.mean([t.test_acc for t in factorial if t.has({"dropout": 0.5})])
    off = np.mean([t.test_acc for t in factorial if t.has({"dropout": 0.0})])
    assert dropout.estimate.value == pytest.approx(on - off)
    assert (dropout.estimate.low, dropout.estimate.high) == pytest.approx((on - off - half, on - off + half))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        trials = [
            trial({**s, "seed": seed}, truth(s) + random.normal(0, 0.01)) for seed in range(2) for s in FULL.cells
        ]
        estimate = next(
            effect.estimate for effect in effects(FULL, trials, "test_acc") if effect.terms == [("augment",)]
        )
        hits += estimate.low <= 0.045 <= estimate.high
    assert 0.92 <= hits / 400 <= 0.98


def test_more_seeds_of_some_cells_are_no_obstacle(factorial: list[Trial]) -> None:
    more = [*factorial, factorial[0], factorial[5]]
    assert [e.estimate.value for e in effects(FULL, more, "gap")] == pytest.approx(
        [e.estimate.value for e in effects(FULL, factorial, "gap")]
    )


def test_a_missing_cell_is_named(factorial: list[Trial]) -> None:
    with pytest.raises(ValueError, match=r"no trial has .*'augment': 'none'"):
        effects(FULL, [t for t in factorial if remedies_of(t.setting) != ("dropout",)], "test_acc")


@pytest.mark.parametrize(
    ("accuracy", "images"),
    [
        (0.4, 1000),
        (0.5, 2000),
        (0.45, 1000 * 2**0.5),
        (0.55, 4000 * 2**0.5),
        (0.6, 8000),
        (0.39, float("nan")),
        (0.61, float("inf")),
    ],
)
def test_images_are_read_off_the_curve(accuracy: float, images: float) -> None:
    found = images_for(accuracy, (1000, 2000, 4000, 8000), (0.4, 0.5, 0.5, 0.6))
    assert found == pytest.approx(images, nan_ok=True)


def test_a_curve_that_falls_by_chance_is_made_monotone() -> None:
    assert images_for(0.45, (1000, 2000, 4000), (0.4, 0.5, 0.48)) == pytest.approx(1000 * 2 ** (0.05 / 0.09))


@pytest.mark.pictures
def test_the_factorial_is_written(factorial: list[Trial], tmp_path: Path) -> None:
    text, picture, numbers = write_page(FULL, factorial, FACTS, tmp_path / "factorial")
    said = text.read_text()
    assert said.startswith("## Effect of each factor at 1,000 training images in 40 epochs\n")
    mean = 100 * np.mean(
        [t.test_acc for t in factorial if t.has({"augment": "flip_crop", "dropout": 0, "weight_decay": 0})]
    )
    (row,) = (line for line in said.splitlines() if line.startswith("| augmentation | 3 | "))
    units = ["%" in cell for cell in row.split("|")[3:-1]]
    assert units == [True, True, True, False, False], "a gap and a calibration error are in points"
    assert "| on test accuracy, points | on generalization gap, points | on calibration error, points |" in said
    assert "The gap is the accuracy on a probe of training images" in said
    assert f" {mean:.1f} ± " in said
    assert "- augmentation moves test accuracy by +4." in said
    assert said.count(", more than noise between seeds.") == 2
    assert "- weight decay moves test accuracy by" in said
    assert "which may be noise between seeds" in said
    assert "at least one of its intervals excludes zero in up to 30 % of studies" in said
    assert "python scripts/ablate.py" in said
    assert '"test_acc"' in numbers.read_text()
    with Image.open(picture) as image:
        assert image.width > 1000


def test_the_numbers_begin_with_the_first_levels_whichever_trial_was_run_first(
    factorial: list[Trial], tmp_path: Path
) -> None:
    numbers = write_page(FULL, factorial[::-1], FACTS, tmp_path / "factorial")[2]
    first = cells_of([Trial(**trial) for trial in json.loads(numbers.read_text())["trials"]])[0]
    assert first.n == 3
    assert all(trial.has({"augment": "none", "dropout": 0.0, "weight_decay": 0.0}) for trial in first.trials)


def test_trials_of_earlier_versions_have_the_gap_that_they_have(factorial: list[Trial], tmp_path: Path) -> None:
    older = [replace(each, gap_instrument="training", calibration_error=None) for each in factorial]
    said = write_page(FULL, older, FACTS, tmp_path / "factorial")[0].read_text()
    assert "The gap is training minus validation accuracy" in said
    assert "calibration" not in said


@pytest.mark.pictures
def test_the_curve_is_written_with_what_remedies_are_worth(factorial: list[Trial], tmp_path: Path) -> None:
    sizes = {500: 0.35, 1000: 0.4, 2000: 0.45, 4000: 0.6}
    curve = [trial({"size": size, "seed": 0}, accuracy) for size, accuracy in sizes.items()]
    text, picture, _ = write_sizes(curve, factorial, tmp_path)
    said = text.read_text()
    assert "| 2,000 | 1 | 45.0 % | 50.0 | 25.0 |" in said
    accuracy = np.mean([t.test_acc for t in factorial if remedies_of(t.setting) == ("augment",)])
    images = images_for(float(accuracy), list(sizes), list(sizes.values()))
    assert f"- augmentation at 1,000 images: as good as {images:,.0f} images without a remedy (1," in said
    assert picture.stat().st_size > 10_000
    assert "Every size was trained for 40 epochs" in said
    alone = write_sizes(curve, [], tmp_path)[0].read_text()
    assert "as good as" not in alone


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        ((0.45,), EVEN),
        (
            (0.44, 0.46),
            "as good as 2,000 images without a remedy (fewer than 500 to more than 4,000)",
        ),
        ((0.2,), "as good as fewer than 500 images without a remedy"),
        ((0.9,), "as good as more than 4,000 images without a remedy"),
    ],
)
def test_the_range_of_what_a_remedy_is_worth_is_told_in_full(
    accuracies: tuple[float, ...], words: str, tmp_path: Path
) -> None:
    curve = [
        trial({"size": size}, accuracy) for size, accuracy in ((500, 0.35), (1000, 0.4), (2000, 0.45), (4000, 0.5))
    ]
    setting = {"dropout": 0.5, "weight_decay": 0.0, "augment": "none"}
    remedied = [trial({**setting, "seed": seed}, accuracy) for seed, accuracy in enumerate(accuracies)]
    assert f"- dropout at 1,000 images: {words}.\n" in write_sizes(curve, remedied, tmp_path)[0].read_text()


@pytest.mark.parametrize(("accuracy", "end"), [(0.3, 500), (0.4, 1000), (0.9, 2000)])
def test_the_line_of_a_remedy_ends_where_the_curve_has_its_accuracy(accuracy: float, end: int) -> None:
    axes, curve = Figure().subplots(), [Estimate(each) for each in (0.35, 0.4, 0.5)]
    draw_worth(axes, (500, 1000, 2000), curve, [("dropout", Estimate(accuracy))])
    line = axes.lines[0]
    assert np.asarray(line.get_xdata()).tolist() == [500, end]
    low, high = axes.get_ylim()
    assert low < 100 * accuracy < high


def test_means_of_levels_are_within_what_an_accuracy_can_be() -> None:
    groups = [[trial({"seed": seed}, accuracy) for seed, accuracy in enumerate(each)] for each in ((0.99, 1), (1, 1))]
    found = CellMeans(groups, "test_acc").mean([0.5, 0.5])
    assert found.value == pytest.approx(0.9975)
    assert found.high == 1
    assert found.low < found.value


def test_an_interaction_beyond_noise_is_told(tmp_path: Path) -> None:
    def either(setting: Mapping[str, Any]) -> float:
        return 0.4 + 0.05 * bool({"dropout", "augment"} & set(remedies_of(setting)))

    random = np.random.default_rng(0)
    trials = [trial({**s, "seed": seed}, either(s) + random.normal(0, 0.002)) for seed in range(3) for s in FULL.cells]
    said = write_page(FULL, trials, FACTS, tmp_path / "factorial")[0].read_text()
    (line,) = (line for line in said.splitlines() if line.startswith("- dropout x augmentation: "))
    assert "together they add less than the sum of each alone, by twice the interaction (-2." in line
    assert line.endswith("), on average over the others.")
    assert "- dropout alone, against none: +" in said
    assert "| dropout x augmentation | -2." in said


def test_an_interaction_of_three_says_nothing_of_a_sum(tmp_path: Path) -> None:
    """Each pair loses 10 points, and all three lose nothing."""
    trials = [
        trial({**setting, "seed": seed}, 0.4 - 0.1 * (len(remedies_of(setting)) == 2) + 0.001 * seed)
        for seed in range(3)
        for setting in FULL.cells
    ]
    said = write_page(FULL, trials, FACTS, tmp_path / "factorial")[0].read_text()
    assert "- dropout x weight decay x augmentation: this interaction is not zero (+7.5 (" in said


def test_equal_results_of_all_seeds_are_no_certainty(tmp_path: Path) -> None:
    trials = [trial({**setting, "seed": seed}, truth(setting)) for seed in range(3) for setting in FULL.cells]
    said = write_page(FULL, trials, FACTS, tmp_path / "factorial")[0].read_text()
    assert "- augmentation moves test accuracy by +4.5 points on average over the others; equal results of all" in said
    assert "Mean and standard deviation over all runs of a cell" in said
    assert "noise between seeds" not in said
    assert "intervals are Student's" not in said


def test_a_setting_that_does_nothing_is_told(tmp_path: Path, factorial: list[Trial]) -> None:
    assert "the same to the last digit" not in write_page(FULL, factorial, FACTS, tmp_path / "a")[0].read_text()
    decayed = {(each.setting["dropout"], each.setting["augment"], each.setting["seed"]): each for each in factorial}
    same = [
        replace(decayed[each.setting["dropout"], each.setting["augment"], each.setting["seed"]], setting=each.setting)
        for each in factorial
    ]
    said = write_page(FULL, same, FACTS, tmp_path / "b")[0].read_text()
    assert said.count("the same to the last digit, in every run: what differs between them does nothing here.") == 4
    assert "The results of `none` and `weight decay 0.0001` are the same" in said
    assert "The results of `dropout 0.5` and `dropout 0.5, weight decay 0.0001` are" in said


def test_a_figure_that_cannot_be_drawn_is_not_said_to_be_written(
    tmp_path: Path, factorial: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overfitting_lab.sweeps.pages.save_figure", lambda *_: 1 / 0)
    written = write_page(FULL, factorial, FACTS, tmp_path / "factorial")
    assert [path.suffix for path in written] == [".md", ".json"]


def test_remedies_are_named_for_people() -> None:
    assert remedy_name(()) == "none"
    assert remedy_name(("dropout", "weight_decay", "augment")) == "dropout, weight decay and augmentation"
