"""The notebooks run from top to bottom, and are kept with what they show.

They run in the test's own process: six kernels would import torch six times, which takes 40 seconds of CPU.
"""

import ast
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.special import log_softmax

from overfitting_lab.comparison.charts import RUNS, draw_reliability
from overfitting_lab.comparison.comparison import Comparison
from overfitting_lab.comparison.pictures import Captioned, gallery, training_images
from overfitting_lab.double_descent.page import at
from overfitting_lab.lessons import Table, ablation, enter_project, epochs, reference, results, run_script
from overfitting_lab.runs import Run, RunError
from overfitting_lab.runs.calibration import Calibration, at_temperature, calibration
from tests.conftest import ROOT, Flags
from tests.docs.test_links import text_of
from tests.made_runs import make_run

NOTEBOOKS = sorted((ROOT / "docs" / "lessons").glob("*.ipynb"))
LARGEST = 400_000  # bytes
KINDS = {"image/png": "_repr_png_", "text/html": "_repr_html_"}  # of outputs: the method that makes them
A_PLACE = re.compile(r"(?<![\w.])/(home|root|tmp|work|mnt|opt|usr|Users|private)/|[A-Z]:\\\\", re.ASCII)
A_RESULT = re.compile(r"(\d+(?:\.\d+)?)\s*(?:%|points\b)")
Cell = dict[str, Any]


def cells_of(notebook: Path, kind: str) -> list[Cell]:
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def trains(cell: Cell) -> bool:
    return "train" in cell["metadata"].get("tags", [])


def run_cell(source: str, namespace: dict[str, Any]) -> set[str]:
    """Run a cell as Jupyter does, and return the kinds of its output. The value of a last expression is shown."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)
    if last is None:
        return set()
    assert isinstance(last, ast.Expr)
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
    shown = {kind: getattr(value, method)() for kind, method in KINDS.items() if hasattr(value, method)}
    assert value is None or all(shown.values())
    return set(shown)


def on_tiny_data(function: Callable[..., Any], small: str, *arguments: str) -> Any:
    """Call a function whose last argument is the flags of a command, with further flags."""
    *others, flags = arguments
    return function(*others, f"{flags} {small}")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a project's folder with the reference runs, and enter the folder of its notebooks."""
    (tmp_path / "docs" / "lessons").mkdir(parents=True)
    (tmp_path / "lightning_logs").mkdir()
    (tmp_path / "lightning_logs" / "reference").symlink_to(ROOT / "lightning_logs" / "reference")
    (tmp_path / "docs" / "ablation").symlink_to(ROOT / "docs" / "ablation")
    shutil.copy(ROOT / "docs" / "double_descent.json", tmp_path / "docs")
    monkeypatch.chdir(tmp_path / "docs" / "lessons")
    return tmp_path


