import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lightning_modules import VGG, AlexNet
from overfitting_lab.export import FORMATS, load_predictor
from tests.conftest import CLASSES, FinishedRun, Flags, Script, execute
from tests.networks import Tiny
from tests.scripts.test_errors import check_one_message

FILES = ["model.onnx", "model.pt2", "model.pth"]


class Exported(NamedTuple):
    """A run that was exported, and what is known of it without the project's own code for images and probabilities."""

    folder: Path
    out: str  # what the script printed
    network: nn.Module
    prepared: Callable[[Tensor], Tensor]  # images in [0, 1] to those that are normalized
    probabilities: Callable[[Tensor], Tensor]  # of what the network gives


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def quietly(folder: Path, *command: object) -> str:
    """Run a script in a folder, and return what it printed if it succeeded."""
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(io.StringIO()) as out:
        monkeypatch.chdir(folder)
        with redirect_stderr(io.StringIO()) as err:
            status = execute(monkeypatch, *map(str, command))
    assert status == 0, err.getvalue()
    return out.getvalue()


@pytest.fixture(scope="module")
def alexnet(exported_run: FinishedRun) -> Exported:
    """Return the finished run, exported."""
    network = AlexNet(num_classes=3, hidden_features=16).network
    return Exported(*exported_run, network, lambda images: images, lambda logits: logits.softmax(dim=1))


@pytest.fixture(scope="module")
def vgg(tiny: Flags, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Train VGG11 at 64x64 with batch normalization, a softmax layer and the paper's augmentation, and export it."""
    root = tmp_path_factory.mktemp("vgg")
    sizes = ("--data.image_size=64", "--data.train_size=20", "--data.val_size=10", "--trainer.max_epochs=1")
    kind = ("--model.configuration=A", "--model.batch_norm=true", "--model.softmax=true", "--model.initialization=He")
    config = ("--config", "vgg16_bn_32", "--experiment=vgg", "--model.lr_scheduler=null", "--trainer.callbacks=null")
    rest = ("--data.augment=vgg", "--doctor=off")
    quietly(root, "fit", *config, *tiny, *sizes, *kind, *rest)
    folder = root / "lightning_logs" / "vgg" / "version_0"
    out = quietly(root, "export", folder)
    network = VGG(
        num_classes=3, image_size=64, configuration="A", batch_norm=True, hidden_features=128, width=0.125, softmax=True
    ).network

    def window(images: Tensor) -> Tensor:  # 64 of 73, as 224 of 256
        return F.interpolate(images, size=(73, 73), mode="bilinear", align_corners=False)[:, :, 4:68, 4:68]

    return Exported(folder, out, network, window, lambda probabilities: probabilities)


@pytest.fixture(scope="module")
def bf16(quick: Flags, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Train a network whose weights are bf16, and export it."""
    root = tmp_path_factory.mktemp("bf16")
    flags = ("--data.image_size=32", "--trainer.max_epochs=1", "--trainer.precision=bf16-true")
    quietly(root, "fit", "--config=overfit", *quick, *flags)
    folder = root / "lightning_logs" / "overfit" / "version_0"
    out = quietly(root, "export", folder)
    network = Tiny(num_classes=3).network
    return Exported(folder, out, network, lambda images: images, lambda logits: logits.softmax(dim=1))


def expected(run: Exported, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities of uint8 [N, 3, 32, 32] by the best checkpoint, with a normalization of the test's own."""
    checkpoint = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    weights = {name.removeprefix("network."): value.float() for name, value in checkpoint["state_dict"].items()}
    run.network.load_state_dict(weights)
    settings = checkpoint["datamodule_hyper_parameters"]
    mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))
    images = (run.prepared(torch.tensor(pixels / 255, dtype=torch.float32)) - mean) / std
    with torch.no_grad():
        return np.asarray(run.probabilities(run.network.eval()(images)))


def read_pixels(image_folder: Path, number: int) -> NDArray[np.uint8]:
    paths = sorted((image_folder / "test").glob("*/*"), key=lambda path: path.name)[:number]
    return np.stack([np.asarray(Image.open(path)) for path in paths]).transpose(0, 3, 1, 2)


@pytest.fixture(params=["alexnet", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("vgg", "bf16"))])
def run(request: pytest.FixtureRequest) -> Exported:
    exported: Exported = request.getfixturevalue(request.param)
    return exported


