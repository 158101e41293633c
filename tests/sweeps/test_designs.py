from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from overfitting_lab.runs import UsageError
from overfitting_lab.sweeps.designs import Design, design_of, one_at_a_time
from overfitting_lab.sweeps.effects import CellMeans, by_cell, effects
from overfitting_lab.sweeps.factors import Factor
from overfitting_lab.sweeps.names import page_name
from overfitting_lab.sweeps.pages import write_page
from overfitting_lab.sweeps.trial import Trial

FACTS = {"study": "of tests", "train_size": 1000, "command": "python scripts/ablate.py"}
Truth = Callable[[Any], float]


def two_level(number: int) -> list[Factor]:
    return [Factor(name, f"model.{name}", (0, 1)) for name in "abcdefghijklmnopq"[:number]]


def trials(
    design: Design, truth: Truth, seeds: int = 1, subsets: int = 1, noise: float = 0, images: float = 0, start: int = 0
) -> list[Trial]:
    """Make trials whose accuracy varies by ``noise`` between seeds, and a level's worth by ``images`` between sets."""
    random = np.random.default_rng(start)
    made = []
    for subset in range(subsets):
        easy = random.normal(0, 0.05) if subsets > 1 else 0.0  # for all cells
        for cell in design.cells:
            worth = truth(cell) + easy + (random.normal(0, images) if subsets > 1 else 0.0)
            for seed in range(seeds):
                accuracy = worth + random.normal(0, noise)
                where = {"subset": subset} if subsets > 1 else {}
                setting = {**cell, **where, "seed": seed}
                made.append(Trial(setting, accuracy, 0.9, 0.4, 0.5 - accuracy, 1.0, 40, {"data": "made"}, "probe", 0.2))
    return made


@pytest.mark.parametrize("number", range(6, 16))
def test_a_fraction_keeps_main_effects_apart_from_interactions_of_two(number: int) -> None:
    design = design_of(two_level(number), alone=False, full=False)
    assert (design.kind, len(design.cells)) == ("fraction", 16 if number <= 8 else 32)
    assert len({tuple(cell.values()) for cell in design.cells}) == len(design.cells)
    assert set(design.cells[0].values()) == {0}
    signs = 2 * np.array([list(cell.values()) for cell in design.cells]) - 1
    assert (signs.T @ signs == len(signs) * np.eye(number)).all()
    pairs = np.array([signs[:, one] * signs[:, other] for one, other in combinations(range(number), 2)])
    assert not (pairs @ signs).any()
    chains = design.aliases()
    assert [chain for chain in chains if len(chain[0]) == 1] == [[(factor.name,)] for factor in design.factors]
    assert sum(map(len, chains)) == number + number * (number - 1) / 2


def test_the_full_factorial_can_be_asked_for_and_too_many_factors_are_refused() -> None:
    assert len(design_of(two_level(6), alone=False, full=True).cells) == 64
    assert len(design_of(two_level(5), alone=False, full=False).cells) == 32
    assert len(design_of(two_level(16), alone=True, full=False).cells) == 17
    with pytest.raises(UsageError, match="16 factors of two levels: a fractional factorial has at most 15"):
        design_of(two_level(16), alone=False, full=False)


def test_a_fraction_estimates_main_effects_and_sums_of_aliases(tmp_path: Path) -> None:
    design = design_of(two_level(6), alone=False, full=False)

    def truth(cell: Any) -> float:
        return float(0.4 + 0.03 * cell["a"] + 0.02 * cell["a"] * cell["b"])

    found = {effect.terms[0]: effect for effect in effects(design, trials(design, truth), "test_acc")}
    assert found["a",].estimate.value == pytest.approx(0.03 + 0.02 / 2)
    assert found["c",].estimate.value == pytest.approx(0, abs=1e-12)
    chain = found["a", "b"]
    assert chain.estimate.value == pytest.approx(0.02 / 2)
    assert len(chain.terms) > 1
    page = write_page(design, trials(design, truth, seeds=2, noise=1e-3), FACTS, tmp_path / "page")[0].read_text()
    assert "a fractional factorial of resolution IV, with the generators of pyDOE3: 16 of 64 combinations" in page
    alias = " = ".join(" x ".join(term) for term in chain.terms)
    assert f"\n| {alias} | +1." in page
    assert f"- {alias}: at least one of these interactions is not zero" in page


