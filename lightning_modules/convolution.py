"""A convolution that trains faster on a CPU if its feature maps are small."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Positions in a feature map up to which a product of matrices is faster: docs/speed.md, "Small feature maps".
_SMALL = 2 * 2
_SMALL_FOR_AMX = 4 * 4  # in bf16


class Convolution(nn.Conv2d):
    """A convolution of stride 1 whose feature maps are as large as its input.

    On a CPU, a map of at most 2x2 positions trains as one product of two matrices (Chellapilla et al. 2006, "Unrolled
    convolution"). Each row of the first matrix is the patch of inputs that one output sees. In bf16 on a CPU with AMX,
    maps of up to 4x4 positions do. Outputs and gradients are those of torch's own convolution, up to rounding. That
    convolution serves everywhere else, and in evaluation.

    Args:
        inputs: number of input channels.
        outputs: number of output channels.
        size: height and width of the kernel, an odd number.

    Raises:
        ValueError: if ``size`` is even.
    """

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        if size % 2 == 0:
            raise ValueError(f"a kernel's size must be odd, so that it has a centre, not {size}")
        super().__init__(inputs, outputs, size, padding=size // 2)
        self._has_amx = bool(torch.cpu.get_capabilities().get("amx_bf16"))

    def forward(self, input: Tensor) -> Tensor:
        """Return feature maps [N, outputs, height, width] of a batch [N, inputs, height, width] of the weights' dtype.

        Under autocast, the maps have autocast's dtype.
        """
        if self.training and input.device.type == "cpu":
            small = _SMALL_FOR_AMX if self._has_amx and input.dtype == torch.bfloat16 else _SMALL
            if input.shape[2:].numel() <= small:
                return self._product(input)
        return super().forward(input)

    def _product(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        size, margin = self.kernel_size[0], self.kernel_size[0] // 2
        padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, margin, margin, margin, margin))
        shifted = [padded[:, y : y + height, x : x + width] for y in range(size) for x in range(size)]
        outputs = F.linear(torch.cat(shifted, dim=3), self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)
        return outputs.permute(0, 3, 1, 2)
