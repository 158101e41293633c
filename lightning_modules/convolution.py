"""A convolution that trains faster on a CPU where its feature maps are small."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SMALL = 4 * 4  # positions; at 8x8, both ways take about as long


class Convolution(nn.Conv2d):
    """A convolution of stride 1 whose outputs are as large as its inputs.

    On a CPU, small feature maps train as one product of two matrices (Chellapilla et al. 2006): each row of the first
    is the patch of inputs that one output sees. torch's own convolution spends most of its time there on rearranging
    the weights and their gradient; docs/speed.md has the comparison. Both ways compute the same sums, up to rounding.

    Args:
        inputs: number of input channels.
        outputs: number of output channels.
        size: height and width of the kernel, odd.
    """

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve a batch of shape (N, inputs, height, width)."""
        height, width = input.shape[2:]
        if not self.training or input.device.type != "cpu" or height * width > _SMALL:
            return super().forward(input)
        size, pad = self.kernel_size[0], self.kernel_size[0] // 2
        padded = F.pad(input.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad))
        patches = torch.cat([padded[:, y : y + height, x : x + width] for y in range(size) for x in range(size)], dim=3)
        outputs = F.linear(patches, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)
        return outputs.permute(0, 3, 1, 2)
