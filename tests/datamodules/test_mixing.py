import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from datamodules.mixing import epoch_mixtures, epoch_partners, mix

CPU = torch.device("cpu")
LARGEST = 1 - 2**-24  # number drawn


def mixtures(mixup: float, cutmix: float, *, size: int = 20_000, seed: int = 0, epoch: int = 0) -> Tensor:
    return epoch_mixtures(size, seed, epoch, mixup, cutmix, CPU)


@pytest.mark.parametrize("size", [2, 3, 100])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (2**32 - 1, 3)])
def test_each_image_is_the_partner_of_one_other_image(size: int, seed: int, epoch: int) -> None:
    partners = epoch_partners(size, seed, epoch)
    assert partners.dtype == torch.int64
    assert sorted(partners.tolist()) == list(range(size))
    assert (partners != torch.arange(size)).all()


def test_partners_are_drawn_anew_for_every_seed_and_epoch_and_by_no_global_generator() -> None:
    drawn = {(seed, epoch): epoch_partners(1000, seed, epoch) for seed in range(3) for epoch in range(3)}
    assert len({tuple(each.tolist()) for each in drawn.values()}) == 9
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert torch.equal(epoch_partners(1000, 2, 1), drawn[2, 1])
    mutual = sum(int((each[each] == torch.arange(1000)).sum()) for each in drawn.values())
    assert mutual == 0, "a circle of more than two"
    ahead = torch.cat([(each - torch.arange(1000)) % 1000 for each in drawn.values()])
    assert stats.kstest(ahead.numpy() / 1000, "uniform").pvalue > 0.001


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_the_share_is_the_larger_part_of_a_beta_draw(alpha: float) -> None:
    for table in (mixtures(alpha, 0), mixtures(0, alpha)):
        assert 0.5 <= table[0].min() <= table[0].max() <= 1
        for share in (0.55, 0.7, 0.9, 0.99):
            expected = stats.beta.cdf(share, alpha, alpha) - stats.beta.cdf(1 - share, alpha, alpha)
            assert abs(float((table[0] < share).double().mean()) - expected) < 0.015  # 4 standard deviations


def test_each_image_is_mixed_by_one_method_and_boxes_have_their_centre_anywhere() -> None:
    assert mixtures(1, 0)[1].max() == 0
    assert mixtures(0, 1)[1].min() == 1
    both = mixtures(0.2, 1)
    cut = both[1] == 1
    assert 0.49 < cut.double().mean() < 0.51
    assert stats.kstest(both[0, cut].numpy(), stats.uniform(0.5, 0.5).cdf).pvalue > 0.001, "Beta(1, 1)"
    assert both[0, ~cut].median() > 0.95, "Beta(0.2, 0.2)"
    for centre in both[2:]:
        assert 0 <= centre.min() <= centre.max() < 1
        assert stats.kstest(centre.numpy(), "uniform").pvalue > 0.001
    assert torch.corrcoef(both).fill_diagonal_(0)[2:].abs().max() < 0.035


def test_mixtures_depend_on_seed_and_epoch_alone() -> None:
    first = mixtures(1, 1).clone()
    torch.manual_seed(1)
    others = [mixtures(1, 1, seed=1), mixtures(1, 1, epoch=1)]
    assert torch.equal(mixtures(1, 1), first)
    for other in others:
        assert (other != first)[[0, 2, 3]].double().mean() > 0.99


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (12, 7)])
def test_mixing_is_what_a_loop_over_images_and_pixels_gives(height: int, width: int) -> None:
    images, partners = torch.rand(2, 40, 3, height, width, generator=torch.Generator().manual_seed(0))
    table = mixtures(1, 1, size=40).clone()
    table[:, 0] = torch.tensor([0.5, 1, 0, 0])  # the largest box, in a corner
    table[:, 1] = torch.tensor([0.5, 1, LARGEST, LARGEST])
    table[:, 2] = torch.tensor([1.0, 1, 0.5, 0.5])
    table[:, 3] = torch.tensor([0.5, 0, 0, 0])
    mixed, shares = mix(images, partners, table)
    assert shares.dtype == torch.float32
    for image, partner, result, share, drawn in zip(images, partners, mixed, shares, table.T.tolist(), strict=True):
        fraction, cut, row, column = drawn
        if not cut:
            assert torch.allclose(result, fraction * image + (1 - fraction) * partner, atol=1e-6)
            assert share == fraction
            continue
        half_height, half_width = (int(math.sqrt(1 - fraction) * side / 2) for side in (height, width))
        kept = 0
        for y in range(height):
            for x in range(width):
                centre_y, centre_x = int(row * height), int(column * width)
                inside = -half_height <= y - centre_y < half_height and -half_width <= x - centre_x < half_width
                assert torch.equal(result[:, y, x], (partner if inside else image)[:, y, x])
                kept += not inside
        assert share == pytest.approx(kept / (height * width))
    assert shares.min() >= 0.5


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("cut", [False, True])
def test_mixing_is_torchvisions_for_the_numbers_that_it_draws(cut: bool, alpha: float) -> None:
    images, labels = torch.rand(5, 3, 32, 24), torch.arange(5)
    logits = torch.randn(5, 5)
    theirs = (v2.CutMix if cut else v2.MixUp)(alpha=alpha, num_classes=5)
    for seed in range(20):
        torch.manual_seed(seed)
        expected, target = theirs(images, labels)
        torch.manual_seed(seed)
        share = float(torch.distributions.Beta(torch.tensor([alpha]), torch.tensor([alpha])).sample())
        column, row = (int(torch.randint(side, (1,))) / side if cut else 0 for side in (24, 32))
        table = torch.tensor([share, cut, row + 1e-3, column + 1e-3])[:, None].expand(4, 5)
        mixed, shares = mix(images, images.roll(1, 0), table)
        assert torch.allclose(mixed, expected, atol=1e-6)
        loss = shares * F.cross_entropy(logits, labels, reduction="none")
        loss += (1 - shares) * F.cross_entropy(logits, labels.roll(1), reduction="none")
        assert torch.allclose(loss, F.cross_entropy(logits, target, reduction="none"), atol=1e-5)


@pytest.mark.parametrize("number", [0, 1])
def test_the_dtype_stays_and_a_process_may_have_no_images(number: int) -> None:
    images = torch.rand(number, 3, 8, 8, dtype=torch.float64)
    mixed, shares = mix(images, 1 - images, mixtures(1, 1)[:, :number])
    assert (mixed.dtype, mixed.shape, shares.shape) == (images.dtype, images.shape, (number,))
