"""Augmentation policies: random changes to training images, a whole batch at once.

The functions are pure functions of images [N, 3, H, W] and of numbers drawn for each image, so that they run on any
device. Drawn numbers are float32 [N], uniform in [0, 1).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import IntEnum
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.images import SIZE
from datamodules.pixels import resize, scale
from datamodules.sources import Images, Source
from datamodules.trivial import trivial_augment


class Draw(IntEnum):
    """Purpose of a random number. The values are stable, so that a resumed or repeated run draws the same numbers.

    There is no 0: NumPy pads a short seed with zeros, so (seed, epoch, 0) would repeat the stream of the epoch's order.
    """

    FLIP = 1
    TOP = 2
    LEFT = 3
    COLOUR_1 = 4
    COLOUR_2 = 5
    COLOUR_3 = 6
    UPSIDE_DOWN = 7
    OPERATION = 8
    STRENGTH = 9
    SIGN = 10
    CUTOUT_TOP = 11
    CUTOUT_LEFT = 12


def crop_flip(images: Tensor, flip: Tensor, top: Tensor, left: Tensor, *, size: int, padding: int = 0) -> Tensor:
    """Cut a window out of each image at a uniform place, and mirror it left to right with probability 1/2.

    The images are [N, C, H, W] of any dtype, the windows [N, C, size, size]. The window may reach over ``padding`` rows
    and columns of zeros on every side of the image.
    """
    images = images.contiguous()  # F.pad would keep the layout of a view
    if padding:
        images = F.pad(images, [padding] * 4)
    every = torch.arange(len(images), device=images.device)
    places = images.unfold(2, size, 1).unfold(3, size, 1)
    windows = places[every, :, (top * places.shape[2]).long(), (left * places.shape[3]).long()]
    both = torch.cat([windows, windows.flip(3)])  # whole images: faster than torch.where, pixel by pixel
    return both.index_select(0, every + len(images) * (flip < 0.5))


def flip_vertically(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror each image [C, H, W] top to bottom with probability 1/2; any dtype."""
    return torch.where((flip < 0.5)[:, None, None, None], images.flip(2), images)


def cutout(images: Tensor, top: Tensor, left: Tensor, *, side: int, colour: Tensor) -> Tensor:
    """Fill a square in each of the float images [N, 3, H, W] with a colour [3]; the result is a copy.

    The square is centred on a uniform pixel, so it may reach over the border (DeVries & Taylor 2017, sec. 3).
    """
    height, width = images.shape[2:]
    inside = []
    for drawn, size in ((top, height), (left, width)):
        first = (drawn * size).long() - side // 2
        place = torch.arange(size, device=images.device) - first[:, None]
        inside.append((place >= 0) & (place < side))
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(square, colour[:, None, None], images)


