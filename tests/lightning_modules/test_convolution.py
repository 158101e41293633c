"""A small feature map's convolution, one product of matrices, computes what torch's own computes."""

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.convolution import Convolution


def trained(layer: nn.Module, images: Tensor, mixed: bool) -> list[Tensor]:
    """Return a layer's outputs and the gradients of its inputs and parameters."""
    given = images.clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        outputs = layer(given)
    outputs.float().square().sum().backward()
    tensors = [outputs, given.grad, *(parameter.grad for parameter in layer.parameters())]
    return [tensor.detach() for tensor in tensors if tensor is not None]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 3), (4, 4), (3, 5), (5, 4)])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_training_computes_what_torch_computes(
    size: int,
    shape: tuple[int, int],
    precision: str,
    memory_format: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    mixed = precision == "bf16-mixed"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours, theirs = Convolution(6, 7, size), nn.Conv2d(6, 7, size, padding=size // 2)
        images = torch.randn(5, 6, *shape)
    theirs.load_state_dict(ours.state_dict())
    dtype, tolerance = (torch.float32, 0.02) if mixed else (torch.float64, 1e-12)
    images = images.to(torch.bfloat16 if mixed else dtype).to(memory_format=memory_format)
    layers = (layer.to(dtype).to(memory_format=memory_format) for layer in (ours, theirs))
    for mine, expected in zip(*(trained(layer, images, mixed) for layer in layers), strict=True):
        torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("amx", "dtype", "shape", "training", "product"),
    [
        (False, torch.float32, (2, 2), True, True),
        (False, torch.float32, (1, 5), True, False),
        (False, torch.bfloat16, (4, 4), True, False),
        (True, torch.bfloat16, (4, 4), True, True),
        (True, torch.bfloat16, (1, 17), True, False),
        (True, torch.float32, (4, 4), True, False),
        (True, torch.bfloat16, (2, 2), False, False),
    ],
)
def test_only_what_trains_faster_so_is_a_product(
    amx: bool,
    dtype: torch.dtype,
    shape: tuple[int, int],
    training: bool,
    product: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True} if amx else {})
    outputs = Convolution(6, 7, 3).to(dtype).train(training)(torch.zeros(5, 6, *shape, dtype=dtype))
    assert outputs.grad_fn is not None
    assert ("Convolution" not in outputs.grad_fn.name()) == product


def test_a_kernel_without_a_centre_is_refused() -> None:
    with pytest.raises(ValueError, match="must be odd"):
        Convolution(6, 7, 2)
