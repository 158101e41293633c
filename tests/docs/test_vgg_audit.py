"""docs/vgg_audit.md is what its script makes of the configurations."""

import runpy
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = Path("docs", "make_vgg_audit.py")


def test_page_is_what_the_script_writes() -> None:
    written = (ROOT / "docs" / "vgg_audit.md").read_text()
    assert written == runpy.run_path(str(ROOT / SCRIPT))["page"](), f"run: python {SCRIPT}"


@pytest.mark.parametrize(
    ("replaced", "by", "message"),
    [
        ("trainer.max_epochs", "trainer.min_epochs", "has no row of trainer.max_epochs: add one"),
        ("rows:\n", "rows:\n- {setting: data.x}\n", "rows of settings that no configuration has: data.x"),
    ],
)
def test_refuses_rows_that_do_not_fit_the_configurations(tmp_path: Path, replaced: str, by: str, message: str) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / SCRIPT, tmp_path / "docs")
    audit = (ROOT / "docs" / "vgg_audit.yaml").read_text()
    (tmp_path / "docs" / "vgg_audit.yaml").write_text(audit.replace(replaced, by))
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(str(tmp_path / SCRIPT))["page"]()


def test_vgg11_is_vgg16_with_configuration_a() -> None:
    written = runpy.run_path(str(ROOT / SCRIPT))["written"]
    assert {**written("vgg16"), "experiment": "vgg11", "model.configuration": "A"} == written("vgg11")
