import pytest
import torch

from overfitting_lab.export import TOLERANCE, Predictor, compare

REFERENCE = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.45, 0.45]])


@pytest.mark.parametrize(
    ("difference", "agrees", "equal"),
    [
        ([[0, 0, 0], [0, 0, 0]], True, 2),
        ([[0.9, 0, 0], [0, 0, 0]], True, 2),
        ([[1.1, 0, 0], [0, 0, 0]], False, 2),
        ([[0, 0, -1.1], [0, 0, 0]], False, 2),
        ([[0, 0, 0], [0, 0, 0.5]], True, 1),  # a tie
        ([[0, 0, 0], [0, 0, 1.1]], False, 1),
        ([[torch.nan, 0, 0], [0, 0, 0]], False, 2),
    ],
)
def test_networks_agree_within_the_tolerance(difference: list[list[float]], agrees: bool, equal: int) -> None:
    said, how = compare(REFERENCE + TOLERANCE * torch.tensor(difference), REFERENCE)
    assert said == agrees
    assert how.startswith("2 images, largest difference of a probability ")
    assert how.endswith(f" the same class for {equal}")


def test_networks_that_give_no_numbers_do_not_agree() -> None:
    assert not compare(REFERENCE * torch.nan, REFERENCE * torch.nan)[0]


def test_another_class_is_a_tie_only_where_the_reference_has_one() -> None:
    reference = torch.tensor([[0.5, 0.5 - 1.5 * TOLERANCE]])
    assert not compare(reference + TOLERANCE * torch.tensor([[-0.8, 0.8]]), reference)[0]


def test_many_images_are_taken_in_parts_and_in_order() -> None:
    sizes = []

    def answer(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        share = images[:, 0, 0, 0].float() / 200
        return torch.stack([share, 1 - share], dim=1)

    images = torch.arange(200, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    best = Predictor(("cat", "dog"), answer).best(images, 3)
    assert sum(sizes) == 200
    assert max(sizes) < 200
    assert [[(name, round(share, 3)) for name, share in best[place]] for place in (50, 150)] == [
        [("dog", 0.75), ("cat", 0.25)],
        [("cat", 0.75), ("dog", 0.25)],
    ]
