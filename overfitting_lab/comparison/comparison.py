"""What runs differ in, and what follows from their numbers."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overfitting_lab.comparison.statistics import (
    CONFIDENCE,
    Difference,
    Estimate,
    mean,
    paired_difference,
    unpaired_difference,
    welch_difference,
    wilson,
)
from overfitting_lab.runs.run import Run, RunError

SEED = "seed_everything"
PAIRS = 10  # as many are told in sentences; of more, those with the best
MACHINE = ("device", "precision", "world_size")


@dataclass(frozen=True)
class Compared:
    """A run under the name that it has among those it is compared with.

    Attributes:
        name: short, and no other run's.
        run: the run.
    """

    name: str
    run: Run

    @property
    def summary(self) -> Any:
        """``summary.json``."""
        return self.run.summary

    @cached_property
    def accuracy(self) -> Estimate:
        """The test accuracy with Wilson's interval."""
        test = self.summary["test"]
        return wilson(round(test["acc"] * test["images"]), test["images"])

    @cached_property
    def right(self) -> NDArray[np.bool_] | None:
        """Which test images were named right, bool [N] in the set's order; none where the run did not keep it."""
        images = self.run.images
        return images["test_predictions"] == images["test_labels"] if "test_labels" in images else None

    @cached_property
    def confusion(self) -> NDArray[np.int64] | None:
        """Counts [classes, classes], a row a true class; none where the run did not keep it."""
        images = self.run.images
        if "test_labels" not in images:
            return None
        classes = len(self.summary["data"]["classes"])
        pairs = classes * images["test_labels"].astype(np.int64) + images["test_predictions"]
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    @property
    def epochs(self) -> list[Any]:
        """The rows of ``metrics.csv`` that have a validation, and are whole."""
        names = ("train_loss", "train_acc", "val_loss", "val_acc")
        return [row for row in self.run.metrics if all(row.get(name) is not None for name in names)]

    @property
    def over_fits_from(self) -> Any:
        """The epoch of lowest validation loss, where it rose by a tenth and more after it while training's fell."""
        rows = [row for row in self.epochs if math.isfinite(row["val_loss"])]
        lowest = min(rows, key=lambda row: row["val_loss"], default=None)
        if lowest is None or not self.epochs[-1]["val_loss"] > 1.1 * lowest["val_loss"]:
            return None
        return lowest if self.epochs[-1]["train_loss"] < lowest["train_loss"] else None


@dataclass(frozen=True)
class Group:
    """Runs of the same settings on the same images, each with another seed.

    Attributes:
        name: no other group's.
        runs: at least one.
    """

    name: str
    runs: list[Compared]

    @property
    def by_seed(self) -> list[Compared]:
        """One run a seed: a seed that was run again says nothing new."""
        return list({run.summary["seed"]: run for run in reversed(self.runs)}.values())[::-1]

    @property
    def accuracies(self) -> list[float]:
        """The test accuracies, one a seed."""
        return [run.accuracy.value for run in self.by_seed]


@dataclass(frozen=True)
class Pair:
    """Two settings on the same test images, and how far apart they are.

    Attributes:
        first: a group's name.
        second: another's.
        difference: of their test accuracies, first minus second.
        p: its probability, multiplied by the number of pairs (Bonferroni).
    """

    first: str
    second: str
    difference: Difference
    p: float


def _why(run: Run) -> str:
    """What the run says of its end; raises RunError where its summary is lost."""
    reason = run.summary.get("reason") if run.summary["status"] == "failed" else None
    return f": {reason}" if reason else f" (its status is {run.status})"