def test_each_file_is_compared_and_named(run: Exported) -> None:
    line = r"^(.*): 45 images, largest difference of a probability (\S+), the same class for 45$"
    said = re.findall(line, run.out, re.MULTILINE)
    assert [path for path, _ in said] == [str(run.folder / "export" / name) for name in reversed(FILES)]
    assert all(float(difference) < 1e-5 for _, difference in said)
    assert sorted(path.name for path in (run.folder / "export").iterdir()) == FILES
    assert not list(run.folder.glob(".*"))


def test_the_rest_of_the_run_stays_and_no_file_says_where_the_data_lay(
    alexnet: Exported, finished_run: FinishedRun, image_folder: Path
) -> None:
    files = contents(alexnet.folder)
    ours = {path: files.pop(path) for path in list(files) if path.parts[0] == "export"}
    assert files == contents(finished_run.folder)
    assert all(str(image_folder).encode() not in content for content in ours.values())
    assert str(image_folder).encode() in files[Path("checkpoints/best.ckpt")], "what the line above looks for"


@pytest.mark.parametrize("number", [1, 7])
def test_torch_export_file(run: Exported, image_folder: Path, number: int) -> None:
    pixels = read_pixels(image_folder, number)
    extra = {"classes": ""}
    program = torch.export.load(run.folder / "export" / "model.pt2", extra_files=extra)
    answers = program.module()(torch.from_numpy(pixels))
    assert answers.dtype == torch.float32
    assert answers.detach().numpy() == pytest.approx(expected(run, pixels), abs=1e-5)
    assert json.loads(extra["classes"]) == list(CLASSES)


@pytest.mark.parametrize("number", [1, 7])
def test_onnx_file(run: Exported, image_folder: Path, number: int) -> None:
    pixels = read_pixels(image_folder, number)
    session = onnxruntime.InferenceSession(run.folder / "export" / "model.onnx", providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape) == ("images", "tensor(uint8)", ["batch", 3, 32, 32])
    assert (given.name, given.type, given.shape) == ("probabilities", "tensor(float)", ["batch", 3])
    (answers,) = session.run(None, {"images": pixels})
    assert answers == pytest.approx(expected(run, pixels), abs=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(CLASSES)


def test_state_dict(run: Exported) -> None:
    content: dict[str, Any] = torch.load(run.folder / "export" / "model.pth", weights_only=True)
    checkpoint = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert content["classes"] == list(CLASSES)
    assert content["hyper_parameters"] == checkpoint["hyper_parameters"]
    assert content["state_dict"].keys() == checkpoint["state_dict"].keys()
    for name, value in content["state_dict"].items():
        assert value.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32)
        assert torch.equal(value, checkpoint["state_dict"][name].to(value.dtype))
    ours, theirs = content["datamodule_hyper_parameters"], checkpoint["datamodule_hyper_parameters"]
    assert ours == {"augment": theirs["augment"] or "none"} | {
        key: theirs[key] for key in ("image_size", "mean", "std")
    }


def fit_faulty(run_script: Script, short: Flags, fault: str) -> Path:
    """Train a network that cannot be exported right, and return the folder of the run."""
    model = ("--model=tests.networks.NotExportable", f"--model.fault={fault}", "--model.optimizer=torch.optim.Adam")
    rest = ("--model.optimizer.lr=1e-3", "--data.split=overfit", "--trainer.max_epochs=1")
    outcome = run_script("fit", *short, *model, *rest)
    assert outcome.status == 0, outcome.err
    return Path("lightning_logs/unnamed/version_0")


@pytest.mark.thorough
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_disagrees_is_not_left(kind: str, run_script: Script, short: Flags) -> None:
    folder = fit_faulty(run_script, short, "weights" if kind == "pth" else "network")
    before = contents(folder)
    outcome = run_script("export", folder, "--formats", kind)
    check_one_message(outcome, 1)
    assert f"{folder}/export/model.{kind} was not written, it disagrees with the checkpoint: 45 images" in outcome.err
    assert contents(folder) == before


