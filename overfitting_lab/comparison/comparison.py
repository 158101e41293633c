"""Differences between runs, and the conclusions that their numbers allow."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations
from typing import Any

import numpy as np

from overfitting_lab.comparison.ensemble import Ensemble, ensemble
from overfitting_lab.comparison.groups import Group, NamedRun
from overfitting_lab.comparison.statistics import (
    CONFIDENCE,
    Difference,
    mean_cell,
    paired_difference,
    unpaired_difference,
    welch_difference,
)
from overfitting_lab.runs import Run, RunError
from overfitting_lab.runs.epochs import last_gap, over_fits_since
from overfitting_lab.runs.text import readable

SEED = "seed_everything"
NAMED = 3  # groups in the name of a report's folder
LONGEST = 80  # characters in this name
LONGEST_SETTINGS = 40  # characters of the settings in a run's name
PAIRS = 10  # with more pairs than this, sentences describe only the pairs of the best setting


@dataclass(frozen=True)
class Pair:
    """The difference between two settings on the same test images."""

    first: str  # name of a group
    second: str  # name of another group
    difference: Difference  # test accuracy of the first minus test accuracy of the second
    p: float  # the difference's probability times the number of pairs (Bonferroni), at most 1


def check_runs(runs: Sequence[Run]) -> None:
    """Check that runs can be compared.

    Raises:
        RunError: if one has not finished, or is given twice.
    """
    for run in runs:
        if not run.finished:
            raise RunError(run.why_unfinished)
    for folder, times in Counter(run.folder.resolve() for run in runs).items():
        if times > 1:
            raise RunError(f"{folder.parent.name}/{folder.name} is given twice")


class Comparison:
    """Compare finished runs.

    Args:
        runs: at least one.
        together: the runs among them that also answer as an ensemble.

    Raises:
        RunError: if a run has not finished, or is given twice, or cannot join the ensemble.
    """

    def __init__(self, runs: Sequence[Run], together: Sequence[Run] = ()) -> None:
        check_runs(runs)
        self.runs = [NamedRun(name, run) for name, run in zip(_short_names(runs), runs, strict=True)]
        self._together = ensemble(f"all {len(together)} together", together) if together else None

    def _agree(self, *keys: str) -> bool:
        """Tell if all runs describe their data by the same values."""
        described = [[getattr(run.summary.data, key) for key in keys] for run in self.runs]
        return all(values == described[0] for values in described)

    @property
    def same_test(self) -> bool:
        """Tell if all runs were tested on the same images. Old runs have no identity of their images to compare."""
        labels = [run.run.images["test_labels"] for run in self.runs if "test_labels" in run.run.images]
        same_labels = all(np.array_equal(labels[0], each) for each in labels)
        if not same_labels or len({run.test.images for run in self.runs}) > 1:
            return False
        if all(run.summary.data.identity for run in self.runs):
            return self._agree("identity")
        return self._agree("name", "test_size", "classes")

    @property
    def reason_not_ranked(self) -> str:
        """The reason why the runs cannot be ranked; empty if all of them had the same images for each purpose."""
        if not self.same_test:
            return "Not ranked: these runs were tested on different images, so their accuracies cannot be compared."
        if self._agree("fingerprint"):
            return ""
        sizes = sorted({run.summary.data.train_size for run in self.runs})
        noise = sorted({run.summary.data.label_noise for run in self.runs})
        if len(noise) > 1:
            reason = f"the training labels differ ({' and '.join(f'{share:.0%}' for share in noise)} drawn at random)"
        elif len(sizes) > 1:
            reason = f"the training images differ ({' and '.join(f'{size:,}' for size in sizes)})"
        else:
            reason = "the training and validation images are another split"
        return (
            f"Not ranked: {reason}. The test images are the same, so the accuracies may stand beside each other. But "
            "these runs cannot tell how much of a difference comes from the data and how much from the settings."
        )

    @cached_property
    def groups(self) -> list[Group]:
        """The runs, grouped by settings and data without the seed."""
        members: list[list[NamedRun]] = []
        for run in self.runs:
            same = next((group for group in members if _without_seed(group[0]) == _without_seed(run)), None)
            if same is None:
                members.append([run])
            else:
                same.append(run)
        names = _short_names([group[0].run for group in members], seeds=False)
        return [Group(name, group) for name, group in zip(names, members, strict=True)]

    @cached_property
    def drawn(self) -> list[Group]:
        """The lines of the charts: several seeds of a setting together, every other run alone."""
        return list(chain.from_iterable([group] if group.several else group.alone for group in self.groups))

    @cached_property
    def ensembles(self) -> list[Ensemble]:
        """The seeds of each setting as an ensemble, and the runs that were asked to answer together."""
        kept = {group.name: [run.run for run in group.seeds if run.correct is not None] for group in self.groups}
        seeds = [ensemble(f"{name}, {len(runs)} runs", runs) for name, runs in kept.items() if len(runs) > 1]
        return [*seeds, *([self._together] if self._together else [])]

    @property
    def differing_settings(self) -> dict[str, list[Any]]:
        """The settings that differ, each with one value a run; ``None`` if a run has no such setting."""
        return _differing([run.run.recipe for run in self.runs])

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every two groups that can be tested against each other.

        They are compared over seeds if both have several, and over the test images if both have one. One seed against
        several allows no fair test.
        """
        if not self.same_test:
            return []
        found = [
            (first.name, second.name, difference)
            for first, second in combinations(self.groups, 2)
            if (difference := _difference(first, second)) is not None
        ]
        return [Pair(*pair, p=float(np.minimum(1, len(found) * pair[-1].p))) for pair in found]

    @property
    def folder_name(self) -> str:
        """A name for the report's folder, such as ``overfit-dropout_0.5``."""
        names = [re.sub(r"[^\w.]+", "_", group.name).strip("_") for group in self.groups]
        more = [f"{len(names) - NAMED}_more"] if len(names) > NAMED else []
        return "-".join([*names[:NAMED], *more])[:LONGEST]

    def conclusions(self) -> Iterator[str]:
        """Yield the conclusions as sentences."""
        for group in self.groups:
            if group.several:
                yield _seeds_sentence(group)
            else:
                yield from map(_training_sentence, group.runs)
        ranking = sorted(self.groups, key=lambda group: -group.accuracy.value)
        if self.reason_not_ranked:
            yield self.reason_not_ranked
        elif len(ranking) > 1:
            yield f"By test accuracy: {', '.join(f'{group.name} {group.accuracy.value:.1%}' for group in ranking)}."
        best = ranking[0].name
        shown = [pair for pair in self.pairs if len(self.pairs) <= PAIRS or best in (pair.first, pair.second)]
        for pair in shown:
            yield _pair_sentence(pair, judged=not self.reason_not_ranked)
        if len(shown) < len(self.pairs):
            yield f"{len(self.pairs) - len(shown)} more pairs are in the table."
        if len({group.several for group in self.groups}) > 1:
            yield "Settings with one seed are not tested against settings with several: run them with as many seeds."
        for each in self.ensembles:
            yield each.sentence
        seconds = {run.name: run.summary.seconds for run in self.runs}
        slow, fast = max(seconds, key=seconds.__getitem__), min(seconds, key=seconds.__getitem__)
        if seconds[slow] > 1.2 * seconds[fast]:
            machines = {(run.summary.device, run.summary.precision, run.summary.world_size) for run in self.runs}
            other = ", though not on the same kind of device" if len(machines) > 1 else ""
            steps = {run.name: run.summary.global_step for run in self.runs}
            many = f"{steps[slow] / max(steps[fast], 1):.1f} times the" if steps[slow] != steps[fast] else "the same"
            yield (
                f"{slow} trained {seconds[slow] / seconds[fast]:.1f} times as long as {fast}{other}. It took {many} "
                "number of steps. Other work on a machine lengthens the time too."
            )


