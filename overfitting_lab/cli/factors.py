"""The factors of the command line, checked before anything is trained."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.errors import DataError
from overfitting_lab.callbacks.limits import LimitError
from overfitting_lab.cli.configurations import available_configs, find_config
from overfitting_lab.cli.finished import planned_experiment
from overfitting_lab.distributed.last_words import say
from overfitting_lab.runs import UsageError
from overfitting_lab.runs.recipe import decides, read_settings, recipe, setting_name
from overfitting_lab.sweeps.designs import Cell, Design, one_at_a_time
from overfitting_lab.sweeps.factors import OFF, ON, SEED, SUBSET, Command, Factor

OWN = {SEED.key: "--seeds", SUBSET.key: "--subsets"}  # settings that the script varies by flags of its own
PAUSE = 10  # seconds between two lines about the check
DIGITS = 12  # of the digest of a configuration


def read_factors(
    texts: Sequence[str], configs: Sequence[str], flags: Sequence[str], *, alone: bool, subsets: int
) -> list[Factor]:
    """Return the factors of ``SETTING=LEVEL,LEVEL`` or of a configuration's name, with typed levels.

    Args:
        texts: what was given with ``--factor``.
        configs: configurations of all trials.
        flags: flags of ``fit.py`` of all trials.
        alone: if true, a trial has at most one factor that is not at its first level.
        subsets: number of sets of training images.

    Raises:
        UsageError: if a factor cannot vary as asked for.
    """
    factors = [_read(text) for text in texts]
    keys = [factor.key for factor in factors]
    for factor in factors:
        if keys.count(factor.key) > 1:
            raise UsageError(f"--factor {factor.key} is given twice: name all its levels at once")
        refuse_fixed([factor], flags)
        for other in factors if not alone else ():
            both = sorted(factor.sets & (other.sets or {other.key})) if other is not factor else []
            if both:
                raise UsageError(
                    f"--factor {factor.key} sets {both[0]}, and so does --factor {other.key}: leave one out, or train "
                    "each alone with --one_at_a_time"
                )
    return _typed(_named(factors), configs, flags, subsets)


def refuse_fixed(factors: Sequence[Factor], flags: Sequence[str]) -> None:
    """Refuse flags of ``fit.py`` for settings that the trials vary.

    Raises:
        UsageError: if there is one.
    """
    given = set(map(setting_name, flags))
    for factor in factors:
        if factor.key in given:
            raise UsageError(
                f"--{factor.key}: the trials set this themselves; see --factor, --train_size, --seeds and --subsets"
            )


def _read(text: str) -> Factor:
    key, equals, levels = text.removeprefix("--").partition("=")
    if not equals:
        path = Path(find_config(key))
        if not path.is_file():
            raise UsageError(
                f"--factor {key} is neither SETTING=LEVEL,LEVEL nor a configuration\n"
                f"available configurations: {', '.join(available_configs())}"
            )
        sets = {name for name in read_settings(path) if decides(name) and not name.endswith("+")} - OWN.keys()
        return Factor(key, key, (OFF, ON), frozenset(sets | {key}))
    key = setting_name(key)
    if key in OWN:
        raise UsageError(f"--factor {key}: the trials set this themselves; see {OWN[key]}")
    if not decides(key):
        raise UsageError(f"--factor {key}: this setting does not change the result of a run")
    found = split_levels(levels)
    if len(found) < 2 or "" in found:
        raise UsageError(
            f"--factor {text}: a factor needs two levels or more, as in --factor model.dropout=0,0.5; a setting that "
            f"all trials share is a flag: --{text}"
        )
    if twice := [level for level in found if found.count(level) > 1]:
        raise UsageError(f"--factor {key}: the level {twice[0]} is given twice")
    return Factor(key, key, tuple(found))


def split_levels(text: str) -> list[str]:
    """Split at commas that are outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        quote = "" if letter == quote else quote or (letter if letter in "\"'" else "")
        depth += 0 if quote else (letter in "[{(") - (letter in ")}]")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _named(factors: Sequence[Factor]) -> list[Factor]:
    """Name each setting by its last word, and each configuration by its file's stem, if no other factor has it."""
    words = [
        Path(factor.key.removesuffix(".yaml")).name if factor.sets else factor.key.rpartition(".")[2]
        for factor in factors
    ]
    taken = {SUBSET.name, SEED.name}
    return [
        replace(factor, name=word if words.count(word) == 1 and word not in taken else factor.key)
        for factor, word in zip(factors, words, strict=True)
    ]


