"""docs/callbacks.md has the table that its script makes of the contracts."""

import runpy
from pathlib import Path

from tests.conftest import ROOT

SCRIPT = Path("docs", "make_callbacks.py")


def test_page_is_what_the_script_writes() -> None:
    written = (ROOT / "docs" / "callbacks.md").read_text()
    assert written == runpy.run_path(str(ROOT / SCRIPT))["page"](), f"run: python {SCRIPT}"
