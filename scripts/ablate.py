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
import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from typing import IO, Any

try:
    from overfitting_lab.cli import reported_errors
except ImportError as error:
    remedy = "activate the project's environment, or install it: pip install -e . (or take its namesake off PYTHONPATH)"
    raise SystemExit(f"{error}; {remedy}") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

from overfitting_lab.cli.errors import USAGE
from overfitting_lab.cli.factors import check_cells, last_subset, planned_trial, read_factors, refuse_fixed
from overfitting_lab.cli.finished import finished_run, planned_experiment
from overfitting_lab.cli.parser import ScriptParser, positive, setting_name
from overfitting_lab.runs import Run, RunError, UsageError
from overfitting_lab.runs.provenance import command_line
from overfitting_lab.runs.recipe import recipe
from overfitting_lab.sweeps.ablation import Ablation
from overfitting_lab.sweeps.designs import Design, design_of
from overfitting_lab.sweeps.factors import REMEDIES, SEED, SIZE, SUBSET, Command, Factor
from overfitting_lab.sweeps.names import page_name
from overfitting_lab.sweeps.pages import write_page

SIZES = (500, 1000, 2000, 5000, 10000, 20000, 45000)
SIZE_OF_ALL = 1000


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
    add("--train_size", type=positive, help=f"training images in each run; default: {SIZE_OF_ALL}")
    add("--seeds", type=positive, default=3, help="runs of each combination and subset; default: 3")
    add("--subsets", type=positive, default=1, help="number of disjoint sets of images for all trials; default: 1")
    add("--config", action="append", help="configuration of every trial; default: overfit")
    add("--experiment", default="ablation", help="folder of the runs in lightning_logs/")
    add("--storage", help="Optuna storage: a database URL or a journal file; default: beside the runs")
    return parser.parse_known_args()


def ablation(
    name: str, design: Design, command: Command, apart: Sequence[Factor], arguments: argparse.Namespace
) -> Ablation:
    """Return the ablation of a design. ``apart`` are the factors whose settings its trials do not share."""
    if last := last_subset(arguments.subsets):
        planned_trial(command, {**design.cells[-1], **last}, f"--subsets {arguments.subsets}")
    folder, settings, cli = planned_experiment(command.line({}), divided=False)
    fixed = {**recipe(settings), "the images": cli.datamodule.source.load().identity}
    for factor in apart:
        fixed.pop(factor.key, None)

    def train(setting: Mapping[str, Any], output: IO[str]) -> Run:
        said = io.StringIO()
        try:
            with redirect_stderr(said):
                return finished_run(command.line(setting), output, keep_checkpoints=False)
        except SystemExit as end:
            message = said.getvalue().partition("error: ")[2].partition("\nhelp: ")[0]
            if end.code != USAGE or not message:
                raise
            raise RunError(message) from None
        finally:
            output.write(said.getvalue())

    subsets, seeds, storage = arguments.subsets, arguments.seeds, arguments.storage
    return Ablation(name, design.cells, subsets, seeds, folder, fixed, train, storage)


def main() -> None:
    """Work on the trials, then write the results."""
    arguments, flags = parse()
    configs, experiment = arguments.config or ["overfit"], ["--experiment", arguments.experiment]
    with reported_errors():
        if arguments.sizes is not None and (arguments.one_at_a_time or arguments.full):
            raise UsageError("--sizes is a design of its own: leave --one_at_a_time and --full out")
        refuse_fixed([SIZE, SUBSET, SEED], flags)
        by_size = SIZE.key in map(setting_name, arguments.factor or ())
        if by_size and arguments.train_size:
            raise UsageError(f"--factor {SIZE.key} varies the number of images: leave --train_size out")
        size = None if by_size else arguments.train_size or SIZE_OF_ALL
        shared = [*experiment, *flags, *([f"--{SIZE.key}={size}"] if size else [])]
        facts = {"train_size": size, "command": command_line()}
        if arguments.factor:
            factors = read_factors(
                arguments.factor, configs, shared, alone=arguments.one_at_a_time, subsets=arguments.subsets
            )
            apart = [*factors, SEED]
            names = sorted(f"{factor.name} {factor.digest}".rstrip() for factor in factors)
            name = " x ".join(names) + (f", {size} images" if size else "")
        else:
            refuse_fixed(REMEDIES, flags)
            factors, apart, name = [*REMEDIES], [*REMEDIES, SIZE, SEED], f"factorial-{size}"
        design = design_of(factors, alone=arguments.one_at_a_time, full=arguments.full)
        if any(factor.sets for factor in factors) and not arguments.one_at_a_time:
            check_cells(design, Command(configs, shared, factors), arguments.subsets)
        study = ablation(name, design, Command(configs, shared, factors), apart, arguments)
        if arguments.sizes is None:
            announce(design, arguments)
            if study.work():
                path = study.folder / page_name(design, size, named=bool(arguments.factor))
                print("written", *write_page(design, study.results(), {"study": name, **facts}, path))
            return
        sizes = replace(SIZE, levels=tuple(sorted(set(arguments.sizes)) or SIZES))
        off = [f"--{factor.key}={factor.levels[0]}" for factor in REMEDIES]
        points = Design("curve", (sizes,), tuple({SIZE.name: level} for level in sizes.levels))
        curve = ablation("sizes", points, Command(configs, [*experiment, *flags, *off], [sizes]), apart, arguments)
        announce(points, arguments)
        if curve.work():
            facts = {"study": "sizes", **facts}
            paths = write_page(points, curve.results(), facts, curve.folder / "sizes", (design, study.results()))
            print("written", *paths)


def announce(design: Design, arguments: argparse.Namespace) -> None:
    """Print the number of trials."""
    cells, subsets, seeds = len(design.cells), arguments.subsets, arguments.seeds
    counts = {"cell": cells, **({"subset": subsets} if subsets > 1 else {}), "seed": seeds}
    factors = " x ".join(f"{number} {name}{'s' * (number > 1)}" for name, number in counts.items())
    trials = cells * subsets * seeds
    print(f"design     {design.title}: {factors} = {trials} trial{'s' * (trials > 1)}", flush=True)


if __name__ == "__main__":
    main()
