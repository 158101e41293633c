"""What runs differ in, and what follows from their numbers."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reporting.runs import Run, RunError
from reporting.statistics import (
    CONFIDENCE,
    Difference,
    Estimate,
    mean,
    paired_difference,
    welch_difference,
    wilson,
)

SEED = "seed_everything"
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
    def over_fits_from(self) -> Any:
        """The row of lowest validation loss, where it rose by a tenth and more after it while training's fell."""
        rows: Any = [row for row in self.run.metrics if row["val_loss"] is not None]
        lowest = min(rows, key=lambda row: row["val_loss"], default=None)
        if lowest is None or not rows[-1]["val_loss"] > 1.1 * lowest["val_loss"]:
            return None
        return lowest if rows[-1]["train_loss"] < lowest["train_loss"] else None


@dataclass(frozen=True)
class Pair:
    """Two runs on the same test images, or two settings over seeds, and how far apart they are."""

    first: str
    second: str
    difference: Difference


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
                    f"{run.folder} has not finished (it is {run.status}); go on with: "
                    f"python scripts/fit.py --resume {run.folder}"
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
        """Whether all were tested on the same images."""
        return self._same("identity") or self._same("fingerprint")

    @property
    def same_data(self) -> bool:
        """Whether all were trained and validated on the same images as well, so that they may be ranked."""
        return self._same("fingerprint")

    @property
    def not_ranked(self) -> str:
        """Why the runs are not ranked; empty where they are."""
        if self.same_data:
            return ""
        if not self.same_test:
            return (
                "Not ranked: these runs are of different data, so their accuracies are answers to different questions."
            )
        sizes = sorted({run.summary["data"]["train_size"] for run in self.runs})
        images = f"{', '.join(f'{size:,}' for size in sizes)} training images" if len(sizes) > 1 else "another split"
        return (
            f"Not ranked: the runs were not trained and validated on the same images ({images}). The test images are "
            "the same, so the accuracies may stand beside each other; but which part of a difference is the data's and "
            "which the settings', these runs cannot tell."
        )

    @cached_property
    def groups(self) -> dict[str, list[Compared]]:
        """Runs of the same settings but for the seed, by the name of the first."""
        groups: list[list[Compared]] = []
        for run in self.runs:
            mine = next((group for group in groups if _but_seed(group[0].run) == _but_seed(run.run)), None)
            if mine is None:
                groups.append([run])
            else:
                mine.append(run)
        return {_group_name(group): group for group in groups}

    @property
    def differing(self) -> dict[str, list[Any]]:
        """The settings that differ, each with one value a run; none where a run has no such setting."""
        recipes = [run.run.recipe for run in self.runs]
        names = sorted({name for recipe in recipes for name in recipe})
        values = {name: [recipe.get(name) for recipe in recipes] for name in names}
        return {name: row for name, row in values.items() if any(value != row[0] for value in row)}

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every two settings: over seeds where both have several, else over the images; none on different data.

        The probabilities are multiplied by the number of pairs (Bonferroni), so that of many pairs none stands out by
        chance.
        """
        if not self.same_test:
            return []
        found = []
        for (first, ones), (second, others) in combinations(self.groups.items(), 2):
            if min(len(ones), len(others)) > 1:
                accuracies = [[run.accuracy.value for run in group] for group in (ones, others)]
                found.append(Pair(first, second, welch_difference(*accuracies)))
            elif ones[0].right is not None and others[0].right is not None:
                found.append(Pair(ones[0].name, others[0].name, paired_difference(ones[0].right, others[0].right)))
        return [
            Pair(
                pair.first,
                pair.second,
                Difference(pair.difference.points, min(1.0, len(found) * pair.difference.p), pair.difference.test),
            )
            for pair in found
        ]

    def conclusions(self) -> Iterator[str]:
        """What the numbers say, in sentences."""
        for run in self.runs:
            yield _of_training(run)
        for name, group in self.groups.items():
            if len(group) > 1:
                accuracies = [run.accuracy.value for run in group]
                yield (
                    f"{name}, {len(group)} seeds: test accuracy {_percent(mean(accuracies))}, standard deviation "
                    f"{100 * np.std(accuracies, ddof=1):.1f} points."
                )
        if self.not_ranked:
            yield self.not_ranked
        elif len(self.groups) > 1:
            yield self._ranking()
        for pair in self.pairs:
            yield _of_pair(pair)
        yield from self._of_cost()

    def _ranking(self) -> str:
        places = sorted(
            ((mean([run.accuracy.value for run in group]).value, name) for name, group in self.groups.items()),
            reverse=True,
        )
        return "By test accuracy: " + ", ".join(f"{name} {accuracy:.1%}" for accuracy, name in places) + "."

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


def _names(runs: Sequence[Run]) -> list[str]:
    """The experiments' names, with the version where one has several runs, and with more of the path if need be."""
    paths = [run.folder.resolve().parts for run in runs]
    for names in (
        [path[-2] for path in paths],
        [f"{path[-2]}/{path[-1].removeprefix('version_')}" for path in paths],
    ):
        if len(set(names)) == len(names):
            return names
    return ["/".join(path) for path in paths]


def _but_seed(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.recipe.items() if name != SEED}


def _group_name(group: list[Compared]) -> str:
    return group[0].name if len(group) == 1 else group[0].name.rpartition("/")[0] or group[0].name


def _percent(estimate: Estimate) -> str:
    interval = f" ({estimate.low:.1%} to {estimate.high:.1%})" if estimate.known else ""
    return f"{estimate.value:.1%}{interval}"


def _of_training(run: Compared) -> str:
    last = run.summary.get("last")
    if last is None:
        return f"{run.name}: test accuracy {_percent(run.accuracy)}; there was no validation."
    gap = run.summary["generalization_gap"]
    text = (
        f"{run.name}: training ends at {last['train_acc']:.1%}, validation at {last['val_acc']:.1%}, a gap of "
        f"{100 * gap:.1f} points; test accuracy {_percent(run.accuracy)}."
    )
    lowest = run.over_fits_from
    if lowest is not None:
        text += (
            f" It over-fits: validation loss is lowest after epoch {lowest['epoch'] + 1:.0f} "
            f"({lowest['val_loss']:.2f}) and ends at {last['val_loss']:.2f}, while training loss goes on falling."
        )
    return text


def _of_pair(pair: Pair) -> str:
    p = pair.difference.p
    verdict = "more than noise" if p < 1 - CONFIDENCE else "which may be noise"
    return (
        f"{pair.first} minus {pair.second}: {pair.difference.points.in_points()} points of test accuracy, {verdict} "
        f"({pair.difference.test}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'})."
    )
