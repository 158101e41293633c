import itertools

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from torch import Tensor

from datamodules.augmentation import (
    Draw,
    _mix,
    _mix_each,
    crop_flip,
    flip_vertically,
    principal_components,
    random_colour_shift,
    random_crop_flip,
    random_flip_vertically,
    uniform,
)

WORD = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def finalizer(x: int) -> int:
    """SplitMix64's, on unsigned integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & WORD
    return x ^ (x >> 31)


def signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


def draws_of(seed: int, epoch: int, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of the window of an image of 32 pixels padded with 4, and whether it is mirrored."""
    top, left = ((uniform(seed, epoch, indices, draw) * 9).long() for draw in (Draw.TOP, Draw.LEFT))
    return top, left, uniform(seed, epoch, indices, Draw.FLIP) < 0.5


def test_mix_is_the_finalizer_of_splitmix64() -> None:
    words = [0, 1, GOLDEN, 2**63, WORD, *np.random.default_rng(0).integers(0, WORD, 1000, np.uint64, True).tolist()]
    mixed = _mix_each(torch.tensor([signed(word) for word in words]))
    assert mixed.tolist() == [signed(finalizer(word)) for word in words]
    assert [_mix(word) for word in words] == [finalizer(word) for word in words]
    assert finalizer(GOLDEN) == 0xE220A8397B1DCDAF  # the first number of the published generator from seed 0


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
@pytest.mark.parametrize("epoch", [0, 1, 1000])
@pytest.mark.parametrize("draw", list(Draw))
def test_uniform_mixes_seed_epoch_draw_and_index_into_24_bits(seed: int, epoch: int, draw: int) -> None:
    expected = []
    for index in (0, 1, 49_999):
        state = 0
        for part in (seed, epoch, draw, index):
            state = finalizer((state ^ part) + GOLDEN & WORD)
        expected.append((state >> 40) / 2**24)
    assert uniform(seed, epoch, torch.tensor([0, 1, 49_999]), draw).tolist() == expected


def test_uniform_does_not_depend_on_the_rest_of_the_batch_or_on_torchs_generator() -> None:
    indices = torch.randperm(1000)
    torch.manual_seed(1)
    together = uniform(3, 5, indices, Draw.FLIP)
    torch.manual_seed(2)
    alone = torch.cat([uniform(3, 5, index[None], Draw.FLIP) for index in indices])
    assert torch.equal(together, alone)


def test_uniform_is_uniform() -> None:
    numbers = uniform(0, 0, torch.arange(64_000), Draw.TOP)
    assert numbers.dtype == torch.float64
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, bins=64, min=0, max=1)
    chi_square = float(((counts - 1000) ** 2 / 1000).sum())
    assert 35 < chi_square < 104  # 63 degrees of freedom: all but one in a thousand, on either side


def test_uniform_is_uncorrelated_over_seeds_epochs_draws_and_neighbours() -> None:
    indices = torch.arange(20_000)
    keys = list(itertools.product((0, 1, 2), (0, 1, 2), (Draw.FLIP, Draw.TOP, Draw.LEFT)))
    rows = [uniform(seed, epoch, indices, draw) for seed, epoch, draw in keys]
    rows.append(rows[0].roll(1))
    correlation = torch.corrcoef(torch.stack(rows)) - torch.eye(len(rows))
    assert correlation.abs().max() < 0.03  # 4 standard deviations and a bit


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_flip_is_what_a_loop_over_pixels_gives(dtype: torch.dtype) -> None:
    images = torch.randint(256, (7, 3, 10, 12)).to(dtype)
    top, left, flipped = torch.randint(5, (7,)), torch.randint(7, (7,)), torch.arange(7) % 2 == 0
    windows = crop_flip(images, top, left, flipped, 6)
    assert windows.shape == (7, 3, 6, 6)
    assert windows.dtype == dtype
    for n, row, column in itertools.product(range(7), range(6), range(6)):
        source = int(left[n]) + (5 - column if flipped[n] else column)
        assert torch.equal(windows[n, :, row, column], images[n, :, int(top[n]) + row, source])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_random_crop_flip_is_torchvisions_pad_crop_and_flip_of_each_image(dtype: torch.dtype) -> None:
    images, indices = torch.randint(256, (40, 3, 32, 32)).to(dtype), torch.arange(100, 140)
    result = random_crop_flip(images, 1, 2, indices, size=32, padding=4)
    for image, mine, top, left, flipped in zip(images, result, *draws_of(1, 2, indices), strict=True):
        expected = tv.crop(tv.pad(image, [4]), int(top), int(left), 32, 32)
        assert torch.equal(mine, tv.hflip(expected) if flipped else expected)


def test_random_crop_flip_draws_for_every_image_on_its_own() -> None:
    number = 9000
    places = torch.stack(torch.meshgrid(torch.arange(32), torch.arange(32), torch.arange(1), indexing="ij"))[..., 0]
    result = random_crop_flip(places.expand(number, 3, 32, 32), 0, 0, torch.arange(number), size=32, padding=4)
    top = result[:, 0, 16, 16] - 12  # each pixel says where it comes from
    left = result[:, 1, 16, 15:17].amin(1) - 11
    flipped = result[:, 1, 16, 15] > result[:, 1, 16, 16]
    for offsets in (top, left):
        counts = torch.bincount(offsets, minlength=9)
        assert len(counts) == 9
        assert counts.min() > 850
        assert counts.max() < 1150
    assert 0.48 < flipped.double().mean() < 0.52
    assert len({*zip(top.tolist(), left.tolist(), flipped.tolist(), strict=True)}) == 9 * 9 * 2
    assert torch.corrcoef(torch.stack([top, left, flipped]).double()).triu(1).abs().max() < 0.05