class Comparison:
    """Runs beside each other.

    Args:
        runs: finished ones, at least one, no folder twice.

    Raises:
        RunError: if one has not finished, or stands there twice.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        for run in runs:
            if not run.finished:
                raise RunError(
                    f"{run.folder} has not finished{_why(run)}; go on with: python scripts/fit.py --resume {run.folder}"
                )
        twice = [folder for folder, count in Counter(run.folder.resolve() for run in runs).items() if count > 1]
        if twice:
            raise RunError(f"{twice[0].parent.name}/{twice[0].name} stands there twice")
        self.runs = [Compared(name, run) for name, run in zip(_names(runs), runs, strict=True)]

    def _same(self, *keys: str) -> bool:
        """Whether the runs' summaries agree in what they say of the data; what one does not say is another's."""
        said = [tuple(run.summary["data"].get(key) for key in keys) for run in self.runs]
        return all(one == said[0] for one in said) and None not in said[0]

    @property
    def same_test(self) -> bool:
        """Whether all were tested on the same images; of older runs, which do not say, whether all speaks for it."""
        if len({run.summary["test"]["images"] for run in self.runs}) > 1:
            return False
        labels = [run.run.images["test_labels"] for run in self.runs if "test_labels" in run.run.images]
        if any(not np.array_equal(labels[0], others) for others in labels[1:]):
            return False
        if all("identity" in run.summary["data"] for run in self.runs):
            return self._same("identity")
        return self._same("name", "test_size", "classes")

    @property
    def same_data(self) -> bool:
        """Whether all were trained and validated on the same images as well, so that they may be ranked."""
        return self.same_test and self._same("fingerprint")

    @property
    def not_ranked(self) -> str:
        """Why the runs are not ranked; empty where they are."""
        if self.same_data:
            return ""
        if not self.same_test:
            return "Not ranked: these runs were tested on other images each; the accuracies answer different questions."
        sizes = sorted({run.summary["data"]["train_size"] for run in self.runs})
        noise = {run.summary["data"].get("label_noise", 0.0) for run in self.runs}
        if len(noise) > 1:
            shares = " and ".join(f"{share:.0%}" for share in sorted(noise))
            reason = f"the training labels differ ({shares} drawn at random)"
        elif len(sizes) > 1:
            reason = f"the training images differ ({' and '.join(f'{size:,}' for size in sizes)})"
        else:
            reason = "the training and validation images are another split"
        return (
            f"Not ranked: {reason}. The test images are the same, so the accuracies may stand beside each other; but "
            "which part of a difference is the data's and which the settings', these runs cannot tell."
        )

    @cached_property
    def groups(self) -> list[Group]:
        """Runs of the same settings and data but for the seed, together."""
        members: list[list[Compared]] = []
        for run in self.runs:
            mine = next((group for group in members if _but_seed(group[0]) == _but_seed(run)), None)
            if mine is None:
                members.append([run])
            else:
                mine.append(run)
        names = _names([group[0].run for group in members], seeds=False)
        return [Group(name, group) for name, group in zip(names, members, strict=True)]

    @property
    def differing(self) -> dict[str, list[Any]]:
        """The settings that differ, each with one value a run; none where a run has no such setting."""
        return _differing([run.run.recipe for run in self.runs])

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every two settings on the same test images.

        Where both have several seeds, they are compared over these; where both have one, over the test images. Where
        one has several and the other has one, there is no fair test, and no pair.
        """
        if not self.same_test:
            return []
        found: list[tuple[str, str, Difference]] = []
        for first, second in combinations(self.groups, 2):
            counts = {len(first.by_seed) > 1, len(second.by_seed) > 1}
            if counts == {True}:
                found.append((first.name, second.name, welch_difference(first.accuracies, second.accuracies)))
            elif counts == {False}:
                found.append((first.name, second.name, _of_images(first.runs[0], second.runs[0])))
        return [Pair(*pair, p=min(1.0, len(found) * pair[-1].p) if pair[-1].p == pair[-1].p else math.nan)
                for pair in found]  # fmt: skip

    def conclusions(self) -> Iterator[str]:
        """What the numbers say, in sentences."""
        for run in self.runs:
            yield _of_training(run)
        for group in self.groups:
            if len(group.by_seed) > 1:
                yield (
                    f"{group.name}, {len(group.by_seed)} seeds: test accuracy {_percent(mean(group.accuracies))}, "
                    f"standard deviation {100 * np.std(group.accuracies, ddof=1):.1f} points."
                )
        if self.not_ranked:
            yield self.not_ranked
        elif len(self.groups) > 1:
            yield self._ranking()
        told = [pair for pair in self.pairs if len(self.pairs) <= PAIRS or self._best in (pair.first, pair.second)]
        for pair in told:
            yield _of_pair(pair, judged=not self.not_ranked)
        if len(told) < len(self.pairs):
            yield f"{len(self.pairs) - len(told)} more pairs are in the table."
        if len({len(group.by_seed) > 1 for group in self.groups}) > 1:
            yield "Settings with one seed are not tested against those with several: give them as many."
        yield from self._of_cost()

    @property
    def _best(self) -> str:
        return max(self.groups, key=lambda group: np.mean(group.accuracies)).name

    def _ranking(self) -> str:
        places = sorted(self.groups, key=lambda group: -np.mean(group.accuracies))
        return (
            "By test accuracy: " + ", ".join(f"{group.name} {np.mean(group.accuracies):.1%}" for group in places) + "."
        )

    def _of_cost(self) -> Iterator[str]:
        slow = max(self.runs, key=lambda run: run.summary["seconds"])
        fast = min(self.runs, key=lambda run: run.summary["seconds"])
        if slow.summary["seconds"] > 1.2 * fast.summary["seconds"]:
            machines = {tuple(run.summary.get(key) for key in MACHINE) for run in self.runs}
            other = ", though not on the same kind of device" if len(machines) > 1 else ""
            yield (
                f"{slow.name} took {slow.summary['seconds'] / fast.summary['seconds']:.1f} times as long as "
                f"{fast.name}{other}."
            )


