"""Random changes to training images, on a whole batch at once, each image with its own draw.

Every draw is a pure function of (seed, epoch, the image's index), by a counter-based generator: the same on every
device and for every number of processes, and no state has to be saved to go on after an interruption. Images are
[N, 3, H, W]; the pure functions of given draws stand apart from the drawing, so that each can be tested alone.
"""

from enum import IntEnum

import torch
from torch import Tensor

ALL = (1 << 64) - 1  # bits of a state
GOLDEN = 0x9E3779B97F4A7C15  # the golden ratio's, by which SplitMix64 steps


class Draw(IntEnum):
    """What a random number is for, so that no two uses share one."""

    FLIP = 0
    TOP = 1
    LEFT = 2
    COLOUR = 3  # and the two that follow
    UPSIDE_DOWN = 6


def _mix(x: int) -> int:
    """The finalizer of SplitMix64 (Steele et al. 2014, fig. 16), from 64 bits to 64 bits."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & ALL
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & ALL
    return x ^ (x >> 31)


def _mix_each(x: Tensor) -> Tensor:
    """The same of each element of an int64 tensor, whose products wrap."""

    def shift_right(value: Tensor, bits: int) -> Tensor:
        return (value >> bits) & ((1 << (64 - bits)) - 1)

    x = (x ^ shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ shift_right(x, 31)


def _signed(bits: int) -> int:
    """64 bits as the number that an int64 takes them for."""
    return bits - (1 << 64) if bits >> 63 else bits


def uniform(seed: int, epoch: int, indices: Tensor, draw: int) -> Tensor:
    """Random numbers in [0, 1), [N]: one draw of :func:`uniforms`."""
    return uniforms(seed, epoch, indices, draw, 1)[0]


def uniforms(seed: int, epoch: int, indices: Tensor, first: int, number: int) -> Tensor:
    """Random numbers in [0, 1), float64 [number, N] (float32 where the device has no float64), some for each image.

    Args:
        seed: any integer of up to 64 bits.
        epoch: counted from 0.
        indices: int64 [N], each image's index.
        first: what the first number is for; see :class:`Draw`.
        number: of draws, which follow each other there.
    """
    states = []
    for draw in range(first, first + number):
        state = 0
        for part in (seed, epoch, draw):
            state = _mix((state ^ part) + GOLDEN & ALL)
        states.append(_signed(state))
    drawn = torch.stack([indices ^ state for state in states])  # as numbers: a tensor would make a GPU wait
    drawn = _mix_each(drawn + _signed(GOLDEN))
    dtype = torch.float32 if indices.device.type == "mps" else torch.float64
    return ((drawn >> 40) & 0xFFFFFF).to(dtype) / (1 << 24)


def crop_flip(images: Tensor, top: Tensor, left: Tensor, flipped: Tensor, size: int) -> Tensor:
    """A window of each image, mirrored left to right where asked; any dtype.

    Args:
        images: [N, C, H, W].
        top: int64 [N], the window's first row, in [0, H - size].
        left: int64 [N], the window's first column, in [0, W - size].
        flipped: bool [N].
        size: height and width of the window.

    Returns:
        The windows [N, C, size, size].
    """
    every = torch.arange(len(images), device=images.device)
    windows = images.unfold(2, size, 1).unfold(3, size, 1)[every, :, top, left]
    both = torch.cat([windows, windows.flip(3)])  # and of both, whole images: faster than torch.where, pixel by pixel
    return both.index_select(0, every + len(images) * flipped)


def _padded(images: Tensor, padding: int) -> Tensor:
    """The images with zeros around them, contiguous; ``F.pad`` would keep the layout of images that are a view."""
    if not padding:
        return images.contiguous()
    number, channels, height, width = images.shape
    padded = images.new_zeros(number, channels, height + 2 * padding, width + 2 * padding)
    padded[:, :, padding : padding + height, padding : padding + width] = images
    return padded


def random_crop_flip(images: Tensor, seed: int, epoch: int, indices: Tensor, *, size: int, padding: int = 0) -> Tensor:
    """A window of ``size`` pixels at a uniformly drawn place, mirrored left to right with probability 1/2.

    Args:
        images: [N, C, H, W], any dtype.
        seed: see :func:`uniforms`.
        epoch: see :func:`uniforms`.
        indices: see :func:`uniforms`.
        size: height and width of the window.
        padding: rows and columns of zeros added on every side before the window is chosen.
    """
    images = _padded(images, padding)
    height, width = images.shape[-2:]
    flip, top, left = uniforms(seed, epoch, indices, Draw.FLIP, 3)
    return crop_flip(images, (top * (height - size + 1)).long(), (left * (width - size + 1)).long(), flip < 0.5, size)


def flip_vertically(images: Tensor, flipped: Tensor) -> Tensor:
    """Each image mirrored top to bottom where asked; any dtype.

    Args:
        images: [N, C, H, W].
        flipped: bool [N].
    """
    return torch.where(flipped[:, None, None, None], images.flip(2), images)


def random_flip_vertically(images: Tensor, seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Images [N, C, H, W] of any dtype, each mirrored top to bottom with probability 1/2; see :func:`uniform`."""
    return flip_vertically(images, uniform(seed, epoch, indices, Draw.UPSIDE_DOWN) < 0.5)


def principal_components(images: Tensor) -> Tensor:
    """The principal components of the RGB values of all pixels, each scaled by its standard deviation.

    Args:
        images: uint8 [N, H, W, 3].

    Returns:
        float32 [3, 3]; the columns are the components, for pixel values in [0, 1].
    """
    total, outer, pixels = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64), 0
    for chunk in torch.split(images, 1024):
        values = chunk.reshape(-1, 3).double() / 255
        total += values.sum(0)
        outer += values.T @ values
        pixels += len(values)
    mean = total / pixels
    variances, components = torch.linalg.eigh(outer / pixels - mean.outer(mean))
    scaled: Tensor = components * variances.clamp(min=0).sqrt()
    return scaled.float()


def random_colour_shift(
    images: Tensor, seed: int, epoch: int, indices: Tensor, components: Tensor, std: float = 0.1
) -> Tensor:
    """Adds to all pixels of an image the same random mixture of principal components.

    Krizhevsky et al. (2012, sec. 4.1): each component times a normal draw of standard deviation 0.1. Their text scales
    the components by eigenvalues, which would depend on the unit of the pixels; their code by standard deviations, as
    here.

    Args:
        images: float [N, 3, H, W], values of about [0, 1].
        seed: see :func:`uniforms`.
        epoch: see :func:`uniforms`.
        indices: see :func:`uniforms`.
        components: float [3, 3], of :func:`principal_components`.
        std: standard deviation of the draws.

    Returns:
        float [N, 3, H, W]; not clipped.
    """
    draws = uniforms(seed, epoch, indices, Draw.COLOUR, 3).T
    normal = torch.special.ndtri(draws.clamp(min=2**-25)).to(images.dtype)
    shift: Tensor = std * normal @ components.to(images).T
    return images + shift[:, :, None, None]