def test_an_image_is_augmented_alike_whatever_the_batch_around_it() -> None:
    images, components = torch.rand(50, 3, 32, 32), torch.rand(3, 3)

    def augment(chosen: Tensor) -> Tensor:
        windows = random_crop_flip(images[chosen], 7, 3, chosen, size=32, padding=4)
        return random_colour_shift(windows, 7, 3, chosen, components)

    together, order = augment(torch.arange(50)), torch.randperm(50)
    assert torch.equal(torch.cat([augment(part) for part in torch.split(order, 7)]), together[order])


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0)])
def test_another_epoch_or_seed_augments_otherwise(seed: int, epoch: int) -> None:
    images, indices = torch.rand(50, 3, 32, 32), torch.arange(50)
    first = random_crop_flip(images, 0, 0, indices, size=32, padding=4)
    other = random_crop_flip(images, seed, epoch, indices, size=32, padding=4)
    assert (first != other).flatten(1).any(1).sum() > 40


def test_random_crop_flip_without_padding_takes_a_window_of_a_larger_image() -> None:
    images = torch.rand(20, 3, 73, 73)
    result = random_crop_flip(images, 0, 0, torch.arange(20), size=64)
    assert result.shape == (20, 3, 64, 64)
    for image, window in zip(images, result, strict=True):
        candidates = (image, image.flip(-1))
        assert any(torch.equal(window, of.unfold(1, 64, 1).unfold(2, 64, 1)[:, i, j]) for of in candidates
                   for i in range(10) for j in range(10))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_flip_vertically_is_what_a_loop_over_pixels_gives(dtype: torch.dtype) -> None:
    images, flipped = torch.randint(256, (7, 3, 5, 4)).to(dtype), torch.arange(7) % 3 == 0
    result = flip_vertically(images, flipped)
    assert result.dtype == dtype
    for n, row, column in itertools.product(range(7), range(5), range(4)):
        assert torch.equal(result[n, :, row, column], images[n, :, 4 - row if flipped[n] else row, column])


def test_random_flip_vertically_is_torchvisions_of_each_image_and_of_its_own_draw() -> None:
    images, indices = torch.rand(2000, 3, 4, 4), torch.arange(2000)
    result = random_flip_vertically(images, 1, 2, indices)
    flipped = uniform(1, 2, indices, Draw.UPSIDE_DOWN) < 0.5
    for image, mine, upside_down in zip(images, result, flipped, strict=True):
        assert torch.equal(mine, tv.vflip(image) if upside_down else image)
    assert 0.46 < flipped.double().mean() < 0.54
    horizontally = uniform(1, 2, indices, Draw.FLIP) < 0.5
    assert torch.corrcoef(torch.stack([flipped, horizontally]).double())[0, 1].abs() < 0.08


def test_draws_keep_their_numbers() -> None:
    """Those of a run that goes on, or is repeated, must be what they were."""
    assert {draw.name: draw.value for draw in Draw} == {"FLIP": 0, "TOP": 1, "LEFT": 2, "COLOUR": 3, "UPSIDE_DOWN": 6}


def test_principal_components_are_numpys_of_all_pixels() -> None:
    random = np.random.default_rng(0)
    mixture = np.array([[60, 60, 60], [12, 0, -12], [5, -10, 5]])  # bright or dark above all, as in photographs
    images = (random.normal(size=(500, 32, 32, 3)) @ mixture + 120).clip(0, 255).astype(np.uint8)
    result = principal_components(torch.from_numpy(images)).numpy()
    variances, vectors = np.linalg.eigh(np.cov(images.reshape(-1, 3).T / 255.0, bias=True))
    assert result.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(result, axis=0), np.sqrt(variances), rtol=1e-4)
    np.testing.assert_allclose(np.abs((result / np.sqrt(variances)).T @ vectors), np.eye(3), atol=1e-3)


def test_principal_components_of_one_colour_are_0() -> None:
    assert principal_components(torch.full((2, 4, 4, 3), 77, dtype=torch.uint8)).abs().max() < 1e-3


def test_colour_shift_adds_one_normal_mixture_of_the_components_to_an_image() -> None:
    number = 20_000
    components = torch.tensor([[0.3, 0.1, 0.0], [0.2, -0.3, 0.0], [0.2, 0.2, 0.0]])
    images = torch.rand(number, 3, 2, 2)
    shift = random_colour_shift(images, 0, 0, torch.arange(number), components) - images
    assert torch.allclose(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-6)
    mixture = torch.linalg.lstsq(components[:, :2], shift[:, :, 0, 0].T).solution
    assert torch.allclose(components[:, :2] @ mixture, shift[:, :, 0, 0].T, atol=1e-6)  # in the components' span
    assert torch.allclose(mixture.mean(1), torch.zeros(2), atol=0.003)
    assert torch.allclose(mixture.std(1), torch.full((2,), 0.1), rtol=0.03)
    assert torch.allclose((mixture.abs() < 0.1).double().mean(1), torch.tensor(0.6827).double(), atol=0.015)
    assert torch.corrcoef(mixture)[0, 1].abs() < 0.03


def test_colour_shift_keeps_the_dtype() -> None:
    images = torch.rand(4, 3, 2, 2, dtype=torch.bfloat16)
    assert random_colour_shift(images, 0, 0, torch.arange(4), torch.eye(3)).dtype == torch.bfloat16
