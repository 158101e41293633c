"""Errors of a network, as messages that a person can act on."""

from lightning_modules.width import NARROWEST, WIDEST


class ModelError(Exception):
    """A network, its checkpoint or its schedule cannot be used as asked; the message names the remedy."""


def check_arguments(
    name: str, poolings: int, image_size: int, dropout: float, hidden_features: int, width: float
) -> None:
    """Raise a ``ValueError`` for an argument that a network with ``poolings`` halvings of its image cannot have."""
    multiple = 2**poolings
    if image_size < multiple or image_size % multiple:
        raise ValueError(
            f"{name} halves its image {poolings} times: image_size must be a multiple of {multiple}, not {image_size}"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), not {dropout}")
    if hidden_features < 1:
        raise ValueError(f"hidden_features must be at least 1, not {hidden_features}")
    if not NARROWEST <= width <= WIDEST:
        raise ValueError(f"width must be in [{NARROWEST}, {WIDEST:g}], not {width}")
