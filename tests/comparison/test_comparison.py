import json
from pathlib import Path

import numpy as np
import pytest

from overfitting_lab.comparison.comparison import Comparison
from overfitting_lab.comparison.report import write_report
from overfitting_lab.runs.run import Run, RunError
from tests.made_runs import make_run

RANDOM = np.random.default_rng(0)
GOOD = RANDOM.random(400) < 0.8
BETTER = GOOD | (RANDOM.random(400) < 0.4)
POOR = RANDOM.random(400) < 0.4


def sentences(*folders: Path) -> str:
    return "\n".join(Comparison([Run(folder) for folder in folders]).conclusions())


def test_runs_on_the_same_split_are_ranked(tmp_path: Path) -> None:
    poor, good = make_run(tmp_path / "poor/version_0", POOR), make_run(tmp_path / "good/version_0", GOOD, dropout=0.5)
    said = sentences(poor, good)
    assert f"By test accuracy: good {GOOD.mean():.1%}, poor {POOR.mean():.1%}." in said
    assert f"poor minus good: {100 * (POOR.mean() - GOOD.mean()):.1f} (" in said
    assert "points of test accuracy, more than these test images explain, one seed each (McNemar, exact, adj" in said


def test_a_small_difference_may_be_noise(tmp_path: Path) -> None:
    other = GOOD.copy()
    other[:5] = ~other[:5]
    said = sentences(make_run(tmp_path / "a/version_0", GOOD), make_run(tmp_path / "b/version_0", other, dropout=0.5))
    assert "which may be noise" in said
    assert "more than noise" not in said


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"fingerprint": "c" * 64, "train_size": 45000}, ["images differ (30 and 45,000)", "test images are the same"]),
        ({"fingerprint": "c" * 64, "label_noise": 1.0}, ["the training labels differ (0% and 100% drawn at random)"]),
        ({"fingerprint": "c" * 64}, ["another split"]),
        ({"fingerprint": "c" * 64, "identity": "z"}, ["tested on other images each"]),
    ],
)
def test_runs_on_other_images_are_not_ranked(data: dict[str, object], words: list[str], tmp_path: Path) -> None:
    said = sentences(
        make_run(tmp_path / "poor/version_0", POOR),
        make_run(tmp_path / "good/version_0", GOOD, dropout=0.5, data=data),
    )
    assert "Not ranked" in said
    assert "By test accuracy" not in said
    assert "noise (" not in said, "no verdict"
    for word in words:
        assert word in said
    assert ("poor minus good" in said) == ("identity" not in data), "other test images are not compared at all"


def test_seeds_are_taken_together(tmp_path: Path) -> None:
    folders = []
    for seed in range(3):
        for name, right, dropout in (("poor", POOR, 0.0), ("good", GOOD, 0.5)):
            mine = right & (np.arange(400) >= 4 * seed)
            folders.append(make_run(tmp_path / f"{name}/version_{seed}", mine, seed=seed, dropout=dropout))
    comparison = Comparison([Run(folder) for folder in folders])
    assert {group.name: len(group.runs) for group in comparison.groups} == {"poor": 3, "good": 3}
    (pair,) = comparison.pairs
    assert (pair.first, pair.second, pair.difference.test) == ("poor", "good", "Welch, over seeds")
    said = "\n".join(comparison.conclusions())
    assert "good, 3 seeds: test accuracy" in said
    assert "standard deviation" in said


def test_many_pairs_are_judged_more_strictly(tmp_path: Path) -> None:
    other = GOOD.copy()
    other[np.flatnonzero(GOOD)[:7]] = False  # p = 1/64
    folders = [make_run(tmp_path / "a/version_0", GOOD), make_run(tmp_path / "b/version_0", other, dropout=0.1)]
    (alone,) = Comparison([Run(folder) for folder in folders]).pairs
    assert alone.p == pytest.approx(2 / 2**7)
    folders += [make_run(tmp_path / f"{name}/version_0", POOR, dropout=rate) for name, rate in (("c", 0.2), ("d", 0.3))]
    among = Comparison([Run(folder) for folder in folders]).pairs
    assert len(among) == 6
    assert among[0].p == pytest.approx(6 * 2 / 2**7)


