"""Differences between runs, and the conclusions that their numbers allow."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overfitting_lab.comparison.ensemble import Ensemble, ensemble
from overfitting_lab.comparison.statistics import (
    CONFIDENCE,
    Difference,
    Estimate,
    mean,
    mean_cell,
    paired_difference,
    unpaired_difference,
    welch_difference,
    wilson,
)
from overfitting_lab.runs import Run, RunError
from overfitting_lab.runs.calibration import Calibration, calibration
from overfitting_lab.runs.epochs import METRICS, EpochRecord, Gap, Instrument, has_probe, last_gap, over_fits_since
from overfitting_lab.runs.summary import Summary, TestSummary

SEED = "seed_everything"
ANSWERS = ("test_probabilities", "test_labels")  # in images.npz
PAIRS = 10  # with more pairs than this, sentences describe only the pairs of the best setting


@dataclass(frozen=True)
class NamedRun:
    """A finished run with a short name that no other run of the comparison has."""

    name: str
    run: Run

    @property
    def summary(self) -> Summary:
        """The content of ``summary.json``."""
        return self.run.summary

    @property
    def test(self) -> TestSummary:
        """The result on the test images, which every finished run has."""
        assert self.summary.test is not None
        return self.summary.test

    @cached_property
    def accuracy(self) -> Estimate:
        """The test accuracy with Wilson's interval."""
        return wilson(round(self.test.acc * self.test.images), self.test.images)

    @property
    def tested(self) -> str:
        """The test accuracy in per cent with its interval, and a note if the weights are not the best ones."""
        note = "" if self.test.checkpoint == "best" else f", {self.test.checkpoint} weights"
        return self.accuracy.in_percent() + note

    @cached_property
    def correct(self) -> NDArray[np.bool_] | None:
        """Tell of each test image if the run classified it correctly, bool [N]; ``None`` without ``images.npz``."""
        images = self.run.images
        return images["test_predictions"] == images["test_labels"] if "test_labels" in images else None

    @cached_property
    def confusion(self) -> NDArray[np.int64] | None:
        """Counts [classes, classes], a row a true class; ``None`` without ``images.npz``."""
        images, classes = self.run.images, len(self.summary.data.classes)
        if "test_labels" not in images:
            return None
        counts = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(counts, (images["test_labels"], images["test_predictions"]), 1)
        return counts

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration on the test images; ``None`` without ``images.npz``."""
        images = self.run.images
        return calibration(images["test_probabilities"], images["test_labels"]) if "test_labels" in images else None

    @property
    def epochs(self) -> list[EpochRecord]:
        """The epochs with a validation, without a row that was cut off."""
        return [each for each in self.run.records if None not in [getattr(each, metric) for metric in METRICS]]


@dataclass(frozen=True)
class Group:
    """Runs of the same settings on the same images that differ at most in their seed."""

    name: str  # a short name that no other group has
    runs: list[NamedRun]  # at least one

    @cached_property
    def seeds(self) -> list[NamedRun]:
        """One run a seed: the first, because a repeated seed adds no evidence."""
        return list({run.summary.seed: run for run in reversed(self.runs)}.values())[::-1]

    @property
    def several(self) -> bool:
        """Tell if there are several seeds."""
        return len(self.seeds) > 1

    @property
    def alone(self) -> list["Group"]:
        """Each run as a group of its own."""
        return [Group(run.name, [run]) for run in self.runs]

    @property
    def label(self) -> str:
        """The name, with the number of seeds if there are several."""
        return f"{self.name}, n = {len(self.seeds)}" if self.several else self.name

    @property
    def accuracies(self) -> list[float]:
        """The test accuracies, one a seed."""
        return [run.accuracy.value for run in self.seeds]

    @property
    def instrument(self) -> Instrument:
        """The metric of the training images that all runs have: the probe's, or else the one measured in training."""
        return "probe" if all(has_probe(run.run.records) for run in self.runs) else "training"

    @cached_property
    def gaps(self) -> list[Gap | None]:
        """The gaps of the last epochs that have one, one a seed, by one instrument."""
        return [last_gap(run.epochs, self.instrument) for run in self.seeds]

    @property
    def probe_accuracies(self) -> list[float | None]:
        """The accuracies on the probe in the epochs of the gaps, one a seed; ``None`` for a run without a probe."""
        pairs = zip(self.seeds, self.gaps, strict=True)
        return [
            next((each.probe_acc for each in run.epochs if gap and each.epoch == gap.epoch), None) for run, gap in pairs
        ]

    @property
    def calibration_errors(self) -> list[float | None]:
        """The calibration errors on the test images, one a seed; ``None`` for a run without ``images.npz``."""
        return [None if run.calibration is None else run.calibration.error for run in self.seeds]

    @property
    def calibration(self) -> Calibration | None:
        """The calibration over the test images of all seeds; ``None`` if a run has no ``images.npz``."""
        images = [run.run.images for run in self.seeds]
        if not all("test_labels" in each for each in images):
            return None
        return calibration(*(np.concatenate([each[name] for each in images]) for name in ANSWERS))

    @property
    def accuracy(self) -> Estimate:
        """The mean test accuracy over seeds."""
        return mean(self.accuracies)


