"""The images on the device. Fake tensors stand for a GPU: they have a device, and refuse an operation on two."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from datamodules import Batch, CIFAR10DataModule
from datamodules.mixing import epoch_mixtures
from datamodules.sampling import epoch_draws
from datamodules.trivial import strength_table
from tests.datamodules.test_cifar10 import attach, ready

GPU = torch.device("cuda", 0)


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the tensors that go from one device to another."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [each.device for each in args if isinstance(each, Tensor)]
        self.count += isinstance(result, Tensor) and any(device != result.device for device in given)
        return result


def attached(image_folder: Path, device: torch.device, *, world_size: int = 1, **settings: Any) -> CIFAR10DataModule:
    """Return a data module of a Trainer on a device."""
    data = ready(CIFAR10DataModule(str(image_folder), "folder", batch_size=20, train_size=90, **settings))
    strategy = SimpleNamespace(broadcast=lambda value: value, root_device=device)
    return attach(data, strategy=strategy, world_size=world_size)


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Let new tensors have no content, so that they can be on a GPU that is not there."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        for table in (epoch_draws, epoch_mixtures, strength_table):
            table.cache_clear()


@pytest.mark.parametrize(
    "settings",
    [
        {"augment": "none"},
        {"augment": "flip_crop", "cutout": 8, "mixup": 1.0, "cutmix": 1.0},
        {"augment": "vgg"},
        {"augment": "notebook", "mixup": 1.0},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_a_step_copies_nothing_and_waits_for_nothing(settings: dict[str, Any], image_folder: Path) -> None:
    """An operation that mixes devices is an error, and so is reading a value of a fake tensor."""
    data = attached(image_folder, GPU, on_device=True, **settings)
    copies = []
    with fake_tensors(), Copies() as seen:
        for batch in data.train_dataloader():
            ready_batch = cast(Batch, data.on_after_batch_transfer(batch.to(GPU), 0))
            devices = {
                part.device for part in (*ready_batch, *(ready_batch.partners or ())) if isinstance(part, Tensor)
            }
            assert devices == {GPU}
            copies.append(seen.count)
    assert copies[0] > 0
    assert copies == [copies[0]] * 5, "only an epoch's first step copies: the order and the drawn numbers"


def test_evaluation_gathers_on_the_device(image_folder: Path) -> None:
    data = attached(image_folder, GPU, on_device=True)
    with fake_tensors(), Copies() as seen:
        for loader in (*data.val_dataloader(), data.test_dataloader()):
            assert {each.device for batch in loader for each in batch[:3]} == {GPU}
    assert seen.count == 7, "images and labels of two parts, and the indices of three sets"


@pytest.mark.parametrize(
    ("device", "on_device", "world_size", "memory", "there"),
    [
        (GPU, None, 1, 10 * 225 * 3072, True),
        (GPU, None, 1, 10 * 225 * 3072 - 1, False),  # too little memory
        (GPU, None, 2, 10**10, False),
        (GPU, False, 1, 10**10, False),
        (GPU, True, 2, 1, True),
        (torch.device("mps"), None, 1, 10**10, False),
        (torch.device("cpu"), None, 1, 1, False),
        (torch.device("cpu"), True, 1, 1, False),
    ],
)
def test_the_default_is_a_single_gpu_with_room(
    device: torch.device,
    on_device: bool | None,
    world_size: int,
    memory: int,
    there: bool,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=memory))
    data = attached(image_folder, device, world_size=world_size, on_device=on_device)
    with fake_tensors():
        batch = next(iter(data.train_dataloader()))
    assert batch.images.device == batch.indices.device == (device if there else torch.device("cpu"))


@pytest.mark.parametrize("on_device", [True, False])
def test_the_setting_changes_no_batch(on_device: bool, image_folder: Path) -> None:
    settings: dict[str, Any] = {"augment": "trivial", "cutout": 8, "mixup": 1.0, "label_noise": 0.5}
    mine, other = (
        attached(image_folder, torch.device("cpu"), on_device=choice, **settings) for choice in (on_device, None)
    )
    for batch, expected in zip(mine.train_dataloader(), other.train_dataloader(), strict=True):
        ones, others = (
            cast(Batch, data.on_after_batch_transfer(batch, 0)) for data, batch in ((mine, batch), (other, expected))
        )
        assert torch.equal(ones.images, others.images)
        assert torch.equal(ones.labels, others.labels)
