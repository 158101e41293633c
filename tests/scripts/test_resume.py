import csv
import json
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from reporting.runs import Run
from tests.conftest import scalars_of
from tests.processes import start

EPOCHS = 4
STEPS = 5  # an epoch
RECIPE = (  # all that has a state: dropout, augmentation, Adam, a plateau schedule that reduces the rate
    "--config=overfit",
    "--model.dropout=0.5",
    "--data.augment=flip_crop",
    "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
    "--model.lr_scheduler.monitor=val_loss",
    "--model.lr_scheduler.patience=0",
    "--model.lr_scheduler.threshold=0.5",
    "--checkpoint_steps=2",
)
FIRST = "lightning_logs/overfit/version_0"


@pytest.fixture
def recipe(tiny: tuple[str, ...]) -> list[str]:
    return [*RECIPE, *tiny, f"--trainer.max_epochs={EPOCHS}"]


@pytest.fixture(scope="module")
def through(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs that ran through, by precision."""
    folders: dict[str, Path] = {}

    def run(precision: str) -> Path:
        if precision not in folders:
            folder = tmp_path_factory.mktemp(precision)
            flags = [*RECIPE, *tiny, f"--trainer.max_epochs={EPOCHS}", f"--trainer.precision={precision}"]
            finish(start("fit", flags, folder), folder)
            folders[precision] = folder / FIRST
        return folders[precision]

    return run


def finish(process: BaseProcess, folder: Path, status: int = 0) -> str:
    """Waits for a script's end; returns all that was printed in that folder."""
    process.join(120)
    if process.is_alive():
        process.kill()
    output = (folder / "output.txt").read_text()
    assert process.exitcode == status, output
    return output


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two nested structures are not the same to the last bit; times do not count."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [
            found
            for i, (a, b) in enumerate(zip(one, other, strict=True))
            for found in differences(a, b, f"{place}/{i}")
        ]
    same = (
        torch.equal(one, other) if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) else one == other
    )
    return [] if same or "seconds" in place else [place]


def assert_same(run: Path, through: Path) -> None:
    """Metrics, best and last checkpoint, curves and summary are those of a run that ran through."""
    assert rows_of(run) == rows_of(through)
    for name in ("best", "last"):
        one, other = (torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True) for folder in (run, through))
        for checkpoint in (one, other):  # what KillOnce adds, and what the configuration says of it
            checkpoint.pop("callbacks", {}).pop("KillOnce", None)
        assert differences(one, other) == []
    assert torch.load(run / "weights.pth", weights_only=True).keys()
    for split in ("train", "val"):
        assert scalars_of(run / split) == scalars_of(through / split)
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in (run, through))
    for summary in (one, other):
        summary.pop("train_images_per_second")
        summary.pop("git_commit")
    assert differences(one, other) == []


def test_killed_at_20_random_moments(recipe: list[str], through: Any, tmp_path: Path) -> None:
    assert_survives_kills(20, recipe, through("32-true"), tmp_path, seed=0)


def assert_survives_kills(kills: int, recipe: list[str], through: Path, folder: Path, seed: int) -> None:
    recipe = [*recipe, "--trainer.precision=32-true"]
    moments = random.Random(seed)
    run, process, survived = folder / FIRST, start("fit", recipe, folder), 0
    while survived < kills:
        waited = time.monotonic()
        before = stamp(run)
        while stamp(run) == before and process.is_alive() and time.monotonic() - waited < 60:
            time.sleep(0.005)
        process.join(moments.uniform(0, 0.3))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        survived += 1
        process = start("fit", ["--resume", FIRST] if (run / "config.yaml").exists() else recipe, folder)
    assert survived == kills
    finish(process, folder)
    assert_same(run, through)


def stamp(run: Path) -> int:
    """Changes when the run's summary is written, which is first done just before the first step."""
    try:
        return (run / "summary.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    ("place", "step"),
    [("step", 3), ("step", 4), ("step", STEPS), ("step", STEPS + 1), ("validation", 2 * STEPS), ("saving", STEPS + 2)],
)
def test_killed_at_a_certain_place(
    place: str, step: int, precision: str, recipe: list[str], through: Any, tmp_path: Path
) -> None:
    killer = [
        "--trainer.callbacks=tests.faults.KillOnce",
        f"--trainer.callbacks.place={place}",
        f"--trainer.callbacks.step={step}",
        f"--trainer.callbacks.mark={tmp_path / 'killed'}",
    ]
    finish(start("fit", [*recipe, *killer, f"--trainer.precision={precision}"], tmp_path), tmp_path, -signal.SIGKILL)
    assert (tmp_path / "killed").exists()
    finish(start("fit", ["--resume", FIRST], tmp_path), tmp_path)
    assert_same(tmp_path / FIRST, through(precision))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(
    number: signal.Signals, status: int, recipe: list[str], through: Any, tmp_path: Path
) -> None:
    process = start("fit", [*recipe, "--trainer.precision=32-true", "--checkpoint_steps=null"], tmp_path)
    run = tmp_path / FIRST
    while len(rows_of(run) if (run / "metrics.csv").exists() else []) < 1:
        assert process.is_alive(), (tmp_path / "output.txt").read_text()
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    output = finish(process, tmp_path, status)
    assert f"--resume {FIRST}" in output
    assert "Traceback" not in output
    assert Run(run).status == "interrupted"
    finish(start("fit", ["--resume", FIRST], tmp_path), tmp_path)
    assert_same(run, through("32-true"))