@dataclass(frozen=True)
class Pair:
    """The difference between two settings on the same test images."""

    first: str  # name of a group
    second: str  # name of another group
    difference: Difference  # test accuracy of the first minus test accuracy of the second
    p: float  # the difference's probability times the number of pairs (Bonferroni), at most 1


class Comparison:
    """Compare finished runs.

    Args:
        runs: at least one.
        together: the runs among them that also answer as an ensemble.

    Raises:
        RunError: if a run has not finished, or is given twice, or cannot join the ensemble.
    """

    def __init__(self, runs: Sequence[Run], together: Sequence[Run] = ()) -> None:
        for run in runs:
            if not run.finished:
                raise RunError(run.why_unfinished)
        (folder, times), *_ = Counter(run.folder.resolve() for run in runs).most_common(1)
        if times > 1:
            raise RunError(f"{folder.parent.name}/{folder.name} is given twice")
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
        kept = {group.name: [run.run for run in group.runs if run.correct is not None] for group in self.groups}
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
            yield f"{slow} took {seconds[slow] / seconds[fast]:.1f} times as long as {fast}{other}."


def _short_names(runs: Sequence[Run], *, seeds: bool = True) -> list[str]:
    """Name each run by its experiment, then by the settings that differ within the experiment, then by its folder."""
    paths = [run.folder.resolve().parts for run in runs]
    names = [path[-2] for path in paths]
    for experiment, count in Counter(names).items():
        places = [place for place, name in enumerate(names) if name == experiment]
        if count > 1:
            differing = _differing([runs[place].recipe for place in places], seeds=seeds)
            short = {setting: "seed" if setting == SEED else setting.rpartition(".")[2] for setting in differing}
            for number, place in enumerate(places):
                values = (f"{short[setting]} {row[number]}" for setting, row in differing.items())
                names[place] = ", ".join([experiment, *values])
    for depth in (1, 2, len(max(paths, key=len))):
        twice = {name for name, count in Counter(names).items() if count > 1}
        names = [f"{name} ({'/'.join(path[-depth:])})" if name in twice else name
                 for name, path in zip(names, paths, strict=True)]  # fmt: skip
    return names


def _differing(recipes: Sequence[dict[str, Any]], *, seeds: bool = True) -> dict[str, list[Any]]:
    names = sorted({name for recipe in recipes for name in recipe if seeds or name != SEED})
    values = {name: [recipe.get(name) for recipe in recipes] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def _without_seed(run: NamedRun) -> dict[str, Any]:
    return {**run.run.recipe, SEED: None, "fingerprint": run.summary.data.fingerprint}


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
        f"and ends at {last.val_loss:.2f}, while training loss keeps falling."
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
