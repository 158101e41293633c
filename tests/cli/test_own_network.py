"""A network outside of the repository: the example of docs/howto.md, as a reader would type it."""

import re
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Flags, Script
from tests.scripts.test_errors import check_one_message

RUN = Path("lightning_logs/my_net/version_0")
EXAMPLE = (ROOT / "docs" / "howto.md").read_text(encoding="utf-8").partition("\n## Add a network\n")[2]


def block(language: str) -> str:
    return str(re.findall(rf"^```{language}\n(.*?)^```", EXAMPLE, re.MULTILINE | re.DOTALL)[0])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder elsewhere that has the example's files. Python forgets them after the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.delitem(sys.modules, "my_net", raising=False)
    mine = tmp_path / "elsewhere" / "mine"
    mine.mkdir(parents=True)
    (mine / "my_net.py").write_text(block("python"))
    (mine / "my_net.yaml").write_text(block("yaml"))
    return mine


def forget(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let Python be a new process, which does not know the folder."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(folder)])
    monkeypatch.delitem(sys.modules, "my_net", raising=False)


@pytest.fixture
def small(tiny: Flags) -> list[str]:
    return [flag for flag in tiny if not flag.startswith("--model")]


def test_the_example_trains_tests_resumes_and_predicts(
    folder: Path, small: list[str], run_script: Script, monkeypatch: pytest.MonkeyPatch, image_folder: Path
) -> None:
    lines = [line for kind in ("python", "yaml", "sh") for line in block(kind).splitlines() if line]
    assert len(lines) <= 15
    assert lines[-1] == "python scripts/fit.py --config my_net.yaml"
    config = f"--config={folder / 'my_net.yaml'}"
    more = ("--model.label_smoothing=0.1", "--model.channels=4")
    outcome = run_script("fit", config, *small, *more)
    assert outcome.status == 0, outcome.err
    assert "class_path: my_net.MyNet" in (RUN / "config.yaml").read_text()
    forget(monkeypatch, folder)
    outcome = run_script("fit", "--resume", RUN, config, "--model.channels=4", "--trainer.max_epochs=3")
    assert outcome.status == 0, outcome.err
    image = next(image_folder.rglob("*.png"))
    outcome = run_script("predict", RUN, image)
    assert outcome.status == 0, outcome.err

    forget(monkeypatch, folder)
    for command in (("predict", RUN, image), ("fit", "--resume", RUN), ("test", RUN)):
        outcome = run_script(*command)
        check_one_message(outcome, outcome.status)
        assert "my_net.MyNet" in outcome.err
        assert "cannot be imported: there is no module my_net: lay my_net.py beside" in outcome.err
        assert "PYTHONPATH=FOLDER" in outcome.err


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "my_net.MyNet cannot be imported: there is no module my_net"),
        ("import no_such_package\n", "my_net needs no_such_package, which is not there: install it"),
        ("class Other: pass\n", "has no MyNet"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("class MyNet:\n", "IndentationError"),
    ],
)
def test_a_module_that_cannot_be_imported(
    code: str | None, words: str, folder: Path, small: list[str], run_script: Script
) -> None:
    (folder / "my_net.py").unlink()
    if code is not None:
        (folder / "my_net.py").write_text(code)
    outcome = run_script("fit", f"--config={folder / 'my_net.yaml'}", *small)
    check_one_message(outcome, outcome.status)
    assert words in outcome.err


def test_a_name_that_is_also_somebody_elses(folder: Path, small: list[str], run_script: Script) -> None:
    (folder / "my_net.py").rename(folder / "colorsys.py")
    config = folder / "my_net.yaml"
    config.write_text(config.read_text().replace("my_net.MyNet", "colorsys.MyNet"))
    outcome = run_script("fit", f"--config={config}", *small)
    check_one_message(outcome, 2)
    assert "names colorsys, but Python imports it from" in outcome.err
    assert f"rename {folder / 'colorsys.py'}" in outcome.err
