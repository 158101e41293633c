import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from datamodules import CIFAR10DataModule, sources
from tests.conftest import ROOT, FinishedRun, Flags, Outcome, Script

OVERFIT = "--config overfit.yaml {flags}"
PLATEAU = "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau --model.lr_scheduler.monitor=val_f1"
IMAGE = "{tiny}/test/cat/00002.png"


class Mistake(NamedTuple):
    """A command line that cannot be followed, and words of its message."""

    command: str  # {flags} are those of tiny data, the rest folders
    status: int
    words: tuple[str, ...]
    data_work: bool = False  # finding out may need the data


CONFIGURATIONS = tuple(
    str(path.relative_to(ROOT / "configs").with_suffix("")) for path in ROOT.glob("configs/**/*.yaml")
)
USAGE = {
    "unknown flag": Mistake(f"fit {OVERFIT} --data.bach_size=3", 2, ("bach_size", "did you mean --data.batch_size?")),
    "unknown flag of the model": Mistake(f"fit {OVERFIT} --model.dropot=0.1", 2, ("dropot", "mean --model.dropout?")),
    "unknown key": Mistake(
        f"fit {OVERFIT} --config {{bad}}/key.yaml", 2, ("bach_size", "did you mean data.batch_size?")
    ),
    "name of no folder": Mistake(f"fit {OVERFIT} --experiment=a/../../b", 2, ("experiment", "a/../../b")),
    "unknown group": Mistake(
        f"fit {OVERFIT} --config {{bad}}/group.yaml", 2, ("datta", "did you mean data.batch_size?")
    ),
    "wrong type": Mistake(f"fit {OVERFIT} --data.batch_size=many", 2, ("data.batch_size", "a whole number", "many")),
    "wrong type in YAML": Mistake(
        f"fit {OVERFIT} --config {{bad}}/type.yaml", 2, ("data.batch_size", "number", "many")
    ),
    "missing config": Mistake("fit --config nothing.yaml", 2, ("nothing.yaml", "not exist", *CONFIGURATIONS)),
    "broken YAML": Mistake("fit --config {bad}/broken.yaml", 2, ("line 2", "broken.yaml")),
    "empty YAML": Mistake("fit --config {bad}/empty.yaml", 2, ("empty.yaml",)),
    "no config": Mistake("fit", 2, ("--config overfit.yaml", *CONFIGURATIONS)),
    "misspelled callback": Mistake(f"fit {OVERFIT} --trainer.callbacks=EarlyStoping", 2, ("mean EarlyStopping?",)),
    "one more, misspelled": Mistake(f"fit {OVERFIT} --trainer.callbacks+=EarlyStoping", 2, ("mean EarlyStopping?",)),
    "misspelled schedule": Mistake(f"fit {OVERFIT} --model.lr_scheduler=StepLr", 2, ("mean StepLR?",)),
    "an exponent": Mistake(f"fit {OVERFIT} --model.optimizer.lr -1e-3", 2, ("Invalid learning rate: -0.001",)),
    "one deviation": Mistake(f"fit {OVERFIT} --data.std=.5", 2, ("data.std:", "expected a list")),
    "unknown model": Mistake(f"fit {OVERFIT} --model=LeNet", 2, ("LeNet", "cannot be imported")),
    "unknown optimizer": Mistake(f"fit {OVERFIT} --model.optimizer=Adamm", 2, ("optimizer", "Adamm")),
    "dropout": Mistake(f"fit {OVERFIT} --model.dropout=1.5", 2, ("dropout must be in [0, 1)", "1.5")),
    "smoothing": Mistake(f"fit {OVERFIT} --model.label_smoothing=1", 2, ("label_smoothing must be in [0, 1)", "1")),
    "mixup": Mistake(f"fit {OVERFIT} --data.mixup=-1", 2, ("data.mixup must be 0", "-1")),
    "width": Mistake(f"fit {OVERFIT} --model.width=0.1", 2, ("width must be in [0.125, 2], not 0.1",)),
    "decay of no biases": Mistake(
        f"fit {OVERFIT} --model.decay_biases=false --model.optimizer=torch.optim.Rprop", 2, ("Rprop", "decay_biases")
    ),
    "image size of AlexNet": Mistake(f"fit {OVERFIT} --data.image_size=30", 2, ("image_size", "multiple of 8", "30")),
    "image size of VGG": Mistake("fit --config vgg16 {flags} --data.image_size=40", 2, ("multiple of 32", "40")),
    "seed of Lightning's choice": Mistake(f"fit {OVERFIT} --seed_everything=true", 2, ("give a whole number",)),
    "batch of 0": Mistake(f"fit {OVERFIT} --data.batch_size=0", 2, ("data.batch_size must be at least 1",)),
    "cutout beyond the image": Mistake(f"fit {OVERFIT} --data.cutout=33", 2, ("data.cutout", "at most", "not 33")),
    "no epoch": Mistake(f"fit {OVERFIT} --trainer.max_epochs=0", 2, ("--trainer.max_epochs 0: must be at least 1",)),
    "batch too large": Mistake(f"fit {OVERFIT} --data.batch_size=101", 2, ("101", "100 training images")),
    "batch does not divide": Mistake(f"fit {OVERFIT} --data.batch_size=21 --trainer.devices=2", 2, ("21", "divided")),
    "no such source": Mistake(f"fit {OVERFIT} --data.source=nothing", 2, ("data.source", "folder", "nothing")),
    "negative rate": Mistake(f"fit {OVERFIT} --model.optimizer.lr=-1", 2, ("learning rate", "-1")),
    "unwritable": Mistake(f"fit {OVERFIT} --trainer.default_root_dir={{bad}}/text.png", 2, ("cannot write to",)),
    "no folder": Mistake(f"fit {OVERFIT} --data.root={{bad}}/none", 1, ("{bad}/none/train", "train/<class>/*")),
    "plateau of nothing": Mistake(f"fit {OVERFIT} {PLATEAU}", 2, ("'val_f1'", "train_loss, train_acc, val_loss")),
    "plateaus of no schedule": Mistake(f"fit {OVERFIT} --config {{bad}}/plateau.yaml", 1, ("ReduceLROnPlateau",), True),
    "no run": Mistake("test {bad}", 1, ("{bad} is not a run's folder", "version_0")),
    "missing checkpoint": Mistake("test {run} --ckpt_path={bad}/none.ckpt", 1, ("none.ckpt: no such file",)),
    "truncated checkpoint": Mistake("test {bad}/cut", 1, ("best.ckpt", "damaged")),
    "text as checkpoint": Mistake("test {run} --ckpt_path={bad}/text.png", 1, ("text.png is no checkpoint",)),
    "code as checkpoint": Mistake("test {bad}/code", 1, ("best.ckpt is no checkpoint",)),
    "weights as checkpoint": Mistake("test {run} --ckpt_path={run}/weights.pth", 1, ("weights.pth is no checkpoint",)),
    "other network": Mistake("test {run} --model.hidden_features=17", 1, ("another network", "(16,)", "(17,)"), True),
    "other width": Mistake("test {run} --model.width=0.5", 1, ("another network", "(64,)", "(32,)"), True),
    "export without a run": Mistake("export {bad}", 1, ("{bad} is not a run's folder", "version_0")),
    "export a truncated checkpoint": Mistake("export {bad}/cut", 1, ("best.ckpt", "damaged")),
    "export to another format": Mistake("export {run} --formats tflite", 2, ("tflite", "onnx")),
    "export without data": Mistake("export {run} --data.root={bad}/none", 1, ("{bad}/none", "--data.root FOLDER")),
    "export no images": Mistake("export {run} --data.root={bad}/cut", 1, ("{bad}/cut holds", "--data.root FOLDER")),
    "export another checkpoint": Mistake(
        "export {run} --ckpt_path={bad}/none.ckpt", 2, ("--ckpt_path", "leave it out")
    ),
    "test with a flag of training": Mistake("test {run} --monitor=val_loss", 2, ("--monitor", "leave it out")),
    "export and resume": Mistake("export {run} --resume {run}", 2, ("--resume", "leave it out")),
    "predict without a run": Mistake(f"predict {{bad}} {IMAGE}", 1, ("is not a run's folder",)),
    "predict a text": Mistake("predict {run} {bad}/text.png", 1, ("text.png: cannot be read as an image",)),
    "predict nothing": Mistake("predict {run} {bad}/none.png", 1, ("none.png: no such file",)),
    "predict without images": Mistake("predict {run}", 2, ("images",)),
    "predict from a truncated checkpoint": Mistake(f"predict {{bad}}/cut {IMAGE}", 1, ("best.ckpt", "damaged")),
    "predict from code": Mistake(f"predict {{bad}}/code {IMAGE}", 1, ("best.ckpt is no checkpoint",)),
}
DATA = {
    "too many images": Mistake(f"fit {OVERFIT} --data.train_size=200", 1, ("200", "180 images to train on"), True),
    "unreadable image": Mistake(f"fit {OVERFIT} --data.root={{bad}}/images", 1, ("00002.png", "cannot be read"), True),
    "no test images": Mistake(f"fit {OVERFIT} --data.root={{bad}}/no_test", 1, ("no_test/test is missing",), True),
}
NO_GPU = {
    name: Mistake(f"fit {OVERFIT} --trainer.accelerator={name}", 2, ("has no GPU", "say cpu"))
    for name in ("gpu", "cuda")
}
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="a GPU")
TABLE = [
    *(pytest.param(mistake, id=name) for name, mistake in {**USAGE, **DATA}.items()),
    *(pytest.param(mistake, id=name, marks=WITHOUT_GPU) for name, mistake in NO_GPU.items()),
]


