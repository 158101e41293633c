import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from overfitting_lab.comparison.comparison import Comparison
from overfitting_lab.comparison.report import write_report
from overfitting_lab.runs import Run, RunError
from tests.made_runs import CURVES, SOUND, make_run

REFERENCE = Path(__file__).parents[2] / "lightning_logs" / "reference"
RANDOM = np.random.default_rng(0)
GOOD = RANDOM.random(400) < 0.8
BETTER = GOOD | (RANDOM.random(400) < 0.4)
POOR = RANDOM.random(400) < 0.4


def compared(*folders: Path) -> Comparison:
    return Comparison([Run(folder) for folder in folders])


OVER_FITTING = [*CURVES[:-1], (0.15, 0.95, 2.1, 0.4), *[(0.12, 1.0, 2.2, 0.4)] * 4, CURVES[-1]]  # since epoch 3


def sentences(*folders: Path) -> str:
    return "\n".join(compared(*folders).conclusions())


def two_runs(root: Path, first: NDArray[np.bool_], second: NDArray[np.bool_], **settings: Any) -> list[Path]:
    """Make the runs a and b, which differ in dropout and in the settings of b."""
    return [make_run(root / "a/version_0", first), make_run(root / "b/version_0", second, dropout=0.5, **settings)]


def seeded_runs(root: Path, seeds: int, first: str = "a", second: str = "b", changed: int = 4) -> list[Path]:
    """Make runs of two settings, in the folders of one or two experiments; each seed fails on more test images."""
    folders = []
    for seed in range(seeds):
        for place, (name, right) in enumerate(((first, POOR), (second, GOOD))):
            folder = root / name / f"version_{2 * seed + place}"
            kept = np.arange(400) >= changed * seed
            folders.append(make_run(folder, right & kept, seed=seed, dropout=place / 2))
    return folders


def test_runs_on_the_same_split_are_ranked(tmp_path: Path) -> None:
    said = sentences(*two_runs(tmp_path, POOR, GOOD))
    assert f"By test accuracy: b {GOOD.mean():.1%}, a {POOR.mean():.1%}." in said
    assert f"a minus b: {100 * (POOR.mean() - GOOD.mean()):.1f} (" in said
    assert "points of test accuracy, more than these test images explain, one seed each (McNemar, exact, adj" in said


def test_a_small_difference_may_be_noise(tmp_path: Path) -> None:
    other = GOOD.copy()
    other[:5] = ~other[:5]
    said = sentences(*two_runs(tmp_path, GOOD, other))
    assert "which may be noise" in said
    assert "more than noise" not in said


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"fingerprint": "c" * 64, "train_size": 45000}, ["images differ (30 and 45,000)", "test images are the same"]),
        ({"fingerprint": "c" * 64, "label_noise": 1.0}, ["the training labels differ (0% and 100% drawn at random)"]),
        ({"fingerprint": "c" * 64}, ["another split"]),
        ({"fingerprint": "c" * 64, "identity": "z"}, ["tested on different images"]),
    ],
)
def test_runs_on_other_images_are_not_ranked(data: dict[str, object], words: list[str], tmp_path: Path) -> None:
    said = sentences(*two_runs(tmp_path, POOR, GOOD, data=data))
    assert "Not ranked" in said
    assert "By test accuracy" not in said
    assert "noise (" not in said, "no verdict"
    for word in words:
        assert word in said
    assert ("a minus b" in said) == ("identity" not in data), "other test images are not compared at all"


def test_seeds_are_taken_together(tmp_path: Path) -> None:
    folders = seeded_runs(tmp_path, 3, "poor", "good")
    comparison = compared(*folders)
    assert {group.name: len(group.runs) for group in comparison.groups} == {"poor": 3, "good": 3}
    (pair,) = comparison.pairs
    assert (pair.first, pair.second, pair.difference.test) == ("poor", "good", "Welch, over seeds")
    said = sentences(*folders)
    assert "good, 3 seeds: test accuracy" in said
    assert "standard deviation" in said


def test_many_pairs_are_judged_more_strictly(tmp_path: Path) -> None:
    other = GOOD.copy()
    other[np.flatnonzero(GOOD)[:7]] = False  # p = 1/64
    folders = two_runs(tmp_path, GOOD, other)
    (alone,) = compared(*folders).pairs
    assert alone.p == pytest.approx(2 / 2**7)
    folders += [make_run(tmp_path / f"{name}/version_0", POOR, dropout=rate) for name, rate in (("c", 0.2), ("d", 0.3))]
    among = compared(*folders).pairs
    assert len(among) == 6
    assert among[0].p == pytest.approx(6 * 2 / 2**7)


