"""The parameters that weight decay leaves alone: biases, and the scales and shifts of normalization layers."""

from collections.abc import Iterable
from typing import Any

from torch import nn

UNDECAYED = {"weight_decay": 0.0}


def parameter_groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Return two groups for an optimizer: weights, and parameters without weight decay.

    A weight has two or more dimensions. Biases, and the scales and shifts of normalization layers, have one (He et al.
    2019, "Bag of tricks", sec. 3.1).
    """
    given = [*parameters]
    weights, others = ([each for each in given if (each.dim() > 1) is weight] for weight in (True, False))
    return [{"params": weights}, {"params": others, **UNDECAYED}]