class Code:
    """Create a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, image_folder: Path, finished_run: FinishedRun) -> Path:
    """Write files of every kind that is wrong."""
    root = tmp_path_factory.mktemp("bad")
    for name, text in {
        "key.yaml": "data:\n  bach_size: 3\n",
        "group.yaml": "datta:\n  batch_size: 3\n",
        "type.yaml": "data:\n  batch_size: many\n",
        "broken.yaml": "data: [1,\nmodel: }\n",
        "empty.yaml": "",
        "plateau.yaml": "trainer:\n  callbacks:\n    - class_path: overfitting_lab.callbacks.plateau.PlateauSchedule\n",
        "text.png": "no image",
    }.items():
        (root / name).write_text(text)
    shutil.copytree(image_folder, root / "images")
    (root / "images" / "train" / "cat" / "00002.png").write_text("no image")
    shutil.copytree(image_folder / "train", root / "no_test" / "train")
    whole = (finished_run.folder / "checkpoints" / "best.ckpt").read_bytes()
    for name in ("cut", "code"):
        (root / name / "checkpoints").mkdir(parents=True)
        for file in ("config.yaml", "summary.json"):
            shutil.copy(finished_run.folder / file, root / name)
    (root / "cut" / "checkpoints" / "best.ckpt").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": Code(root / "executed")}, root / "code" / "checkpoints" / "best.ckpt")
    return root


@pytest.fixture
def data_work(monkeypatch: pytest.MonkeyPatch) -> list[CIFAR10DataModule]:
    """List the data modules that began to prepare their data."""
    begun = []
    prepare_data = CIFAR10DataModule.prepare_data

    def prepare(self: CIFAR10DataModule) -> None:
        begun.append(self)
        prepare_data(self)

    monkeypatch.setattr(CIFAR10DataModule, "prepare_data", prepare)
    return begun


def check_one_message(outcome: Outcome, status: int) -> None:
    assert outcome.status == status
    assert outcome.err.count("error:") == 1, outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert sum(1 for line in outcome.err.splitlines() if line.strip()) <= 6, outcome.err
    assert len(outcome.err) < 700, outcome.err


@pytest.mark.parametrize("mistake", TABLE)
def test_a_mistake_is_one_message(
    mistake: Mistake,
    run_script: Script,
    tiny: Flags,
    bad: Path,
    finished_run: FinishedRun,
    image_folder: Path,
    data_work: list[CIFAR10DataModule],
    tmp_path: Path,
) -> None:
    places = {"bad": bad, "run": finished_run.folder, "tiny": image_folder, "flags": " ".join(tiny)}
    script, *arguments = mistake.command.format(**places).split()
    outcome = run_script(script, *arguments)
    check_one_message(outcome, mistake.status)
    for word in mistake.words:
        assert word.format(**places) in outcome.err
    assert mistake.data_work or not data_work
    assert list(tmp_path.glob("lightning_logs/*/*")) == [], "a run that failed early left a folder"
    assert not (bad / "executed").exists(), "a checkpoint's code was executed"


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every mirror of CIFAR-10 unreachable."""
    monkeypatch.setattr(sources.CIFAR10, "MIRRORS", ("http://127.0.0.1:9/cifar-10-python.tar.gz",))
    monkeypatch.setenv("no_proxy", "*")


