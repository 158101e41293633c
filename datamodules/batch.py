"""A batch of images, and its way into the network."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.augmentation import Augmentation
from datamodules.pixels import normalize


class Batch(NamedTuple):
    """A process's share of a step, from the loader to the loss."""

    images: Tensor  # from the loader uint8 [N, 32, 32, 3], for the network float32 [N, 3, image_size, image_size]
    labels: Tensor  # int64 [N], in [0, num_classes)
    indices: Tensor  # int64 [N], each image's index in its set
    total: int  # number of images in the whole step, over all processes
    partners: "Batch | None" = None  # an image to mix into each of these, see datamodules.mixing; None without mixing
    shares: Tensor | None = None  # float32 [N], in [1/2, 1]: of each image in its mixture; None before mixing

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """Return the batch on a device; Lightning calls this too."""

        def moved(part: Any) -> Any:
            return part.to(device, non_blocking=non_blocking) if isinstance(part, Tensor | Batch) else part

        return Batch._make(map(moved, self))


def to_network(images: Tensor, augmentation: Augmentation, mean_std: Tensor, draws: Tensor | None = None) -> Tensor:
    """Prepare uint8 images [N, 3, 32, 32] for the network: float32 [N, 3, image_size, image_size], normalized.

    Draws, see :meth:`Augmentation.train`, augment the images; without them the images are prepared for evaluation. Mean
    and standard deviation of the channels' values in [0, 1] are float32 [2, 3].
    """
    changed = augmentation.evaluate(images) if draws is None else augmentation.train(images, draws)
    return normalize(changed, *mean_std)
