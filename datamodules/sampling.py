"""Which images a step takes: the order of an epoch, its batches, and each process's share of them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """A process's share of a step, as it leaves memory.

    Attributes:
        images: uint8 [n, height, width, 3].
        labels: int64 [n].
        indices: int64 [n], each image's place in its set; with the seed and the epoch it decides the augmentation.
        total: number of images in the whole step, over all processes.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    total: int


def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """A permutation of ``range(size)``, int64 [size]: a pure function of seed and epoch."""
    # Not torch.randperm: its generator takes the low 32 bits of a seed and drops the rest.
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(size))


def share(batch: Tensor, rank: int, world_size: int) -> Tensor:
    """The part of a batch [n] that a process takes.

    The parts of all processes are the batch, each element once; their lengths differ by one at most, and the last
    ones are empty where there are fewer elements than processes. Nothing is padded, nothing is seen twice.
    """
    return batch.tensor_split(world_size)[rank]


class BatchLoader:
    """Batches of a set that lives in memory, as Lightning iterates over them; no workers, a batch is one gather.

    Every process walks over the same batches of the whole step and takes its share of each, so that the batches do not
    depend on the number of processes. A loader whose epoch broke off goes on at the next batch of that epoch: its state
    is the epoch and the number of batches handed out.

    Args:
        images: uint8 [M, height, width, 3].
        labels: int64 [M].
        indices: int64 [N], the images of this split, in their order.
        batch_size: images in a whole step, over all processes.
        rank: this process.
        world_size: number of processes.
        epoch: tells the running epoch, counted from 0.
        seed: shuffles every epoch anew; none keeps the order.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        epoch: Callable[[], int],
        seed: int | None = None,
    ) -> None:
        self._images = images
        self._labels = labels
        self._indices = indices
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._epoch = epoch
        self._seed = seed
        self._state = {"epoch": 0, "batches": 0}
        self._loaded_state: dict[str, int] | None = None

    def __len__(self) -> int:
        return -(-len(self._indices) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        epoch = self._epoch()
        loaded, self._loaded_state = self._loaded_state, None
        first = loaded["batches"] if loaded and loaded["epoch"] == epoch else 0
        indices = self._indices
        if self._seed is not None:
            indices = indices[epoch_order(len(indices), self._seed, epoch)]
        for number, batch in enumerate(torch.split(indices, self._batch_size)[first:], start=first + 1):
            self._state = {"epoch": epoch, "batches": number}
            mine = share(batch, self._rank, self._world_size)
            yield Batch(self._images.index_select(0, mine), self._labels[mine], mine, len(batch))

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many of its batches have been handed out."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iteration over that epoch go on behind the batches that were handed out already."""
        self._loaded_state = state
