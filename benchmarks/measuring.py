"""Taking turns, and what comes of it."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Spread:
    """A figure that was measured several times.

    Attributes:
        median: the middle one.
        low: the lowest.
        high: the highest.
        n: how many there are.
    """

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __format__(self, specification: str) -> str:
        low, high = format(self.low, specification), format(self.high, specification)
        return f"{format(self.median, specification)} ({low} to {high})"


def alternate(contenders: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> dict[str, Spread]:
    """Lets contenders measure themselves in turn, so that a machine that slows down slows all of them down.

    Args:
        contenders: by name, what takes one measurement.
        rounds: how often each has its turn.
        warm_up: turns of each before those that count.
    """
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warm_up + rounds):
        for name, measure in contenders.items():
            value = measure()
            if turn >= warm_up:
                values[name].append(value)
    return {name: Spread.of(measured) for name, measured in values.items()}


def plain(results: Any) -> Any:
    """The results with every :class:`Spread` as a dictionary, for JSON."""
    if isinstance(results, Spread):
        return asdict(results)
    if isinstance(results, Mapping):
        return {name: plain(value) for name, value in results.items()}
    return results


def spread_out(results: Any) -> Any:
    """The inverse of :func:`plain`."""
    if not isinstance(results, Mapping):
        return results
    if results.keys() == {field.name for field in fields(Spread)}:
        return Spread(**results)
    return {name: spread_out(value) for name, value in results.items()}
