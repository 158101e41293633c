"""Measure a machine's limits, and estimate the least time that a training step needs on it."""

import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

PRODUCT = 4096  # rows and columns of the matrices that are multiplied
ELEMENTS = 2**26  # of the vectors that are added: 256 MB each, more than any cache holds
REPETITIONS = 5


class Rates(NamedTuple):
    """Rates a second of a device: operations of the fastest matrix product, bytes of the fastest sum of vectors."""

    flops: float
    bandwidth: float


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def describe(device: torch.device) -> dict[str, Any]:
    """Describe the machine in words."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in info.read_text(encoding="utf-8").splitlines()
            if "model name" in line
        ]
        cpu = names[0] if names else cpu
    features = [name for name, there in torch.cpu.get_capabilities().items() if there is True and "bf16" in name]
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"cpu": cpu, "bf16": features, "threads": torch.get_num_threads(), "gpu": gpu, "system": platform.system()}


@cache
def rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measure a device with matrices of ``dtype``, and float32 vectors, as weights and optimizer states are."""
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
    """Estimate a training step's least seconds: its arithmetic, then the optimizer's memory traffic.

    The arithmetic is the forward and backward pass of convolutions and matrix products, at the rate of the fastest
    product. The traffic reads each weight, gradient and state once, and writes each weight and state once. The network,
    on the CPU, gets zero gradients and a step of the optimizer. ``batch_size`` is the mean over steps.
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
