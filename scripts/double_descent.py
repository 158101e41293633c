"""python scripts/double_descent.py --data.source folder --data.root FOLDER.

Show double descent: the test error of regression on random features grows until there are as many features as training
images, and falls again beyond. Fit 1,000 images with 50 to 10,000 features: with their true labels and with a fifth of
the labels drawn at random, each by minimum-norm least squares and with a ridge. Write double_descent.csv, .json, .png
and .md. Five seeds take a few minutes on two cores. No network is trained.
"""

import time
from pathlib import Path
from tempfile import TemporaryFile

try:
    from overfitting_lab.cli import reported_errors
except ImportError as error:
    remedy = "activate the project's environment, or install it: pip install -e . (or take its namesake off PYTHONPATH)"
    raise SystemExit(f"{error}; {remedy}") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

from jsonargparse.typing import PositiveFloat, PositiveInt

from datamodules import CIFAR10DataModule
from overfitting_lab.callbacks.console import data_lines
from overfitting_lab.cli.parser import ExperimentParser
from overfitting_lab.double_descent.page import NAME, write
from overfitting_lab.double_descent.regression import FEWEST, Point, check_number, measure
from overfitting_lab.runs.files import user_path
from overfitting_lab.runs.provenance import command_line, git_commit, versions

UNUSED = {"augment", "cutout", "mixup", "cutmix", "batch_size", "seed", "probe_every", "on_device"}  # of training


def main() -> None:
    """Measure seed by seed, and write the results."""
    parser = ExperimentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seeds", type=PositiveInt, default=5, help="draws of the random features")
    parser.add_argument("--ridge", type=PositiveFloat, default=1.0, help="penalty on the squared length of the weights")
    parser.add_argument("--output", type=user_path, default=Path("double_descent"), help="folder for the results")
    parser.add_class_arguments(CIFAR10DataModule, "data", skip=UNUSED)
    parser.set_defaults({"data.split": "overfit", "data.stand_in": True, "data.label_noise": 0.2})
    arguments = parser.parse_args()
    with reported_errors():
        try:
            data = CIFAR10DataModule(**arguments.data.as_dict(), batch_size=1)
        except ValueError as error:
            parser.error(str(error), error)
        arguments.output.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=arguments.output).close()  # fails now if the results could not be written
        check_number(data.train_size or FEWEST)
        data.prepare_data()
        data.setup("fit")
        check_number(len(data.train_indices))
        print(data_lines(data.description()), flush=True)
        points: list[Point] = []
        began = time.perf_counter()
        for seed in range(arguments.seeds):
            points += measure(data, seed, arguments.ridge)
            print(f"seed       {seed} of 0 to {arguments.seeds - 1}, {time.perf_counter() - began:.0f} s", flush=True)
        facts = {"seconds": time.perf_counter() - began, "command": command_line()}
        facts |= {"versions": versions(), "git_commit": git_commit()}
        done = "replaced" if any(arguments.output.glob(f"{NAME}.*")) else "written"
        print(done, *write(points, data, facts, arguments.output))


if __name__ == "__main__":
    main()
