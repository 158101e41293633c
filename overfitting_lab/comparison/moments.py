"""The values and the pictures of each epoch, for a page whose reader moves over epochs."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice, zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overfitting_lab.comparison.charts import learned_curve, mean_curve, mean_metric
from overfitting_lab.comparison.groups import Group, NamedRun

MOST = 36  # pictures of training images, and as many of test images
Pictures = dict[tuple[Any, ...], NDArray[np.uint8]]  # pixels by what identifies an image among all runs


@dataclass(frozen=True)
class Tile:
    """One picture as one run saw it."""

    picture: int  # index into the pictures of the page
    caption: str
    title: str  # what the caption leaves out
    right: bool  # the run's last answer
    until: int | None = None  # of training images: the last epoch, counted from 1, with a wrong answer; 0: no epoch


@dataclass(frozen=True)
class Moments:
    """The part of a page that moves over epochs."""

    groups: Sequence[Group]  # the lines of the charts

    @property
    def epochs(self) -> int:
        """The number of epochs of the longest run; at least 1."""
        records = (record for group in self.groups for run in group.runs for record in run.run.records)
        return max((record.epoch + 1 for record in records), default=1)

    @property
    def values(self) -> list[dict[str, Any]]:
        """The values of each line by epoch, means over its seeds: accuracies in per cent, the gap in points.

        Only ``left``, the number of images that are not learned yet, is of the first seed, whose pictures are shown.
        """
        return [dict(self._values(group)) for group in self.groups]

    def _values(self, group: Group) -> Iterator[tuple[str, Any]]:
        training, gap = ("probe", "gap") if group.instrument == "probe" else ("train", "training_gap")
        metrics = {
            "training": f"{training}_acc",
            "validation": "val_acc",
            "gap": gap,
            "training_loss": f"{training}_loss",
            "validation_loss": "val_loss",
        }
        for name, metric in metrics.items():
            values: list[float | None] = [None] * self.epochs
            for epoch, value in zip(*mean_metric(group, metric), strict=True):
                values[int(epoch) - 1] = round(float(value), 4) if math.isfinite(value) else None
            yield name, values
            if name == "validation_loss":
                yield "certainty", [None if value is None else 100 * math.exp(-value) for value in values]
        learned = group.runs[0].run.images.get("train_learned", np.array([]))
        last = group.runs[0].summary.epochs if len(learned) else 0
        yield "left", [int((learned >= epoch).sum()) for epoch in range(1, last + 1)]
        yield "share_left", [100 - share for share in mean_curve(group, learned_curve)[1].tolist()]

    @property
    def pictures(self) -> list[NDArray[np.uint8]]:
        """The pixels of all tiles, uint8 [32, 32, 3] each."""
        return [*self._trained.values(), *self._tested.values()]

    @cached_property
    def _trained(self) -> Pictures:
        return _chosen(self.groups, _learned_last)

    @cached_property
    def _tested(self) -> Pictures:
        return _chosen(self.groups, _mistaken)

    def training_tiles(self, run: NamedRun) -> list[Tile]:
        """Return the chosen training images that a run has, each with the run's own label."""
        images, classes, epochs = run.run.images, run.summary.data.classes, run.summary.epochs
        if "train_learned" not in images:
            return []
        places = {(_origin(run), int(index)): place for place, index in enumerate(images["train_indices"])}
        tiles = []
        for picture, key in enumerate(self._trained):
            place = places.get(key)
            if place is None or (learned := int(images["train_learned"][place])) < 0:  # another split, or never visited
                continue
            title = f"last mistake in epoch {learned}" if learned else "right from the first epoch on"
            title = "wrong in the last epoch" if learned >= epochs else title
            until = learned if learned < epochs else self.epochs  # to the slider's end, also after a shorter run's
            tiles.append(Tile(picture, classes[images["train_labels"][place]], title, learned < epochs, until))
        return tiles

    def test_tiles(self, run: NamedRun) -> list[Tile]:
        """Return the chosen test images with the answers of a run's tested network."""
        images, classes, first = run.run.images, run.summary.data.classes, len(self._trained)
        tiles: list[Tile] = []
        if (probabilities := run.run.test_probabilities) is None:
            return tiles
        for picture, (*origin, place) in enumerate(self._tested, first):
            if tuple(origin) != _test_origin(run):
                continue
            answer, label = images["test_predictions"][place], images["test_labels"][place]
            caption = f"{classes[answer]} {probabilities[place][answer]:.0%}"
            tiles.append(Tile(picture, caption, f"is {classes[label]}", answer == label))
        return tiles

    @staticmethod
    def tested(run: NamedRun) -> int | None:
        """Return the epoch, counted from 1, whose network was tested; ``None`` for an average of weights."""
        if run.test.averaged:
            return None
        best = run.summary.best
        return best.epoch + 1 if best is not None and run.test.checkpoint == "best" else run.summary.epochs


def _origin(run: NamedRun) -> str:
    """Return what identifies the images of a run; old runs share theirs with no other run."""
    return run.summary.data.identity or run.name


def _test_origin(run: NamedRun) -> tuple[str, bytes]:
    """Return what identifies a run's test images: those of two runs may be different parts of one test set."""
    labels = run.run.images.get("test_labels")
    return _origin(run), b"" if labels is None else labels.tobytes()


def _learned_last(run: NamedRun) -> Pictures:
    images = run.run.images
    if "train_shown" not in images:
        return {}
    indices = images["train_indices"][images["train_shown"]].tolist()
    return {(_origin(run), index): pixels for index, pixels in zip(indices, images["train_pictures"], strict=True)}


def _mistaken(run: NamedRun) -> Pictures:
    images = run.run.images
    if "test_shown" not in images:
        return {}
    places = images["test_shown"].tolist()
    return {(*_test_origin(run), place): pixels for place, pixels in zip(places, images["test_pictures"], strict=True)}


def _chosen(groups: Sequence[Group], kept: Callable[[NamedRun], Pictures]) -> Pictures:
    """Choose pictures in turn from all lines: the first of each, then the second of each."""
    in_turn = chain.from_iterable(zip_longest(*(kept(group.runs[0]).items() for group in groups)))
    first_seen: Pictures = {}
    for item in in_turn:
        if item is not None:
            first_seen.setdefault(*item)
    return dict(islice(first_seen.items(), MOST))