def draw_images(monkeypatch: pytest.MonkeyPatch, labels: NDArray[np.int64]) -> None:
    """Make the synthetic images few and plain, which takes less time than to draw them."""
    images = np.full((len(labels), 32, 32, 3), 20 * labels[:, None, None, None], dtype=np.uint8)
    monkeypatch.setattr(sources.Synthetic, "make", lambda self, split: (images, labels))


@pytest.mark.usefixtures("unreachable")
def test_unreachable_cifar10_names_three_ways_on(run_script: Script, tmp_path: Path) -> None:
    outcome = run_script("fit", "--config", "regularized.yaml", "--model.hidden_features=16")
    check_one_message(outcome, 1)
    for way in ("cifar-10-python.tar.gz into data", "--data.source folder", "--data.source synthetic"):
        assert way in outcome.err
    assert list(tmp_path.glob("lightning_logs/*/*")) == []


@pytest.mark.usefixtures("unreachable")
def test_unreachable_cifar10_is_replaced_loudly_for_overfit(
    run_script: Script, tiny: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_images(monkeypatch, np.arange(60) % 10)
    flags = ("--data.source=cifar10", "--data.root=data", "--data.train_size=40", "--data.val_size=20")
    outcome = run_script("fit", "--config", "overfit.yaml", *tiny, *flags, "--trainer.max_epochs=1")
    assert outcome.status == 0, outcome.err
    assert "NOT CIFAR-10" in outcome.out
    assert outcome.err.startswith("CIFAR-10 is not in data and could not be downloaded: No mirror delivers the file.")
    assert outcome.err.count("Connection refused") == 1
    assert "60 test images of stand-in" in outcome.out
    config = (tmp_path / "lightning_logs" / "overfit" / "version_0" / "config.yaml").read_text()
    assert "source: synthetic\n" in config, "a replay is to use the same data, also where CIFAR-10 is reachable"


def test_labels_without_a_class_are_refused(run_script: Script, tiny: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_images(monkeypatch, np.arange(200) % 11)
    outcome = run_script("fit", "--config", "overfit.yaml", *tiny, "--data.source=synthetic", "--data.root=data")
    check_one_message(outcome, 1)
    assert "labels run from 0 to 10, but there are 10 classes" in outcome.err


class FullGPU(Callback):
    """Fail as a GPU does whose memory is full, which other processes share."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        others = " Process 620 has 1.40 GiB memory in use." * 20
        reason = (
            "CUDA out of memory. Tried to allocate 256.00 MiB. GPU 0 has a total capacity of 9 GiB of which 0 is free."
        )
        raise torch.OutOfMemoryError(
            f"{reason} Including non-PyTorch memory, this process has 7 GiB memory in use.{others}"
        )


def test_a_full_gpu_is_one_short_message(run_script: Script, quick: Flags) -> None:
    outcome = run_script("fit", "--config=overfit", *quick, f"--trainer.callbacks={__name__}.FullGPU")
    check_one_message(outcome, 1)
    assert "try a smaller --data.batch_size, or more devices\nCUDA out of memory. Tried to allocate" in outcome.err
    assert "Process 620" not in outcome.err