def _typed(factors: Sequence[Factor], configs: Sequence[str], flags: Sequence[str], subsets: int) -> list[Factor]:
    """Return the factors with the values of their levels, after every level was built once.

    Raises:
        UsageError: if a level does not fit the setting or the data, or two levels are the same.
    """
    command = Command(configs, flags, factors)
    design = one_at_a_time(factors)
    first, *others = design.cells
    last = last_subset(subsets)
    names = " ".join(f"--factor {factor.key}={factor.levels[0]}" for factor in factors)
    planned = planned_trial(command, {**first, **last}, names)
    found: dict[str, list[Any]] = {}  # levels by the factor's name
    recipes = {factor.name: {json.dumps(planned[1], sort_keys=True): factor.levels[0]} for factor in factors}
    digests: dict[str, str] = {}  # of configurations, by the factor's name
    for factor in factors:
        if not factor.sets and factor.levels[0] != "null" and factor.key not in planned[0]:
            raise UsageError(
                f"--factor {factor.key} is no setting of this experiment; see python scripts/fit.py --help"
            )
        found[factor.name] = [_value(factor, factor.levels[0], planned[0])]
    for cell in _reported(others, "level"):
        factor = next(each for each in factors if design.changed(cell) == (each.name,))
        level = cell[factor.name]
        settings, made = planned_trial(command, {**cell, **last}, _flag(factor, level))
        same = recipes[factor.name].setdefault(json.dumps(made, sort_keys=True), level)
        if same != level:
            what = (
                "changes nothing here"
                if factor.sets
                else f"has the levels {same} and {level}, which are the same value"
            )
            raise UsageError(f"--factor {factor.key} {what}")
        found[factor.name].append(_value(factor, level, settings))
        if factor.sets:
            digests[factor.name] = _digest(factor, planned[1], made)
    return [
        replace(factor, levels=tuple(found[factor.name]), digest=digests.get(factor.name, "")) for factor in factors
    ]


def _digest(factor: Factor, without: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """Return a digest of a configuration's own settings, and of what it changes in the recipe ``without`` it."""
    own = {name: value for name, value in read_settings(Path(find_config(factor.key))).items() if decides(name)}
    changed = {name: made.get(name) for name in made.keys() | without.keys() if made.get(name) != without.get(name)}
    return hashlib.sha256(json.dumps([own, changed], sort_keys=True).encode()).hexdigest()[:DIGITS]


def check_cells(design: Design, command: Command, subsets: int) -> None:
    """Build a trial of every cell, because configurations may not fit together. Nothing is trained.

    Raises:
        UsageError: if the images do not suffice, or two cells would train the same.
        SystemExit: if levels do not fit together.
    """
    last = last_subset(subsets)
    found: dict[str, str] = {}  # cells by their recipe
    for cell in _reported(design.cells, "cell"):
        changed = [factor for factor in design.factors if factor.name in design.changed(cell)]
        what = " ".join(_flag(each, cell[each.name]) for each in changed) or "the first levels"
        made = json.dumps(planned_trial(command, {**cell, **last}, what)[1], sort_keys=True)
        if found.setdefault(made, what) != what:
            raise UsageError(f"{what} trains the same as {found[made]}: leave one of the factors out")


def _reported(cells: Sequence[Cell], what: str) -> Iterator[Cell]:
    """Yield cells, whose checks may take seconds each, and print how many are checked, at most every 10 seconds."""
    print(f"checking   {len(cells)} {what}{'s' * (len(cells) > 1)}", flush=True)
    said = time.monotonic()
    for done, cell in enumerate(cells):
        if time.monotonic() - said >= PAUSE:
            said = time.monotonic()
            print(f"           {done} of {len(cells)} are checked", flush=True)
        yield cell


def _flag(factor: Factor, level: Any) -> str:
    return f"--factor {factor.key}" if factor.sets else f"--factor {factor.key}={level}"


def _value(factor: Factor, level: str, settings: dict[str, Any]) -> Any:
    whole = factor.sets or level.startswith("{")  # a class with its settings, which stand under flags of their own
    value = level if whole else settings.get(factor.key)
    return value if isinstance(value, str | int | float | None) else json.dumps(value)


def last_subset(subsets: int) -> dict[str, int]:
    """Return the setting of the last of several subsets. If it has enough images, all subsets have."""
    return {SUBSET.name: subsets - 1} if subsets > 1 else {}


def planned_trial(command: Command, setting: Mapping[str, Any], what: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return all settings of a trial, and the settings that decide its result. Nothing is trained.

    Raises:
        UsageError: if the images do not suffice; the message begins with ``what``.
        SystemExit: if a setting or its value is wrong; the message ends with ``what``.
    """
    try:
        _, settings, cli = planned_experiment(command.line(setting))
    except (DataError, LimitError) as error:
        raise UsageError(f"{what}: {error}") from error
    except SystemExit:  # the parser has said what is wrong
        say(f"with {what}")
        raise
    return settings, recipe(settings, cli.datamodule.description())
