"""Measure training steps: images a second of three ways to train, and the machine's limit."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import Contender, fit, hand_written, optimizer_of, plain_loop, prepared, running
from benchmarks.machine import rates, step_floor
from benchmarks.measuring import alternate

CONTENDERS = {
    "plain loop": Contender(plain_loop),
    "fit.py, float32": Contender(fit, ("--trainer.precision=32-true",)),
    "hand-written": Contender(hand_written),
    "fit.py": Contender(fit),
}
GPU_CONTENDERS = {
    **CONTENDERS,
    "fit.py, compiled": Contender(fit, ("--compile=default",)),
    "fit.py, CUDA graphs": Contender(fit, ("--compile=reduce-overhead",)),
    "fit.py, TF32": Contender(fit, ("--trainer.precision=32-true",), float32_precision="high"),
}
# Name, configuration, and steps in a turn on a CPU. A GPU takes ten times as many.
EXPERIMENTS = (
    ("AlexNet, overfit", "overfit", 8),
    ("AlexNet, full", "regularized", 8),
    ("VGG16 at 32x32", "vgg16_32", 4),
)
GPU_EXPERIMENTS = (*EXPERIMENTS, ("VGG16 at 224x224", "vgg16", 2))


def measure(arguments: list[str], rounds: int, device: torch.device) -> dict[str, Any]:
    """Measure every experiment on a device, with fit.py's arguments for the data and so many rounds that count.

    Return by experiment batch size and training images, and by contender images a second, seconds of an epoch's steps,
    peak memory in bytes and, for the experiment's own precision, the floor's share of a step.
    """
    gpu = device.type == "cuda"
    return {
        name: _experiment([f"--config={config}", *arguments], rounds, 10 * steps if gpu else steps, device)
        for name, config, steps in (GPU_EXPERIMENTS if gpu else EXPERIMENTS)
    }


def _experiment(arguments: list[str], rounds: int, steps: int, device: torch.device) -> dict[str, Any]:
    cli = prepared(arguments)
    data, precision = cli.datamodule, cli.trainer.precision
    train_size = len(data.train_indices)
    step_images = train_size / -(-train_size // data.batch_size)  # on average: an epoch's last step has fewer
    limits = rates(device, torch.bfloat16 if precision == "bf16-mixed" else torch.float32)
    floor = step_floor(cli.model.network, optimizer_of(cli), data.image_size, step_images, limits)
    memory: dict[str, int] = {}

    def images_per_second(name: str) -> float:
        speed, memory[name] = turns[name](steps)
        return speed

    with ExitStack() as stack:
        turns = {}
        for name, contender in (GPU_CONTENDERS if device.type == "cuda" else CONTENDERS).items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            turns[name] = stack.enter_context(running(contender, arguments, folder))
        speeds = alternate(images_per_second, turns, rounds)
    rows: dict[str, dict[str, Any]] = {
        name: {"images_per_second": speed, "epoch_seconds": train_size / speed.median, "peak_memory": memory[name]}
        for name, speed in speeds.items()
    }
    for name in ("hand-written", "fit.py"):
        rows[name]["share_of_floor"] = floor * speeds[name].median / step_images
    facts = {"batch_size": data.batch_size, "train_size": train_size, "precision": precision}
    return facts | {"step_images": step_images, "floor_seconds": floor, "contenders": rows}
