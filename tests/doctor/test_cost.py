"""CIFAR10_IMAGES=FOLDER pytest -n 0 -m long -s tests/doctor/test_cost.py: the doctor's share of training time."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from overfitting_lab.callbacks.doctor import EVERY, Doctor
from overfitting_lab.callbacks.epochs import EpochRecorder
from tests.conftest import execute

HOOKS = ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end")
UNVALIDATED = (  # the plateau schedule needs validation
    "--data.train_size=1000",
    "--data.val_size=500",
    "--trainer.callbacks=null",
    "--model.lr_scheduler=null",
)


@pytest.mark.long
@pytest.mark.parametrize("flags", [("overfit",), ("vgg16_32", *UNVALIDATED)], ids=lambda flags: flags[0])
def test_share_of_the_time(
    real_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    spent: dict[int, float] = {}
    whole: list[float] = []

    def timed(hook: Callable[..., None]) -> Callable[..., None]:
        def run(self: Doctor, trainer: Any, *arguments: Any) -> None:
            started = time.perf_counter()
            hook(self, trainer, *arguments)
            step = trainer.global_step
            spent[step] = spent.get(step, 0) + time.perf_counter() - started

        return run

    start_epoch = EpochRecorder.on_train_epoch_start

    def noted(self: EpochRecorder, *arguments: Any) -> None:
        whole.append(time.perf_counter())
        start_epoch(self, *arguments)

    for name in HOOKS:
        monkeypatch.setattr(Doctor, name, timed(getattr(Doctor, name)))
    monkeypatch.setattr(EpochRecorder, "on_train_epoch_start", noted)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    source = ("--data.source=folder", f"--data.root={real_images}", "--trainer.limit_val_batches=0")
    limits = ("--trainer.limit_test_batches=1", "--trainer.max_epochs=15", "--trainer.enable_checkpointing=false")
    assert execute(monkeypatch, "fit", "--config", *flags, *source, *limits) == 0
    first = spent.pop(0)  # the measurement before the first step
    measured = (whole[-1] - whole[1]) / (8 * (len(whole) - 2))  # seconds a step, from the second epoch on
    measuring = sum(spent[step] for step in spent if step % EVERY in (0, EVERY - 1))
    share = sum(spent.values()) / len(spent) / measured
    print(
        f"\n{flags[0]}: {measured:.3f} s a step; the first measurement {first:.2f} s, the two later ones "
        f"{measuring:.2f} s, all {len(spent)} steps {sum(spent.values()):.2f} s: {share:.2%}"
    )
    assert share < 0.05, "docs/speed.md says less than 1 %; the rest is for a busy machine"
