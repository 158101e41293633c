import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_modules import VGG, AlexNet
from lightning_modules.errors import ModelError
from overfitting_lab.runs import Run
from tests.conftest import Flags, Script

SMALL: dict[str, Any] = {"hidden_features": 8, "num_classes": 3}
PLACES = ((1, 1), (2, 1), (3, 1), (3, 2))  # block, and place within it, of the first four convolutions of A


def saved(network: nn.Module, folder: Path) -> Path:
    """Write a run's folder with nothing but its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / "weights.pth")
    return folder


@pytest.fixture(scope="session")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """Return folders of trained configurations A, whose every number differs from a new network's."""
    folder = tmp_path_factory.mktemp("a")

    def make(batch_norm: bool) -> Path:
        place = folder / str(batch_norm)
        if not place.exists():
            network = VGG(configuration="A", batch_norm=batch_norm, **SMALL).network
            for value in network.state_dict().values():
                value.copy_(torch.randn(value.shape) * 10 + 100)
            saved(network, place)
        return place

    return make


def blocks(network: nn.Module) -> list[list[nn.Module]]:
    """Return the convolutions of each block and, last, the linear layers."""
    found: list[list[nn.Module]] = [[]]
    for layer in network.children():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            found[-1].append(layer)
        elif isinstance(layer, nn.MaxPool2d):
            found.append([])
    return found


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def started(model: VGG) -> VGG:
    """Return the model as training begins with it."""
    model.network.load_state_dict(model.pretrained(), strict=False)
    return model


@pytest.mark.parametrize("configuration", ["B", "C", "D", "E"])
def test_a_gives_its_first_four_convolutions_and_the_linear_layers(
    configuration: Any, a_run: Callable[[bool], Path]
) -> None:
    a = VGG(configuration="A", **SMALL).network
    a.load_state_dict(torch.load(a_run(False) / "weights.pth", weights_only=True))
    model = VGG(configuration=configuration, init_from=a_run(False), **SMALL)
    drawn = {name: value.clone() for name, value in model.network.state_dict().items()}
    mine, theirs = blocks(started(model).network), blocks(a)
    for block, place in PLACES:
        assert same(mine[block - 1][place - 1], theirs[block - 1][place - 1])
    assert all(same(*pair) for pair in zip(mine[-1], theirs[-1], strict=True))
    taken = {id(mine[block - 1][place - 1]) for block, place in PLACES} | {id(layer) for layer in mine[-1]}
    names = [name for name, layer in model.network.named_children() if id(layer) in taken]
    assert len(names) == 7
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, drawn[name]) == (name.partition(".")[0] not in names), name


def test_with_batch_norm_the_layers_after_those_convolutions_are_loaded_too(a_run: Callable[[bool], Path]) -> None:
    model = started(VGG(batch_norm=True, init_from=a_run(True), **SMALL))
    theirs = torch.load(a_run(True) / "weights.pth", weights_only=True)
    norms = {name: layer for name, layer in model.network.named_children() if isinstance(layer, nn.BatchNorm2d)}
    places = {"0": "0", "7": "4", "14": "8", "17": "11"}  # of the convolutions in D and in A, with batch norm
    after = {str(int(mine) + 1): str(int(their) + 1) for mine, their in places.items()}
    for mine, their in {**places, **after}.items():
        for name, value in model.network.get_submodule(mine).state_dict().items():
            assert torch.equal(value, theirs[f"{their}.{name}"])
    for name, layer in norms.items():
        assert (float(layer.running_mean.abs().max()) > 0) == (name in after)  # type: ignore[union-attr]


def test_without_init_from_no_weights_are_loaded() -> None:
    assert VGG(**SMALL).pretrained() == {}
    assert AlexNet(hidden_features=8).pretrained() == {}


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (lambda: VGG(configuration="B", **SMALL), "are not of VGG's configuration A; train one, for instance"),
        (lambda: VGG(configuration="D", **SMALL), "are not of VGG's configuration A"),
        (lambda: AlexNet(**SMALL), "are not of VGG's configuration A"),
        (lambda: VGG(configuration="A", batch_norm=True, **SMALL), "other has batch normalization and this network"),
        (lambda: VGG(configuration="A", num_classes=4, hidden_features=8), r"28\.weight is \(4, 8\) there and must be"),
        (lambda: VGG(configuration="A", num_classes=3, hidden_features=9), "--model.hidden_features"),
        (lambda: VGG(configuration="A", width=0.5, **SMALL), r"0\.weight is \(32, .* must be \(64, .*--model\.width"),
        (lambda: VGG(configuration="A", image_size=64, **SMALL), r"other classes, another image size or .* width"),
    ],
)
def test_weights_of_another_network_are_refused(
    theirs: Callable[[], VGG | AlexNet], message: str, tmp_path: Path
) -> None:
    saved(theirs().network, tmp_path / "other")
    with pytest.raises(ModelError, match=message):
        VGG(init_from=tmp_path / "other", **SMALL).pretrained()


