"""Searches of a tuner: ``KEY=LOW..HIGH`` and ``KEY=A,B,C``, checked by the parser of ``fit.py``."""

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from itertools import zip_longest
from typing import Any

from jsonargparse import Namespace
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from overfitting_lab.cli.experiment import ExperimentCLI
from overfitting_lab.cli.failures import REPORTED
from overfitting_lab.runs.recipe import decides, flat
from overfitting_lab.sweeps.tuning import SearchError

WIDE = 10  # a range above 0 whose ends differ by more than this factor is searched on a logarithmic scale
REFUSED = {
    **dict.fromkeys(
        ("seed_everything", "data.seed"),
        "a seed is luck, not a setting; --confirm N trains the winner with N other seeds",
    ),
    "monitor": "it is what the search compares the trials by; give --monitor",
    **dict.fromkeys(
        (
            "data.source",
            "data.split",
            "data.split_seed",
            "data.train_size",
            "data.val_size",
            "trainer.limit_val_batches",
        ),
        "trials must have the same validation images; give it as a flag for all trials",
    ),
    "trainer.limit_test_batches": "a trial does not see the test images",
}


class Settings(ExperimentCLI):
    """The settings of a command line. Nothing is built from them."""

    def instantiate_classes(self) -> None:
        """Build nothing."""


def read_searches(texts: Sequence[str], fit: Sequence[str]) -> dict[str, BaseDistribution]:
    """Return the values that each searched setting may have, by the setting's flag.

    A range is searched on a logarithmic scale if both ends are above 0 and their ratio is above 10. A range between
    whole numbers of a whole-numbered setting gives whole numbers. Choices stay text, which ``fit.py`` parses.

    Args:
        texts: what ``--search`` was given, such as ``model.optimizer.lr=1e-5..1e-1``.
        fit: the flags of ``fit.py`` that all trials have in common.

    Raises:
        SearchError: if a search is wrong. The message names it.
    """
    searches: dict[str, BaseDistribution] = {}
    levels: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.removeprefix("--").replace(".init_args", "")
        if not equals or (not (is_range := "," not in values and ".." in values) and "," not in values):
            raise SearchError(f"--search {text}: write KEY=LOW..HIGH or KEY=A,B,C")
        if key in searches:
            raise SearchError(f"--search {key} is given twice")
        if any(flag.partition("=")[0].replace(".init_args", "") == f"--{key}" for flag in fit):
            raise SearchError(f"--search {key}: --{key} also fixes this setting; leave one of the two out")
        if key in REFUSED or not decides(key):
            raise SearchError(f"--search {key}: {REFUSED.get(key, 'this setting does not change the result of a run')}")
        levels[key] = values.split("..") if is_range else values.split(",")
        parsed = [_value(text, key, level, fit) for level in levels[key]]
        searches[key] = _range(text, parsed) if is_range else _choice(text, levels[key])
    for together in zip_longest(*levels.values()):
        chosen = {key: level or levels[key][0] for key, level in zip(levels, together, strict=True)}
        flags = [f"--{key}={level}" for key, level in chosen.items()]
        _attempt(ExperimentCLI, [*fit, *flags], f"a trial with {' '.join(flags)} cannot be built")
    return searches


def _value(text: str, key: str, level: str, fit: Sequence[str]) -> Any:
    """Return one value as ``fit.py`` parses it."""
    settings = _attempt(Settings, [*fit, f"--{key}={level}"], f"--search {text}").config.as_dict()
    if key not in (found := flat(settings)):
        raise SearchError(f"--search {text}: {key} is no single setting; name one of those below it")
    return found[key]


def _attempt(kind: type[ExperimentCLI], arguments: Sequence[str], what: str) -> ExperimentCLI:
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return kind([*arguments], keep=False)
    except SystemExit:
        message = said.getvalue().partition("error: ")[2].partition("\nhelp: ")[0]
        raise SearchError(f"{what}: {message}") from None
    except REPORTED as error:
        raise SearchError(f"{what}: {error}") from error


def _range(text: str, ends: Sequence[Any]) -> BaseDistribution:
    if len(ends) != 2 or any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
        raise SearchError(f"--search {text}: a range has two numbers; list other values as A,B,C")
    low, high = ends
    if not low < high:
        raise SearchError(f"--search {text}: the low end must be below the high end")
    log = low > 0 and high / low > WIDE
    whole = isinstance(low, int) and isinstance(high, int)
    return IntDistribution(low, high, log=log) if whole else FloatDistribution(low, high, log=log)


def _choice(text: str, values: Sequence[str]) -> BaseDistribution:
    if len(set(values)) < len(values) or "" in values:
        raise SearchError(f"--search {text}: a value is empty or given twice")
    return CategoricalDistribution(values)


def search_line(key: str, values: BaseDistribution) -> str:
    """Return a line that says what is searched, and on which scale."""
    if isinstance(values, CategoricalDistribution):
        return f"search     {key}: {', '.join(map(str, values.choices))}"
    assert isinstance(values, IntDistribution | FloatDistribution)
    kind = "whole numbers, " if isinstance(values, IntDistribution) else ""
    scale = "logarithmic" if values.log else "linear"
    return f"search     {key}: {values.low:g} to {values.high:g}, {kind}{scale} scale"


def refuse_flags(config: Namespace, flags: Sequence[str]) -> None:
    """Refuse flags of ``fit.py`` with which a trial would leave no run, no validation or no checkpoint.

    Raises:
        SearchError: if there is such a flag. The message names it.
    """
    trainer = config.trainer
    given = [flag.partition("=")[0] for flag in flags]
    own = [name for name in ("--resume", "--ckpt_path", "--check") if name in given]
    kept, best = "a trial must keep its run", "the validation decides which trial is the best"
    wrong = [
        *((name, True, "the tuner begins and resumes the runs itself") for name in own),
        ("--trainer.fast_dev_run", trainer.fast_dev_run, kept),
        ("--trainer.logger false", trainer.logger is False, kept),
        (
            "--trainer.enable_checkpointing false",
            trainer.enable_checkpointing is False,
            "the winner needs a checkpoint",
        ),
        ("--trainer.limit_val_batches 0", trainer.limit_val_batches == 0, best),
        ("--trainer.limit_test_batches 0", trainer.limit_test_batches == 0, "the winner is tested"),
    ]
    for flag, is_wrong, reason in wrong:
        if is_wrong:
            raise SearchError(f"{flag}: {reason}; leave it out")