@pytest.mark.thorough
@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_onnx_is_left_out_where_the_extra_is_missing(
    package: str, run_script: Script, finished_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(finished_run.folder, tmp_path / "run"))
    monkeypatch.setitem(sys.modules, package, None)
    outcome = run_script("export", folder, "--formats", "onnx")
    check_one_message(outcome, 1)
    assert "pip install -e '.[onnx]'" in outcome.err
    assert not (folder / "export").exists()
    if package == "onnxruntime":
        outcome = run_script("export", folder)
        assert (outcome.status, outcome.err) == (0, "")
        said = "/export/model.onnx: not written, it needs more packages: pip install -e '.[onnx]'"
        assert outcome.out.splitlines()[2] == f"{folder}{said}"
        assert sorted(path.name for path in (folder / "export").iterdir()) == FILES[1:]


@pytest.mark.thorough
def test_a_network_outlives_the_place_of_its_data(
    run_script: Script, tiny: Flags, image_folder: Path, tmp_path: Path
) -> None:
    there, moved = tmp_path / "images", tmp_path / "moved"
    shutil.copytree(image_folder, there)
    flags = (*tiny, "--data.root", there, "--trainer.max_epochs=1")
    assert run_script("fit", "--config=overfit", *flags).status == 0
    there.rename(moved)
    folder = Path("lightning_logs/overfit/version_0")

    picture = next(moved.rglob("*.png"))
    answers = run_script("predict", folder, picture)
    assert answers.status == 0, answers.err
    outcome = run_script("export", folder)
    check_one_message(outcome, 1)
    assert "--data.root FOLDER" in outcome.err
    assert not (folder / "export").exists()
    outcome = run_script("export", folder, "--formats", "pth", "--data.root", moved)
    assert outcome.status == 0, outcome.err
    assert [path.name for path in (folder / "export").iterdir()] == ["model.pth"]
    said = run_script("predict", folder / "export/model.pth", picture)
    assert said.out == answers.out.replace("prediction.png", "prediction-2.png")


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_a_network_that_a_format_cannot_hold_is_told(kind: str, run_script: Script, short: Flags) -> None:
    folder = fit_faulty(run_script, short, "branch")
    before = contents(folder)
    outcome = run_script("export", folder, "--formats", kind)
    assert outcome.status == 1
    assert "Traceback" not in outcome.err
    said = outcome.err.splitlines()[-1]  # torch has logged the network before
    assert said.startswith(f"error: {folder}/export/model.{kind} was not written: Could not guard on data-dependent")
    assert "; the others are: --formats pth " in said
    assert contents(folder) == before


@pytest.mark.thorough
def test_the_temperature_is_in_every_file(run_script: Script, finished_run: FinishedRun, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_run.folder, tmp_path / "run"))
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["test"]["temperature"] = 2.5
    path.write_text(json.dumps(summary))
    answers = []
    for flags in ([], ["--temperature"]):
        outcome = run_script("export", folder, "--formats", "pth", "pt2", *flags)
        assert outcome.status == 0, outcome.err
        pixels = torch.randint(256, (30, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        answers.append(
            [load_predictor(folder / f"export/model.{kind}").probabilities(pixels) for kind in ("pth", "pt2")]
        )
    for before, after in zip(*answers, strict=True):
        assert torch.allclose(after, (before.log() / 2.5).softmax(dim=1), atol=1e-5)
        assert not torch.allclose(after, before, atol=1e-3)


def test_a_run_without_a_temperature_is_refused(run_script: Script, finished_run: FinishedRun, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_run.folder, tmp_path / "run"))
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["test"].pop("temperature", None)
    path.write_text(json.dumps(summary))
    outcome = run_script("export", folder, "--temperature")
    assert outcome.status == 1
    assert "summary.json has no temperature" in outcome.err
    assert not (folder / "export").exists()
    del summary["test"]
    path.write_text(json.dumps(summary | {"status": "interrupted"}))
    outcome = run_script("export", folder, "--temperature")
    assert outcome.status == 1
    assert "has not finished: " in outcome.err
    assert "; resume it: " in outcome.err


@pytest.mark.parametrize(
    "flag", ["--model.dropout=0.9", "--data.image_size=64", "--trainer.precision=16-mixed", "-c=x"]
)
def test_a_flag_that_changes_nothing_is_refused(flag: str, run_script: Script, exported_run: FinishedRun) -> None:
    outcome = run_script("export", exported_run.folder, flag)
    check_one_message(outcome, 2)
    assert f"{flag} would change nothing" in outcome.err