def test_there_are_six_lessons() -> None:
    assert [notebook.name[:2] for notebook in NOTEBOOKS] == ["1_", "2_", "3_", "4_", "5_", "6_"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom_and_shows_what_it_keeps(
    notebook: Path, project: Path, tiny: Flags, fitted: list[list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    namespace: dict[str, Any] = {}
    images = [flag for flag in tiny if flag.startswith(("--data.source", "--data.root", "--data.image_size"))]
    fewer = ["--data.train_size=40", "--data.val_size=5"]
    small = {"train": " ".join(tiny), "run_script": " ".join([*images, *fewer])}
    for cell in cells_of(notebook, "code"):
        source = "".join(cell["source"])
        capfd.readouterr()
        shown = run_cell(source, namespace)
        if not fitted and "enter_project()" in source:  # from here on, commands get tiny data
            for name in small.keys() & namespace.keys():
                namespace[name] = partial(on_tiny_data, namespace[name], small[name])
        if not trains(cell):
            kept = {kind for output in cell["outputs"] for kind in output.get("data", {})} - {"text/plain"}
            assert shown == kept, source
            printed = "".join("".join(output.get("text", "")) for output in cell["outputs"])
            assert bool(capfd.readouterr().out) == bool(printed), source
    commands = ["".join(cell["source"]) for cell in cells_of(notebook, "code") if trains(cell)]
    assert len(fitted) == len(re.findall(r"\b(?:train|run_script)\(", "\n".join(commands))) > 0
    assert Path.cwd() == project


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_its_outputs_alone(notebook: Path) -> None:
    text = notebook.read_text(encoding="utf-8")
    assert len(text.encode()) <= LARGEST
    assert A_PLACE.search(text) is None
    setup, *others = cells_of(notebook, "code")
    assert not setup["outputs"]
    for cell in others:
        assert bool(cell["outputs"]) != trains(cell), "".join(cell["source"])
        assert cell["execution_count"] is None or not trains(cell)
        assert "execution" not in cell["metadata"]
        assert all(output["output_type"] in ("execute_result", "stream") for output in cell["outputs"])
        assert all(output.get("name") != "stderr" for output in cell["outputs"])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_predicts_trains_and_ends_with_three_exercises(notebook: Path) -> None:
    text = text_of(notebook)
    assert "**Predict" in text.partition("## Start")[0]
    assert any(trains(cell) for cell in cells_of(notebook, "code"))
    assert re.search(r"\*\*(about a minute|\d+ to \d+\s+minutes)\*\*", text)
    exercises = text.rpartition("## Exercises")[2]
    assert re.findall(r"^(\d)\. ", exercises, re.MULTILINE) == ["1", "2", "3"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_result_is_typed_that_no_output_shows(notebook: Path) -> None:
    outputs = json.dumps([cell["outputs"] for cell in cells_of(notebook, "code")])
    shown = set(re.findall(r"\d+(?:\.\d+)?", re.sub(r'"image/png": "[^"]*"', "", outputs)))
    assert set(A_RESULT.findall(text_of(notebook))) <= shown


def test_a_reference_run_that_is_missing_is_named(project: Path) -> None:
    enter_project()
    with pytest.raises(RunError, match="lightning_logs/reference/nothing has no run: restore it with git checkout"):
        reference("overfit", "nothing")


def test_a_notebook_outside_of_the_project_says_where_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="is not within a clone of the project: type jupyter lab docs/lessons"):
        enter_project()


def test_a_script_that_fails_is_named(fitted: list[list[str]], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match=r"python scripts/double_descent.py --seeds 0 ended with exit status 2"):
        run_script("double_descent", "--seeds 0")
    assert "seeds" in capfd.readouterr().err


def test_tables_show_means_over_seeds_and_epochs(tmp_path: Path) -> None:
    right = np.arange(100) < 40
    runs = [Run(make_run(tmp_path / f"one/version_{seed}", right, seed=seed, probe=0.9)) for seed in (0, 1)]
    runs.append(Run(make_run(tmp_path / "a < b/version_0", ~right, dropout=0.5)))
    assert results(Comparison(runs)).rows == [
        ["setting", "seeds", "training (%)", "training images, evaluated (%)", "validation (%)", "gap (points)",
         "test (%)"],
        ["one", "2", "100.0 ± 0.0", "90.0 ± 0.0", "40.0 ± 0.0", "60.0 ± 0.0", "40.0 ± 0.0"],
        ["a < b", "1", "100.0", "", "40.0", "60.0", "60.0"],
    ]  # fmt: skip
    assert results(Comparison(runs[:2])).rows[1][-2] == "50.0 ± 0.0"
    without_probe = results(Comparison(runs[2:])).rows
    assert without_probe == [
        ["setting", "seeds", "training (%)", "validation (%)", "gap (points)", "test (%)"],
        ["a < b", "1", "100.0", "40.0", "60.0", "60.0"],
    ]
    shown = epochs(runs[0].records, [1, 5, 9], {"val_loss": "loss", "probe_acc": "probe", "probe_true_acc": "truth"})
    assert shown.rows == [["epoch", "loss", "probe", "truth"], ["1", "1.50", "90.0%", ""], ["5", "2.40", "90.0%", ""]]
    table = Table([["a", "b < {c}"], [1, None]])
    assert table._repr_html_() == ("<table><tr><th>a</th><th>b &lt; {c}</th></tr><tr><td>1</td><td></td></tr></table>")
    assert repr(table) == "a  b < {c}\n1"


def test_a_table_of_an_ablation_has_the_numbers_of_its_page(project: Path) -> None:
    enter_project()
    head, first, best, *_ = ablation("ablation/remedies", best_first=True).rows
    page = Path("docs/ablation/remedies.md").read_text(encoding="utf-8")
    assert head[0] == "setting"
    assert first[0] == "none"
    assert first[-1] == ""
    assert best[0] == "augment=trivial"
    for row in (first, best):
        for cell in filter(None, row[1:]):
            assert f"| {cell} |" in page
    levels = [row[0] for row in ablation("ablation/noise").rows[1:]]
    assert levels[:2] == ["label_noise=0.0", "label_noise=0.1"]
    with pytest.raises(RunError, match=r"docs/ablation/none.json is missing: restore it"):
        ablation("ablation/none")


def test_a_table_of_double_descent_has_the_numbers_of_its_page() -> None:
    numbers = json.loads((ROOT / "docs" / "double_descent.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "double_descent.md").read_text(encoding="utf-8")
    rows = at(numbers, [1000, 10000])
    assert rows[0][1:] == ["1,000 features", "10,000 features"]
    for name, *cells in rows[1:]:
        assert all(cell.replace("%", " %") in next(line for line in page.splitlines() if f"| {name} |" in line)
                   for cell in cells)  # fmt: skip


def test_the_temperature_moves_confidence_to_the_diagonal() -> None:
    (group,) = Comparison([Run(ROOT / "lightning_logs/reference/label_noise/version_0")]).groups
    test = group.runs[0].test
    before, after = group.calibration, group.calibration_at_temperature
    assert before is not None
    assert after is not None
    assert before.error == pytest.approx(test.calibration_error, abs=0.001)
    assert after.error == pytest.approx(test.calibration_error_at_temperature, abs=0.005)
    axes = Figure().subplots()
    draw_reliability(axes, [group], at_temperature=True)
    diagonal, line = axes.get_lines()
    assert line.get_color() == RUNS[0]
    seen = after.counts >= 10
    np.testing.assert_allclose(
        np.asarray(line.get_data()), 100 * np.stack([after.confidences, after.accuracies])[:, seen]
    )
    old = Comparison([Run(ROOT / "lightning_logs/reference/images_45000/version_0")]).groups
    draw_reliability(axes, old, at_temperature=True)
    assert len(axes.get_lines()) == 3  # the diagonal again, and no line for a run without a temperature
    assert diagonal.get_xdata() is not None


def test_calibration_at_the_temperature_of_a_network_that_is_very_sure(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 200)
    logits = log_softmax(random.normal(scale=40, size=(200, 3)) + 40 * np.eye(3)[labels], axis=1)
    exact = calibration(at_temperature(logits, 20), labels).error
    right = logits.argmax(axis=1) == labels
    test = {"checkpoint": "best", "loss": 1.0, "acc": float(right.mean()), "images": 200, "temperature": 20}
    test["calibration_error_at_temperature"] = exact
    folder = make_run(tmp_path / "sure/version_0", right, test=test)

    def measured(**kept: Any) -> Calibration | None:
        np.savez(folder / "images.npz", test_labels=labels, test_predictions=logits.argmax(axis=1), **kept)
        (group,) = Comparison([Run(folder)]).groups
        assert group.calibration is not None
        return group.calibration_at_temperature

    after = measured(test_logits=logits.astype(np.float16))
    assert after is not None
    assert after.error == pytest.approx(exact, abs=5e-4)
    assert measured(test_probabilities=np.exp(logits).astype(np.float16)) is None, "of an earlier version: most are 0"


def test_a_gallery_names_each_image(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    figure = gallery([Captioned(pixels, f"caption {number}", "note") for number in range(5)], "all", columns=3)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == [f"caption {number}\nnote" for number in range(5)]
    assert sum(bool(axes.images) for axes in figure.axes) == 5
    without = Comparison([Run(make_run(tmp_path / "one/version_0", np.arange(9) < 4, images=False))]).runs[0]
    assert training_images(without, "most_forgotten") is None
