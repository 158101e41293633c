from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules import CIFAR10DataModule
from lightning_modules import ImageClassifier
from overfitting_lab.cli import ExperimentCLI
from overfitting_lab.runs import Run, RunError
from tests.conftest import FinishedRun, Flags, Script

RUN = "lightning_logs/overfit/version_0"


class Answers(Callback):
    """Record of each training image, visit by visit, if the network classified it correctly."""

    def __init__(self) -> None:
        self.right: dict[int, list[bool]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        correct = outputs["logits"].argmax(1) == batch.labels
        for index, right in zip(batch.indices.tolist(), correct.tolist(), strict=True):
            self.right.setdefault(index, []).append(right)


@pytest.fixture(scope="module")
def learned(tiny: Flags, tmp_path_factory: pytest.TempPathFactory) -> tuple[Answers, Run, CIFAR10DataModule]:
    folder = tmp_path_factory.mktemp("learned")
    hard = ["--data.label_noise=1", "--data.image_size=16"]  # some images are learned late
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PL_GLOBAL_SEED", "0")
        cli = ExperimentCLI(["--config=overfit", *tiny, "--trainer.max_epochs=5", *hard])
        answers = Answers()
        cli.trainer.callbacks.insert(0, answers)  # type: ignore[attr-defined]
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=cli.best_checkpoint, weights_only=True)
    return answers, Run(folder / RUN), cli.datamodule


def test_test_answers_are_those_of_the_best_checkpoint(learned: tuple[Answers, Run, CIFAR10DataModule]) -> None:
    _, run, data = learned
    images = run.images
    model = ImageClassifier.from_checkpoint(run.best_checkpoint)
    pixels = data.images.test_images.permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = model.predict_step(data.network_input(pixels)).numpy()
    assert np.array_equal(images["test_labels"], data.images.test_labels.numpy())
    kept = images["test_logits"].astype(np.float32)
    assert np.allclose(kept, np.log(expected), rtol=1e-3, atol=1e-3), "beyond what float16 explains"
    assert np.array_equal(images["test_predictions"], expected.argmax(axis=1))
    assert run.summary.test
    assert (images["test_predictions"] == images["test_labels"]).mean() == pytest.approx(run.summary.test.acc)

    shown = images["test_shown"]
    wrong = np.flatnonzero(images["test_predictions"] != images["test_labels"])
    assert len(wrong), "the fixture makes mistakes"
    assert set(shown) <= set(wrong)
    assert len(shown) == min(24, len(wrong))
    sure = images["test_logits"].max(axis=1)
    assert list(sure[shown]) == sorted(sure[wrong], reverse=True)[: len(shown)]
    assert np.array_equal(images["test_pictures"], data.images.test_images.numpy()[shown])


def test_an_image_is_learned_after_its_last_mistake(learned: tuple[Answers, Run, CIFAR10DataModule]) -> None:
    answers, run, data = learned
    images = run.images
    assert sorted(images["train_indices"]) == sorted(answers.right)
    assert np.array_equal(images["train_labels"], data.images.train_labels[data.train_indices].numpy())
    expected = [
        max((epoch + 1 for epoch, right in enumerate(answers.right[index]) if not right), default=0)
        for index in images["train_indices"]
    ]
    assert images["train_learned"].tolist() == expected
    assert len(set(expected)) > 2, "the fixture learns some early and some late"
    shown = images["train_shown"]
    assert images["train_learned"][shown].tolist() == sorted(expected, reverse=True)[:24]
    assert np.array_equal(images["train_pictures"], data.images.train_images[images["train_indices"][shown]].numpy())


def test_an_image_is_forgotten_when_a_mistake_follows_a_right_answer(
    learned: tuple[Answers, Run, CIFAR10DataModule],
) -> None:
    answers, run, data = learned
    images = run.images
    expected = [
        sum(before and not now for before, now in pairwise(answers.right[index])) for index in images["train_indices"]
    ]
    assert images["train_forgotten"].tolist() == expected
    assert len(set(expected)) > 1, "the fixture forgets some"
    for name, sign in (("most", -1), ("least", 1)):
        shown = images[f"train_{name}_forgotten"]
        assert images["train_forgotten"][shown].tolist() == sorted(expected, key=lambda times: sign * times)[:24]
        pixels = data.images.train_images.numpy()[images["train_indices"][shown]]
        assert np.array_equal(images[f"train_{name}_forgotten_pictures"], pixels)


def test_a_run_from_a_checkpoint_without_the_count_says_nothing_of_training_images(
    run_script: Script, quick: Flags, tmp_path: Path
) -> None:
    assert run_script("fit", "--config=overfit", *quick).status == 0
    path = tmp_path / RUN / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["last_wrong"]
    torch.save(checkpoint, path)
    assert run_script("fit", f"--resume={RUN}", "--trainer.max_epochs=3").status == 0
    assert {name.partition("_")[0] for name in Run(tmp_path / RUN).images} == {"test", "val"}


def test_images_that_were_not_visited_are_told_apart(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    flags = ["--trainer.limit_train_batches=2", "--trainer.max_epochs=1"]
    assert run_script("fit", "--config=overfit", *quick, *flags).status == 0
    learned = Run(tmp_path / RUN).images["train_learned"]
    assert (learned == -1).sum() == 100 - 2 * 20


def test_a_damaged_file_is_named(finished_run: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert Run(tmp_path).images == {}
    (tmp_path / "images.npz").write_bytes((finished_run.folder / "images.npz").read_bytes()[:1000])
    with pytest.raises(RunError, match=r"images\.npz is damaged"):
        _ = Run(tmp_path).images


def test_an_image_that_is_not_seen_again_after_a_mistake_is_not_learned(
    quick: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    part = ("--trainer.limit_train_batches=1", "--trainer.max_epochs=3")
    cli = ExperimentCLI(["--config=overfit", *quick, *part])
    answers = Answers()
    cli.trainer.callbacks.insert(0, answers)  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    cli.leave_together()
    images = Run(tmp_path / RUN).images
    learned = dict(zip(images["train_indices"], images["train_learned"], strict=True))
    assert {learned[index] for index, right in answers.right.items() if not right[-1]} == {3}
    assert all(learned[index] < 3 for index, right in answers.right.items() if right[-1])
    assert {learned[index] for index in learned.keys() - answers.right.keys()} == {-1}
