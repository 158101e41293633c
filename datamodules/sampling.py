"""Order and random numbers of an epoch, and the batches that each process takes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from datamodules.augmentation import Draw
from datamodules.batch import Batch
from datamodules.errors import DataError
from datamodules.mixing import epoch_partners


def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """Return a permutation of ``range(size)``, int64 [size]: a pure function of seed and epoch."""
    # Not torch.randperm: its generator uses only the low 32 bits of a seed.
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(size))


@lru_cache(maxsize=1)  # the running epoch's
def epoch_draws(size: int, seed: int, epoch: int, purposes: tuple[Draw, ...], device: torch.device) -> Tensor:
    """Return an epoch's random numbers in [0, 1), a row for each purpose: float32 [len(purposes), size].

    Column i belongs to image i of a set of ``size`` images. A pure function of its arguments, for any seed below 2^32.
    """
    table = np.empty((len(purposes), size), dtype=np.float32)
    for row, purpose in zip(table, purposes, strict=True):
        np.random.default_rng((seed, epoch, purpose)).random(out=row, dtype=np.float32)
    return torch.from_numpy(table).to(device)


@dataclass(eq=False)
class BatchLoader:
    """Batches of a set in memory, as Lightning iterates over them. A batch is one gather; there are no workers.

    Images and labels lie in memory or on a GPU. Batches are gathered there, and an epoch's order is copied once.

    Every process takes its share of each whole batch, so that batches do not depend on the number of processes. Shares
    differ by one image at most and may be empty. A loader that loads another's state resumes its epoch.
    """

    images: Tensor  # uint8 [M, height, width, 3]
    labels: Tensor  # int64 [M]
    indices: Tensor  # int64 [N], the images of this split, in their order
    batch_size: int  # images of a batch, over all processes
    rank: int  # of this process
    world_size: int  # number of processes
    epoch: Callable[[], int]  # returns the running epoch, counted from 0
    seed: int | None = None  # shuffles every epoch anew; None keeps the order
    mixing: bool = False  # adds a partner to each image; needs a seed
    due: Callable[[], bool] = lambda: True  # returns False if an iteration is to have no batches
    _state: dict[str, int] = field(default_factory=dict, init=False)
    _loaded_state: dict[str, int] | None = field(default=None, init=False)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if not self.due():
            return
        epoch = self.epoch()
        loaded, self._loaded_state = self._loaded_state, None
        first = loaded["batches"] if loaded and loaded.get("epoch") == epoch else 0
        order, partners, size = self.indices, None, len(self.indices)
        if self.seed is not None:
            places = epoch_order(size, self.seed, epoch)
            order = self.indices[places]
            if self.mixing:
                partners = self.indices[epoch_partners(size, self.seed, epoch)[places]].to(self.images.device)
        order = order.to(self.images.device)
        for number in range(first, len(self)):
            step = slice(number * self.batch_size, (number + 1) * self.batch_size)
            self._state = {"epoch": epoch, "batches": number + 1, "batch_size": self.batch_size}
            batch = self._share(order[step])
            yield batch if partners is None else batch._replace(partners=self._share(partners[step]))

    def _share(self, indices: Tensor) -> Batch:
        """Return this process's share of a step's images."""
        mine = indices.tensor_split(self.world_size)[self.rank]
        return Batch(self.images.index_select(0, mine), self.labels[mine], mine, len(indices))

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, the number of its batches handed out, and their size."""
        return self._state

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next iteration over that epoch skip the batches that were handed out already.

        Raises:
            DataError: if the epoch had begun with batches of another size.
        """
        size = state.get("batch_size", self.batch_size)
        if size != self.batch_size and state["batches"] * size < len(self.indices):
            raise DataError(
                f"the checkpoint is within an epoch of batches of {size} images, and data.batch_size is "
                f"{self.batch_size}: resume with --data.batch_size {size}, or change it at the end of an epoch"
            )
        self._loaded_state = state
