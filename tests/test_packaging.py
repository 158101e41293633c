import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.builders.wheel import WheelBuilder

from tests.conftest import ROOT


def test_the_wheel_holds_three_packages_and_the_configurations(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = [Path(name) for name in ZipFile(wheel).namelist()]
    packages = {name.parts[0] for name in names if not name.parts[0].endswith(".dist-info")}
    assert packages == {"datamodules", "lightning_modules", "overfitting_lab"}
    folder = Path("overfitting_lab/configs")
    packed = {name.relative_to(folder) for name in names if name.is_relative_to(folder)}
    assert packed == {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert any(name.name == "report.html" for name in names)


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_a_script_without_an_installation_says_what_to_type(script: Path) -> None:
    command = [sys.executable, "-I", "-S", str(script)]  # without site-packages
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 1
    assert outcome.stderr.count("\n") == 1
    assert "No module named" in outcome.stderr
    assert "; activate the project's environment, or install it: pip install -e ." in outcome.stderr


@pytest.mark.thorough
def test_the_packages_import_beside_others_and_leave_the_environment_as_it_is(tmp_path: Path) -> None:
    for name in ("callbacks", "cli", "doctor", "reporting", "runs", "comparison"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not this one')")
    code = """import os, runpy, sys
before = dict(os.environ)
import benchmarks.report, datamodules, lightning_modules, overfitting_lab.cli, overfitting_lab.comparison.report
others = ("PYTORCH_", "TORCHINDUCTOR_")  # importing Lightning and torch sets these
changed = {name for name, _ in before.items() ^ os.environ.items() if not name.startswith(others)}
assert not changed, changed
import matplotlib
assert matplotlib.get_backend() == "svg"
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    command = [sys.executable, "-c", code, str(ROOT / "scripts" / "fit.py"), "--config=overfit", "--print_config"]
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "MPLBACKEND": "svg", "RANK": "0"}
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert "experiment: overfit\n" in outcome.stdout
