import json
import multiprocessing
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import data_path, machine, remedies, scaling, start_up, steps
from benchmarks.commands import FIT
from benchmarks.commands import run as run_command
from benchmarks.machine import Rates, step_floor
from benchmarks.measuring import Spread, alternate
from benchmarks.report import write
from benchmarks.steps import EXPERIMENTS
from tests.conftest import Flags, Script, execute
from tests.processes import CONTEXT

SMALL = ("--data.train_size=90", "--data.val_size=50", "--data.batch_size=20", "--model.hidden_features=16")
BF16 = ("--model=tests.networks.Tiny", "--trainer.precision=bf16-mixed")  # which costs little on any CPU
Benchmark = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def data(image_folder: Path) -> Flags:
    return ("--data.source=folder", f"--data.root={image_folder}", "--trainer.accelerator=cpu", *SMALL)


@pytest.fixture
def benchmark(run_script: Script, data: Flags, tmp_path: Path) -> Benchmark:
    """Measure parts, and return the content of benchmark.json and the output."""

    def run(*flags: str) -> tuple[dict[str, Any], str]:
        outcome = run_script("benchmark", "--output=out", *data, *flags)
        assert outcome.status == 0, outcome.err
        assert not list(tmp_path.rglob("version_*")), "a run was left behind"
        return json.loads((tmp_path / "out" / "benchmark.json").read_text()), outcome.out

    return run


@pytest.mark.thorough
@pytest.mark.pictures
def test_training_steps_are_measured_and_drawn(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(steps, "EXPERIMENTS", EXPERIMENTS[:1])
    monkeypatch.setattr(machine, "PRODUCT", 256)
    monkeypatch.setattr(machine, "ELEMENTS", 2**16)
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: CONTEXT)  # whose processes import nothing
    known, out = benchmark("--parts=steps", "--rounds=2", *BF16)
    assert {"machine", "versions", "git_commit", "date", "command"} <= known["steps"].keys()
    overfit = known["steps"]["results"]["AlexNet, overfit"]
    assert (overfit["batch_size"], overfit["train_size"], overfit["precision"]) == (20, 90, "bf16-mixed")
    assert overfit["step_images"] == 18  # an epoch's last step has 10
    assert list(overfit["contenders"]) == ["plain loop", "fit.py, float32", "hand-written", "fit.py"]
    for contender in overfit["contenders"].values():
        speed = contender["images_per_second"]
        assert 0 < speed["low"] <= speed["median"] <= speed["high"]
        assert speed["n"] == 2
        assert contender["epoch_seconds"] == pytest.approx(90 / speed["median"])
        assert contender["peak_memory"] > 10**8
    assert "| AlexNet, overfit | fit.py |" in out
    assert "share_of_floor" not in overfit["contenders"]["plain loop"]
    assert (tmp_path / "out" / "benchmark.png").stat().st_size > 10_000


@pytest.mark.long  # seven processes that import Lightning
def test_whole_commands_are_measured(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_up, "alternate", partial(alternate, warm_up=0))
    known, _ = benchmark("--parts", "end_to_end", "start_up", "--rounds=1", "--trainer.max_epochs=2")
    for command in known["end_to_end"]["results"].values():
        assert command["seconds"]["median"] > 1
        assert command["peak_memory"] > 10**8
    assert known["start_up"]["results"]["fit.py to its first step"]["median"] > 1


@pytest.mark.thorough
def test_the_data_path_is_measured(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_path, "BATCHES", 2)
    monkeypatch.setattr(torch.multiprocessing, "get_context", lambda _: CONTEXT)  # whose processes import nothing
    known, out = benchmark("--parts=data_path", "--rounds=1")
    speeds = {way: speed["median"] for way, speed in known["data_path"]["results"].items()}
    assert [speed > 0 for speed in speeds.values()] == [True] * 6
    (row,) = (line for line in out.splitlines() if "transforms.v2, in process, every augmentation" in line)
    whole, theirs = (speeds[f"{way}, every augmentation"] for way in ("whole batches", "transforms.v2, in process"))
    assert row.endswith(f"| {whole / theirs:.1f} |")


