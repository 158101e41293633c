"""Folders of runs made by hand, for the code that reads them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from overfitting_lab.runs import RunFiles
from overfitting_lab.runs.epochs import EpochRecord, best_epoch, last_gap, write_records

Metrics = tuple[float, float, float | None, float | None]  # training loss and accuracy, validation loss and accuracy
CLASSES = ["airplane", "bird", "cat"]
SETTINGS: dict[str, Any] = {
    "seed_everything": 0,
    "experiment": "made",
    "model": {
        "class_path": "lightning_modules.AlexNet",
        "init_args": {"dropout": 0.0, "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-4}}},
    },
    "data": {"root": "anywhere", "split": "overfit", "augment": "none"},
    "trainer": {"max_epochs": 5, "accelerator": "cpu"},
}
SOUND: tuple[Metrics, ...] = ((2.0, 0.2, 1.5, 0.3), (1.0, 0.6, 1.2, 0.5))
CURVES: tuple[Metrics, ...] = (
    *SOUND,
    (0.4, 0.8, 1.8, 0.4),
    (0.2, 0.9, 2.0, 0.4),
    (0.1, 1.0, 2.4, 0.4),
)


def make_run(
    folder: Path,
    right: NDArray[np.bool_],
    *,
    seed: int = 0,
    dropout: float = 0.0,
    data: Mapping[str, Any] | None = None,
    images: bool = True,
    curves: Sequence[Metrics] = CURVES,
    probe: float | None = None,
    **summary: Any,
) -> Path:
    """Make the folder of a finished run.

    Args:
        folder: ``.../<experiment>/version_N``.
        right: tells of each test image if the run classified it correctly.
        seed: of the run.
        dropout: of the network.
        data: changes of the summary's ``data``. A key with ``None`` is left out, as in old runs.
        images: makes an ``images.npz``.
        curves: training loss and accuracy, validation loss and accuracy of each epoch.
        probe: accuracy on the probe in each epoch.
        summary: changes of the summary. A key with ``None`` is left out.
    """
    folder.mkdir(parents=True)
    files = RunFiles(folder)
    settings = json.loads(json.dumps(SETTINGS)) | {"seed_everything": seed, "experiment": folder.parent.name}
    settings["model"]["init_args"]["dropout"] = dropout
    files.config.write_text(yaml.safe_dump(settings))
    records = [
        EpochRecord(epoch, *metrics, 5 * epoch, 1e-4, 1.0, probe_loss=probe, probe_acc=probe)
        for epoch, metrics in enumerate(curves)
    ]
    write_records(files.metrics, records)
    described = {
        "source": "folder",
        "name": "made <by hand>",
        "identity": "a",
        "fingerprint": "b" * 64,
        "split": "overfit",
        "train_size": 30,
        "val_size": 15,
        "test_size": len(right),
        "augment": "none",
        "classes": CLASSES,
        **(data or {}),
    }
    best = best_epoch(records)
    made = {
        "experiment": folder.parent.name,
        "status": "finished",
        "diagnosis": [],
        "seed": seed,
        "data": {key: value for key, value in described.items() if value is not None},
        "model": {"class_path": "lightning_modules.AlexNet", "parameters": 1234567},
        "optimizer": {"class_path": "torch.optim.Adam", "lr": 1e-4},
        "epochs": len(records),
        "best": best and vars(best),
        "last": best and vars(records[-1]),
        "generalization_gap": (gap := last_gap(records)) and gap.value,
        "test": {"checkpoint": "best", "loss": 1.0, "acc": float(right.mean()), "images": len(right)},
        "seconds": 60.0,
        "train_images_per_second": 500.0,
        "device": "cpu",
        "precision": "32-true",
        "world_size": 1,
        "versions": {"python": "3", "torch": "2", "lightning": "2"},
        "git_commit": "c" * 40,
        **summary,
    }
    files.summary.write_text(json.dumps({key: value for key, value in made.items() if value is not None}))
    if images:
        _write_images(files.images, right)
    return folder


def _write_images(path: Path, right: Any) -> None:
    labels = np.arange(len(right)) % 3
    predictions = np.where(right, labels, (labels + 1) % 3)
    probabilities = np.full((len(right), 3), 0.05)
    probabilities[np.arange(len(right)), predictions] = 0.9
    shown = np.flatnonzero(~right)[:24]
    random = np.random.default_rng(0)
    np.savez_compressed(
        path,
        train_indices=np.arange(30),
        train_labels=np.arange(30) % 3,
        train_learned=np.arange(30) % 6,  # of five epochs: a sixth never learned
        train_forgotten=np.arange(30) % 4,
        train_shown=np.arange(24),
        train_pictures=random.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8),
        train_most_forgotten=np.arange(3, 30, 4),
        train_most_forgotten_pictures=random.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8),
        train_least_forgotten=np.arange(0, 30, 4),
        train_least_forgotten_pictures=random.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8),
        test_labels=labels,
        test_predictions=predictions,
        test_logits=np.log(probabilities).astype(np.float16),
        test_shown=shown,
        test_pictures=random.integers(0, 256, (len(shown), 32, 32, 3), dtype=np.uint8),
    )