def test_only_what_differs_is_listed_and_circumstances_are_not(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "a/version_0", GOOD), make_run(tmp_path / "b/version_0", GOOD, dropout=0.5, seed=7)
    text = (two / "config.yaml").read_text()
    (two / "config.yaml").write_text(
        text.replace("anywhere", "elsewhere").replace("accelerator: cpu", "accelerator: gpu")
    )
    differing = Comparison([Run(one), Run(two)]).differing
    assert differing == {"model.dropout": [0.0, 0.5], "seed_everything": [0, 7]}


def test_over_fitting_is_named_with_its_epoch(tmp_path: Path) -> None:
    said = sentences(make_run(tmp_path / "a/version_0", GOOD))
    assert "training ends at 100.0%, validation at 40.0%, a gap of 60.0 points" in said
    assert "validation loss is lowest after epoch 2 (1.20) and ends at 2.40" in said
    sound = ((2.0, 0.2, 1.5, 0.3), (1.0, 0.6, 1.2, 0.5), (0.9, 0.7, 1.1, 0.6))
    assert "over-fits" not in sentences(make_run(tmp_path / "b/version_0", GOOD, curves=sound))


def test_confusion_counts_by_true_class(tmp_path: Path) -> None:
    right = np.array([True, True, False, True, False, False])
    run = Comparison([Run(make_run(tmp_path / "a/version_0", right))]).runs[0]
    assert run.confusion is not None
    assert run.confusion.tolist() == [[2, 0, 0], [0, 1, 1], [2, 0, 0]]


def test_runs_of_one_experiment_have_names_of_their_own(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"{place}/version_0", GOOD) for place in ("x/a", "y/a", "y/b")]
    assert [run.name for run in Comparison([Run(folder) for folder in folders[1:]]).runs] == ["a", "b"]
    names = [run.name for run in Comparison([Run(folder) for folder in folders]).runs]
    assert len(set(names)) == 3


def test_a_run_twice_or_unfinished_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a/version_0", GOOD)
    with pytest.raises(RunError, match=r"a/version_0 stands there twice"):
        Comparison([Run(folder), Run(tmp_path / "a" / ".." / "a" / "version_0")])
    other = make_run(tmp_path / "b/version_0", GOOD, status="interrupted")
    with pytest.raises(RunError, match=r"has not finished \(its status is interrupted\); go on with"):
        Comparison([Run(folder), Run(other)])
    path = other / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "failed", "reason": "it guesses"}))
    with pytest.raises(RunError, match="has not finished: it guesses; go on with"):
        Comparison([Run(folder), Run(other)])
    path.unlink()
    with pytest.raises(RunError, match=r"summary\.json is missing"):
        Comparison([Run(folder), Run(other)])


def test_a_row_that_is_cut_off_is_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a/version_0", GOOD)
    rows = Run(folder).metrics
    path = folder / "metrics.csv"
    path.write_text(path.read_text().rstrip().rpartition(",")[0])
    comparison = Comparison([Run(folder)])
    assert comparison.runs[0].epochs == rows[:-1]
    assert f"training ends at {rows[-2]['train_acc']:.1%}" in " ".join(comparison.conclusions())


def test_settings_in_one_experiments_folder_are_told_apart(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / f"ablation/version_{2 * seed + place}", right & (np.arange(400) >= 4 * seed), seed=seed,
                 dropout=dropout)
        for seed in range(2)
        for place, (right, dropout) in enumerate(((POOR, 0.0), (GOOD, 0.5)))
    ]  # fmt: skip
    comparison = Comparison([Run(folder) for folder in folders])
    assert [(group.name, len(group.runs)) for group in comparison.groups] == [
        ("ablation, dropout 0.0", 2),
        ("ablation, dropout 0.5", 2),
    ]
    assert [run.name for run in comparison.runs][:2] == [
        "ablation, dropout 0.0, seed_everything 0",
        "ablation, dropout 0.5, seed_everything 0",
    ]
    assert len(comparison.pairs) == 1


