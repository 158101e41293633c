"""A run on mixed images with smoothed labels: what it shows, logs and counts."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from datamodules import Batch
from overfitting_lab.cli import ExperimentCLI
from overfitting_lab.runs import Run
from tests.conftest import Flags, Script, events_of, scalars_of

RUN = Path("lightning_logs/overfit/version_0")
MIXED = ("--data.mixup=1", "--data.cutmix=1", "--model.label_smoothing=0.2")


class Steps(Callback):
    """Keep each step's batch and logits."""

    def __init__(self) -> None:
        self.seen: list[tuple[Batch, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, model: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        self.seen.append((batch, outputs["logits"].detach().float()))


def test_a_run_on_mixed_images(tiny: Flags, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    cli = ExperimentCLI(["--config=overfit", *tiny, *MIXED, "--trainer.max_epochs=1", "--data.batch_size=25"])
    steps = Steps()
    cli.trainer.callbacks.insert(0, steps)  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert len(steps.seen) == 4
    plain, minimized = [], []
    for batch, logits in steps.seen:
        assert batch.shares is not None
        assert batch.partners is not None
        own, other = (F.one_hot(each.labels, 3) for each in (batch, batch.partners))
        targets = batch.shares[:, None] * own + (1 - batch.shares[:, None]) * other
        plain.append(float(F.cross_entropy(logits, batch.labels)))
        minimized.append(float(F.cross_entropy(logits, targets, label_smoothing=0.2)))
    (record,) = Run(RUN).records
    assert record.train_loss == pytest.approx(sum(plain) / 4, rel=1e-4)
    assert [value for _, value in scalars_of(RUN)["steps/loss"]] == pytest.approx(minimized, rel=1e-4)
    assert max(abs(one - other) for one, other in zip(plain, minimized, strict=True)) > 0.01

    images = Run(RUN).images
    right = {int(index): bool(answer == label) for batch, logits in steps.seen
             for index, answer, label in zip(batch.indices, logits.argmax(1), batch.labels, strict=True)}  # fmt: skip
    learned = {int(i): bool(e == 0) for i, e in zip(images["train_indices"], images["train_learned"], strict=True)}
    assert learned == right
    assert len(set(right.values())) == 2

    events = events_of(RUN)
    (tag,) = (tag for tag in events.Tags()["images"] if tag.startswith("training images"))
    picture = np.asarray(Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string)))
    batch, _ = steps.seen[0]
    expected = make_grid(batch.images, normalize=True).permute(1, 2, 0).numpy()
    assert np.abs(picture / 255 - expected).max() < 1 / 254
    alone = cli.datamodule.network_input(cli.datamodule.images.train_images[batch.indices].permute(0, 3, 1, 2))
    assert not torch.allclose(batch.images, alone)


def test_check_of_an_experiment_with_mixed_images(run_script: Script, tiny: Flags, tmp_path: Path) -> None:
    outcome = run_script("fit", "--config=overfit", *tiny, *MIXED, "--check")
    assert outcome.status == 0, outcome.err
    assert "augmentation none, mixup 1, cutmix 1\n" in outcome.out
    assert "chance level is 1.0" in outcome.out
    assert "check      nothing" in outcome.out
    assert list(tmp_path.iterdir()) == []
