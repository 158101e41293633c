"""Test-time augmentation by the mirrored image."""

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn


class Mirrored(nn.Module):
    """A network that averages its outputs for an image and for its mirror image, left and right exchanged."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean outputs [N, classes] for images [N, 3, height, width]."""
        outputs: Tensor = self.network(images) + self.network(images.flip(dims=[3]))
        return outputs / 2


class MirroredTest(Callback):
    """Test the network with :class:`Mirrored`."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the network, whose weights have been loaded."""
        pl_module.network = Mirrored(pl_module.network)  # type: ignore[arg-type]
