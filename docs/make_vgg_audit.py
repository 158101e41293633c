"""python docs/make_vgg_audit.py.

Write docs/vgg_audit.md from docs/vgg_audit.yaml, which holds what people wrote, and from the configurations, which
hold the values.
"""

import io
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import yaml

from overfitting_lab.cli import ExperimentCLI
from overfitting_lab.runs.recipe import flat
from overfitting_lab.runs.templates import render

FOLDER = Path(__file__).resolve().parent
EXPERIMENTS = ("vgg16_notebook", "vgg16", "vgg16_32")  # in the order of their columns
DERIVED = {  # by the row's name: facts that no setting holds alone, or that a default leaves open
    "head": lambda s: "{0}-{1}-{1}-10".format(512 * (s["data.image_size"] // 32) ** 2, s["model.hidden_features"]),
    "the schedule steps every": lambda s: s["model.lr_scheduler_interval"] or "epoch",
    "iterations an epoch": lambda s: -(-45_000 // s["data.batch_size"]),
}


def settings(text: str) -> dict[str, Any]:
    """Return the settings of a configuration's text by their flags; a callback's follow ``trainer.callbacks``."""
    config = yaml.safe_load(text)
    callbacks = config["trainer"].pop("callbacks", None) or []
    if len(callbacks) > 1:
        raise SystemExit("a configuration has more than one callback: the audit can show only one")
    return flat(config) | {key: value for item in callbacks for key, value in flat({"trainer.callbacks": item}).items()}


def written(name: str) -> dict[str, Any]:
    """Return the settings that stand in a configuration's file."""
    return settings((FOLDER.parent / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))


def page() -> str:
    """Return the page.

    Raises:
        SystemExit: if a setting of the three files has no row, or a row is of no setting that there is.
    """
    audit = yaml.safe_load((FOLDER / "vgg_audit.yaml").read_text(encoding="utf-8"))
    columns = {}  # all settings of each configuration, defaults included
    for name in EXPERIMENTS:
        with redirect_stdout(io.StringIO()) as out, suppress(SystemExit):
            ExperimentCLI(["--config", f"{name}.yaml", "--print_config"])
        columns[name] = settings(out.getvalue())
    rows = {row["setting"] for row in audit["rows"] if "setting" in row}
    if missing := {key for name in EXPERIMENTS for key in written(name)} - rows - {"experiment"}:
        raise SystemExit(f"docs/vgg_audit.yaml has no row of {', '.join(sorted(missing))}: add one")
    if unknown := rows - {key for column in columns.values() for key in column}:
        raise SystemExit(f"docs/vgg_audit.yaml has rows of settings that no configuration has: {', '.join(unknown)}")
    for row in audit["rows"]:
        flag = row.get("setting")
        value = DERIVED.get(row["what"], lambda settings, flag=flag: settings.get(flag))
        row["values"] = {name: value(column) for name, column in columns.items()}
    return render(FOLDER / "vgg_audit.jinja", audit)


if __name__ == "__main__":
    (FOLDER / "vgg_audit.md").write_text(page(), encoding="utf-8")
