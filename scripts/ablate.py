"""python scripts/ablate.py.

Measure the effect of each regularization method: train overfit.yaml with every combination of dropout, weight decay and
augmentation, over several seeds. Write a table and a figure of the effects into lightning_logs/ablation/. With --sizes,
train without these methods on more and more images instead, and convert each method's effect to a number of images.

If the ablation is interrupted, run the same command again to resume it. Several processes, also on several machines
that share the storage, share the trials. Unknown flags go to fit.py, such as --data.source folder --data.root FOLDER.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

try:
    from overfitting_lab.cli import reported_errors
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}; install the project first: pip install -e .") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

from overfitting_lab.cli.finished import finished_run, plan
from overfitting_lab.cli.parser import positive
from overfitting_lab.runs import RunError
from overfitting_lab.runs.provenance import command_line
from overfitting_lab.runs.recipe import recipe
from overfitting_lab.sweeps.factorial import REMEDIES
from overfitting_lab.sweeps.results import write_factorial, write_sizes
from overfitting_lab.sweeps.study import FLAGS, Ablation

SIZES = (500, 1000, 2000, 5000, 10000, 20000, 45000)


def ablation(name: str, grid: Mapping[str, Sequence[Any]], fit: Sequence[str], storage: str | None) -> Ablation:
    """Return the ablation whose trials have the flags ``fit`` of fit.py in common."""
    folder, settings, cli = plan(fit)
    fixed = {**recipe(settings), "the images": cli.datamodule.source.load().identity}
    return Ablation(name, grid, folder, fixed, lambda flags, output: finished_run([*fit, *flags], output), storage)


def main() -> None:
    """Work on the trials, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_size", type=positive, default=1000, help="training images in each run; default: 1000")
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each setting; default: 3")
    parser.add_argument("--sizes", type=positive, nargs="*", help=f"train on so many images instead; default: {SIZES}")
    parser.add_argument("--config", action="append", help="configuration of every trial; default: overfit")
    parser.add_argument("--experiment", default="ablation", help="folder of the runs in lightning_logs/")
    parser.add_argument("--storage", help="Optuna storage: a database URL or a journal file; default: beside the runs")
    arguments, flags = parser.parse_known_args()
    facts = {"train_size": arguments.train_size, "command": command_line()}
    configs = [f"--config={name}" for name in arguments.config or ["overfit"]]
    fit = [*configs, "--experiment", arguments.experiment, *flags]
    off = ["--model.dropout=0.0", "--model.optimizer.weight_decay=0.0", "--data.augment=none"]
    seeds = range(arguments.seeds)
    with reported_errors():
        if varied := [flag for flag in flags if flag.partition("=")[0] in FLAGS.values()]:
            raise RunError(f"{varied[0]}: the trials set this themselves; see --train_size, --seeds and --sizes")
        size = [*fit, f"--data.train_size={arguments.train_size}"]
        name = f"factorial-{arguments.train_size}"
        factorial = ablation(name, {**REMEDIES, "seed": seeds}, size, arguments.storage)
        if arguments.sizes is None:
            if factorial.work():
                print("written", *write_factorial(factorial.results(), facts, factorial.folder))
        else:
            sizes = sorted(set(arguments.sizes)) or SIZES
            curve = ablation("sizes", {"size": sizes, "seed": seeds}, [*fit, *off], arguments.storage)
            if curve.work():
                print("written", *write_sizes(curve.results(), factorial.results(), facts, curve.folder))


if __name__ == "__main__":
    main()