def test_a_network_with_batch_norm_refuses_one_without(a_run: Callable[[bool], Path]) -> None:
    with pytest.raises(ModelError, match=r"this network has batch normalization and .*False does not; set --model"):
        VGG(batch_norm=True, init_from=a_run(False), **SMALL).pretrained()


def test_a_folder_that_has_no_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere is no folder; give model.init_from the run of a trained config"):
        VGG(init_from=tmp_path / "nowhere", **SMALL).pretrained()
    with pytest.raises(ModelError, match=r"has no weights\.pth: it is no run, or one that .* no validation; give"):
        VGG(init_from=tmp_path, **SMALL).pretrained()


def test_damaged_weights_and_those_that_would_run_code_are_refused(tmp_path: Path) -> None:
    path = saved(VGG(configuration="A", **SMALL).network, tmp_path) / "weights.pth"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"weights\.pth is damaged"):
            VGG(init_from=tmp_path, **SMALL).pretrained()
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(ModelError, match="would run code when loaded"):
        VGG(init_from=tmp_path, **SMALL).pretrained()
    torch.save([torch.zeros(2)], path)
    with pytest.raises(ModelError, match="are not of VGG's configuration A"):
        VGG(init_from=tmp_path, **SMALL).pretrained()


def test_configuration_a_has_no_init_from() -> None:
    with pytest.raises(ValueError, match="init_from is for configurations B to E"):
        VGG(configuration="A", init_from="lightning_logs/vgg11/version_0")


# The two commands of the README


@pytest.fixture
def vgg(tiny: Flags) -> Flags:
    data = ("--data.train_size=12", "--data.val_size=6", "--data.batch_size=6", "--data.image_size=32")
    small_steps = ("--model.optimizer.lr=1e-5", "--model.optimizer.momentum=0")  # the weights hardly move
    return "--config=vgg16_32", *tiny, *data, *small_steps, "--trainer.max_epochs=1", "--model.width=0.25"


@pytest.mark.thorough
def test_the_papers_way(run_script: Script, vgg: Flags, tmp_path: Path, image_folder: Path) -> None:
    a, d = (tmp_path / "lightning_logs" / name / "version_0" for name in ("vgg11_32", "vgg16_32"))
    outcome = run_script("fit", *vgg, "--model.configuration", "A", "--experiment", "vgg11_32")
    assert outcome.status == 0, outcome.err

    wrong = run_script("fit", *vgg, "--model.init_from", "lightning_logs/vgg11_32/version_1")
    assert wrong.status == 1
    assert "error: lightning_logs/vgg11_32/version_1 is no folder; give model.init_from the run" in wrong.err
    assert not d.parent.exists() or not list(d.parent.iterdir()), "a mistake leaves no run"

    outcome = run_script("fit", *vgg, "--model.init_from", "lightning_logs/vgg11_32/version_0")
    assert outcome.status == 0, outcome.err
    theirs, mine = (torch.load(folder / "weights.pth", weights_only=True) for folder in (a, d))
    for ours, their in {"0": "0", "5": "3", "10": "6", "12": "8", "32": "22", "35": "25", "38": "28"}.items():
        torch.testing.assert_close(mine[f"{ours}.weight"], theirs[f"{their}.weight"], atol=1e-3, rtol=0)
    assert f"init_from: {a}" in (d / "config.yaml").read_text()
    settings = torch.load(d / "checkpoints" / "best.ckpt", weights_only=True)["hyper_parameters"]
    assert "init_from" not in settings

    shutil.rmtree(a.parent)  # no longer needed
    longer = run_script("fit", "--resume", d, "--trainer.max_epochs=2")
    assert longer.status == 0, longer.err
    assert Run(d).summary.epochs == 2
    tested = run_script("test", d)
    assert tested.status == 0, tested.err
    predicted = run_script("predict", d, next((image_folder / "test").rglob("*.png")))
    assert predicted.status == 0, predicted.err
