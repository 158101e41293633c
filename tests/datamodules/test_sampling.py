import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules import Batch
from datamodules.augmentation import Draw
from datamodules.sampling import BatchLoader, epoch_draws, epoch_order

INDICES = torch.randperm(30, generator=torch.Generator().manual_seed(0))[:23]


def loader(
    *,
    rank: int = 0,
    world_size: int = 1,
    epoch: Callable[[], int] = lambda: 0,
    seed: int | None = None,
    mixing: bool = False,
    batch_size: int = 5,
) -> BatchLoader:
    """23 of 30 images in batches of 5, whose pixels and labels tell which they are."""
    number = torch.arange(30)
    images = number.to(torch.uint8)[:, None, None, None].expand(30, 2, 2, 3)
    return BatchLoader(images, number + 100, INDICES, batch_size, rank, world_size, epoch, seed, mixing)


def seen(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.indices for batch in batches]).tolist()


@pytest.mark.parametrize("size", [0, 1, 2, 100])
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**32 - 1])  # the last is the largest that seed_everything takes
@pytest.mark.parametrize("epoch", [0, 3])
def test_an_epochs_order_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    order = epoch_order(size, seed, epoch)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(size))


def test_an_epochs_order_depends_on_seed_and_epoch_alone() -> None:
    first, state = epoch_order(100, 4, 2), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(epoch_order(100, 4, 2), first)
    torch.set_rng_state(state)
    epoch_order(100, 4, 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_epoch_of_every_seed_has_its_own_order() -> None:
    orders = {tuple(epoch_order(100, seed, epoch).tolist()) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def draws(seed: int = 0, epoch: int = 0, *purposes: Draw, size: int = 20_000) -> Tensor:
    return epoch_draws(size, seed, epoch, purposes or (Draw.FLIP,), torch.device("cpu"))


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("epoch", [0, 1, 1000])
def test_draws_are_numpys_of_seed_epoch_and_purpose(seed: int, epoch: int) -> None:
    table = draws(seed, epoch, *Draw, size=100)
    assert table.shape == (len(Draw), 100)
    assert epoch_draws(100, seed, epoch, (), torch.device("cpu")).shape == (0, 100)
    for purpose, row in zip(Draw, table, strict=True):
        expected = np.random.default_rng((seed, epoch, purpose.value)).random(100, dtype=np.float32)
        np.testing.assert_array_equal(row.numpy(), expected)


def test_draws_are_uniform() -> None:
    (numbers,) = draws(size=64_000)
    assert numbers.dtype == torch.float32
    assert 0 <= numbers.min() <= numbers.max() < 1
    counts = torch.histc(numbers, bins=64, min=0, max=1)
    chi_square = float(((counts - 1000) ** 2 / 1000).sum())
    assert 35 < chi_square < 104  # 63 degrees of freedom: all but one in a thousand, on either side


def test_draws_are_uncorrelated_over_seeds_epochs_purposes_neighbours_and_the_orders_stream() -> None:
    seeds_and_epochs = list(itertools.product((0, 1, 2), (0, 1, 2)))
    rows = [draws(seed, epoch, *Draw) for seed, epoch in seeds_and_epochs]
    order = [np.random.default_rng(key).random(20_000, dtype=np.float32) for key in seeds_and_epochs]
    rows += [torch.from_numpy(np.stack(order)), rows[0][:1].roll(1)]
    correlation = torch.corrcoef(torch.cat(rows)) - torch.eye(9 * (len(Draw) + 1) + 1)
    assert correlation.abs().max() < 0.035  # 4.9 standard deviations, of 6,903 pairs


def test_draws_depend_on_no_generator_and_no_earlier_call() -> None:
    first = draws(3, 5, *Draw).clone()
    state = torch.get_rng_state()
    draws(3, 6, *Draw)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(draws(3, 5, *reversed(Draw)).flip(0), first)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("seed", [None, 0])
def test_an_epoch_has_every_image_once_over_all_processes(world_size: int, seed: int | None) -> None:
    ranks = [list(loader(rank=rank, world_size=world_size, seed=seed)) for rank in range(world_size)]
    assert sorted(index for batches in ranks for index in seen(batches)) == sorted(INDICES.tolist())
    assert {len(batches) for batches in ranks} == {len(loader())} == {5}


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_the_batches_are_the_same_for_any_number_of_processes(world_size: int) -> None:
    ranks = [loader(rank=rank, world_size=world_size, seed=0) for rank in range(world_size)]
    for whole, *shares in zip(loader(seed=0), *ranks, strict=True):
        assert torch.equal(torch.cat([part.indices for part in shares]), whole.indices)
        assert {part.total for part in shares} == {whole.total} == {len(whole.indices)}
        lengths = [len(part.indices) for part in shares]
        assert max(lengths) - min(lengths) <= 1
        assert lengths == sorted(lengths, reverse=True)


def test_a_batch_has_the_images_and_labels_of_its_indices() -> None:
    for batch in loader(seed=0):
        assert batch.images.shape == (len(batch.indices), 2, 2, 3)
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.indices)
        assert torch.equal(batch.labels, batch.indices + 100)


def partners_of(batches: Iterable[Batch]) -> dict[int, int]:
    """Return the partner of each image, after a check of its pixels and label."""
    found: dict[int, int] = {}
    for batch in batches:
        assert batch.partners is not None
        assert torch.equal(batch.partners.images[:, 0, 0, 0].long(), batch.partners.indices)
        assert torch.equal(batch.partners.labels, batch.partners.indices + 100)
        found |= dict(zip(batch.indices.tolist(), batch.partners.indices.tolist(), strict=True))
    return found


def test_with_mixing_each_image_comes_with_another_of_the_split() -> None:
    partners = partners_of(loader(seed=0, mixing=True))
    assert sorted(partners) == sorted(partners.values()) == sorted(INDICES.tolist())
    assert all(image != partner for image, partner in partners.items())
    assert partners != partners_of(loader(seed=0, mixing=True, epoch=lambda: 1))
    assert partners != partners_of(loader(seed=1, mixing=True))
    assert seen(list(loader(seed=0, mixing=True))) == seen(list(loader(seed=0)))
    assert all(batch.partners is None for batch in loader(seed=0))


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 7), (2, 5), (3, 23), (8, 5)])
def test_partners_are_the_same_for_any_number_of_processes_and_batch_size(world_size: int, batch_size: int) -> None:
    every: dict[str, Any] = {"seed": 0, "mixing": True, "epoch": lambda: 2}
    ranks = [loader(rank=rank, world_size=world_size, batch_size=batch_size, **every) for rank in range(world_size)]
    assert partners_of(itertools.chain(*ranks)) == partners_of(loader(**every))


