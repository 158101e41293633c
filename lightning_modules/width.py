"""The width multiplier of a network (Howard et al. 2017, "MobileNets", sec. 3.3)."""

NARROWEST, WIDEST = 0.125, 2.0


def scaled(number: int, width: float) -> int:
    """Return ``number`` channels or features times ``width``, rounded to a whole number of at least 1."""
    return max(1, round(number * width))
