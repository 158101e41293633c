"""python scripts/tune.py --config overfit --search model.optimizer.lr=1e-5..1e-1 --trials 40.

Search for the settings with the best validation. --search KEY=LOW..HIGH or KEY=A,B,C names a setting of fit.py and its
values, and may be repeated. Unknown flags go to fit.py and hold for all trials. A trial does not see the test images.
The winner is tested once. Then the winner's settings and the configuration's own settings are each trained with other
seeds; --confirm says how many. This tells how much of the winner's lead comes from choosing the best of many.

lightning_logs/tuning/ gets a page, tuning.md, and best.yaml for fit.py --config. If the search is interrupted, run the
same command again to resume it; a higher --trials extends it. To share the trials, start it again in other terminals,
or on other machines that share the storage and the folder.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

try:
    from overfitting_lab.cli import reported_errors
except ImportError as error:
    remedy = "activate the project's environment, or install it: pip install -e . (or take its namesake off PYTHONPATH)"
    raise SystemExit(f"{error}; {remedy}") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

from overfitting_lab.cli import finished
from overfitting_lab.cli.memory import keep_freed_memory
from overfitting_lab.cli.script_parser import ScriptParser, not_negative, positive
from overfitting_lab.cli.searches import ParsedExperiment, read_searches, refuse_flags, search_line
from overfitting_lab.cli.trials import small_config, train_trial
from overfitting_lab.runs.provenance import command_line
from overfitting_lab.runs.recipe import recipe
from overfitting_lab.sweeps.names import trial_name
from overfitting_lab.sweeps.selection import tested_against_validation
from overfitting_lab.sweeps.tuning import SearchPlan, Tuning
from overfitting_lab.sweeps.winner import selection_of, test_winner, write_best, write_page


def begin(arguments: argparse.Namespace, fit: Sequence[str]) -> Tuning:
    """Check everything, and return the search whose trials have the flags ``fit`` of fit.py in common."""
    refuse_flags(ParsedExperiment([*fit]).config, fit)
    searches = read_searches(arguments.search, fit)
    folder, settings, cli = finished.planned_experiment(fit)
    fixed = {key: value for key, value in recipe(settings).items() if key not in searches}
    fixed["the images"] = cli.datamodule.images.identity
    plan = SearchPlan(searches, fixed, cli.config.monitor, cli.config.seed_everything, cli.trainer.max_epochs)

    def train(kind: str, number: int, output: IO[str]) -> int:
        return finished.run_command([sys.executable, *sys.argv, "--trial", f"{kind}:{number}"], output)

    tuning = Tuning(folder, plan, train, arguments.storage)
    for key, values in searches.items():
        print(search_line(key, values), flush=True)
    return tuning


def conclude(tuning: Tuning, arguments: argparse.Namespace, fit: Sequence[str]) -> None:
    """Write the winner's configuration, test and confirm the winner, and write the page."""
    script, seeds, command = Path(sys.argv[0]).with_name("fit.py"), arguments.confirm, command_line()
    flags = tuning.winner.user_attrs["flags"]
    config = small_config([*fit, *flags, f"--experiment={arguments.experiment}_best"])
    print("written", write_best(tuning, selection_of(tuning, 0), config, command), flush=True)
    run = test_winner(
        tuning,
        lambda run, output: finished.run_command(
            [sys.executable, str(script), "--resume", str(run), *fit, *flags], output
        ),
    )
    print(f"test       {trial_name(tuning.winner.number)}: {tested_against_validation(run.summary)}", flush=True)
    if tuning.confirm(seeds):
        selection = selection_of(tuning, seeds)
        print(f"selection  {selection.sentence}")
        print("written", write_best(tuning, selection, config, command), *write_page(tuning, selection, command))


def main() -> None:
    """Work on the trials, then test and confirm the winner."""
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add("--search", action="append", required=True, metavar="KEY=VALUES", help="values: LOW..HIGH or A,B,C")
    add("--trials", type=positive, default=40, help="trials in all; default: 40")
    add("--confirm", type=not_negative, metavar="SEEDS", default=3, help="other seeds; default: 3")
    add("--config", action="append", help="configuration of every trial; default: overfit")
    add("--experiment", default="tuning", help="folder of the runs in lightning_logs/")
    add("--storage", help="Optuna storage: a database URL or a journal file; default: beside the runs")
    add("--trial", help=argparse.SUPPRESS)  # STUDY:NUMBER: the process that trains one trial for a worker
    arguments, flags = parser.parse_known_args()
    configs = [f"--config={name}" for name in arguments.config or ["overfit"]]
    fit = [*configs, "--experiment", arguments.experiment, *flags]
    with reported_errors() as report:
        if arguments.trial:
            keep_freed_memory()
            train_trial(fit, arguments.trial, arguments.storage, report)
            return
        tuning = begin(arguments, fit)
        try:
            if tuning.work(arguments.trials):
                conclude(tuning, arguments, fit)
        except KeyboardInterrupt:
            print("interrupted; every trial is kept: run the same command again to resume", flush=True)
            raise


if __name__ == "__main__":
    main()
