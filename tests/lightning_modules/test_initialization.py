import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules import VGG, AlexNet
from lightning_modules.initialization import Glorot, He, Initialization, Normal, SmallOutput


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def initialized(initialization: Initialization) -> tuple[Tensor, Tensor]:
    """Return the weights of a convolution (fan-in 30 * 9, fan-out 80 * 9) and of a linear layer (400, 90)."""
    convolution, hidden, output = nn.Conv2d(30, 80, 3), nn.Linear(400, 90), nn.Linear(90, 5)
    initialization(nn.Sequential(convolution, nn.Sequential(nn.ReLU(), hidden), output))
    return convolution.weight.detach(), hidden.weight.detach()


@pytest.mark.parametrize(
    ("initialization", "variances"),
    [
        (He("fan_in"), (2 / (30 * 9), 2 / 400)),
        (He("fan_out"), (2 / (80 * 9), 2 / 90)),
        (Glorot(), (2 / (30 * 9 + 80 * 9), 2 / (400 + 90))),
        (Normal(), (0.1**2, 0.1**2)),
        (Normal(0.03), (0.03**2, 0.03**2)),
        (SmallOutput(), (2 / (30 * 9), 2 / 400)),
        (SmallOutput(Glorot()), (2 / (30 * 9 + 80 * 9), 2 / (400 + 90))),
    ],
)
def test_the_weights_have_mean_0_and_the_formulas_variance(
    initialization: Initialization, variances: tuple[float, float]
) -> None:
    for weight, variance in zip(initialized(initialization), variances, strict=True):
        std = math.sqrt(variance)
        assert float(weight.std()) == pytest.approx(std, rel=0.03)
        assert abs(float(weight.mean())) < 0.03 * std


@pytest.mark.parametrize(("initialization", "outside"), [(He(), 0.0833), (Normal(), 0.0833), (Glorot(), 0.0)])
def test_glorots_weights_are_uniform_and_the_others_normal(initialization: Initialization, outside: float) -> None:
    for weight in initialized(initialization):
        limit = math.sqrt(3) * weight.std()  # of a uniform distribution
        assert float((weight.abs() > 1.001 * limit).double().mean()) == pytest.approx(outside, abs=0.01)


@pytest.mark.parametrize("initialization", [He(), He("fan_out"), Glorot(), Normal(), SmallOutput()])
def test_biases_are_0_and_normalization_stays(initialization: Initialization) -> None:
    norm = nn.BatchNorm2d(8)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Conv2d(8, 8, 3, bias=False), nn.Linear(8, 8), nn.Linear(8, 2))
    initialization(network)
    biases = [value for name, value in network.named_parameters() if name.endswith("bias")]
    assert len(biases) == 4
    assert not any(bias.any() for bias in biases)
    assert (norm.weight == 1).all()


@pytest.mark.parametrize("std", [0.01, 0.5])
@pytest.mark.parametrize("output", [nn.Linear(1000, 50), nn.Conv2d(1000, 50, 1)])
def test_small_output_draws_the_last_layer_small(output: nn.Linear | nn.Conv2d, std: float) -> None:
    SmallOutput(std=std)(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(8, 8), nn.ReLU(), output))
    assert float(output.weight.detach().std()) == pytest.approx(std, rel=0.03)
    assert output.bias is not None
    assert not output.bias.any()


def test_vggs_first_loss_is_at_chance_level() -> None:
    network = VGG(hidden_features=64).eval()
    with torch.inference_mode():
        loss = F.cross_entropy(network(torch.randn(16, 3, 32, 32)), torch.arange(16) % 10)
    assert float(loss) == pytest.approx(math.log(10), rel=0.02)


@pytest.mark.parametrize(("kind", "fan"), [(AlexNet, "fan_out"), (VGG, "fan_in")])
def test_networks_use_hes_rule_by_default(kind: type[AlexNet | VGG], fan: str) -> None:
    network = kind(hidden_features=16).network
    assert isinstance(network, nn.Sequential)
    third = [layer for layer in network if isinstance(layer, nn.Conv2d)][2]
    channels = third.out_channels if fan == "fan_out" else third.in_channels
    assert float(third.weight.detach().std()) == pytest.approx(math.sqrt(2 / (9 * channels)), rel=0.03)
