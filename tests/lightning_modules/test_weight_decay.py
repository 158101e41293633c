from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, Rprop

from lightning_modules import VGG, AlexNet, ImageClassifier
from lightning_modules.errors import ModelError

RATE, DECAY = 0.5, 0.1


def optimizer_of(model: ImageClassifier) -> Optimizer:
    made: Any = model.configure_optimizers()
    assert isinstance(made, Optimizer)
    return made


def small(kind: type[AlexNet | VGG], **settings: Any) -> ImageClassifier:
    """Return a network whose every parameter is 1."""
    model = kind(hidden_features=4, width=0.125, **settings)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    return model


@pytest.mark.parametrize("kind", [AlexNet, VGG])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("optimizer", [SGD, partial(AdamW, fused=True)])
def test_a_step_without_gradients_shrinks_the_weights_alone(
    kind: type[AlexNet | VGG], batch_norm: bool, optimizer: Any
) -> None:
    make = partial(optimizer, lr=RATE, weight_decay=DECAY)
    model = small(kind, batch_norm=batch_norm, optimizer=make, decay_biases=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer_of(model).step()
    for layer in model.network.modules():
        shrinks = isinstance(layer, nn.Conv2d | nn.Linear)
        for name, parameter in layer.named_parameters(recurse=False):
            expected = 1 - RATE * DECAY if shrinks and name == "weight" else 1.0
            torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, expected))


def test_by_default_the_optimizer_is_torchs_over_all_parameters() -> None:
    model = small(AlexNet, batch_norm=True, optimizer=partial(SGD, lr=RATE, weight_decay=DECAY))
    (group,) = optimizer_of(model).param_groups
    assert [*map(id, group["params"])] == [*map(id, model.parameters())]
    assert group["weight_decay"] == DECAY


@pytest.mark.parametrize("optimizer", [Adam, Adagrad])
def test_an_optimizer_without_any_decay_updates_both_groups_alike(optimizer: Any) -> None:
    models = [small(AlexNet, optimizer=partial(optimizer, lr=RATE), decay_biases=decays) for decays in (True, False)]
    for model in models:
        torch.manual_seed(0)
        model(torch.rand(2, 3, 32, 32)).square().sum().backward()
        optimizer_of(model).step()
    one, other = (dict(model.network.state_dict()) for model in models)
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_an_optimizer_that_has_no_weight_decay_is_refused() -> None:
    message = "needs an optimizer with weight decay, which Rprop does not have; leave --model"
    with pytest.raises(ModelError, match=message):
        AlexNet(hidden_features=4, optimizer=partial(Rprop, lr=RATE), decay_biases=False).configure_optimizers()