def _short_names(runs: Sequence[Run], *, seeds: bool = True) -> list[str]:
    """Name each run by its experiment, then by the settings that differ within the experiment, then by its folder.

    Settings that would make a long name are left out.
    """
    paths = [[*map(readable, run.folder.resolve().parts)] for run in runs]
    names = [path[-2] for path in paths]
    for experiment, count in Counter(names).items():
        places = [place for place, name in enumerate(names) if name == experiment]
        if count > 1:
            differing = _differing([runs[place].recipe for place in places], seeds=seeds)
            short = {setting: "seed" if setting == SEED else setting.rpartition(".")[2] for setting in differing}
            values = [", ".join(f"{short[setting]} {row[number]}" for setting, row in differing.items())
                      for number in range(count)]  # fmt: skip
            if max(map(len, values)) <= LONGEST_SETTINGS:
                for place, value in zip(places, values, strict=True):
                    names[place] = f"{experiment}, {value}" if value else experiment
    given = names
    for depth in range(1, len(max(paths, key=len)) + 1):
        twice = {name for name, count in Counter(names).items() if count > 1}
        names = [f"{own} ({'/'.join(path[-depth:])})" if name in twice else name
                 for own, name, path in zip(given, names, paths, strict=True)]  # fmt: skip
    return names