def test_a_seed_that_is_run_again_says_nothing_new(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"a/version_{number}", GOOD, seed=3) for number in range(2)]
    (group,) = Comparison([Run(folder) for folder in folders]).groups
    assert group.accuracies == [GOOD.mean()]
    assert "seeds:" not in sentences(*folders)


def test_other_data_is_no_other_seed(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / f"a/version_{seed}", GOOD, seed=seed, data={"fingerprint": str(seed)}) for seed in (0, 1)
    ]
    comparison = Comparison([Run(folder) for folder in folders])
    assert [len(group.runs) for group in comparison.groups] == [1, 1]
    assert len({run.name for run in comparison.runs}) == 2


def test_one_seed_is_not_tested_against_several(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"a/version_{seed}", GOOD, seed=seed) for seed in range(3)]
    folders.append(make_run(tmp_path / "b/version_0", POOR, dropout=0.5))
    assert Comparison([Run(folder) for folder in folders]).pairs == []
    assert "Settings with one seed are not tested against those with several" in sentences(*folders)


def test_seeds_without_spread_are_not_judged(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / f"{name}/version_{seed}", right, seed=seed, dropout=dropout)
        for seed in range(2)
        for name, right, dropout in (("a", GOOD, 0.0), ("b", POOR, 0.5))
    ]
    assert "whether that is noise cannot be told (none, because the seeds do not differ)" in sentences(*folders)


def test_a_run_without_validation_is_compared(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a/version_0", GOOD)
    (folder / "metrics.csv").write_text("epoch,train_loss,train_acc,val_loss,val_acc\n0,1.0,0.5,,\n")
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("best", "last", "generalization_gap"):
        del summary[key]
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "there was no validation" in sentences(folder)
    write_report(Comparison([Run(folder)]), tmp_path / "report")


def test_a_loss_that_is_no_number_does_not_stop_the_report(tmp_path: Path) -> None:
    lost = ((2.0, 0.2, 1.5, 0.3), (1.0, 0.6, 1.2, 0.5), (0.9, 0.9, float("inf"), 0.1))
    folder = make_run(tmp_path / "a/version_0", GOOD, curves=lost)
    assert "ends at inf" in sentences(folder)
    write_report(Comparison([Run(folder)]), tmp_path / "report")


def test_other_numbers_of_test_images_are_other_tests(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"{name}/version_0", right, dropout=rate)
               for name, right, rate in (("a", GOOD, 0.0), ("b", GOOD[:200], 0.5))]  # fmt: skip
    assert Comparison([Run(folder) for folder in folders]).pairs == []
    assert "tested on other images each" in sentences(*folders)


def test_an_older_run_does_not_say_which_images_it_had(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"{name}/version_0", GOOD, dropout=rate) for name, rate in (("a", 0.0), ("b", 0.5))]
    for folder in folders[:1]:
        summary = json.loads((folder / "summary.json").read_text())
        del summary["data"]["identity"]
        (folder / "summary.json").write_text(json.dumps(summary))
    assert "By test accuracy" in sentences(*folders)


def test_many_pairs_are_left_to_the_table(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"r{n}/version_0", GOOD & (np.arange(400) >= n), dropout=n / 100) for n in range(6)]
    said = sentences(*folders)
    assert said.count(" minus ") == 5
    assert "10 more pairs are in the table." in said
    write_report(Comparison([Run(folder) for folder in folders]), tmp_path / "report")


def test_a_run_without_answers_to_single_images_is_judged_by_the_numbers(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"{name}/version_0", right, images=name == "a", dropout=rate)
               for name, right, rate in (("a", GOOD, 0.0), ("b", POOR, 0.5))]  # fmt: skip
    comparison = Comparison([Run(folder) for folder in folders])
    (pair,) = comparison.pairs
    assert pair.difference.test == "Fisher, exact"
    assert pair.p < 1e-6
    assert comparison.runs[1].confusion is None
