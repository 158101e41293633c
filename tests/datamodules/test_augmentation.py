import itertools

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from torchvision.transforms import v2

from datamodules.augmentation import Draw, crop_flip, cutout, flip_vertically, principal_components, shift_colour


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_flip_is_what_a_loop_over_pixels_gives(dtype: torch.dtype) -> None:
    images = torch.randint(256, (7, 3, 10, 12)).to(dtype)
    flip, top, left = torch.rand(3, 7)
    windows = crop_flip(images, flip, top, left, size=6)
    assert windows.shape == (7, 3, 6, 6)
    assert windows.dtype == dtype
    for n, row, column in itertools.product(range(7), range(6), range(6)):
        source = int(left[n] * 7) + (5 - column if flip[n] < 0.5 else column)
        assert torch.equal(windows[n, :, row, column], images[n, :, int(top[n] * 5) + row, source])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_flip_is_torchvisions_pad_crop_and_flip_of_each_image(dtype: torch.dtype, channels_last: bool) -> None:
    images = torch.randint(256, (40, 3, 32, 32)).to(dtype)
    images = images.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    flip, top, left = torch.rand(3, 40)
    result = crop_flip(images, flip, top, left, size=32, padding=4)
    for image, mine, flipped, row, column in zip(images, result, flip < 0.5, top * 9, left * 9, strict=True):
        expected = tv.crop(tv.pad(image, [4]), int(row), int(column), 32, 32)
        assert torch.equal(mine, tv.hflip(expected) if flipped else expected)


@pytest.mark.parametrize("size", [1, 2, 9, 32, 33, 255])
def test_the_largest_number_drawn_is_the_last_window(size: int) -> None:
    largest = torch.tensor([1 - 2**-24])
    places = torch.arange(size, dtype=torch.float32).expand(1, 1, size, size)
    assert crop_flip(places, largest, largest, largest, size=1).item() == size - 1


def test_every_window_is_as_frequent_as_any_other() -> None:
    number = 9000
    places = torch.stack([torch.arange(32)[:, None].expand(32, 32), torch.arange(32).expand(32, 32)]).to(torch.uint8)
    result = crop_flip(places.expand(number, 2, 32, 32), *torch.rand(3, number), size=32, padding=4).int()
    top = result[:, 0, 16, 16] - 12  # each pixel says where it comes from
    left = result[:, 1, 16, 15:17].amin(1) - 11
    flipped = result[:, 1, 16, 15] > result[:, 1, 16, 16]
    for offsets in (top, left):
        counts = torch.bincount(offsets, minlength=9)
        assert len(counts) == 9
        assert 850 < counts.min() <= counts.max() < 1150
    assert 0.48 < flipped.double().mean() < 0.52
    assert len({*zip(top.tolist(), left.tolist(), flipped.tolist(), strict=True)}) == 9 * 9 * 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_flip_vertically_is_torchvisions_of_every_second_image(dtype: torch.dtype) -> None:
    images, flip = torch.randint(256, (2000, 3, 5, 4)).to(dtype), torch.rand(2000)
    result = flip_vertically(images, flip)
    assert result.dtype == dtype
    for image, mine, flipped in zip(images, result, flip < 0.5, strict=True):
        assert torch.equal(mine, tv.vflip(image) if flipped else image)


@pytest.mark.parametrize("side", [1, 4, 5, 10])
def test_cutout_is_torchvisions_erase_and_a_loop_over_pixels(side: int) -> None:
    images, colour = torch.rand(30, 3, 10, 12), torch.tensor([0.5, 0.4, 0.3])
    top, left = torch.rand(2, 30)
    result = cutout(images, top, left, side=side, colour=colour)
    for image, mine, row, column in zip(images, result, top * 10, left * 12, strict=True):
        first, second = int(row) - side // 2, int(column) - side // 2
        i, j = max(first, 0), max(second, 0)  # erase has no place outside of the image
        h, w = min(first + side, 10) - i, min(second + side, 12) - j
        assert torch.equal(mine, v2.functional.erase(image, i, j, h, w, colour[:, None, None]))
        for y, x in itertools.product(range(10), range(12)):
            cut = first <= y < first + side and second <= x < second + side
            assert torch.equal(mine[:, y, x], colour if cut else image[:, y, x])


