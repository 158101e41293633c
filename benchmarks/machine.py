"""What a machine can do at most, and about how long a training step must take on it at least."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

PRODUCT = 4096  # rows and columns of the matrices that are multiplied
ELEMENTS = 2**26  # of the vectors that are added: 256 MB each, more than any cache holds
REPETITIONS = 5


@dataclass(frozen=True)
class Rates:
    """What was measured of a device.

    Attributes:
        flops: of the fastest matrix product, floating-point operations a second.
        bandwidth: of the fastest sum of two vectors, bytes a second.
    """

    flops: float
    bandwidth: float


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def describe(device: torch.device) -> dict[str, Any]:
    """The machine in words."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    features = [name for name, there in torch.cpu.get_capabilities().items() if there is True and "bf16" in name]
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"cpu": cpu, "bf16": features, "threads": torch.get_num_threads(), "gpu": gpu, "system": platform.system()}


def rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measures a device.

    Args:
        device: CPU or GPU.
        dtype: of the matrices; the vectors are float32, as weights and the optimizer's states are.
    """
    left, right = (torch.randn(PRODUCT, PRODUCT, device=device).to(dtype) for _ in range(2))
    one, other, total = (torch.ones(ELEMENTS, device=device) for _ in range(3))
    return Rates(
        flops=2 * PRODUCT**3 / _fastest(lambda: left @ right, device),
        bandwidth=3 * 4 * ELEMENTS / _fastest(lambda: torch.add(one, other, out=total), device),
    )


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(REPETITIONS):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def step_floor(
    network: nn.Module, optimizer: torch.optim.Optimizer, image_size: int, batch_size: float, rates: Rates
) -> float:
    """An estimate of a training step's least seconds: its arithmetic, then the optimizer's memory traffic.

    The arithmetic is that of convolutions and matrix products, forward and backward, at the rate of the fastest
    product; the traffic is each weight, gradient and state read once, and each weight and state written once.

    Args:
        network: on the CPU.
        optimizer: of the network's parameters; it takes a step of gradients that are 0.
        image_size: height and width of the images, in pixels.
        batch_size: images in a step, on average.
        rates: of the machine.
    """
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(2, 3, image_size, image_size)).sum().backward()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    traffic = 0
    for parameter, state in optimizer.state.items():
        states = sum(isinstance(value, torch.Tensor) and value.shape == parameter.shape for value in state.values())
        traffic += (2 * (1 + states) + 1) * parameter.numel() * parameter.element_size()
    arithmetic: float = counter.get_total_flops() / 2 * batch_size / rates.flops
    return arithmetic + traffic / rates.bandwidth
