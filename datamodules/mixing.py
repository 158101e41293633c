"""Mixtures of two training images and their labels, a whole batch at once: mixup and CutMix.

Each image of an epoch has a partner and a share of its own. Both are drawn for each image, not for each batch.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def epoch_partners(size: int, seed: int, epoch: int) -> Tensor:
    """Return the partner of each image in an epoch, int64 [size]: a pure function of seed and epoch.

    Images are numbered from 0 to ``size - 1``. They stand in a random circle, and the partner is the neighbour. So each
    image is the partner of one other image.
    """
    circle = np.random.default_rng((seed, epoch, *b"partners")).permutation(size)
    partners = np.empty_like(circle)
    partners[circle] = np.roll(circle, 1)
    return torch.from_numpy(partners)


@lru_cache(maxsize=1)  # the running epoch's
def epoch_mixtures(size: int, seed: int, epoch: int, mixup: float, cutmix: float, device: torch.device) -> Tensor:
    """Return a table of how each image of a set is mixed in an epoch: float32 [4, size], a column for each image.

    Row 0 is the image's share: the larger one of lambda and 1 - lambda, where lambda follows Beta(alpha, alpha). Row 1
    is 1 for CutMix and 0 for mixup. Rows 2 and 3 are the centre of the box as fractions of height and width, uniform in
    [0, 1). ``mixup`` and ``cutmix`` are the alphas, at least one of them above 0. If both are, each image gets one of
    the two methods with probability 1/2. The table is a pure function of the arguments.
    """
    random = np.random.default_rng((seed, epoch, *b"mixtures"))
    cut = random.random(size) < (0.5 if mixup else 1) * (cutmix > 0)
    alpha = np.where(cut, cutmix, mixup)
    share = random.beta(alpha, alpha)
    table = np.stack([np.maximum(share, 1 - share), cut, *random.random((2, size), dtype=np.float32)])
    return torch.from_numpy(table.astype(np.float32)).to(device)


def boxes(shares: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Return CutMix's boxes in images [height, width]: int64 [4, N], the rows top, bottom, left and right.

    A box covers the rows from top to bottom - 1 and the columns from left to right - 1. Its height and width are the
    image's times sqrt(1 - share), before the image's border clips it. Shares and centres are float32 [N], see
    :func:`epoch_mixtures`. Source: Yun et al. (2019, eq. 2), rounded as in their code and in torchvision.
    """
    reach = (1 - shares).sqrt() / 2
    edges = []
    for centre, side in ((rows, height), (columns, width)):
        middle, half = (centre * side).long(), (reach * side).long()
        edges += [(middle - half).clamp(min=0), (middle + half).clamp(max=side)]
    return torch.stack(edges)


def mix(images: Tensor, partners: Tensor, mixtures: Tensor) -> tuple[Tensor, Tensor]:
    """Mix images with their partners, both float [N, C, H, W]; return the mixtures and the images' shares, float32 [N].

    The mixtures' numbers are float32 [4, N], see :func:`epoch_mixtures`. mixup (Zhang et al. 2018, sec. 2) adds the
    images, weighted by their shares. CutMix (Yun et al. 2019, sec. 3.1) replaces a box by the partner's pixels there.
    The share is then the exact fraction of pixels outside the box, after clipping. It is at least 1/2 in both.
    """
    shares, cut, rows, columns = mixtures
    height, width = images.shape[2:]
    top, bottom, left, right = boxes(shares, rows, columns, height, width)[:, :, None]
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_rows, in_columns = ((y >= top) & (y < bottom)) * cut[:, None], ((x >= left) & (x < right)).float()
    outside = torch.where(cut > 0, 1.0, shares)
    weights = outside[:, None, None] - in_rows[:, :, None] * in_columns[:, None, :]  # 0 in a box
    area = ((bottom - top) * (right - left))[:, 0]
    shares = torch.where(cut > 0, 1 - area / (height * width), shares)
    return torch.lerp(partners, images, weights[:, None].to(images.dtype)), shares
