"""Take measurements in turns, and summarize them."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of ``n`` measurements."""

    median: float
    low: float
    high: float
    n: int

    def __format__(self, specification: str) -> str:
        median, low, high = (format(value, specification) for value in (self.median, self.low, self.high))
        return f"{median} ({low} to {high})"


def alternate(contenders: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> dict[str, Spread]:
    """Let contenders measure themselves in turns, so that a machine that slows down slows all of them down.

    Args:
        contenders: a function for each name that takes one measurement.
        rounds: turns of each contender that count.
        warm_up: turns of each contender before the ones that count.
    """
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(warm_up + rounds):
        for name, measure in contenders.items():
            values[name].append(measure())
    counted = {name: measured[warm_up:] for name, measured in values.items()}
    return {name: Spread(statistics.median(v), min(v), max(v), len(v)) for name, v in counted.items()}