def _names(runs: Sequence[Run], *, seeds: bool = True) -> list[str]:
    """A short name a run: its experiment, the settings in which those of the same one differ, its folder if need be."""
    paths = [run.folder.resolve().parts for run in runs]
    names = [path[-2] for path in paths]
    for experiment, count in Counter(names).items():
        places = [place for place, name in enumerate(names) if name == experiment]
        if count > 1:
            differ = _differing([runs[place].recipe for place in places], seeds=seeds)
            for number, place in enumerate(places):
                said = (f"{key.rpartition('.')[2]} {values[number]}" for key, values in differ.items())
                names[place] = ", ".join([experiment, *said])
    for depth in (1, 2, len(max(paths, key=len))):
        twice = {name for name, count in Counter(names).items() if count > 1}
        names = [f"{name} ({'/'.join(path[-depth:])})" if name in twice else name
                 for name, path in zip(names, paths, strict=True)]  # fmt: skip
    return names


def _differing(recipes: Sequence[dict[str, Any]], *, seeds: bool = True) -> dict[str, list[Any]]:
    names = sorted({name for recipe in recipes for name in recipe if seeds or name != SEED})
    values = {name: [recipe.get(name) for recipe in recipes] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def _but_seed(run: Compared) -> dict[str, Any]:
    recipe = {name: value for name, value in run.run.recipe.items() if name != SEED}
    return {**recipe, "fingerprint": run.summary["data"]["fingerprint"]}


def _of_images(first: Compared, second: Compared) -> Difference:
    if first.right is not None and second.right is not None:
        return paired_difference(first.right, second.right)
    return unpaired_difference(first.accuracy, second.accuracy, first.summary["test"]["images"])


def _percent(estimate: Estimate) -> str:
    interval = f" ({estimate.low:.1%} to {estimate.high:.1%})" if estimate.known else ""
    return f"{estimate.value:.1%}{interval}"


def _of_training(run: Compared) -> str:
    if not run.epochs:
        return f"{run.name}: test accuracy {_percent(run.accuracy)}; there was no validation."
    last = run.epochs[-1]
    text = (
        f"{run.name}: training ends at {last['train_acc']:.1%}, validation at {last['val_acc']:.1%}, a gap of "
        f"{100 * (last['train_acc'] - last['val_acc']):.1f} points; test accuracy {_percent(run.accuracy)}."
    )
    lowest = run.over_fits_from
    if lowest is not None:
        text += (
            f" It over-fits: validation loss is lowest after epoch {lowest['epoch'] + 1:.0f} "
            f"({lowest['val_loss']:.2f}) and ends at {last['val_loss']:.2f}, while training loss goes on falling."
        )
    return text


def _of_pair(pair: Pair, *, judged: bool) -> str:
    text = f"{pair.first} minus {pair.second}: {pair.difference.points.in_points()} points of test accuracy"
    if not judged:
        return f"{text}."
    if math.isnan(pair.p):
        return f"{text}; whether that is noise cannot be told ({pair.difference.test})."
    beyond = pair.p < 1 - CONFIDENCE
    if pair.difference.over_seeds:
        verdict = "more than noise" if beyond else "which may be noise"
    else:
        verdict = "more than these test images explain, one seed each" if beyond else "which may be noise"
    p = "< 0.001" if pair.p < 0.001 else f"= {pair.p:.3f}"
    return f"{text}, {verdict} ({pair.difference.test}, adjusted p {p})."
