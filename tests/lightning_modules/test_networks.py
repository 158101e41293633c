import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from lightning_modules import VGG, AlexNet, ImageClassifier
from lightning_modules.convolution import Convolution


def without_memory(kind: type[ImageClassifier], **settings: Any) -> nn.Sequential:
    """Return a network's layers with shapes only."""
    with torch.device("meta"):
        network = kind(**settings).network
    assert isinstance(network, nn.Sequential)
    return network


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def weight_layers(network: nn.Module) -> list[nn.Module]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def outline(layers: nn.Module) -> list[str]:
    return [
        repr(layer).replace("Convolution(", "Conv2d(")
        for layer in layers.modules()
        if not isinstance(layer, nn.Sequential)
    ]


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        (AlexNet, {}, 35_855_178),
        (AlexNet, {"num_classes": 100}, 35_855_178 + 90 * 4097),
        (VGG, {"image_size": 224}, 134_301_514),
        (VGG, {}, 134_301_514 - 48 * 512 * 4096),  # one position before the classifier instead of 49
    ],
)
def test_number_of_parameters(kind: type[ImageClassifier], settings: dict[str, Any], expected: int) -> None:
    assert parameters(without_memory(kind, **settings)) == expected


def test_alexnets_layers_have_the_shapes_of_the_table() -> None:
    shapes: list[tuple[int, ...]] = []
    values = torch.empty(2, 3, 32, 32, device="meta")
    for layer in without_memory(AlexNet).eval():
        values = layer(values)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            shapes.append(tuple(values.shape[1:]))
        elif isinstance(layer, nn.MaxPool2d):  # belongs to the convolution before it
            shapes[-1] = tuple(values.shape[1:])
    assert shapes == [(64, 16, 16), (192, 8, 8), (384, 8, 8), (256, 8, 8), (256, 4, 4), (4096,), (4096,), (10,)]


def test_alexnet_is_torchvisions_with_small_kernels() -> None:
    mine = without_memory(AlexNet)
    with torch.device("meta"):
        original = torchvision.models.alexnet(num_classes=10)
    kinds = [type(layer) for layer in mine if not isinstance(layer, nn.Flatten)]
    assert kinds == [type(layer) for layer in (*original.features, *original.classifier)]
    for layer, other in zip(weight_layers(mine)[:5], weight_layers(original)[:5], strict=True):
        assert isinstance(layer, nn.Conv2d)
        assert isinstance(other, nn.Conv2d)
        assert (layer.in_channels, layer.out_channels) == (other.in_channels, other.out_channels)
        assert (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))


@pytest.mark.parametrize(
    ("configuration", "number", "millions"),
    [("A", 11, 133), ("B", 13, 133), ("C", 16, 134), ("D", 16, 138), ("E", 19, 144)],
)
def test_vgg_has_the_weight_layers_and_parameters_of_the_papers_tables(
    configuration: Any, number: int, millions: int
) -> None:
    network = without_memory(VGG, configuration=configuration, image_size=224, num_classes=1000)
    layers = weight_layers(network)
    assert (len(layers), round(parameters(network) / 1e6)) == (number, millions)
    assert [type(layer) for layer in layers[-4:]] == [Convolution, nn.Linear, nn.Linear, nn.Linear]


