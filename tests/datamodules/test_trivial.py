import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import v2

from datamodules.trivial import OPERATIONS, STRENGTHS, Operation, trivial_augment

THEIRS = v2.TrivialAugmentWide()
NAMES = [each.change.__name__ for each in OPERATIONS]
# The largest difference from torchvision's values of uint8, and the largest share of values that differ, over all
# strengths. The blends round each step; torchvision's may cut 99.99998 to 99. A point on the edge of two pixels, as on
# the diagonals at 45 and 135 degrees, is in either.
TOLERANCES = {"color": (1, 0.01), "contrast": (1, 0.01), "sharpness": (1, 0.01), "rotate": (255, 0.005)}


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Photographs, nearly: smooth images of all values, dark and bright ones; and one of a single colour."""
    random = np.random.default_rng(0)
    made = []
    for number in range(12):
        noise = Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        smooth = np.asarray(noise.filter(ImageFilter.GaussianBlur(number % 4)), dtype=float)
        made.append(((smooth - smooth.mean()) * (1 + number % 4) + 60 + 15 * number).clip(0, 255).astype(np.uint8))
    return torch.from_numpy(np.stack([*made, np.full((32, 32, 3), 77, dtype=np.uint8)])).permute(0, 3, 1, 2)


def torchvisions(images: Tensor, name: str, level: int, negative: bool) -> Tensor:
    """Return what torchvision makes of images by one operation, at its own strength."""
    name = "".join(word.capitalize() for word in name.split("_"))
    strengths, signed = THEIRS._AUGMENTATION_SPACE[name]
    values = strengths(THEIRS.num_magnitude_bins, 32, 32)
    strength = 0.0 if values is None else float(values[level]) * (-1 if signed and negative else 1)
    settings = {"interpolation": THEIRS.interpolation, "fill": THEIRS._fill}
    changed: Tensor = THEIRS._apply_image_or_video_transform(images, name, strength, **settings)
    return changed


def drawn(name: str, level: int, negative: bool, number: int) -> list[Tensor]:
    """Return the numbers that are drawn for an operation, the same for each image."""
    values = ((NAMES.index(name) + 0.5) / len(NAMES), (level + 0.5) / 31, 0.2 if negative else 0.8)
    return [torch.full((number,), value) for value in values]


def test_the_operations_are_those_of_torchvision() -> None:
    names = ["".join(word.capitalize() for word in name.split("_")) for name in NAMES]
    assert names == list(THEIRS._AUGMENTATION_SPACE)
    assert THEIRS.num_magnitude_bins == STRENGTHS


@pytest.mark.parametrize("name", NAMES)
def test_each_operation_is_torchvisions_at_all_strengths_and_both_signs(name: str, images: Tensor) -> None:
    largest, share = TOLERANCES.get(name, (0, 0.0))
    differing = []
    for level in range(31):
        for negative in (False, True):
            mine = trivial_augment(images, *drawn(name, level, negative, len(images)))
            assert mine.dtype == torch.uint8
            difference = (mine.int() - torchvisions(images, name, level, negative).int()).abs()
            assert difference.max() <= largest, (level, negative)
            differing.append((difference > 0).float().mean())
    assert torch.stack(differing).mean() <= share


def test_an_image_alone_is_changed_as_among_others_bit_for_bit(images: Tensor) -> None:
    number = 600
    many = images[torch.arange(number) % len(images)]
    draws = torch.rand(3, number, generator=torch.Generator().manual_seed(0))
    result = trivial_augment(many, *draws)
    for size in (1, 7, number - 1):
        numbers = zip(*(torch.split(each, size) for each in draws), strict=True)
        parts = [trivial_augment(part, *its) for part, its in zip(torch.split(many, size), numbers, strict=True)]
        assert torch.equal(torch.cat(parts), result)
    assert torch.equal(trivial_augment(many.flip(0), *draws.flip(1)), result.flip(0))
    strided = many.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(trivial_augment(strided, *draws), result)
    assert trivial_augment(many[:0], *draws[:, :0]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(("value", "name", "level"), [(0.0, NAMES[0], 0), (1 - 2**-24, NAMES[-1], 30)])
def test_the_smallest_and_the_largest_number_draw_the_first_and_the_last(
    value: float, name: str, level: int, images: Tensor
) -> None:
    number = len(images)
    expected = (
        drawn(name, 15, False, number),
        drawn("solarize", level, False, number),
        drawn("rotate", 4, not value, number),
    )
    usual = drawn("rotate", 15, False, number), drawn("solarize", 15, False, number), drawn("rotate", 4, False, number)
    for place, (draws, same) in enumerate(zip(usual, expected, strict=True)):
        draws[place] = torch.full((number,), value)
        assert torch.equal(trivial_augment(images, *draws), trivial_augment(images, *same))


def test_an_operation_is_computed_for_its_own_images_only(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}

    def counted(operation: Operation) -> Operation:
        def change(group: Tensor, strengths: Tensor) -> Tensor:
            seen[operation.change.__name__] = len(group)
            return operation.change(group, strengths)

        return operation._replace(change=change)

    monkeypatch.setattr("datamodules.trivial.OPERATIONS", tuple(counted(each) for each in OPERATIONS))
    trivial_augment(images[:5], torch.tensor([0.0, 0.4, 0.99, 0.4, 0.4]), *torch.rand(2, 5))
    assert seen == {"identity": 1, "rotate": 3, "equalize": 1}
