from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from overfitting_lab.comparison.comparison import Comparison
from overfitting_lab.comparison.ensemble import ensemble
from overfitting_lab.runs import Run, RunError
from tests.conftest import ROOT, Script
from tests.made_runs import make_run

REFERENCE = ROOT / "lightning_logs" / "reference"
REMEDIES = ("dropout", "weight_decay", "augmentation")
FACTORIAL = ["_".join(some) for size in (1, 2) for some in combinations(REMEDIES, size)]
# Seed 0 of every combination of the three.
EIGHT = [REFERENCE / name / "version_0" for name in ("overfit", *FACTORIAL, "all_remedies")]
ANSWERS = np.random.default_rng(0).random((3, 120)) < 0.6


def test_the_factorials_eight_networks_are_better_together_and_less_sure() -> None:
    runs = [Run(folder) for folder in EIGHT]
    assert {run.summary.seed for run in runs} == {0}
    found = ensemble("eight", runs)
    assert found.accuracy.value == 0.4667
    assert np.mean(found.accuracies) == pytest.approx(0.4326, abs=5e-5)
    assert max(found.accuracies) == 0.4557
    assert found.calibration.error == pytest.approx(0.0625, abs=5e-5)


def test_members_agree_where_both_are_right_or_make_the_same_mistake(tmp_path: Path) -> None:
    runs = [Run(make_run(tmp_path / f"{name}/version_0", right)) for name, right in zip("abc", ANSWERS, strict=True)]
    pairs = [(one == other).mean() for one, other in combinations(ANSWERS, 2)]  # made runs make the same mistakes
    assert ensemble("three", runs).agreement == pytest.approx(np.mean(pairs))


def test_seeds_of_one_setting_answer_together_by_themselves(tmp_path: Path) -> None:
    seeds = [make_run(tmp_path / f"a/version_{seed}", right, seed=seed) for seed, right in enumerate(ANSWERS[:2])]
    other = make_run(tmp_path / "b/version_0", ANSWERS[2], dropout=0.5)
    comparison = Comparison([Run(folder) for folder in (*seeds, other)])
    (found,) = comparison.ensembles
    assert (found.name, len(found.members)) == ("a, 2 runs", 2)
    assert "a, 2 runs, answering by the mean of their probabilities: test accuracy " in "\n".join(
        comparison.conclusions()
    )


def test_a_repeated_seed_is_no_ensemble(tmp_path: Path) -> None:
    copies = [make_run(tmp_path / f"a/version_{number}", ANSWERS[0], seed=3) for number in range(2)]
    assert Comparison([Run(folder) for folder in copies]).ensembles == []


def test_runs_that_are_asked_answer_together(run_script: Script, tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"{name}/version_0", right) for name, right in zip("abc", ANSWERS, strict=True)]
    outcome = run_script("compare", folders[0], "--ensemble", *folders[1:])
    assert outcome.status == 0, outcome.err
    assert "all 2 together, answering by the mean" in outcome.out
    text = next((tmp_path / "report").glob("*/report.md")).read_text()
    row = next(line for line in text.splitlines() if line.startswith("| all 2 together |"))
    both = ensemble("", [Run(folder) for folder in folders[1:]])
    assert f" {both.accuracy.value:.1%} (" in row
    assert row.endswith(f"| {both.agreement:.1%} |")
    assert run_script("compare").status == 2


def test_what_cannot_answer_together_is_said(tmp_path: Path) -> None:
    run = Run(make_run(tmp_path / "a/version_0", ANSWERS[0]))
    without = Run(make_run(tmp_path / "b/version_0", ANSWERS[0], images=False))
    fewer = Run(make_run(tmp_path / "c/version_0", ANSWERS[0][:100]))
    inverted = Run(make_run(tmp_path / "d/version_0", ANSWERS[1], data={"identity": "z"}))
    copy = Run(make_run(tmp_path / "e/version_0", ANSWERS[0]))
    for others, words in (
        ([], "at least two"),
        ([without], r"images\.npz has no prob"),
        ([fewer], "on other images"),
        ([inverted], "on other images"),
        ([copy], "a copy adds nothing"),
    ):
        with pytest.raises(RunError, match=words):
            ensemble("these", [run, *others])
