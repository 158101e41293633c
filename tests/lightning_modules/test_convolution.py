"""A small feature map's convolution, one product of matrices, computes what torch's own computes."""

import pytest
import torch
from torch import nn

from lightning_modules.convolution import Convolution


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (4, 4), (4, 3), (2, 8), (5, 4)])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_training_computes_what_torch_computes(
    size: int, shape: tuple[int, int], memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    ours, theirs = Convolution(6, 7, size).double(), nn.Conv2d(6, 7, size, padding=size // 2).double()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(5, 6, *shape, dtype=torch.float64)
    results = []
    for layer in (ours, theirs):
        layer.to(memory_format=memory_format)
        given = images.clone(memory_format=memory_format).requires_grad_()
        outputs = layer(given)
        outputs.square().sum().backward()
        gradients = [parameter.grad for parameter in layer.parameters()]
        results.append([outputs, given.grad, *gradients])
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected)


def test_evaluation_is_torchs_own_convolution() -> None:
    torch.manual_seed(0)
    layer = Convolution(6, 7, 3).eval()
    images = torch.randn(5, 6, 4, 4)
    expected = nn.functional.conv2d(images, layer.weight, layer.bias, padding=1)
    assert torch.equal(layer(images), expected)
