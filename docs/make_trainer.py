"""python docs/make_trainer.py.

Write docs/trainer.md from the table of the Trainer's flags, overfitting_lab/cli/trainer_flags.py.
"""

from pathlib import Path

from overfitting_lab.cli.trainer_flags import TRAINER_FLAGS
from overfitting_lab.runs.templates import render

FOLDER = Path(__file__).resolve().parent


def page() -> str:
    """Return the page."""
    return render(FOLDER / "trainer.jinja", {"flags": TRAINER_FLAGS})


if __name__ == "__main__":
    (FOLDER / "trainer.md").write_text(page(), encoding="utf-8")