def test_intervals_over_sets_of_images_hold_the_truth_as_often_as_they_say() -> None:
    design = design_of(two_level(2), alone=False, full=False)
    hits = 0
    for start in range(400):
        made = trials(design, lambda cell: 0.4 + 0.03 * cell["a"], 2, 3, noise=0.01, images=0.02, start=start)
        (effect, *_) = effects(design, made, "test_acc")
        hits += effect.estimate.low <= 0.03 <= effect.estimate.high
    assert 0.92 <= hits / 400 <= 0.98


def test_the_ease_of_a_set_of_images_is_no_noise() -> None:
    design = one_at_a_time(two_level(2))
    means = CellMeans(
        by_cell(design, trials(design, lambda cell: 0.4 + 0.03 * cell["a"], subsets=3, noise=1e-5)), "test_acc"
    )
    difference = means.against_first(1)
    assert (difference.low, difference.high) == pytest.approx((0.03, 0.03), abs=1e-4)
    assert means.freedom == (3 - 1) * (3 - 1)
    mean = means.cell_mean(0)
    assert mean.high - mean.low > 0.01, "the mean itself varies with the images"


def test_intervals_from_several_sets_of_images_say_so(tmp_path: Path) -> None:
    design = one_at_a_time(two_level(2))
    made = trials(design, lambda cell: 0.4 + 0.03 * cell["a"], subsets=3, images=0.002)
    page = write_page(design, made, FACTS, tmp_path / "page")[0].read_text()
    assert "They cover other images as well as other seeds" in page


@pytest.mark.pictures
def test_levels_are_compared_over_the_levels_of_the_others(tmp_path: Path) -> None:
    factors = [Factor("augment", "data.augment", ("none", "flip_crop", "vgg")), Factor("a", "model.a", (0, 1))]
    design = design_of(factors, alone=False, full=False)
    assert (design.kind, len(design.cells)) == ("levels", 6)
    worth = {"none": 0.0, "flip_crop": 0.05, "vgg": 0.02}
    made = trials(design, lambda cell: 0.4 + worth[cell["augment"]] + 0.01 * cell["a"], seeds=3, noise=1e-4)
    text, picture, _ = write_page(design, made, FACTS, tmp_path / "page")
    page = text.read_text()
    assert "| augmentation | none | 40.5 % (40.5 to 40.5) |  |" in page
    assert "| augmentation | flip_crop | 45.5 % (45.5 to 45.5) | +5.0 (+5.0 to +5.0) |" in page
    assert "| a | 1 | 43.3 % (43.3 to 43.3) | +1.0 (" in page
    assert "| flip_crop | 1 | 3 |" in page
    with Image.open(picture) as image:
        assert image.width > 1000


def test_each_alone_is_sorted_by_worth(tmp_path: Path) -> None:
    factors = [*two_level(2), Factor("adamw", "optimizer/adamw", ("off", "on"), frozenset({"model.optimizer"}))]
    design = one_at_a_time(factors)
    made = trials(design, lambda cell: 0.4 + 0.01 * cell["a"] + 0.03 * (cell["adamw"] == "on"), seeds=3, noise=1e-4)
    page = write_page(design, made, FACTS, tmp_path / "page")[0].read_text()
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")]
    assert rows[2:] == ["| none", "| adamw", "| a 1", "| b 1"]
    assert "| +3.0 (+3.0 to +3.0) | -3.0 (-3.0 to -3.0) | +0.0 |" in page
    assert "The 95 % intervals are Welch's" in page
    assert "at least one of its intervals excludes zero in up to 14 % of studies" in page
    assert "The mean of the best level is too high on average" in page
    assert "`adamw` has values of its own" not in page
    once = write_page(design, trials(design, lambda cell: 0.4), FACTS, tmp_path / "page")[0].read_text()
    assert "One seed cannot tell if a difference is noise. The mean of the best level is too high" in once


def test_a_configuration_has_no_level_of_a_setting_that_it_replaces(tmp_path: Path) -> None:
    adamw = Factor("adamw", "optimizer/adamw", ("off", "on"), frozenset({"model.a", "model.b"}))
    design = one_at_a_time([*two_level(3), adamw])
    assert design.cells[-1] == {"c": 0, "adamw": "on"}
    page = write_page(design, trials(design, lambda cell: 0.4), FACTS, tmp_path / "page")[0].read_text()
    assert "`adamw` has values of its own for a and b. " in page


