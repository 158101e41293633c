"""Each value of docs/vgg_audit.md is what the configurations have, and each setting of theirs has its row."""

import re
from collections.abc import Callable, Iterator
from functools import cached_property
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn

from datamodules import Batch, CIFAR10DataModule
from datamodules.augmentation import crop_flip
from datamodules.sources import Images, Source
from lightning_modules import VGG
from overfitting_lab.callbacks.checkpoints import BestCheckpoint
from overfitting_lab.cli import ExperimentCLI
from tests.conftest import ROOT

EXPERIMENTS = ("vgg16_notebook", "vgg16", "vgg16_32")  # in the order of their columns
ROW = re.compile(r"^\|(.*)\|$")


class Parsed(ExperimentCLI):
    """A configuration and its network, of which only the shapes are there; without a trainer."""

    def before_instantiate_classes(self) -> None:
        """Leaves the precision as it stands, whatever this machine has."""

    def instantiate_classes(self) -> None:
        """Takes no memory for the network."""
        with torch.device("meta"):
            LightningCLI.instantiate_classes(self)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """None is needed."""
        return cast(Trainer, None)


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The settings in a YAML, by their flags."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, key if name in ("class_path", "init_args") else f"{key}.{name}".lstrip("."))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for item in value:
            yield from leaves(item, key)
    else:
        yield key, value


def written(experiment: str) -> dict[str, Any]:
    """The settings that stand in an experiment's file."""
    found = list(leaves(yaml.safe_load((ROOT / "configs" / f"{experiment}.yaml").read_text())))
    assert len(dict(found)) == len(found), "two callbacks: their settings need keys of their own"
    return dict(found)


class Experiment:
    """A configuration, and what it makes: the network without memory, the data of 50,000 images that are all one."""

    def __init__(self, name: str) -> None:
        cli = Parsed(["--config", f"{name}.yaml"])
        flat = {key: value for key, value in vars(cli.config.as_flat()).items() if key != "trainer.callbacks"}
        plain = {key.replace(".init_args", "").removesuffix(".class_path"): value for key, value in flat.items()}
        self.settings = {**plain, **{key: value for key, value in written(name).items() if key.startswith("trainer.")}}
        self.model = cast(VGG, cli.model)
        self.data = CIFAR10DataModule(**vars(cli.config.data))
        images = torch.zeros((), dtype=torch.uint8).expand(50_000, 32, 32, 3)
        labels = torch.zeros((), dtype=torch.int64).expand(50_000)
        content = Images("", self.data.classes, images, labels, images[:10_000], labels[:10_000], identity="")
        stand_in = SimpleNamespace(load=lambda: content, load_or_compute=lambda name, compute: torch.eye(3))
        self.data._source = cast(Source, stand_in)
        self.data.setup("fit")
        self.data.trainer = self.trainer(training=True)

    @staticmethod
    def trainer(training: bool) -> Trainer:
        facts = {"training": training, "current_epoch": 0, "world_size": 1, "global_rank": 0}
        return cast(Trainer, SimpleNamespace(**facts))

    def augmented(self, image: Tensor, number: int = 32) -> Tensor:
        """As many training images, all of them uint8 [3, 32, 32], as an epoch may change them."""
        augmentation = self.data.augmentation
        return augmentation.train(image.expand(number, 3, 32, 32), torch.rand(len(augmentation.DRAWS), number))

    @cached_property
    def layers(self) -> list[nn.Module]:
        return list(self.model.network.children())

    @cached_property
    def cropped(self) -> dict[str, int]:
        """What the crop is asked for."""
        with pytest.MonkeyPatch.context() as monkeypatch:
            crop = MagicMock(side_effect=crop_flip)
            monkeypatch.setattr("datamodules.augmentation.crop_flip", crop)
            self.augmented(torch.zeros(3, 32, 32, dtype=torch.uint8), 2)
        (call,) = crop.call_args_list
        return {"side": call.args[0].shape[-1], "padding": 0, **call.kwargs}


def head(experiment: Experiment) -> str:
    linear = [layer for layer in experiment.layers if isinstance(layer, nn.Linear)]
    return "-".join(map(str, (linear[0].in_features, *(layer.out_features for layer in linear))))


def objective(experiment: Experiment) -> str:
    output, labels = torch.randn(5, 10), torch.arange(5)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(VGG, "forward", lambda self, images: output)
        loss, _ = experiment.model._losses(Batch(output, labels, labels, 5), MagicMock())
    return "cross-entropy" if torch.allclose(loss, -output.log_softmax(1)[labels, labels]) else "another"


