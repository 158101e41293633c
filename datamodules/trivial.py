"""TrivialAugment wide: an operation and a strength drawn for each image (Müller & Hutter 2021, sec. 3).

Operations, strengths, interpolation (the nearest pixel) and fill (black) are those of torchvision's
``v2.TrivialAugmentWide``. An operation is a pure function of uint8 images [N, 3, H, W] and of their strengths, float32
[N]. It returns uint8 images [N, 3, H, W]. An image's result does not depend on the other images, not even by rounding:
all sums are of whole numbers, and every later step rounds pixel by pixel.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STRENGTHS = 31  # of each operation


def pixels_at(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Move pixels: each pixel of a result is the pixel of the image at a given point, or black outside of the image.

    The points are float32, to be broadcast to [N, H, W]. Pixel i reaches from i to i + 1.
    """
    height, width = images.shape[2:]
    # A point on the edge of two pixels is in the first, however a device rounds.
    column, row = ((points - 1e-5).floor().clamp(-1, last) for points, last in ((x, width), (y, height)))
    index = ((row + 1) * (width + 2) + column + 1).long().flatten(1)
    padded = F.pad(images, [1] * 4).flatten(2)
    return padded.gather(2, index[:, None].expand(-1, 3, -1)).view_as(images)


def centres(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return x, [1, 1, W], and y, [1, H, 1], of the pixels' centres."""
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device) + 0.5
    y = torch.arange(height, device=images.device) + 0.5
    return x[None, None], y[None, :, None]


def identity(images: Tensor, strengths: Tensor) -> Tensor:
    """Return the images."""
    return images


def shear_x(images: Tensor, strengths: Tensor) -> Tensor:
    """Move each row to the left by a multiple of its distance from the top."""
    x, y = centres(images)
    return pixels_at(images, x + strengths[:, None, None] * y, y)


def shear_y(images: Tensor, strengths: Tensor) -> Tensor:
    """Move each column up by a multiple of its distance from the left."""
    x, y = centres(images)
    return pixels_at(images, x, y + strengths[:, None, None] * x)


def translate_x(images: Tensor, strengths: Tensor) -> Tensor:
    """Move the image to the right by whole pixels."""
    x, y = centres(images)
    return pixels_at(images, x - strengths.trunc()[:, None, None], y)


def translate_y(images: Tensor, strengths: Tensor) -> Tensor:
    """Move the image down by whole pixels."""
    x, y = centres(images)
    return pixels_at(images, x, y - strengths.trunc()[:, None, None])


def rotate(images: Tensor, strengths: Tensor) -> Tensor:
    """Turn the image counter-clockwise by an angle in degrees."""
    height, width = images.shape[2:]
    x, y = centres(images)
    x, y = x - width / 2, y - height / 2
    angle = strengths.deg2rad()[:, None, None]
    cos, sin = angle.cos(), angle.sin()
    return pixels_at(images, cos * x - sin * y + width / 2, sin * x + cos * y + height / 2)


def blend(images: Tensor, other: Tensor, strengths: Tensor) -> Tensor:
    """Move the images away from others (float32, to be broadcast), or towards them if the strength is negative."""
    return ((images - other) * strengths[:, None, None, None] + images).clamp(0, 255).to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """Return the luminance as whole numbers, float32 [N, 1, H, W]."""
    red, green, blue = images.float().unbind(1)
    return (2989 * red + 5870 * green + 1140 * blue).div(10000).floor()[:, None]


def brightness(images: Tensor, strengths: Tensor) -> Tensor:
    """Make the image brighter, or darker."""
    return (images * (1 + strengths[:, None, None, None])).clamp(0, 255).to(torch.uint8)


def color(images: Tensor, strengths: Tensor) -> Tensor:
    """Move each pixel away from its luminance."""
    return blend(images, grey(images), strengths)


def contrast(images: Tensor, strengths: Tensor) -> Tensor:
    """Move each pixel away from the image's mean luminance."""
    return blend(images, grey(images).mean((1, 2, 3), keepdim=True), strengths)