@pytest.mark.parametrize(
    ("alone", "chosen", "words"),
    [
        (False, lambda cell: cell["early"] == "on", "but with the lowest validation loss in the cells with: early on."),
        (True, lambda cell: cell["early"] == "on", "but with the lowest validation loss in the cells with: early on."),
        (False, lambda cell: cell["early"] == "on" and cell["a"], "in the cells with: a 1, early."),
        (True, lambda cell: True, "is from the checkpoint with the lowest validation loss."),
        (False, lambda cell: False, "is from the checkpoint with the highest validation accuracy."),
    ],
)
def test_the_page_tells_which_checkpoint_was_tested(
    alone: bool, chosen: Callable[[Any], bool], words: str, tmp_path: Path
) -> None:
    early = Factor("early", "early_stopping", ("off", "on"), frozenset({"monitor"}))
    design = design_of([*two_level(1), early], alone=alone, full=False)
    made = [
        replace(each, monitor="val_loss" if chosen(each.setting) else "val_acc")
        for each in trials(design, lambda cell: 0.4)
    ]
    assert words in write_page(design, made, FACTS, tmp_path / "page")[0].read_text()


def test_the_page_tells_which_networks_are_averages(tmp_path: Path) -> None:
    swa = Factor("swa", "averaging/swa", ("off", "on"), frozenset({"swa"}))
    design = design_of([*two_level(1), swa], alone=False, full=False)
    made = [replace(each, averaged=each.setting["swa"] == "on" or None) for each in trials(design, lambda cell: 0.4)]
    page = write_page(design, made, FACTS, tmp_path / "page")[0].read_text()
    assert "accuracy. The tested network is an average of weights in the cells with: swa on." in page
    some = one_at_a_time([*two_level(1), swa])
    made = [
        replace(each, averaged=(each.setting["swa"] == "on" and each.setting["seed"] == 1) or None)
        for each in trials(some, lambda cell: 0.4, seeds=3)
    ]
    page = write_page(some, made, FACTS, tmp_path / "some")[0].read_text()
    assert "With swa, it is one in 1 of 3 runs: the others chose an epoch before the average began." in page


def test_a_factor_of_its_own_has_no_others(tmp_path: Path) -> None:
    design = design_of(two_level(1), alone=False, full=False)
    page = write_page(design, trials(design, lambda cell: 0.4, seeds=3), FACTS, tmp_path / "page")[0].read_text()
    assert "A factor's effect is the mean at its second level minus the mean at its first. " in page
    assert "- a moves test accuracy by +0.0" in page
    assert not any(words in page for words in ("others", "interaction", "all 1 effects"))


@pytest.mark.parametrize("varies", ["a", "none"])
def test_a_cell_whose_seeds_do_not_differ_is_compared_in_silence(varies: str, tmp_path: Path) -> None:
    design = one_at_a_time(two_level(1))
    made = [
        replace(each, test_acc=0.3 + 0.1 * each.setting["seed"] * ((varies == "a") == each.setting["a"]))
        for each in trials(design, lambda cell: 0.4, seeds=3)
    ]
    assert "| a 1 | 3 |" in write_page(design, made, FACTS, tmp_path / "page")[0].read_text()


@pytest.mark.pictures
def test_a_curve_of_levels_with_zero_is_drawn_with_intervals(tmp_path: Path) -> None:
    decay = Factor("weight_decay", "model.optimizer.weight_decay", (0.0, 1e-4, 1e-2))
    design = design_of([decay], alone=False, full=False)
    made = trials(design, lambda cell: 0.4 + cell["weight_decay"], seeds=3, noise=0.01)
    text, picture, _ = write_page(design, made, FACTS, tmp_path / "page")
    page = text.read_text()
    assert page.startswith("## Test accuracy over weight decay at 1,000 training images\n")
    assert "| 0.0001 | 3 | 4" in page
    assert "95 % interval of the mean" in page
    assert picture.stat().st_size > 10_000


def test_pages_are_named_for_their_factors() -> None:
    assert page_name(design_of(two_level(2), alone=False, full=False), 1000, named=True) == "factorial-a-b-1000"
    assert page_name(one_at_a_time(two_level(9)), None, named=True) == "one_at_a_time-a-b-c-6_more"
