"""The searches of the command line, ``KEY=LOW..HIGH`` and ``KEY=A,B,C``, checked by the parser of ``fit.py``."""

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
from overfitting_lab.cli.factors import split_levels
from overfitting_lab.cli.failures import REPORTED
from overfitting_lab.runs import UsageError
from overfitting_lab.runs.recipe import decides, flat, setting_name

WIDE = 10  # a range above 0 whose ends differ by more than this factor is searched on a logarithmic scale
SEEDS = ("seed_everything", "data.seed")
VALIDATION = (
    "data.source", "data.split", "data.split_seed", "data.subset", "data.train_size", "data.val_size",
    "trainer.limit_val_batches",
)  # fmt: skip
REFUSED = {  # settings that decide a result, but cannot be searched
    **dict.fromkeys(SEEDS, "a seed cannot be tuned; --confirm N trains the winner with N other seeds"),
    **dict.fromkeys(VALIDATION, "trials must have the same validation images; give it as a flag for all trials"),
    "monitor": "the search compares the trials by it; give --monitor",
    **dict.fromkeys(("trainer.enable_checkpointing", "trainer.fast_dev_run"), "each trial needs its checkpoints"),
    "trainer.limit_test_batches": "a trial does not see the test images",
}


class ParsedExperiment(ExperimentCLI):
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
        UsageError: if a search is wrong. The message names it.
    """
    searches: dict[str, BaseDistribution] = {}
    levels: dict[str, list[str]] = {}
    for text in texts:
        key, values = setting_name(text), text.partition("=")[2]
        choices = split_levels(values)
        is_range = len(choices) == 1
        if is_range and ".." not in values:
            raise UsageError(f"--search {text}: write KEY=LOW..HIGH or KEY=A,B,C")
        if is_range and "..." in values:
            raise UsageError(
                f"--search {text}: three dots are unclear; write two dots, as in KEY=LOW..HIGH, and 0.1 instead of .1"
            )
        if key in searches:
            raise UsageError(f"--search {key} is given twice")
        if key in map(setting_name, fit):
            raise UsageError(f"--search {key}: --{key} also fixes this setting; leave one of the two out")
        if key in REFUSED or not decides(key):
            raise UsageError(f"--search {key}: {REFUSED.get(key, 'this setting does not change the result of a run')}")
        levels[key] = values.split("..") if is_range else choices
        parsed = [_value(text, key, level, fit) for level in levels[key]]
        searches[key] = _range(text, parsed) if is_range else _choice(text, choices)
    for together in zip_longest(*levels.values()):
        chosen = {key: level or levels[key][0] for key, level in zip(levels, together, strict=True)}
        flags = [f"--{key}={level}" for key, level in chosen.items()]
        _built(ExperimentCLI, [*fit, *flags], f"a trial with {' '.join(flags)} cannot be built")
    return searches


def _value(text: str, key: str, level: str, fit: Sequence[str]) -> Any:
    """Return one value as ``fit.py`` parses it."""
    settings = _built(ParsedExperiment, [*fit, f"--{key}={level}"], f"--search {text}").config.as_dict()
    if key not in (found := flat(settings)):
        raise UsageError(f"--search {text}: {key} is no single setting; name one of those below it")
    return found[key]


def _built(kind: type[ExperimentCLI], arguments: Sequence[str], what: str) -> ExperimentCLI:
    """Return the experiment of a command line. An error's message begins with ``what``."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return kind([*arguments], keep=False)
    except SystemExit:
        message = said.getvalue().partition("error: ")[2].partition("\nhelp: ")[0]
        raise UsageError(f"{what}: {message}") from None
    except REPORTED as error:
        raise UsageError(f"{what}: {error}") from error


def _range(text: str, ends: Sequence[Any]) -> BaseDistribution:
    if len(ends) != 2 or any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
        raise UsageError(f"--search {text}: a range has two numbers; list other values as A,B,C")
    low, high = ends
    if not low < high:
        raise UsageError(f"--search {text}: the low end must be below the high end")
    log = low > 0 and high / low > WIDE
    whole = isinstance(low, int) and isinstance(high, int)
    return IntDistribution(low, high, log=log) if whole else FloatDistribution(low, high, log=log)


def _choice(text: str, values: Sequence[str]) -> BaseDistribution:
    if len(set(values)) < len(values) or "" in values:
        raise UsageError(f"--search {text}: a value is empty or given twice")
    return CategoricalDistribution(values)


def search_line(key: str, values: BaseDistribution) -> str:
    """Return a line that names a searched setting, its values and their scale."""
    if isinstance(values, CategoricalDistribution):
        return f"search     {key}: {', '.join(map(str, values.choices))}"
    assert isinstance(values, IntDistribution | FloatDistribution)
    kind = "whole numbers, " if isinstance(values, IntDistribution) else ""
    scale = "logarithmic" if values.log else "linear"
    return f"search     {key}: {values.low:g} to {values.high:g}, {kind}{scale} scale"


def refuse_flags(config: Namespace, flags: Sequence[str]) -> None:
    """Refuse flags of ``fit.py`` that would leave a trial without a run, a validation or a checkpoint.

    Raises:
        UsageError: if there is such a flag. The message names it.
    """
    trainer = config.trainer
    given = [flag.partition("=")[0] for flag in flags]
    own = [name for name in ("--resume", "--ckpt_path", "--check") if name in given]
    kept, compared = "a trial must keep its run", "the validation decides which trial is the best"
    checkpointing, validated = trainer.enable_checkpointing, trainer.limit_val_batches
    some = validated is not None and not (isinstance(validated, float) and validated == 1.0)
    wrong = [
        *((name, True, "the tuner begins and resumes the runs itself") for name in own),
        ("--trainer.fast_dev_run", trainer.fast_dev_run, kept),
        ("--trainer.logger false", trainer.logger is False, kept),
        ("--trainer.enable_checkpointing false", checkpointing is False, "the winner needs a checkpoint"),
        ("--trainer.limit_val_batches 0", validated == 0, compared),
        (f"--trainer.limit_val_batches {validated}", some, "--data.val_size says how many images compare the trials"),
        ("--trainer.limit_test_batches 0", trainer.limit_test_batches == 0, "the winner is tested"),
    ]
    for flag, is_wrong, reason in wrong:
        if is_wrong:
            raise UsageError(f"{flag}: {reason}; leave it out")