def sharpness(images: Tensor, strengths: Tensor) -> Tensor:
    """Move each pixel, but those on the border, away from the mean of its neighbourhood."""
    blurred = images.float()
    rows = blurred[:, :, :-2] + blurred[:, :, 1:-1] + blurred[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    # Of 13 parts, the pixel itself has five and each neighbour has one.
    blurred[:, :, 1:-1, 1:-1].mul_(4).add_(around).div_(13).round_()
    return blend(images, blurred, strengths)


def posterize(images: Tensor, strengths: Tensor) -> Tensor:
    """Keep the upper bits of each value; the strength is their number."""
    mask = (255 << (8 - strengths.round().int())).to(torch.uint8)
    return images & mask[:, None, None, None]


def solarize(images: Tensor, strengths: Tensor) -> Tensor:
    """Invert the values that reach a threshold; the strength is its fraction of 255."""
    return torch.where(images >= 255 * strengths[:, None, None, None], ~images, images)


def auto_contrast(images: Tensor, strengths: Tensor) -> Tensor:
    """Stretch the values of each channel to [0, 255]; a channel of a single value stays."""
    lowest, highest = images.amin((2, 3), keepdim=True).float(), images.amax((2, 3), keepdim=True).float()
    flat = highest == lowest
    unit = ((highest - lowest) * (1 / 255)).masked_fill(flat, 1)
    return (images - lowest.masked_fill(flat, 0)).div(unit).clamp(0, 255).to(torch.uint8)


def equalize(images: Tensor, strengths: Tensor) -> Tensor:
    """Make all values of a channel about equally frequent, by Pillow's formula in whole numbers."""
    values = images.flatten(2).long()
    counts = values.new_zeros(*values.shape[:2], 256).scatter_add_(2, values, torch.ones_like(values))
    step = (values.shape[2] - counts.gather(2, values.amax(2, keepdim=True))) // 255
    lower = counts.cumsum(2) - counts  # how many pixels are darker
    table = ((lower + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(2, values).to(torch.uint8).view_as(images)


class Operation(NamedTuple):
    """An operation and its strengths, from the weakest to the strongest in even steps."""

    change: Callable[[Tensor, Tensor], Tensor]
    weakest: float = 0.0
    strongest: float = 0.0
    signed: bool = False  # half of the strengths drawn are negative


OPERATIONS = (
    Operation(identity),
    Operation(shear_x, 0, 0.99, signed=True),
    Operation(shear_y, 0, 0.99, signed=True),
    Operation(translate_x, 0, 32, signed=True),  # pixels
    Operation(translate_y, 0, 32, signed=True),
    Operation(rotate, 0, 135, signed=True),  # degrees
    Operation(brightness, 0, 0.99, signed=True),
    Operation(color, 0, 0.99, signed=True),
    Operation(contrast, 0, 0.99, signed=True),
    Operation(sharpness, 0, 0.99, signed=True),
    Operation(posterize, 8, 2),  # bits
    Operation(solarize, 1, 0),
    Operation(auto_contrast),
    Operation(equalize),
)


@lru_cache(maxsize=1)
def strength_table(device: torch.device) -> Tensor:
    """Return the strengths, float32 [operations, 2, 31]: first negated if the operation is signed, then as they are."""
    levels = torch.stack([torch.linspace(each.weakest, each.strongest, STRENGTHS) for each in OPERATIONS])
    signs = torch.tensor([[-1.0 if each.signed else 1.0, 1.0] for each in OPERATIONS])
    return (signs[:, :, None] * levels[:, None]).to(device)


def trivial_augment(images: Tensor, operation: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """Change each of uint8 images [N, 3, H, W] by one operation at one strength.

    ``operation``, ``strength`` and ``sign`` are the numbers drawn for each image: float32 [N] in [0, 1).
    """
    kinds = (operation * len(OPERATIONS)).long()
    strengths = strength_table(images.device)[kinds, (sign >= 0.5).long(), (strength * STRENGTHS).long()]
    order = kinds.argsort()
    counts = torch.bincount(kinds, minlength=len(OPERATIONS)).tolist()  # the one wait for a GPU
    groups = (torch.split(each.index_select(0, order), counts) for each in (images, strengths))
    changed = [each.change(*group) for each, *group in zip(OPERATIONS, *groups, strict=True) if len(group[0])]
    return torch.cat(changed).index_select(0, order.argsort()) if changed else images
