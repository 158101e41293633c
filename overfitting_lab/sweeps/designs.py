"""Designs of a study: the combinations of levels that are trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Literal

from pyDOE3 import fracfact_by_res

from overfitting_lab.runs.files import UsageError
from overfitting_lab.sweeps.factors import Factor

FRACTION_FROM, FRACTION_TO = 6, 15  # two-level factors; with 16, pyDOE3 1.6 makes designs of resolution III
Kind = Literal["factorial", "fraction", "levels", "curve", "one_at_a_time"]
Cell = Mapping[str, Any]  # a level of each factor by its name, except for settings that a configuration replaces
Term = tuple[str, ...]  # a factor, or several of which it is the interaction


@dataclass(frozen=True)
class Design:
    """The cells of a study. Each is trained with several seeds."""

    kind: Kind
    factors: tuple[Factor, ...]
    cells: tuple[Cell, ...]  # in the first one, all factors are at their first level

    @property
    def title(self) -> str:
        """Name of the design for people."""
        return {
            "factorial": "full factorial", "fraction": "fractional factorial of resolution IV",
            "levels": "all combinations of levels", "curve": "curve", "one_at_a_time": "one at a time",
        }[self.kind]  # fmt: skip

    def changed(self, cell: Cell) -> Term:
        """Return the factors that are not at their first level."""
        return tuple(
            factor.name for factor in self.factors if cell.get(factor.name, factor.levels[0]) != factor.levels[0]
        )

    def replaced(self, cell: Cell) -> tuple[Factor, ...]:
        """Return the factors that have no level in a cell, because its configuration has its own value."""
        return tuple(factor for factor in self.factors if factor.name not in cell)

    def signs(self, term: Term) -> list[int]:
        """Return the contrast of a term of two-level factors: 1 or -1 for each cell."""
        return [1 if (len(term) - len({*term} & {*self.changed(cell)})) % 2 == 0 else -1 for cell in self.cells]

    def aliases(self) -> list[list[Term]]:
        """Return the effects of two-level factors, in lists of effects that the design cannot separate.

        Effects in one list have the same contrast. For a fraction, interactions of three factors and more are left out.
        """
        names = [factor.name for factor in self.factors]
        largest = 2 if self.kind == "fraction" else len(names)
        terms = [term for size in range(1, largest + 1) for term in combinations(names, size)]
        chains: dict[tuple[int, ...], list[Term]] = {}
        for term in terms:
            chains.setdefault(tuple(self.signs(term)), []).append(term)
        return list(chains.values())


def full_factorial(factors: Sequence[Factor]) -> Design:
    """Return every combination of levels."""
    names, two = [factor.name for factor in factors], all(len(factor.levels) == 2 for factor in factors)
    cells = [dict(zip(names, levels, strict=True)) for levels in product(*(factor.levels for factor in factors))]
    kind: Kind = "factorial" if two else "curve" if len(factors) == 1 and factors[0].numeric else "levels"
    return Design(kind, tuple(factors), tuple(cells))


def one_at_a_time(factors: Sequence[Factor]) -> Design:
    """Return the cell with all factors at their first level, and each other level of each factor alone.

    A configuration replaces the settings that it has. The cell in which it is on has no level of them.
    """
    first = {factor.name: factor.levels[0] for factor in factors}
    replaced = {factor: {each.name for each in factors if each.key in factor.sets - {factor.key}} for factor in factors}
    alone = [
        {**{name: level for name, level in first.items() if name not in replaced[factor]}, factor.name: level}
        for factor in factors
        for level in factor.levels[1:]
    ]
    return Design("one_at_a_time", tuple(factors), (first, *alone))


def fractional_factorial(factors: Sequence[Factor]) -> Design:
    """Return a fraction of the combinations of two levels that separates main effects from interactions of two factors.

    The resolution is IV (Box, Hunter & Hunter 2005, ch. 6), and the generators are pyDOE3's.

    Raises:
        UsageError: if there are too many factors for the generators.
    """
    if len(factors) > FRACTION_TO:
        raise UsageError(
            f"{len(factors)} factors of two levels: a fractional factorial has at most {FRACTION_TO}; leave some out, "
            "or compare each alone with the first levels: --one_at_a_time"
        )
    cells = [
        {factor.name: factor.levels[int(sign > 0)] for factor, sign in zip(factors, row, strict=True)}
        for row in fracfact_by_res(len(factors), 4)
    ]
    return Design("fraction", tuple(factors), tuple(cells))


def design_of(factors: Sequence[Factor], *, alone: bool, full: bool) -> Design:
    """Return the design for factors: each ``alone``, or all combinations, of which many factors get a fraction.

    ``full`` asks for all combinations of any number of factors.
    """
    if alone:
        return one_at_a_time(factors)
    two = all(len(factor.levels) == 2 for factor in factors)
    return (
        fractional_factorial(factors) if two and not full and len(factors) >= FRACTION_FROM else full_factorial(factors)
    )
