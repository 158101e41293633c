"""python scripts/ablate.py.

What each remedy buys: trains overfit.yaml with every combination of dropout, weight decay and augmentation, over
several seeds, and leaves a table and a figure of their effects in lightning_logs/ablation/. With --sizes it trains it
without remedies on more and more images instead, and says how many images each remedy is worth.

Stopped anywhere, it goes on where it was when it is started again. Started several times, also on several machines that
share the storage, the trials are shared out. Flags that it does not know go to fit.py, as --data.source folder
--data.root FOLDER.
"""

import argparse

from overfitting_lab.cli import reported_errors
from overfitting_lab.cli.parser import positive
from overfitting_lab.runs.provenance import command_line
from overfitting_lab.sweeps.factorial import REMEDIES, write_factorial, write_sizes
from overfitting_lab.sweeps.study import Ablation, refuse_varied

SIZES = (500, 1000, 2000, 5000, 10000, 20000, 45000)


def main() -> None:
    """Works through the trials, then writes what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_size", type=positive, default=1000, help="images of the factorial; default: 1000")
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each setting; default: 3")
    parser.add_argument("--sizes", type=positive, nargs="*", help=f"a learning curve; without numbers: {SIZES}")
    parser.add_argument("--config", action="append", help="what every trial starts from; default: overfit")
    parser.add_argument("--experiment", default="ablation", help="folder of the runs in lightning_logs/")
    parser.add_argument("--storage", help="Optuna's: a database's URL, or a journal file; default: beside the runs")
    arguments, flags = parser.parse_known_args()
    facts = {"train_size": arguments.train_size, "command": command_line()}
    configs = [f"--config={name}" for name in arguments.config or ["overfit"]]
    fit = [*configs, "--experiment", arguments.experiment, *flags]
    off = {"--model.dropout": 0.0, "--model.optimizer.weight_decay": 0.0, "--data.augment": "none"}
    seeds = range(arguments.seeds)
    with reported_errors():
        refuse_varied(flags)
        factorial = Ablation(
            f"factorial-{arguments.train_size}",
            {**REMEDIES, "seed": seeds},
            [*fit, f"--data.train_size={arguments.train_size}"],
            arguments.storage,
        )
        if arguments.sizes is None:
            factorial.work()
            if factorial.complete:
                print("written", *write_factorial(factorial.results(), facts, factorial.folder))
        else:
            curve = Ablation(
                "sizes",
                {"size": sorted(set(arguments.sizes)) or SIZES, "seed": seeds},
                [*fit, *(f"{flag}={value}" for flag, value in off.items())],
                arguments.storage,
            )
            curve.work()
            if curve.complete:
                print("written", *write_sizes(curve.results(), factorial.results(), facts, curve.folder))


if __name__ == "__main__":
    main()