def test_what_a_method_costs_is_measured(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remedies, "REMEDIES", {"cutmix=1.0": "--data.cutmix=1"})
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: CONTEXT)
    known, out = benchmark("--parts=remedies", "--rounds=1", *BF16)
    ratio = known["remedies"]["results"]["cutmix=1.0"]
    assert 0.01 < ratio["median"] < 100
    assert f"| cutmix=1.0 | {ratio['median']:.2f} (" in out


@pytest.mark.long
def test_scaling_is_measured(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "BATCH_SIZES", (20,))
    monkeypatch.setattr(scaling, "TRAIN_SIZES", ())
    monkeypatch.setattr(scaling, "IMAGES", 128)

    def run(arguments: list[str], folder: Path) -> tuple[float, int]:
        """Run a command, but fit.py for one process in this one."""
        if "--trainer.devices=2" in arguments:
            return run_command(arguments, folder)
        with pytest.MonkeyPatch.context() as inner:
            inner.chdir(folder)
            assert arguments[0] == FIT
            assert execute(inner, "fit", *arguments[1:]) == 0
        return 1.0, 1

    monkeypatch.setattr(scaling, "run", run)
    known, out = benchmark("--parts=scaling", "--rounds=1", *BF16)
    measured = {group: list(speeds) for group, speeds in known["scaling"]["results"].items()}
    assert measured == {"batch_size": ["20"], "train_size": [], "processes": ["1", "2"]}
    assert re.search(r"\| batch size \| 20 \| [1-9]", out)
    assert re.search(r"\| processes \| 2 \| [1-9]", out)


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_rounds_are_counted_from_1(rounds: str, run_script: Script) -> None:
    outcome = run_script("benchmark", f"--rounds={rounds}")
    assert outcome.status == 2
    assert f"--rounds: {rounds} is not a whole number of at least 1" in outcome.err


def test_a_command_that_fails_says_why(run_script: Script, data: Flags) -> None:
    outcome = run_script("benchmark", "--parts", "end_to_end", "--rounds=1", *data, "--model.dropout=2")
    assert outcome.status == 2
    assert "dropout must be in [0, 1)" in outcome.err


def test_a_spread_is_median_lowest_and_highest() -> None:
    turns = iter([9.0, 3.0, 1.0, 2.0])
    spread = alternate(lambda _: next(turns), ["one"], rounds=3)["one"]
    assert spread == Spread(median=2.0, low=1.0, high=3.0, n=3)
    assert f"{spread:.1f}" == "2.0 (1.0 to 3.0)"


def test_the_floor_counts_arithmetic_and_memory_traffic() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5, bias=False))
    optimizer = torch.optim.Adam(network.parameters())
    seconds = step_floor(network, optimizer, image_size=2, batch_size=10, rates=Rates(flops=1e3, bandwidth=1e4))
    arithmetic = 2 * 2 * 12 * 5 * 10  # forward and the weights' gradient; the images need none
    traffic = 7 * 4 * 12 * 5  # weight, gradient and two states read, all but the gradient written
    assert seconds == pytest.approx(arithmetic / 1e3 + traffic / 1e4)


def test_a_part_that_is_measured_again_leaves_the_others(tmp_path: Path) -> None:
    machine: dict[str, Any] = {"cpu": "abacus", "gpu": None, "threads": 2, "bf16": []}
    versions = {"python": "3.11", "torch": "2.14", "lightning": "2.6"}
    facts = {"machine": machine, "versions": versions, "git_commit": "0123456789", "command": "benchmark"}
    slow, fast = Spread(1.0, 1.0, 1.0, 1), Spread(4.0, 3.0, 5.0, 3)
    for part, name, speed, date in (
        ("data_path", "whole batches", fast, "first"),
        ("start_up", "import lightning.pytorch", fast, "second"),
        ("data_path", "whole batches", slow, "third"),
    ):
        write(part, {name: speed}, {**facts, "date": date}, tmp_path)
    known = json.loads((tmp_path / "benchmark.json").read_text())
    assert {part: entry["date"] for part, entry in known.items()} == {"data_path": "third", "start_up": "second"}
    text = (tmp_path / "benchmark.md").read_text()
    assert "| whole batches | 1 (1 to 1) | 1.0 |" in text
    assert "| import lightning.pytorch | 4.00 (3.00 to 5.00) | 1.00 |" in text
    assert "| start_up | second | 0123456 | abacus, 2 threads" in text
