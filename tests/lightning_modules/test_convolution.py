"""A small feature map's convolution, one product of matrices, computes what torch's own computes."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from lightning_modules.convolution import Convolution

AMX: dict[str, Any] = {"amx_bf16": True}


def trained(layer: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Return a layer's outputs and the gradients of its inputs and parameters."""
    given = images.clone(memory_format=torch.preserve_format).requires_grad_()
    outputs = layer(given)
    outputs.square().sum().backward()
    tensors = [outputs, given.grad, *(parameter.grad for parameter in layer.parameters())]
    return [tensor.detach() for tensor in tensors if tensor is not None]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 3), (4, 4), (3, 5), (5, 4)])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_training_computes_what_torch_computes(
    size: int, shape: tuple[int, int], dtype: torch.dtype, tolerance: float, memory_format: torch.memory_format
) -> None:
    with torch.random.fork_rng(), patch("torch.cpu.get_capabilities", lambda: AMX):
        torch.manual_seed(0)
        ours, theirs = Convolution(6, 7, size), nn.Conv2d(6, 7, size, padding=size // 2)
        images = torch.randn(5, 6, *shape, dtype=dtype).to(memory_format=memory_format)
    theirs.load_state_dict(ours.state_dict())
    layers = (layer.to(dtype).to(memory_format=memory_format) for layer in (ours, theirs))
    for mine, expected in zip(*(trained(layer, images) for layer in layers), strict=True):
        torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("amx", "dtype", "side", "training", "products"),
    [
        (False, torch.float32, 2, True, 1),
        (False, torch.bfloat16, 4, True, 0),
        (True, torch.bfloat16, 4, True, 1),
        (True, torch.float32, 4, True, 0),
        (True, torch.bfloat16, 8, True, 0),
        (True, torch.bfloat16, 2, False, 0),
    ],
)
def test_only_what_trains_faster_so_is_a_product(
    amx: bool, dtype: torch.dtype, side: int, training: bool, products: int
) -> None:
    with patch("torch.cpu.get_capabilities", lambda: AMX if amx else {}):
        layer = Convolution(6, 7, 3).to(dtype).train(training)
    with patch("torch.nn.functional.linear", wraps=nn.functional.linear) as linear:
        layer(torch.zeros(5, 6, side, side, dtype=dtype))
    assert linear.call_count == products
