"""python scripts/predict.py lightning_logs/overfit/version_0 cat.jpg dog.png.

Names the classes of images, most probable first, with the run's best checkpoint. Any format that Pillow reads; images
are cut to a centred square and resized as in training.
"""

import argparse
from pathlib import Path

import rich
import torch
from rich.markup import escape
from rich.table import Table

from cli import reported_errors
from datamodules import CIFAR10DataModule
from lightning_modules import ImageClassifier
from reporting.runs import Run, readable_checkpoint

TOP = 3
BATCH = 256


def main() -> None:
    """Predicts, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("images", type=Path, nargs="+", help="image files")
    arguments = parser.parse_args()
    with reported_errors():
        run = Run(arguments.run)
        images = CIFAR10DataModule.read(arguments.images)
        checkpoint = readable_checkpoint(run.checkpoint("best"))
        data = CIFAR10DataModule.load_from_checkpoint(checkpoint, weights_only=True)
        model = ImageClassifier.of_checkpoint(checkpoint)
        with torch.inference_mode():
            parts = [
                model.predict_step(data.normalized(data.as_evaluated(part))) for part in torch.split(images, BATCH)
            ]
        probabilities = torch.cat(parts)
        classes = run.summary["data"]["classes"]
        table = Table("image", *(f"{rank}." for rank in range(1, min(TOP, len(classes)) + 1)))
        for path, row in zip(arguments.images, probabilities, strict=True):
            best = row.topk(len(table.columns) - 1)
            named = (f"{escape(classes[i])} {p:.1%}" for p, i in zip(*map(list, best), strict=True))
            table.add_row(escape(str(path)), *named)
        rich.print(table)


if __name__ == "__main__":
    main()
