"""docs/double_descent.md is what the script makes of the numbers beside it."""

import json

from overfitting_lab.double_descent.page import page
from tests.conftest import ROOT


def test_page_is_what_the_script_writes() -> None:
    numbers = json.loads((ROOT / "docs" / "double_descent.json").read_text())
    assert (ROOT / "docs" / "double_descent.md").read_text() == page(numbers)