def test_partners_are_the_same_after_resuming_within_an_epoch() -> None:
    interrupted, resumed = (loader(seed=0, mixing=True) for _ in range(2))
    before = partners_of(itertools.islice(interrupted, 2))
    resumed.load_state_dict(interrupted.state_dict())
    after = partners_of(resumed)
    assert len(before) == 10
    assert before | after == partners_of(loader(seed=0, mixing=True))
    assert not before.keys() & after.keys()


def test_a_batch_moves_with_its_partners() -> None:
    batch = next(iter(loader(seed=0, mixing=True)))._replace(shares=torch.ones(5))
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved.partners, Batch)
    for part in (*moved, *moved.partners):
        assert not isinstance(part, Tensor) or part.is_meta
    assert (moved.total, moved.partners.total) == (5, 5)


def test_every_epoch_is_shuffled_anew_and_without_a_seed_the_order_is_kept() -> None:
    assert seen(list(loader(epoch=lambda: 3))) == INDICES.tolist()
    epochs = iter(range(4))
    batches = loader(seed=0, epoch=lambda: next(epochs))
    assert len({tuple(seen(list(batches))) for _ in range(4)}) == 4


def test_an_iteration_that_was_abandoned_does_not_disturb_the_next() -> None:
    batches = loader(seed=0)
    abandoned = iter(batches)
    next(abandoned)
    assert seen(list(batches)) == seen(list(loader(seed=0)))
    assert seen(list(abandoned)) == seen(list(loader(seed=0)))[5:]


@pytest.mark.parametrize("handed_out", range(6))
def test_a_loader_goes_on_where_its_state_was_taken(handed_out: int) -> None:
    whole = [batch.indices for batch in loader(seed=0, epoch=lambda: 2)]
    interrupted = loader(seed=0, epoch=lambda: 2)
    before = [batch.indices for batch in itertools.islice(interrupted, handed_out)]
    resumed = loader(seed=0, epoch=lambda: 2)
    resumed.load_state_dict(interrupted.state_dict())
    after = [batch.indices for batch in resumed]
    assert torch.equal(torch.cat(before + after), torch.cat(whole))
    assert len(before) + len(after) == len(whole)
    assert [len(batch.indices) for batch in resumed] == [5, 5, 5, 5, 3]  # the next iteration is a whole one


def test_a_state_counts_the_batches_handed_out_and_does_not_change_afterwards() -> None:
    batches = loader(epoch=lambda: 1)
    batches.load_state_dict({"epoch": 1, "batches": 2})
    iterator = iter(batches)
    next(iterator)
    state = batches.state_dict()
    next(iterator)
    assert state == {"epoch": 1, "batches": 3, "batch_size": 5}
    assert batches.state_dict() == {"epoch": 1, "batches": 4, "batch_size": 5}


@pytest.mark.parametrize("state", [{"epoch": 0, "batches": 5}, {"epoch": 0, "batches": 2}, {"epoch": 2, "batches": 2}])
def test_the_state_of_another_epoch_skips_nothing(state: dict[str, int]) -> None:
    batches = loader(seed=0, epoch=lambda: 1)
    batches.load_state_dict(state)
    assert seen(list(batches)) == seen(list(loader(seed=0, epoch=lambda: 1)))