def flips(experiment: Experiment) -> str:
    ramp = (torch.arange(32) * 8).to(torch.uint8)
    image = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), ramp.expand(32, 32)])
    images = experiment.augmented(image)
    half = images.shape[-1] // 2
    turned = {
        "horizontal": images[:, 0, :, :half].mean((1, 2)) > images[:, 0, :, half:].mean((1, 2)),
        "vertical": images[:, 1, :half].mean((1, 2)) > images[:, 1, half:].mean((1, 2)),
    }
    assert not any(flipped.all() for flipped in turned.values())
    return " and ".join(name for name, flipped in turned.items() if flipped.any())


def colour_shift(experiment: Experiment) -> float:
    """Standard deviation along each component, where each has one of 1."""
    middle = experiment.data.image_size // 2
    images = [experiment.augmented(torch.full((3, 32, 32), 128, dtype=torch.uint8), 200)[:, :, middle, middle]]
    return round(float(torch.cat(images).std(0).mean()), 2)


def validation_augmented(experiment: Experiment) -> bool:
    data, images = experiment.data, torch.randint(256, (8, 32, 32, 3), dtype=torch.uint8)
    expected = data.network_input(images.permute(0, 3, 1, 2))
    data.trainer = experiment.trainer(training=False)
    batch = data.on_after_batch_transfer(Batch(images, torch.zeros(8).long(), torch.arange(8), 8), 0)
    data.trainer = experiment.trainer(training=True)
    return not torch.equal(cast(Batch, batch).images, expected)


FACTS: dict[str, Callable[[Experiment], object]] = {
    "head": head,
    "dropout layers": lambda experiment: sum(isinstance(layer, nn.Dropout) for layer in experiment.layers),
    "objective": objective,
    "iterations": lambda experiment: len(experiment.data.train_dataloader()),
    "side before the crop": lambda experiment: experiment.cropped["side"],
    "zeros around it": lambda experiment: experiment.cropped["padding"],
    "crop": lambda experiment: experiment.cropped["size"],
    "flips": flips,
    "colour shift": colour_shift,
    "training images": lambda experiment: len(experiment.data.train_indices),
    "validation images": lambda experiment: len(experiment.data.val_indices),
    "validation augmented": validation_augmented,
    "best by": lambda experiment: BestCheckpoint.MONITOR,
}


def table() -> dict[str, tuple[str, ...]]:
    """The cells of each row: those of the experiments, by the setting's flag or, in italics, its fact."""
    rows: dict[str, tuple[str, ...]] = {}
    lines = (ROOT / "docs" / "vgg_audit.md").read_text().splitlines()
    for cells in ([cell.strip() for cell in match[1].split("|")] for line in lines if (match := ROW.match(line))):
        assert len(cells) == 7, cells
        if cells[1][0] in "`*":
            key = cells[1].strip("`*")
            assert key not in rows, f"two rows of {key}"
            rows[key] = tuple(cells[3:6])
    return rows


def value_of(cell: str) -> Any:
    """What a cell says in backticks."""
    values = re.findall("`([^`]*)`", cell)
    assert len(values) == 1, f"{cell!r} has not one value"
    return None if values[0] == "-" else yaml.safe_load(values[0])


def agree(said: Any, value: Any) -> bool:
    if isinstance(said, str) and isinstance(value, str):
        return said in (value, value.rpartition(".")[2])  # a class by its name or its whole path
    if isinstance(said, bool) or isinstance(value, bool):
        return said is value
    return bool(said == (list(value) if isinstance(value, tuple) else value))


@pytest.fixture(scope="module")
def experiments() -> Iterator[dict[str, Experiment]]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # parsing sets it: have it restored
        yield {name: Experiment(name) for name in EXPERIMENTS}


@pytest.mark.parametrize("key", table())
def test_row_is_what_the_configurations_have(key: str, experiments: dict[str, Experiment]) -> None:
    for cell, (name, experiment) in zip(table()[key], experiments.items(), strict=True):
        value = FACTS[key](experiment) if key in FACTS else experiment.settings.get(key)
        assert agree(value_of(cell), value), f"{name}: the audit says {cell}, the configuration has {value!r}"


def test_every_setting_and_every_fact_has_a_row() -> None:
    settings = {key for name in EXPERIMENTS for key in written(name)} - {"experiment"}
    assert settings | FACTS.keys() <= table().keys()


def test_every_row_is_of_a_setting_that_there_is(experiments: dict[str, Experiment]) -> None:
    known = {key for experiment in experiments.values() for key in experiment.settings}
    assert table().keys() <= known | FACTS.keys()


def test_the_audits_head_names_the_experiments() -> None:
    header = next(line for line in (ROOT / "docs" / "vgg_audit.md").read_text().splitlines() if ROW.match(line))
    assert tuple(re.findall("`([^`]*)`", header)) == EXPERIMENTS


def test_vgg11_is_vgg16_with_configuration_a() -> None:
    assert {**written("vgg16"), "experiment": "vgg11", "model.configuration": "A"} == written("vgg11")