def test_only_what_differs_is_listed_and_circumstances_are_not(tmp_path: Path) -> None:
    one, two = two_runs(tmp_path, GOOD, GOOD, seed=7)
    text = (two / "config.yaml").read_text()
    (two / "config.yaml").write_text(
        text.replace("anywhere", "elsewhere").replace("accelerator: cpu", "accelerator: gpu")
    )
    assert compared(one, two).differing_settings == {"model.dropout": [0.0, 0.5], "seed_everything": [0, 7]}


def test_over_fitting_is_named_with_its_epoch(tmp_path: Path) -> None:
    said = sentences(make_run(tmp_path / "a/version_0", GOOD, curves=OVER_FITTING))
    assert "training ends at 100.0%, validation at 40.0%, a gap of 60.0 points" in said
    assert "validation loss is lowest after epoch 2 (1.20) and ends at 2.40" in said
    sound = [*SOUND, (0.9, 0.7, 1.1, 0.6)]
    assert "over-fits" not in sentences(make_run(tmp_path / "b/version_0", GOOD, curves=sound))


def test_confusion_counts_by_true_class(tmp_path: Path) -> None:
    right = np.array([True, True, False, True, False, False])
    run = compared(make_run(tmp_path / "a/version_0", right)).runs[0]
    assert run.confusion is not None
    assert run.confusion.tolist() == [[2, 0, 0], [0, 1, 1], [2, 0, 0]]


def test_runs_of_one_experiment_have_names_of_their_own(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"{place}/version_0", GOOD) for place in ("x/a", "y/a", "y/b")]
    assert [run.name for run in compared(*folders[1:]).runs] == ["a", "b"]
    assert [run.name for run in compared(*folders).runs] == ["a (x/a/version_0)", "a (y/a/version_0)", "b"]


def test_settings_that_make_a_long_name_are_left_out(tmp_path: Path) -> None:
    sizes: list[dict[str, Any]] = [
        {"train_size": 1000},
        {"train_size": 200, "val_size": 100, "test_size": 1000, "augment": "flip_crop"},
    ]
    short, long = ([make_run(tmp_path / f"{place}/a/version_{number}", GOOD, dropout=number / 2, data=data)
                   for number, data in enumerate(each)]
                   for place, each in (("x", ({}, {})), ("y", sizes)))  # fmt: skip
    assert [run.name for run in compared(*short).runs] == ["a, dropout 0.0", "a, dropout 0.5"]
    assert [run.name for run in compared(*long).runs] == ["a (version_0)", "a (version_1)"]


def test_weights_that_no_validation_chose_are_named(tmp_path: Path) -> None:
    best, last = two_runs(tmp_path, GOOD, GOOD, test={"checkpoint": "last", "loss": 1.0, "acc": 0.5, "images": 400})
    said = sentences(best, last)
    assert said.count("last weights") == 1
    assert "test accuracy 50.0% (45.1% to 54.9%), last weights." in said
    (text,) = [path for path in write_report(compared(best, last), tmp_path / "report") if path.suffix == ".md"]
    assert "| 50.0% (45.1% to 54.9%), last weights |" in text.read_text()


def test_a_run_twice_or_unfinished_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a/version_0", GOOD)
    with pytest.raises(RunError, match=r"a/version_0 is given twice"):
        compared(folder, tmp_path / "a" / ".." / "a" / "version_0")
    other = make_run(tmp_path / "b/version_0", GOOD, status="interrupted")
    with pytest.raises(RunError, match=r"has not finished \(its status is interrupted\); resume it: .*fit.py --resume"):
        compared(folder, other)
    path = other / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "failed", "reason": "it guesses"}))
    with pytest.raises(RunError, match="has not finished: it guesses; resume it"):
        compared(folder, other)
    path.unlink()
    with pytest.raises(RunError, match=r"summary\.json is missing"):
        compared(folder, other)


def test_a_row_that_is_cut_off_is_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a/version_0", GOOD)
    path = folder / "metrics.csv"
    path.write_text(path.read_text().rstrip().rsplit(",", 8)[0])  # within the metrics
    comparison = compared(folder)
    assert [row.epoch for row in comparison.runs[0].epochs] == [0, 1, 2, 3]
    assert f"training ends at {CURVES[-2][1]:.1%}" in " ".join(comparison.conclusions())


