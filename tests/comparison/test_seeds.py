from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from overfitting_lab.comparison.charts import draw_accuracies, draw_curves, draw_gap, draw_learned
from overfitting_lab.comparison.comparison import Comparison
from overfitting_lab.comparison.moments import Moments
from overfitting_lab.comparison.report import overview, write_report
from overfitting_lab.runs import Run
from tests.conftest import ROOT
from tests.made_runs import CURVES, Metrics, make_run

RIGHT = np.random.default_rng(0).random((3, 120)) < np.array([[0.8], [0.7], [0.6]])
LENGTHS = (5, 3, 4)  # epochs; the second and the third run stopped early


def curves_of(seed: int) -> list[Metrics]:
    """Return the metrics of a seed, whose accuracies are a tenth lower than the previous seed's."""
    return [(loss, acc, 1.5, 0.5 - 0.1 * seed + 0.01 * epoch) for epoch, (loss, acc, *_) in enumerate(CURVES)]


@pytest.fixture
def seeds(tmp_path: Path) -> list[Path]:
    """Three seeds of one setting, of different lengths."""
    return [
        make_run(tmp_path / f"several/version_{seed}", right, seed=seed, curves=curves_of(seed)[:length], probe=0.9)
        for seed, (right, length) in enumerate(zip(RIGHT, LENGTHS, strict=True))
    ]


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """One seed of another setting."""
    return make_run(tmp_path / "single/version_0", RIGHT[0], dropout=0.5)


def compared(*folders: Path) -> Comparison:
    return Comparison([Run(folder) for folder in folders])


def test_seeds_are_thin_and_their_mean_is_thick_where_all_have_a_value(seeds: list[Path], alone: Path) -> None:
    groups = compared(*seeds, alone).drawn
    assert [group.label for group in groups] == ["several, n = 3", "single"]
    axes = Figure().subplots()
    draw_curves(axes, groups, "acc")
    solid = [line for line in axes.lines if line.get_linestyle() == "-" and line.get_gid() == "run-0"]
    assert [len(line.get_xdata()) for line in solid] == [*LENGTHS, 3]  # type: ignore[arg-type]
    *thin, mean = solid
    assert all(line.get_linewidth() < mean.get_linewidth() for line in thin)
    assert mean.get_xdata() == pytest.approx([1, 2, 3])
    assert mean.get_ydata() == pytest.approx([40, 41, 42])
    (single,) = [line for line in axes.lines if line.get_linestyle() == "-" and line.get_gid() == "run-1"]
    assert single.get_linewidth() == mean.get_linewidth()
    assert single.get_ydata() == pytest.approx([100 * each[3] for each in CURVES])  # type: ignore[operator]


def test_each_chart_has_every_seed(seeds: list[Path], alone: Path) -> None:
    groups = compared(*seeds, alone).drawn
    for draw in (draw_gap, draw_learned):
        axes = Figure().subplots()
        draw(axes, groups)
        assert [line.get_gid() for line in axes.lines][:5] == ["run-0"] * 4 + ["run-1"]
    axes = Figure().subplots()
    draw_accuracies(axes, groups)
    dots = next(line.get_xdata() for line in axes.lines if line.get_marker() == ".")
    assert dots == pytest.approx([100 * right.mean() for right in RIGHT])


def test_a_setting_has_a_row_of_its_means_beside_its_runs(seeds: list[Path], alone: Path, tmp_path: Path) -> None:
    write_report(compared(*seeds, alone), tmp_path / "report")
    text, page = ((tmp_path / f"report/report.{ending}").read_text() for ending in ("md", "html"))
    accuracies, gaps = RIGHT.mean(axis=1), [0.9 - (0.5 - 0.1 * seed + 0.01 * (n - 1)) for seed, n in enumerate(LENGTHS)]
    errors = np.abs(0.9 - accuracies)
    described = [f"{100 * np.mean(each):.1f} ± {100 * np.std(each, ddof=1):.1f}" for each in (accuracies, gaps)]
    error = f"{errors.mean():.3f} ± {errors.std(ddof=1):.3f}"
    assert f"| several, mean | 3 | {described[0]}% | {described[1]} | {error} | 90.0 ± 0.0% |" in text
    assert "| 30 | 3 to 5 |" in text
    assert f"| several, mean | {described[0]}% | 90.0 ± 0.0% | {error} | 1.000 ± 0.000 |" in text
    rows = ["| several, mean | 3 |", *(f"| several, seed {seed} | 1 |" for seed in range(3)), "| single | 1 |"]
    assert all(text.index(first) < text.index(second) for first, second in pairwise(rows))
    assert f"several, 3 seeds: test accuracy {accuracies.mean():.1%} (" in text
    assert f"; gap {described[1]} points; calibration error {error}. None of 3 runs over-fit." in text
    assert page.count('type="checkbox"') == 2
    assert "several, n = 3" in page


def test_the_slider_shows_the_share_that_all_seeds_have_left(seeds: list[Path], alone: Path) -> None:
    with np.load(seeds[1] / "images.npz") as arrays:
        np.savez(seeds[1] / "images.npz", **{**arrays, "train_learned": np.zeros_like(arrays["train_learned"])})
    groups = compared(*seeds, alone).drawn
    several, single = Moments(groups).values
    axes = Figure().subplots()
    draw_learned(axes, groups)
    mean, one = (line for line in axes.lines if line.get_linewidth() > 1)
    assert several["share_left"] == pytest.approx(100 - np.asarray(mean.get_ydata()))
    assert single["share_left"] == pytest.approx(100 - np.asarray(one.get_ydata()))


def test_a_setting_with_older_runs_has_one_instrument(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"a/version_{n}", RIGHT[n], seed=n, probe=(None, 0.9)[n]) for n in range(2)]
    (group,) = compared(*folders).groups
    assert [gap.instrument for gap in group.gaps if gap] == ["training", "training"]
    write_report(compared(*folders), tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text()
    assert "| 60.0 ± 0.0 (from training) |" in text
    assert "| 50.0 |" in text, "the single run has its probe"


def test_only_seeds_make_a_mean(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"a/version_{number}", right, seed=3) for number, right in enumerate(RIGHT[:2])]
    comparison = compared(*folders)
    assert [group.label for group in comparison.drawn] == [run.name for run in comparison.runs]
    write_report(comparison, tmp_path / "report")
    assert "| a, mean |" not in (tmp_path / "report/report.md").read_text()


def test_older_runs_have_no_empty_columns(alone: Path, tmp_path: Path) -> None:
    write_report(compared(alone), tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text()
    assert "gap, points (from training) | calibration error | validation accuracy |" in text
    assert "probe accuracy" not in text
    assert "| temperature" not in text


@pytest.mark.parametrize(("others", "instrument", "points"), [((), "probe", 11), (("images_500",), "training", 40)])
def test_all_curves_of_a_chart_are_of_one_instrument(others: tuple[str, ...], instrument: str, points: int) -> None:
    runs = [Run(ROOT / "lightning_logs/reference" / name / "version_0") for name in ("overfit", *others)]
    gap, loss = Figure().subplots(1, 2)
    draw_gap(gap, Comparison(runs).groups)
    draw_curves(loss, Comparison(runs).groups, "loss")
    assert gap.get_ylabel() == f"{instrument} minus validation (points)"
    assert [len(np.asarray(axes.lines[0].get_xdata())) for axes in (gap, loss)] == [points, points]
    dashed = {"probe": "training images, evaluated", "training": "training"}[instrument]
    (legend,) = overview(Comparison(runs)).legends
    assert {dashed, "validation"} < {text.get_text() for text in legend.get_texts()}
