"""The stand-in: synthetic images of shapes, generated on the spot, for a first run without a download.

The shape alone determines the class, so the label stays right if the image is flipped or shifted. All else, such as
place, size and noise, is drawn regardless of the class. A network memorizes it in few images, and ignores it in many.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from datamodules.images import SIZE
from datamodules.sources.base import Labelled, Source

_Field = NDArray[np.floating[Any]]

_BLOCK = 500  # images that share a random generator; a multiple of the number of classes, so each block is balanced

_Y, _X = np.mgrid[:SIZE, :SIZE].astype(np.float32) - (SIZE - 1) / 2  # pixels' offsets from the middle; y points down

# A texture mixes waves along two axes: amounts of the one, the other, their product, and the second colour.
# These are plain, stripes, checks and spots.
_TEXTURES = np.array([(0, 0, 0, -1), (1, 0, 0, 0), (0, 0, 1, 0), (1, 1, 0, -1)], dtype=np.float32)

# Signed distances from the outlines, negative inside, of shapes about 1 in radius. Every shape is symmetric, so that a
# mirror image is of the same class; x is the distance from the axis.
_SHAPES: dict[str, Callable[[_Field, _Field], _Field]] = {
    "disc": lambda x, y: np.hypot(x, y) - 0.85,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.72) - 0.2,
    "square": lambda x, y: np.maximum(x, np.abs(y)) - 0.77,
    "triangle": lambda x, y: np.maximum(0.87 * x - 0.5 * y, y) - 0.55,
    "cross": lambda x, y: np.maximum(np.minimum(x, np.abs(y)) - 0.3, np.maximum(x, np.abs(y)) - 0.95),
    "star": lambda x, y: np.hypot(x, y) * np.cos(np.abs(np.arctan2(x, -y) % (0.4 * np.pi) - 0.2 * np.pi) + 0.57) - 0.38,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.95, 0.75 - np.hypot(x, y + 0.5)),
    "heart": lambda x, y: np.minimum(np.hypot(x - 0.38, y + 0.33) - 0.54, 0.71 * (x + np.abs(y - 0.05) - 0.76)),
    "arrow": lambda x, y: np.minimum(
        np.maximum(0.76 * x - 0.65 * (y + 1), y),  # head
        np.maximum(x - 0.27, np.abs(y - 0.45) - 0.5),  # shaft
    ),
    "hourglass": lambda x, y: np.maximum(0.8 * (x - 0.12) - 0.6 * np.abs(y), np.abs(y) - 0.85),
}

CLASSES: tuple[str, ...] = tuple(_SHAPES)


def draw(seed: int, first: int, count: int) -> Labelled:
    """Draw ``count`` images of the seed's endless sequence, beginning with image ``first``.

    Image i of a sequence is the same wherever a call begins and ends. (Another release of NumPy may draw others.)
    Labels are indices in ``CLASSES``.
    """
    skipped = first % _BLOCK
    blocks = [_block(seed, start) for start in range(first - skipped, first + max(count, 1), _BLOCK)]
    images, labels = (np.concatenate(part)[skipped : skipped + count] for part in zip(*blocks, strict=True))
    return images, labels


def _block(seed: int, start: int) -> Labelled:
    """Draw the block of images that begins at number ``start``, from back to front.

    The numbers below make the images so hard that an AlexNet trained on 1,000 gets a bit under half of new ones right.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(start,)))
    labels = rng.permutation(np.arange(_BLOCK) % len(CLASSES))

    back_colour = _uniform(rng, (0, 1), channels=3)
    image = _texture(rng, back_colour)
    image += 0.012 * (_X * _uniform(rng, (-1, 1)) + _Y * _uniform(rng, (-1, 1)))  # a gradient

    for _ in range(2):  # strokes of clutter
        u, v = _axes(rng, reach=SIZE / 2, turn=np.pi)
        length, thickness = _uniform(rng, (0, 8)), _uniform(rng, (0.7, 2.5))
        distance = np.hypot(np.maximum(np.abs(u) - length, 0), v) - thickness
        _paint(image, _uniform(rng, (0, 1), channels=3), distance)

    x, y = _axes(rng, reach=3, turn=0.3)
    size, stretch = _uniform(rng, (8, 11)), _uniform(rng, (0.87, 1.15))  # pixels to the far edge, before stretching
    x, y = x / (size * stretch), y / (size / stretch)
    distance = np.empty_like(x)
    for label, shape in enumerate(_SHAPES.values()):
        its = labels == label
        distance[its] = shape(np.abs(x[its]), y[its])
    shape_colour = (back_colour + _uniform(rng, (0.25, 0.75), channels=3)) % 1
    _paint(image, _texture(rng, shape_colour), size * distance)

    image = 0.5 + (image - 0.5) * _uniform(rng, (0.6, 1))
    image += rng.standard_normal(image.shape, dtype=np.float32) * _uniform(rng, (0, 0.1))
    pixels = np.clip(255 * image + 0.5, 0, 255).astype(np.uint8)
    return pixels.transpose(0, 2, 3, 1), labels


def _uniform(rng: np.random.Generator, between: tuple[float, float], channels: int = 1) -> _Field:
    """Draw a number for each image and channel, [images, channels, 1, 1]."""
    return rng.uniform(*between, (_BLOCK, channels, 1, 1)).astype(np.float32)


def _axes(rng: np.random.Generator, reach: float, turn: float) -> tuple[_Field, _Field]:
    """Draw two axes at a right angle; return each pixel's coordinates, both [images, 1, 32, 32].

    Their origin lies up to ``reach`` pixels off the middle, along each pixel axis. They turn by up to ``turn`` radians.
    """
    x, y = _X - _uniform(rng, (-reach, reach)), _Y - _uniform(rng, (-reach, reach))
    angle = _uniform(rng, (-turn, turn))
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _texture(rng: np.random.Generator, colour: _Field) -> _Field:
    """Draw a surface of the given colour and one near it, [images, 3, 32, 32]."""
    u, v = _axes(rng, reach=SIZE, turn=np.pi)
    pace = _uniform(rng, (0.7, 1.3))  # radians a pixel, so 5 to 9 pixels a wave
    u, v = np.sin(pace * u), np.sin(pace * v)
    of_u, of_v, of_both, of_second = rng.choice(_TEXTURES, _BLOCK).T[..., None, None, None]
    share: _Field = np.clip(0.5 + 2 * (of_u * u + of_v * v + of_both * u * v + of_second), 0, 1)
    return colour + share * _uniform(rng, (-0.25, 0.25), channels=3)


def _paint(image: _Field, colour: _Field, distance: _Field) -> None:
    """Paint the inside of an outline that is ``distance`` pixels away; a pixel on it gets some of both colours."""
    image += np.clip(0.5 - distance, 0, 1) * (colour - image)


@final
class Synthetic(Source):
    """Drawn images instead of CIFAR-10: 50,000 for training and 10,000 for the test."""

    KEY = "synthetic"
    SEED = 0
    name = "stand-in (drawn images, not CIFAR-10)"
    classes = CLASSES

    def version(self) -> str:
        """Return a digest of the code that draws."""
        return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()

    def make(self, split: Literal["train", "test"]) -> Labelled:
        """Draw the images of a split. Those for the test follow in the same sequence."""
        return draw(self.SEED, *((0, 50_000) if split == "train" else (50_000, 10_000)))
