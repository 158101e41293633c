"""docs/trainer.md is what its script makes of the table."""

import runpy
from pathlib import Path

from tests.conftest import ROOT

SCRIPT = Path("docs", "make_trainer.py")


def test_page_is_what_the_script_writes() -> None:
    written = (ROOT / "docs" / "trainer.md").read_text()
    assert written == runpy.run_path(str(ROOT / SCRIPT))["page"](), f"run: python {SCRIPT}"
