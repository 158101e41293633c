"""python scripts/predict.py lightning_logs/overfit/version_0 cat.jpg dog.png.

Print the most probable classes of images by the run's best checkpoint, with the network's accuracy on test images, and
draw the images with these classes to prediction.png, or prediction-2.png if that is there. Any format that Pillow reads
will do. Images are cropped to a centred square and resized as in training. Instead of the run, name a file of
scripts/export.py, such as lightning_logs/overfit/version_0/export/model.onnx. Use only files that you trust: a .pt2 can
run code when it is loaded.
"""

from pathlib import Path

try:
    from overfitting_lab.cli import reported_errors
except ImportError as error:
    remedy = "activate the project's environment, or install it: pip install -e . (or take its namesake off PYTHONPATH)"
    raise SystemExit(f"{error}; {remedy}") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

import rich
from rich.markup import escape
from rich.table import Column, Table

from datamodules.images import read_batch
from overfitting_lab.cli.patterns import expand_patterns
from overfitting_lab.cli.script_parser import ScriptParser
from overfitting_lab.export import load_predictor
from overfitting_lab.runs.figures import answers, save_figure
from overfitting_lab.runs.files import unused, user_path
from overfitting_lab.runs.text import readable

TOP = 3
DRAWN = 50  # images in the picture
UNKNOWN = "How often this network is right is unknown: the run was not tested, or the file is of an earlier version."
UNLIKE = (
    "It always names one of its classes: on an image unlike the training images, even a confident answer may be wrong."
)


def main() -> None:
    """Predict, print a table and draw it."""
    parser = ScriptParser(__doc__)
    parser.add_argument("model", type=user_path, help="the run's folder, or a .pth, .pt2 or .onnx of scripts/export.py")
    parser.add_argument("images", type=user_path, nargs="+", help="image files")
    drawn = "PNG to draw; default: prediction.png, or the next free number"
    parser.add_argument("--output", type=user_path, help=drawn)
    arguments = parser.parse_args()
    if arguments.output and arguments.output.suffix.lower() != ".png":
        parser.error(f"--output {arguments.output}: the drawing is a PNG; let its name end in .png")
    arguments.images = expand_patterns(arguments.images)
    with reported_errors(needs_screen=True):
        output = arguments.output or unused(Path("prediction"), ".png")
        done = "replaced" if output.is_file() else "drawn to"
        output.parent.mkdir(parents=True, exist_ok=True)
        predictor = load_predictor(arguments.model)
        images = read_batch(arguments.images)
        best = predictor.best(images, TOP)
        names = [readable(path) for path in arguments.images]
        table = Table(Column("image", overflow="fold"), *(f"{rank}." for rank, _ in enumerate(best[0], start=1)))
        for name, row in zip(names, best, strict=True):
            table.add_row(escape(name), *(f"{escape(label)} {probability:.1%}" for label, probability in row))
        rich.print(table)
        trust = predictor.trust.sentence if predictor.trust else UNKNOWN
        print(f"{trust}\n{UNLIKE}")
        title = readable(arguments.model) + (f", test accuracy {predictor.trust.acc:.1%}" if predictor.trust else "")
        pictures = images[:DRAWN].permute(0, 2, 3, 1).numpy()
        save_figure(output, answers(pictures, names[:DRAWN], best[:DRAWN], title=title))
        part = f" (the first {DRAWN} of {len(names)})" if len(names) > DRAWN else ""
        print(f"{done} {output}{part}")


if __name__ == "__main__":
    main()
