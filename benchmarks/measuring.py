"""Take measurements in turns, and summarize them."""

import statistics
from collections.abc import Callable, Collection
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


def alternate(
    measure: Callable[[str], float], contenders: Collection[str], rounds: int, warm_up: int = 1
) -> dict[str, Spread]:
    """Measure contenders by name in turns, so that a machine that slows down slows all of them down.

    Each has ``warm_up`` turns that do not count, then ``rounds`` that do.
    """
    turns = [{name: measure(name) for name in contenders} for _ in range(warm_up + rounds)]
    counted = {name: [turn[name] for turn in turns[warm_up:]] for name in contenders}
    return {name: Spread(statistics.median(v), min(v), max(v), rounds) for name, v in counted.items()}