def test_each_pixel_is_the_centre_of_a_cutout_as_often_as_any_other() -> None:
    squares = cutout(torch.ones(16_000, 1, 4, 4), *torch.rand(2, 16_000), side=1, colour=torch.zeros(1))
    counts = (squares == 0).sum(0)
    assert 850 < counts.min() <= counts.max() < 1150
    sizes = cutout(torch.ones(16_000, 1, 4, 4), *torch.rand(2, 16_000), side=4, colour=torch.zeros(1)) == 0
    assert set(sizes.flatten(1).sum(1).tolist()) == {a * b for a in (2, 3, 4) for b in (2, 3, 4)}  # over the border


def test_draws_keep_their_numbers() -> None:
    """A resumed or repeated run draws the same numbers; see the class for why 0 is not among them."""
    names = ["FLIP", "TOP", "LEFT", "COLOUR_1", "COLOUR_2", "COLOUR_3", "UPSIDE_DOWN"]
    names += ["OPERATION", "STRENGTH", "SIGN", "CUTOUT_TOP", "CUTOUT_LEFT"]
    assert {draw.name: draw.value for draw in Draw} == {name: number for number, name in enumerate(names, start=1)}


def test_principal_components_are_numpys_of_all_pixels_and_0_for_one_colour() -> None:
    random = np.random.default_rng(0)
    mixture = np.array([[60, 60, 60], [12, 0, -12], [5, -10, 5]])  # bright or dark above all, as in photographs
    images = (random.normal(size=(500, 32, 32, 3)) @ mixture + 120).clip(0, 255).astype(np.uint8)
    result = principal_components(torch.from_numpy(images)).numpy()
    variances, vectors = np.linalg.eigh(np.cov(images.reshape(-1, 3).T / 255.0, bias=True))
    assert result.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(result, axis=0), np.sqrt(variances), rtol=1e-4)
    np.testing.assert_allclose(np.abs((result / np.sqrt(variances)).T @ vectors), np.eye(3), atol=1e-3)
    assert principal_components(torch.full((2, 4, 4, 3), 77, dtype=torch.uint8)).abs().max() < 1e-3


def test_colour_shift_adds_one_normal_mixture_of_the_components_to_an_image() -> None:
    number = 20_000
    components = torch.tensor([[0.3, 0.1, 0.0], [0.2, -0.3, 0.0], [0.2, 0.2, 0.0]])
    images = torch.rand(number, 3, 2, 2)
    shift = shift_colour(images, torch.rand(3, number), components) - images
    assert torch.allclose(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-6)
    mixture = torch.linalg.lstsq(components[:, :2], shift[:, :, 0, 0].T).solution
    assert torch.allclose(components[:, :2] @ mixture, shift[:, :, 0, 0].T, atol=1e-6)  # in the components' span
    assert torch.allclose(mixture.mean(1), torch.zeros(2), atol=0.003)
    assert torch.allclose(mixture.std(1), torch.full((2,), 0.1), rtol=0.03)
    assert torch.allclose((mixture.abs() < 0.1).double().mean(1), torch.tensor(0.6827).double(), atol=0.015)
    assert torch.corrcoef(mixture)[0, 1].abs() < 0.03


@pytest.mark.parametrize("drawn", [0.0, 1 - 2**-24])  # the smallest and the largest number
def test_colour_shift_is_finite_and_keeps_the_dtype(drawn: float) -> None:
    images = torch.rand(4, 3, 2, 2, dtype=torch.bfloat16)
    shifted = shift_colour(images, torch.full((3, 4), drawn), torch.eye(3))
    assert shifted.dtype == torch.bfloat16
    assert 0.4 < (shifted - images).abs().min() <= (shifted - images).abs().max() < 0.7