def _differing(recipes: Sequence[dict[str, Any]], *, seeds: bool = True) -> dict[str, list[Any]]:
    names = sorted({name for recipe in recipes for name in recipe if seeds or name != SEED})
    values = {name: [recipe.get(name) for recipe in recipes] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def _without_seed(run: NamedRun) -> dict[str, Any]:
    changed = {} if SEED in run.summary.earlier else {SEED: None}  # a seed that changed in training is another recipe
    return {**run.run.recipe, **changed, "fingerprint": run.summary.data.fingerprint}


def _difference(first: Group, second: Group) -> Difference | None:
    several = {first.several, second.several}
    if several == {True}:
        return welch_difference(first.accuracies, second.accuracies)
    if several == {True, False}:
        return None
    one, other = first.runs[0], second.runs[0]
    if one.correct is not None and other.correct is not None:
        return paired_difference(one.correct, other.correct)
    return unpaired_difference(one.accuracy, other.accuracy, one.test.images)


def _seeds_sentence(group: Group) -> str:
    text = (
        f"{group.name}, {len(group.seeds)} seeds: test accuracy {group.accuracy.in_percent()}, "
        f"standard deviation {100 * np.std(group.accuracies, ddof=1):.1f} points"
    )
    gap, error = mean_cell([gap and gap.value for gap in group.gaps]), mean_cell(group.calibration_errors, 1, 3)
    if gap:
        text += f"; gap {gap} points{' (from training)' if group.instrument == 'training' else ''}"
    if error:
        text += f"; calibration error {error}"
    over_fitted = sum(over_fits_since(run.epochs) is not None for run in group.seeds)
    return f"{text}. {over_fitted or 'None'} of {len(group.seeds)} runs over-fit."


def _training_sentence(run: NamedRun) -> str:
    if not run.epochs:
        return f"{run.name}: test accuracy {run.tested}; there was no validation."
    last, gap = run.epochs[-1], last_gap(run.epochs)
    assert gap is not None
    at = next(each for each in run.epochs if each.epoch == gap.epoch)
    what, accuracy = ("the probe", at.probe_acc) if gap.instrument == "probe" else ("training", at.train_acc)
    text = (
        f"{run.name}: {what} ends at {accuracy:.1%}, validation at {at.val_acc:.1%}, a gap of {100 * gap.value:.1f} "
        f"points; test accuracy {run.tested}."
    )
    lowest = over_fits_since(run.epochs)
    if lowest is None:
        return text
    return (
        f"{text} It over-fits: validation loss is lowest after epoch {lowest.epoch + 1} ({lowest.val_loss:.2f}) "
        f"and ends at {last.val_loss:.2f}, while training loss ends lower than it was then."
    )


def _pair_sentence(pair: Pair, *, judged: bool) -> str:
    text = f"{pair.first} minus {pair.second}: {pair.difference.points.in_points()} points of test accuracy"
    if not judged:
        return f"{text}."
    if math.isnan(pair.p):
        return f"{text}; these runs cannot tell if that is noise ({pair.difference.test})."
    verdict = "which may be noise"
    if pair.p < 1 - CONFIDENCE:
        over_seeds = pair.difference.over_seeds
        verdict = "more than noise" if over_seeds else "more than these test images explain, one seed each"
    p = "< 0.001" if pair.p < 0.001 else f"= {pair.p:.3f}"
    return f"{text}, {verdict} ({pair.difference.test}, adjusted p {p})."
