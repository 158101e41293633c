"""Training steps: images a second of three ways to train, beside what the machine allows."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import Contender, Process, fit, hand_written, optimizer_of, plain_loop
from benchmarks.machine import Rates, rates, step_floor
from benchmarks.measuring import Spread, alternate
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


@dataclass(frozen=True)
class Experiment:
    """What is trained.

    Attributes:
        name: for a person.
        config: its name in configs/.
        steps: in a turn on a CPU; a GPU takes ten times as many.
    """

    name: str
    config: str
    steps: int


EXPERIMENTS = (
    Experiment("AlexNet, overfit", "overfit", 8),
    Experiment("AlexNet, full", "regularized", 8),
    Experiment("VGG16 at 32x32", "vgg16_32", 4),
)
GPU_EXPERIMENTS = (*EXPERIMENTS, Experiment("VGG16 at 224x224", "vgg16", 2))


def measure(arguments: list[str], rounds: int, device: torch.device) -> dict[str, Any]:
    """Measures every experiment.

    Args:
        arguments: of fit.py, for the data.
        rounds: turns of each contender that count.
        device: that the experiments train on.

    Returns:
        By experiment: batch size, training images, and by contender images a second, seconds of an epoch's training
        steps, peak memory in bytes and, of those in the experiment's own precision, the floor's share of a step.
    """
    gpu = device.type == "cuda"
    contenders = GPU_CONTENDERS if gpu else CONTENDERS
    measured: dict[torch.dtype, Rates] = {}
    results: dict[str, Any] = {}
    for experiment in GPU_EXPERIMENTS if gpu else EXPERIMENTS:
        given = [f"--config={experiment.config}", *arguments]
        cli = ExperimentCLI(given, keep=False)
        dtype = torch.bfloat16 if cli.trainer.precision == "bf16-mixed" else torch.float32
        if dtype not in measured:
            measured[dtype] = rates(device, dtype)
        results[experiment.name] = _experiment(
            cli, contenders, given, rounds, experiment.steps * (10 if gpu else 1), measured[dtype]
        )
    return results


def _experiment(
    cli: ExperimentCLI, contenders: tuple[Contender, ...], given: list[str], rounds: int, steps: int, rates: Rates
) -> dict[str, Any]:
    data = cli.datamodule
    data.prepare_data()
    data.setup("fit")
    train_size = len(data.train_indices)
    step_images = train_size / -(-train_size // data.batch_size)  # on average: an epoch's last step has fewer
    floor = step_floor(cli.model.network, optimizer_of(cli), data.image_size, step_images, rates)
    with ExitStack() as stack:
        processes: dict[str, Process] = {}
        for contender in contenders:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            processes[contender.name] = stack.enter_context(Process(contender, given, folder))

        turns: dict[str, Callable[[], float]] = {
            name: partial(process.images_per_second, steps) for name, process in processes.items()
        }
        speeds = alternate(turns, rounds)
        memory = {name: process.peak_memory for name, process in processes.items()}
    return {
        "batch_size": data.batch_size,
        "train_size": train_size,
        "precision": cli.trainer.precision,
        "step_images": step_images,
        "floor_seconds": floor,
        "contenders": {
            name: {
                "images_per_second": speed,
                "epoch_seconds": train_size / speed.median,
                "peak_memory": memory[name],
                **(
                    {"share_of_floor": floor * speed.median / step_images} if name in ("hand-written", "fit.py") else {}
                ),
            }
            for name, speed in speeds.items()
        },
    }


def ratio(results: dict[str, Any], one: str, other: str) -> float:
    """How many times as fast one contender is as another, by their medians."""
    speeds: dict[str, Spread] = {name: row["images_per_second"] for name, row in results["contenders"].items()}
    return speeds[one].median / speeds[other].median