def test_vggs_configuration_c_ends_three_blocks_in_1x1_convolutions() -> None:
    layers = without_memory(VGG, configuration="C")
    kernels = [layer.kernel_size[0] for layer in layers if isinstance(layer, nn.Conv2d)]
    assert kernels == [3, 3, 3, 3, 3, 3, 1, 3, 3, 1, 3, 3, 1]
    assert layers(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


@pytest.mark.parametrize(
    ("kind", "settings"), [(AlexNet, {}), *((VGG, {"configuration": column}) for column in ("A", "B", "C", "D", "E"))]
)
def test_batch_norm_follows_every_convolution(kind: type[ImageClassifier], settings: dict[str, Any]) -> None:
    layers = list(without_memory(kind, **settings, batch_norm=True))
    for layer, following in pairwise(layers):
        assert isinstance(layer, nn.Conv2d) == isinstance(following, nn.BatchNorm2d)
    others = [layer for layer in layers if not isinstance(layer, nn.BatchNorm2d)]
    assert outline(nn.Sequential(*others)) == outline(without_memory(kind, **settings))


@pytest.mark.parametrize(
    ("kind", "settings", "channels", "features"),
    [
        (AlexNet, {"width": 0.125}, [8, 24, 48, 32, 32], 512),
        (AlexNet, {"width": 2, "batch_norm": True}, [128, 384, 768, 512, 512], 8192),
        (AlexNet, {"width": 0.3, "hidden_features": 8}, [19, 58, 115, 77, 77], 2),
        (AlexNet, {"width": 0.125, "hidden_features": 1}, [8, 24, 48, 32, 32], 1),
        (AlexNet, {"hidden_features": 8}, [64, 192, 384, 256, 256], 8),
        (VGG, {"width": 0.5, "configuration": "A"}, [32, 64, 128, 128, 256, 256, 256, 256], 2048),
        (VGG, {"width": 2, "configuration": "A"}, [128, 256, 512, 512, 1024, 1024, 1024, 1024], 8192),
    ],
)
def test_width_multiplies_channels_and_hidden_features(
    kind: type[ImageClassifier], settings: dict[str, Any], channels: list[int], features: int
) -> None:
    network = without_memory(kind, **settings)
    outputs = [layer.out_channels for layer in network if isinstance(layer, nn.Conv2d)]
    assert outputs == channels
    assert [layer.out_features for layer in network if isinstance(layer, nn.Linear)] == [features, features, 10]
    assert network(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


@pytest.mark.parametrize(("configuration", "depth"), [("A", 11), ("B", 13), ("D", 16), ("E", 19)])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_vgg_is_torchvisions_layer_for_layer(configuration: Any, depth: int, batch_norm: bool) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"vgg{depth}{'_bn' * batch_norm}")(num_classes=10)
    mine = without_memory(VGG, configuration=configuration, batch_norm=batch_norm, image_size=224)
    end = [isinstance(layer, nn.Flatten) for layer in mine].index(True)
    assert outline(mine[:end]) == outline(theirs.features)
    assert outline(mine[end + 1 :]) == outline(theirs.classifier)
    assert {name: value.shape for name, value in mine[:end].state_dict().items()} == {
        name: value.shape for name, value in theirs.features.state_dict().items()
    }


@pytest.mark.parametrize(
    ("kind", "image_size", "settings"),
    [
        (AlexNet, 8, {"num_classes": 10}),
        (AlexNet, 64, {"num_classes": 3, "hidden_features": 7}),
        (VGG, 64, {"num_classes": 3, "hidden_features": 7}),
    ],
)
def test_networks_have_the_image_size_and_number_of_classes_that_are_set(
    kind: type[ImageClassifier], image_size: int, settings: dict[str, Any]
) -> None:
    network = without_memory(kind, image_size=image_size, **settings)
    assert network(torch.empty(2, 3, image_size, image_size, device="meta")).shape == (2, settings["num_classes"])


def test_a_softmax_at_the_end_of_vgg_is_not_applied_twice() -> None:
    plain, model = (VGG(configuration="A", hidden_features=8, softmax=softmax).eval() for softmax in (False, True))
    model.network.load_state_dict(plain.network.state_dict())  # a softmax has no weights
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(model(images), plain(images).softmax(1))
        assert torch.allclose(model.predict_step(images), plain.predict_step(images))
        assert model.to(torch.bfloat16).predict_step(images).dtype == torch.float32


@pytest.mark.parametrize("kind", [AlexNet, VGG])
def test_dropout_is_as_set(kind: type[ImageClassifier]) -> None:
    layers = without_memory(kind, dropout=0.25)
    assert [layer.p for layer in layers if isinstance(layer, nn.Dropout)] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (AlexNet, {"image_size": 36}, "image_size must be a multiple of 8, not 36"),
        (AlexNet, {"image_size": 0}, "image_size must be a multiple of 8, not 0"),
        (AlexNet, {"image_size": -8}, "image_size must be a multiple of 8, not -8"),
        (VGG, {"image_size": 48}, "image_size must be a multiple of 32, not 48"),
        (VGG, {"image_size": 0}, "image_size must be a multiple of 32, not 0"),
        *((kind, {"dropout": p}, r"dropout must be in \[0, 1\)") for kind in (AlexNet, VGG) for p in (-0.1, 1.0)),
        *(
            (kind, {"width": w}, r"width must be in \[0\.125, 2\]")
            for kind in (AlexNet, VGG)
            for w in (0.1, 2.5, math.nan)
        ),
        *((kind, {"hidden_features": 0}, "hidden_features must be at least 1") for kind in (AlexNet, VGG)),
    ],
)
def test_arguments_out_of_range_are_refused(
    kind: type[ImageClassifier], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        without_memory(kind, **settings)
