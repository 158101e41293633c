"""Measure training steps: images a second of three ways to train, and the machine's limit."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.contenders import Contender, fit, hand_written, optimizer_of, plain_loop, prepared, running
from benchmarks.machine import Rates, rates, step_floor
from benchmarks.measuring import alternate
from overfitting_lab.cli import ExperimentCLI

CONTENDERS = (
    Contender("plain loop", plain_loop),
    Contender("fit.py, float32", fit, ("--trainer.precision=32-true",)),
    Contender("hand-written", hand_written),
    Contender("fit.py", fit),
)
GPU_CONTENDERS = (
    *CONTENDERS,
    Contender("fit.py, compiled", fit, ("--compile=default",)),
    Contender("fit.py, CUDA graphs", fit, ("--compile=reduce-overhead",)),
    Contender("fit.py, TF32", fit, ("--trainer.precision=32-true",), (("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1"),)),
)


class Experiment(NamedTuple):
    """An experiment to train."""

    name: str
    config: str
    steps: int  # in a turn on a CPU; ten times as many on a GPU


EXPERIMENTS = (
    Experiment("AlexNet, overfit", "overfit", 8),
    Experiment("AlexNet, full", "regularized", 8),
    Experiment("VGG16 at 32x32", "vgg16_32", 4),
)
GPU_EXPERIMENTS = (*EXPERIMENTS, Experiment("VGG16 at 224x224", "vgg16", 2))


def measure(arguments: list[str], rounds: int, device: torch.device) -> dict[str, Any]:
    """Measure every experiment on a device, with fit.py's arguments for the data and so many rounds that count.

    Return by experiment batch size and training images, and by contender images a second, seconds of an epoch's steps,
    peak memory in bytes and, for the experiment's own precision, the floor's share of a step.
    """
    gpu = device.type == "cuda"
    measured: dict[torch.dtype, Rates] = {}
    results: dict[str, Any] = {}
    for experiment in GPU_EXPERIMENTS if gpu else EXPERIMENTS:
        given = [f"--config={experiment.config}", *arguments]
        cli = prepared(given)
        dtype = torch.bfloat16 if cli.trainer.precision == "bf16-mixed" else torch.float32
        if dtype not in measured:
            measured[dtype] = rates(device, dtype)
        contenders, steps = (GPU_CONTENDERS, 10 * experiment.steps) if gpu else (CONTENDERS, experiment.steps)
        results[experiment.name] = _experiment(cli, contenders, given, rounds, steps, measured[dtype])
    return results


def _experiment(
    cli: ExperimentCLI, contenders: tuple[Contender, ...], given: list[str], rounds: int, steps: int, rates: Rates
) -> dict[str, Any]:
    data = cli.datamodule
    train_size = len(data.train_indices)
    step_images = train_size / -(-train_size // data.batch_size)  # on average: an epoch's last step has fewer
    floor = step_floor(cli.model.network, optimizer_of(cli), data.image_size, step_images, rates)
    memory: dict[str, int] = {}

    def images_per_second(name: str, train: Callable[[int], tuple[float, int]]) -> float:
        speed, memory[name] = train(steps)
        return speed

    with ExitStack() as stack:
        turns = {}
        for contender in contenders:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            train = stack.enter_context(running(contender, given, folder))
            turns[contender.name] = partial(images_per_second, contender.name, train)
        speeds = alternate(turns, rounds)
    rows: dict[str, dict[str, Any]] = {
        name: {"images_per_second": speed, "epoch_seconds": train_size / speed.median, "peak_memory": memory[name]}
        for name, speed in speeds.items()
    }
    for name in ("hand-written", "fit.py"):
        rows[name]["share_of_floor"] = floor * speeds[name].median / step_images
    facts = {"batch_size": data.batch_size, "train_size": train_size, "precision": cli.trainer.precision}
    return facts | {"step_images": step_images, "floor_seconds": floor, "contenders": rows}
