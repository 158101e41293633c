"""python scripts/ablate.py --factor model.dropout=0,0.5 --factor data.augment=none,flip_crop.

Measure the effect of settings: train overfit.yaml with every combination of the factors' levels, over several seeds.
Write tables and figures into lightning_logs/ablation/. A factor is any setting of fit.py with two levels or more, the
first of which is the baseline, or a configuration that is off or on, such as optimizer/sgd_momentum.

Without --factor, the factors are dropout, weight decay and augmentation. A number as the only factor, with three levels
or more, gives a curve. With six or more factors of two levels, a fraction of the combinations is trained. --sizes
trains without dropout, weight decay and augmentation on more and more images. If the command without --sizes was run
before, it converts each effect to a number of images.

If the ablation is interrupted, run the same command again to resume it. To share the trials, start it again in other
terminals, or on other machines with the same --storage. Unknown flags go to fit.py, such as --data.source folder
--data.root FOLDER.
"""

import argparse

try:
    from overfitting_lab.cli import reported_errors
except ImportError as error:
    remedy = "activate the project's environment, or install it: pip install -e . (or take its namesake off PYTHONPATH)"
    raise SystemExit(f"{error}; {remedy}") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

from overfitting_lab.cli.ablations import SIZE_OF_ALL, SIZES, AblationPlan
from overfitting_lab.cli.script_parser import ScriptParser, positive
from overfitting_lab.runs.provenance import command_line
from overfitting_lab.sweeps.ablation import Ablation
from overfitting_lab.sweeps.names import page_name
from overfitting_lab.sweeps.pages import write_page


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Return the script's own arguments, and the flags of fit.py."""
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    varied, design = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    levels = "a setting and its levels, or a configuration; may be repeated"
    varied.add_argument("--factor", action="append", metavar="SETTING=LEVEL,LEVEL", help=levels)
    varied.add_argument("--sizes", type=positive, nargs="*", help=f"numbers of training images; default: {SIZES}")
    alone = "compare each level alone with the first levels, instead of all combinations"
    design.add_argument("--one_at_a_time", action="store_true", help=alone)
    design.add_argument("--full", action="store_true", help="train all combinations of any number of factors")
    add("--train_size", type=positive, help=f"training images in each run; default: --config's, or {SIZE_OF_ALL}")
    add("--seeds", type=positive, default=3, help="runs of each combination and subset; default: 3")
    add("--subsets", type=positive, default=1, help="number of disjoint sets of images for all trials; default: 1")
    add("--config", action="append", help="configuration of every trial; default: overfit")
    add("--experiment", default="ablation", help="folder of the runs in lightning_logs/")
    add("--storage", help="Optuna storage: a database URL or a journal file; default: beside the runs")
    arguments, flags = parser.parse_known_args()
    arguments.config = arguments.config or ["overfit"]
    return arguments, flags


def main() -> None:
    """Work on the trials, then write the results."""
    arguments, flags = parse()
    with reported_errors():
        plan = AblationPlan.of_factors(arguments, flags)
        study = begin(plan, arguments)
        facts = {"train_size": plan.size, "command": command_line()}
        if arguments.sizes is None:
            announce(plan, arguments)
            if study.work():
                path = study.folder / page_name(plan.design, plan.size, named=bool(arguments.factor))
                print("written", *write_page(plan.design, study.results(), {"study": plan.name, **facts}, path))
            return
        sizes = AblationPlan.of_sizes(arguments, flags)
        curve = begin(sizes, arguments)
        announce(sizes, arguments)
        if curve.work():
            facts, path = {"study": sizes.name, **facts}, curve.folder / sizes.name
            print("written", *write_page(sizes.design, curve.results(), facts, path, (plan.design, study.results())))


def begin(plan: AblationPlan, arguments: argparse.Namespace) -> Ablation:
    """Return the ablation of a plan."""
    return plan.begin(arguments.subsets, arguments.seeds, arguments.storage)


def announce(plan: AblationPlan, arguments: argparse.Namespace) -> None:
    """Print the number of trials."""
    print(f"design     {plan.count(arguments.subsets, arguments.seeds)}", flush=True)


if __name__ == "__main__":
    main()