def test_settings_in_one_experiments_folder_are_told_apart(tmp_path: Path) -> None:
    comparison = compared(*seeded_runs(tmp_path, 2, "ablation", "ablation"))
    assert [(group.name, len(group.runs)) for group in comparison.groups] == [
        ("ablation, dropout 0.0", 2),
        ("ablation, dropout 0.5", 2),
    ]
    assert [run.name for run in comparison.runs][:2] == [
        "ablation, dropout 0.0, seed 0",
        "ablation, dropout 0.5, seed 0",
    ]
    assert len(comparison.pairs) == 1


def test_a_seed_that_is_run_again_says_nothing_new(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"a/version_{number}", GOOD, seed=3) for number in range(2)]
    (group,) = compared(*folders).groups
    assert group.accuracies == [GOOD.mean()]
    assert "seeds:" not in sentences(*folders)


def test_other_data_is_no_other_seed(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / f"a/version_{seed}", GOOD, seed=seed, data={"fingerprint": str(seed)}) for seed in (0, 1)
    ]
    comparison = compared(*folders)
    assert [len(group.runs) for group in comparison.groups] == [1, 1]
    assert len({run.name for run in comparison.runs}) == 2


def test_one_seed_is_not_tested_against_several(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"a/version_{seed}", GOOD, seed=seed) for seed in range(3)]
    folders.append(make_run(tmp_path / "b/version_0", POOR, dropout=0.5))
    assert compared(*folders).pairs == []
    assert "Settings with one seed are not tested against settings with several" in sentences(*folders)


def test_seeds_without_spread_are_not_judged(tmp_path: Path) -> None:
    said = sentences(*seeded_runs(tmp_path, 2, changed=0))
    assert "these runs cannot tell if that is noise (none, " in said


def test_a_run_without_validation_is_compared(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a/version_0", GOOD, curves=[(1.0, 0.5, None, None)])
    assert "there was no validation" in sentences(folder)
    write_report(compared(folder), tmp_path / "report")


def test_a_loss_that_is_no_number_does_not_stop_the_report(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a/version_0", GOOD, curves=[*OVER_FITTING, (0.05, 1.0, float("inf"), 0.1)])
    assert "ends at inf" in sentences(folder)
    write_report(compared(folder), tmp_path / "report")


def test_other_numbers_of_test_images_are_other_tests(tmp_path: Path) -> None:
    folders = two_runs(tmp_path, GOOD, GOOD[:200])
    assert compared(*folders).pairs == []
    assert "tested on different images" in sentences(*folders)
    write_report(compared(*folders), tmp_path)
    first, second = (run.name for run in compared(*folders).runs)
    assert f"Test images: {len(GOOD)} ({first}); 200 ({second})." in (tmp_path / "report.md").read_text()


def test_the_name_of_a_report_holds_three_groups(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / f"{name * 20}/version_0", GOOD, dropout=dropout)
        for name, dropout in (("a", 0.1), ("b", 0.2), ("c", 0.3))
    ]
    assert compared(*folders).folder_name == "-".join(name * 20 for name in "abc")


def test_runs_of_earlier_versions_are_compared(tmp_path: Path) -> None:
    lacks = dict.fromkeys(("device", "world_size", "precision", "train_images_per_second"))
    folders = two_runs(tmp_path, GOOD, GOOD, data={"identity": None}, **lacks)
    assert "By test accuracy" in sentences(*folders)
    write_report(compared(*folders), tmp_path)
    assert "None" not in (tmp_path / "report.md").read_text()
    said = sentences(*(REFERENCE / name / "version_0" for name in ("images_500", "dropout", "random_labels")))
    assert "images_500: training ends at 100.0%, validation at 40.6%, a gap of 59.4 points; test acc" in said
    assert "dropout: the probe ends at 100.0%, validation at 44.8%, a gap of 55.2 points; test accuracy 43.1%" in said
    assert "validation loss is lowest after epoch 21 (1.56) and ends at 1.86" in said
    assert "Not ranked: the training labels differ (0% and 100% drawn at random)" in said


def test_many_pairs_are_left_to_the_table(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"r{n}/version_0", GOOD & (np.arange(400) >= n), dropout=n / 100) for n in range(6)]
    said = sentences(*folders)
    assert said.count(" minus ") == 5
    assert "10 more pairs are in the table." in said
    write_report(compared(*folders), tmp_path / "report")


def test_a_run_without_answers_to_single_images_is_judged_by_the_numbers(tmp_path: Path) -> None:
    comparison = compared(*two_runs(tmp_path, GOOD, POOR, images=False))
    (pair,) = comparison.pairs
    assert pair.difference.test == "Fisher, exact"
    assert pair.p < 1e-6
    assert comparison.runs[1].confusion is None