def principal_components(images: Tensor) -> Tensor:
    """Return the principal components of all pixels' RGB values in [0, 1], each scaled by its standard deviation.

    The images are uint8 [N, H, W, 3]. The columns of the result, float32 [3, 3], are the components.
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


def shift_colour(images: Tensor, draws: Tensor, components: Tensor) -> Tensor:
    """Add a random mixture of principal components to all pixels of an image; the result is not clipped.

    The images are float [N, 3, H, W] of about [0, 1], the drawn numbers [3, N]. For the components, float [3, 3], see
    :func:`principal_components`.

    Krizhevsky et al. (2012, sec. 4.1): each component times a normal draw of standard deviation 0.1. Their text scales
    the components by eigenvalues, which would depend on the unit of the pixels. Their code and this function scale them
    by standard deviations.
    """
    normal = torch.special.ndtri(draws.T.clamp(min=2**-25)).to(images.dtype)
    shift: Tensor = 0.1 * normal @ components.to(images).T
    return images + shift[:, :, None, None]


class Augmentation(ABC):
    """A policy that turns uint8 images [N, 3, 32, 32] into float32 [N, 3, image_size, image_size] of about [0, 1]."""

    DRAWS: tuple[Draw, ...] = ()  # purposes of the numbers that training needs for each image

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size

    def fit(self, source: Source, images: Images, train_indices: Tensor) -> None:  # noqa: B027
        """Compute the statistics of the training images that the policy needs, if any."""

    @abstractmethod
    def train(self, images: Tensor, draws: Tensor) -> Tensor:
        """Augment training images by drawn numbers, [len(DRAWS), N]."""

    def evaluate(self, images: Tensor) -> Tensor:
        """Prepare images for validation, test and prediction."""
        return resize(scale(images), self.image_size)


@final
class NoAugmentation(Augmentation):
    """The resized image."""

    def train(self, images: Tensor, draws: Tensor) -> Tensor:
        """See the base class."""
        return self.evaluate(images)


@final
class FlipCrop(Augmentation):
    """Horizontal flip and a random window of the image padded with 4 zeros."""

    DRAWS = (Draw.FLIP, Draw.TOP, Draw.LEFT)

    def train(self, images: Tensor, draws: Tensor) -> Tensor:
        """See the base class."""
        return self.evaluate(crop_flip(images, *draws, size=SIZE, padding=4))


@final
class TrivialAugment(Augmentation):
    """Flip and crop as in :class:`FlipCrop`, then a random operation at a random strength.

    Müller & Hutter (2021, sec. 3), with the wide set of strengths; see :mod:`datamodules.trivial`.
    """

    DRAWS = (*FlipCrop.DRAWS, Draw.OPERATION, Draw.STRENGTH, Draw.SIGN)

    def train(self, images: Tensor, draws: Tensor) -> Tensor:
        """See the base class."""
        windows = crop_flip(images, *draws[:3], size=SIZE, padding=4)
        return self.evaluate(trivial_augment(windows, *draws[3:]))


@final
class NotebookAugmentation(Augmentation):
    """A random window of the resized image padded with 4 zeros, horizontal and vertical flip."""

    DRAWS = (Draw.FLIP, Draw.TOP, Draw.LEFT, Draw.UPSIDE_DOWN)

    def train(self, images: Tensor, draws: Tensor) -> Tensor:
        """See the base class."""
        windows = crop_flip(self.evaluate(images), *draws[:3], size=self.image_size, padding=4)
        return flip_vertically(windows, draws[3])


@final
class VGGAugmentation(Augmentation):
    """A random window of the rescaled image, horizontal flip and colour shift (Simonyan & Zisserman 2014, sec. 3.1).

    Evaluation takes the window in the middle.
    """

    DRAWS = (Draw.FLIP, Draw.TOP, Draw.LEFT, Draw.COLOUR_1, Draw.COLOUR_2, Draw.COLOUR_3)

    def fit(self, source: Source, images: Images, train_indices: Tensor) -> None:
        """Compute the principal components of the training images' colours."""
        key = hashlib.sha256(images.identity.encode() + train_indices.numpy().tobytes()).hexdigest()
        self._components = source.load_or_compute(
            f"components-{key[:16]}", lambda: principal_components(images.train_images[train_indices])
        )

    def train(self, images: Tensor, draws: Tensor) -> Tensor:
        """See the base class."""
        self._components = self._components.to(images.device)  # copied once
        windows = crop_flip(self._rescale(images), *draws[:3], size=self.image_size)
        return shift_colour(windows, draws[3:], self._components)

    def evaluate(self, images: Tensor) -> Tensor:
        """See the base class."""
        rescaled = self._rescale(images)
        margin = (rescaled.shape[-1] - self.image_size) // 2
        window = slice(margin, margin + self.image_size)
        return rescaled[:, :, window, window]

    def _rescale(self, images: Tensor) -> Tensor:
        return resize(scale(images), round(self.image_size * 256 / 224))  # 256 for 224, as in the paper


@final
class Cutout(Augmentation):
    """Another policy, then a square of the mean colour, which normalization makes 0 (DeVries & Taylor 2017, sec. 3).

    ``side`` is in pixels of the network's image, ``mean`` of the R, G and B values in [0, 1].
    """

    def __init__(self, policy: Augmentation, side: int, mean: Sequence[float]) -> None:
        super().__init__(policy.image_size)
        self.DRAWS = (*policy.DRAWS, Draw.CUTOUT_TOP, Draw.CUTOUT_LEFT)
        self._policy = policy
        self._side = side
        self._mean = torch.tensor(mean)

    def fit(self, source: Source, images: Images, train_indices: Tensor) -> None:
        """See the base class."""
        self._policy.fit(source, images, train_indices)

    def evaluate(self, images: Tensor) -> Tensor:
        """See the base class."""
        return self._policy.evaluate(images)

    def train(self, images: Tensor, draws: Tensor) -> Tensor:
        """See the base class."""
        self._mean = self._mean.to(images.device)  # copied once
        changed = self._policy.train(images, draws[:-2])
        return cutout(changed, *draws[-2:], side=self._side, colour=self._mean)


AUGMENTATIONS: dict[str, type[Augmentation]] = {
    "none": NoAugmentation,
    "flip_crop": FlipCrop,
    "trivial": TrivialAugment,
    "vgg": VGGAugmentation,
    "notebook": NotebookAugmentation,
}
