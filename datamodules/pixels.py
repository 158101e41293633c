"""Arithmetic on batches of images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def scale(images: Tensor) -> Tensor:
    """Convert uint8 images [N, 3, H, W] to float32 in [0, 1]."""
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize float images [N, 3, H, W] to [N, 3, size, size], bilinearly."""
    side = images.shape[-1]
    return images if side == size else F.interpolate(images, (size, size), mode="bilinear", antialias=size < side)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract the channels' means [3] from float images [N, 3, H, W] and divide by the standard deviations [3]."""
    return (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
