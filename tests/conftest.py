"""Small data and a way to run the real scripts, in the test's own process and folder."""

import io
import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from datamodules.sources import Folder
from overfitting_lab.cli import ExperimentCLI
from overfitting_lab.runs import Run
from overfitting_lab.runs.epochs import EpochRecord

ROOT = Path(__file__).parents[1]
CLASSES = ("airplane", "bird", "cat")
TRAIN, TEST = 60, 15  # images of a class


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the tests of a GPU be tried on a CPU, which tells if a test itself is sound."""
    parser.addoption("--gpu-tests-on", choices=("gpu", "cpu"), default="gpu", help="device of the tests marked gpu")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Lift the time limit of the long tests, and skip those of SLURM unless asked for, and those of a missing GPU."""
    without_gpu = config.getoption("--gpu-tests-on") == "gpu" and not torch.cuda.is_available()
    for item in items:
        if without_gpu and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU here; on a machine with one: pytest -m gpu"))
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.timeout(0))
        if item.get_closest_marker("slurm") and "slurm" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="it starts SLURM on this machine: pytest -n 0 -m slurm"))


@pytest.fixture(autouse=True)
def _blank_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave every picture blank unless a test is marked pictures: a run's are two fifths of a tiny run."""
    if not request.node.get_closest_marker("pictures"):
        monkeypatch.setattr("overfitting_lab.runs.figures.plain_text", lambda _: Figure(figsize=(1, 1)))
        for place in ("summary.curves", "dashboard.confusion_matrix"):
            monkeypatch.setattr(f"overfitting_lab.callbacks.{place}", lambda *_: Figure(figsize=(1, 1)))


class Outcome(NamedTuple):
    """Exit status and output of a script."""

    status: int
    out: str
    err: str


class FinishedRun(NamedTuple):
    """Folder and output of a run that several tests read."""

    folder: Path
    out: str


Script = Callable[..., Outcome]  # of a name and arguments
Flags = tuple[str, ...]
Parse = Callable[..., Any]  # of arguments


class Parsed(ExperimentCLI):
    def instantiate_classes(self) -> None:
        """Stop at the configuration."""


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Parse:
    """Return the configuration that fit.py makes of arguments."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # parsing sets it, and this restores it
    return lambda *arguments: Parsed(list(arguments)).config


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """180 training and 45 test images of three classes that differ in brightness, named by their index.

    They are decoded here, so that no test sees more on its screen because it is the first.
    """
    root = write_images(tmp_path_factory.mktemp("data") / "tiny", len(CLASSES) * TRAIN, len(CLASSES) * TEST)
    with redirect_stdout(io.StringIO()):
        Folder(root).prepare()
    return root


def write_images(root: Path, train: int, test: int) -> Path:
    """Write images of three classes that differ in brightness."""
    random = np.random.default_rng(0)
    for split, number in (("train", train), ("test", test)):
        for index in range(number):
            label = index % len(CLASSES)
            folder = root / split / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 128, (32, 32, 3)) + 60 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:05}.png")
    return root


@pytest.fixture(scope="session")
def short(image_folder: Path) -> Flags:
    """Return flags that make a run short, whatever its network, on any CPU."""
    return (
        "--data.source=folder",
        f"--data.root={image_folder}",
        "--data.train_size=100",
        "--data.val_size=50",
        "--data.batch_size=20",
        "--data.image_size=8",
        "--trainer.max_epochs=2",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",  # without hardware for bf16, a step in bf16 takes 30 times as long
    )


@pytest.fixture(scope="session")
def tiny(short: Flags) -> Flags:
    """Return flags that make any experiment of AlexNet or VGG a matter of a second."""
    return (*short, "--model.hidden_features=128", "--model.width=0.125")


@pytest.fixture(scope="session")
def quick(short: Flags) -> Flags:
    """Return flags for a test in which any network will do, at less than the cost of ``tiny``."""
    return ("--model=tests.networks.Tiny", *short)


def events_of(folder: Path) -> Any:
    """Return what TensorBoard reads in a folder, but not in the folders within it."""
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def scalars_of(folder: Path) -> dict[str, list[tuple[Any, Any]]]:
    """Return the points (x, y) of each curve that TensorBoard draws of a folder."""
    events = events_of(folder)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def summary_of(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text())


def timeless(folder: Path) -> list[EpochRecord]:
    """Return a run's records without the time that each epoch took."""
    return [replace(record, seconds=0) for record in Run(folder).records]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(folder / "weights.pth", weights_only=True))


def execute(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> int:
    """Run a script as ``python scripts/NAME.py ARGUMENTS...`` would, and return its exit status."""
    script = str(ROOT / "scripts" / f"{name}.py")
    torch.set_num_threads(1)  # more gain nothing on batches this small, and lose much where the cores are shared
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # a run sets it, and this restores it
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Script:
    """Run a script as ``python scripts/NAME.py ARGUMENTS...`` would, in ``tmp_path`` as working directory."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> Outcome:
        capfd.readouterr()
        return Outcome(execute(monkeypatch, name, *arguments), *capfd.readouterr())

    return run


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Run ``fit.py`` in this process whenever another script starts it, and list the command lines."""
    commands: list[list[str]] = []

    def run(command: list[str], output: IO[str] | None) -> int:
        commands.append(command[2:])
        with pytest.MonkeyPatch.context() as inner, redirect_stdout(output) if output else nullcontext():
            return execute(inner, Path(command[1]).stem, *command[2:])

    monkeypatch.setattr("overfitting_lab.cli.finished.run_command", run)
    return commands


@pytest.fixture(scope="session")
def finished_run(short: Flags, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Train three epochs of overfit.yaml at 32x32. The last is the worst: the learning rate jumps before it."""
    schedule = ("torch.optim.lr_scheduler.StepLR", "step_size=2", "gamma=1000")
    flags = [f"--model.lr_scheduler{'.' if '=' in word else '='}{word}" for word in schedule]
    flags += ["--model.hidden_features=16", "--data.image_size=32", "--trainer.max_epochs=3"]
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(io.StringIO()) as out:
        monkeypatch.chdir(tmp_path_factory.mktemp("finished"))
        with redirect_stderr(io.StringIO()) as err:
            status = execute(monkeypatch, "fit", "--config", "overfit.yaml", *short, *flags)
        assert status == 0, err.getvalue()
        folder = Path("lightning_logs/overfit/version_0").resolve()
    return FinishedRun(folder, out.getvalue())


@pytest.fixture(scope="session")
def exported_run(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Export a copy of the finished run in every format."""
    folder = Path(shutil.copytree(finished_run.folder, tmp_path_factory.mktemp("exported") / "run"))
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(io.StringIO()) as out:
        with redirect_stderr(io.StringIO()) as err:
            status = execute(monkeypatch, "export", folder)
        assert status == 0, err.getvalue()
    return FinishedRun(folder, out.getvalue())


@pytest.fixture(scope="session")
def real_images() -> Path:
    """Return the folder that CIFAR10_IMAGES names: train/<class>/*, test/<class>/*."""
    folder = os.environ.get("CIFAR10_IMAGES")
    if not folder:
        pytest.skip("CIFAR10_IMAGES names no folder of real images")
    return Path(folder)
