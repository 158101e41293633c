"""Factors, levels, effects and values in words, for pages and messages."""

from collections.abc import Sequence
from typing import Any

from overfitting_lab.runs.epochs import Monitor
from overfitting_lab.sweeps.designs import Cell, Design, Term
from overfitting_lab.sweeps.factors import ON

NAMED = 4  # factors in the name of a page


def page_name(design: Design, size: int | None, *, named: bool) -> str:
    """Return the name of a page's files, with the number of training images, and with the factors if ``named``."""
    names = [factor.name.replace("/", "-") for factor in design.factors if named]
    more = [f"{len(names) - NAMED + 1}_more"] if len(names) > NAMED else []
    return "-".join([design.kind, *(names[: NAMED - 1] + more if more else names), *([str(size)] if size else [])])


def factor_name(name: str) -> str:
    """Return a readable name of a factor, such as ``weight decay``."""
    return {"augment": "augmentation"}.get(name, name.replace("_", " "))


def remedy_name(remedies: Sequence[str]) -> str:
    """Return a readable name of the factors that are not at their first level, such as ``dropout and weight decay``."""
    *others, last = map(factor_name, remedies or ["none"])
    return f"{', '.join(others)} and {last}" if others else last


def effect_name(terms: Sequence[Term]) -> str:
    """Return a name of an effect, such as ``dropout x augmentation``; aliases are joined by ``=``."""
    return " = ".join(" x ".join(map(factor_name, term)) for term in terms)


def cell_name(design: Design, cell: Cell) -> str:
    """Return the factors that are not at their first level with their levels, such as ``weight decay 0.0001``."""
    return ", ".join(
        f"{factor_name(name)} {level_name(cell[name])}".removesuffix(f" {ON}") for name in design.changed(cell)
    )


def level_name(level: Any) -> str:
    """Return a level as text, such as ``1,000``."""
    return f"{level:,}" if isinstance(level, int) and not isinstance(level, bool) else str(level)


def trial_name(number: int) -> str:
    """Return the name of a trial for people, who count from 1; Optuna counts from 0."""
    return f"trial {number + 1}"


def shown(value: float, monitor: Monitor) -> str:
    """Return a validation value as text: an accuracy in per cent, another metric as it is."""
    return f"{value:.1%}" if monitor == "val_acc" else f"{value:.4f}"


def unit_of(monitor: Monitor) -> str:
    """Return the unit of a validation value that is no accuracy, after a space: a loss is in nats."""
    return " nats" if monitor == "val_loss" else ""
