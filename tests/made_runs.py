"""Runs' folders made by hand, for what reads them."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

CLASSES = ["airplane", "bird", "cat"]
SETTINGS: dict[str, Any] = {
    "seed_everything": 0,
    "experiment": "made",
    "model": {
        "class_path": "lightning_modules.AlexNet",
        "init_args": {"dropout": 0.0, "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-4}}},
    },
    "data": {"root": "anywhere", "split": "overfit", "augment": "none"},
    "trainer": {"max_epochs": 3, "accelerator": "cpu"},
}
CURVES = ((2.0, 0.2, 1.5, 0.3), (1.0, 0.6, 1.2, 0.5), (0.1, 1.0, 2.4, 0.4))  # train loss, acc, val loss, acc


def make_run(
    folder: Path,
    right: NDArray[np.bool_],
    *,
    seed: int = 0,
    dropout: float = 0.0,
    data: Mapping[str, Any] | None = None,
    images: bool = True,
    curves: Sequence[Sequence[float]] = CURVES,
    **summary: Any,
) -> Path:
    """A finished run.

    Args:
        folder: ``.../<experiment>/version_N``.
        right: which test images it names right.
        seed: of the run.
        dropout: of the network.
        data: changes of the summary's ``data``.
        images: whether there is an ``images.npz``.
        curves: training loss and accuracy, validation loss and accuracy of each epoch.
        summary: changes of the summary.
    """
    folder.mkdir(parents=True)
    settings = json.loads(json.dumps(SETTINGS)) | {"seed_everything": seed, "experiment": folder.parent.name}
    settings["model"]["init_args"]["dropout"] = dropout
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    names = ("train_loss", "train_acc", "val_loss", "val_acc")
    rows: list[dict[str, Any]] = [
        {"epoch": epoch, **dict(zip(names, values, strict=True))} for epoch, values in enumerate(curves)
    ]
    with (folder / "metrics.csv").open("w", newline="") as file:
        more = {"step": 5, "learning_rate": 1e-4, "seconds": 1.0}
        writer = csv.DictWriter(file, [*rows[0], *more])
        writer.writeheader()
        writer.writerows({**row, **more} for row in rows)
    made = {
        "experiment": folder.parent.name,
        "status": "finished",
        "diagnosis": [],
        "seed": seed,
        "data": {
            "source": "folder",
            "name": "made <by hand>",
            "identity": "a",
            "fingerprint": "b" * 64,
            "split": "overfit",
            "train_size": 30,
            "val_size": 15,
            "augment": "none",
            "test_size": len(right),
            "classes": CLASSES,
            **(data or {}),
        },
        "model": {"class_path": "lightning_modules.AlexNet", "parameters": 1234567},
        "optimizer": {"class_path": "torch.optim.Adam", "lr": 1e-4},
        "epochs": len(rows),
        "best": max(rows, key=lambda row: row["val_acc"]),
        "last": rows[-1],
        "generalization_gap": rows[-1]["train_acc"] - rows[-1]["val_acc"],
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
    (folder / "summary.json").write_text(json.dumps(made))
    if images:
        _write_images(folder / "images.npz", right)
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
        train_learned=np.arange(30) % 4,  # of three epochs: a quarter never learned
        train_shown=np.arange(24),
        train_pictures=random.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8),
        test_labels=labels,
        test_predictions=predictions,
        test_probabilities=probabilities.astype(np.float16),
        test_shown=shown,
        test_pictures=random.integers(0, 256, (len(shown), 32, 32, 3), dtype=np.uint8),
    )
