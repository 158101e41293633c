"""python scripts/test.py lightning_logs/overfit/version_0.

Evaluate a run's best checkpoint on the test images again, with the run's own configuration. --ckpt_path names another
checkpoint of the same network. Flags of fit.py override settings, such as --data.root FOLDER if the data moved.
Several runs are tested one after the other and together, by the mean of their probabilities. --tta flip averages the
outputs for each image and its mirror image.
"""

try:
    from overfitting_lab.cli import ExperimentCLI, reported_errors
except ImportError as error:
    remedy = "activate the project's environment, or install it: pip install -e . (or take its namesake off PYTHONPATH)"
    raise SystemExit(f"{error}; {remedy}") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

from functools import partial

from lightning_utilities.core.rank_zero import rank_zero_only

from overfitting_lab.callbacks.images import AnswerCollector
from overfitting_lab.callbacks.mirrored import MirroredTest
from overfitting_lab.cli.patterns import expand_patterns
from overfitting_lab.cli.script_parser import ScriptParser
from overfitting_lab.comparison.ensemble import Answers, check_members, ensemble
from overfitting_lab.runs import Run, RunError
from overfitting_lab.runs.checkpoints import checked_checkpoint
from overfitting_lab.runs.files import user_path
from overfitting_lab.runs.recipe import change_lines, changes


def main() -> None:
    """Test the checkpoints and print the results. The runs' folders stay as they are."""
    parser = ScriptParser(__doc__)
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="a run's folder")
    parser.add_argument("--ckpt_path", type=user_path, help="a checkpoint other than the run's best")
    parser.add_argument("--tta", choices=["flip"], help="flip: average the outputs for an image and its mirror image")
    arguments, overrides = parser.parse_known_args()
    arguments.runs = expand_patterns(arguments.runs)
    if arguments.ckpt_path and len(arguments.runs) > 1:
        parser.error("--ckpt_path names a checkpoint of one run: name only one run")
    with reported_errors(needs_screen=True):
        runs = [Run(folder) for folder in arguments.runs]
        if len(runs) > 1:
            check_members(runs)
        checkpoints = [checked_checkpoint(arguments.ckpt_path) if arguments.ckpt_path else run.best_checkpoint
                       for run in runs]  # fmt: skip
        members = []
        for run, checkpoint in zip(runs, checkpoints, strict=True):
            say = partial(rank_zero_only(print), flush=True)
            say(f"run        {run.folder}" + ", averaged over mirror images" * bool(arguments.tta))
            for name in run.changed_code:
                say(f"changed    the file of {name}: the network was trained with other code")
            own = ["--config", str(run.files.config), *overrides]
            cli = ExperimentCLI(own, keep=False, trains=False)
            run.check_classes(cli.datamodule.source.name, cli.datamodule.source.classes)
            for line in change_lines(changes(run.settings, cli.settings)):
                say(line)
            if cli.config.trainer.limit_test_batches == 0:
                raise RunError("--trainer.limit_test_batches 0 leaves nothing to test; give 1.0 for all images")
            collector = AnswerCollector()
            cli.trainer.callbacks += [collector, *([MirroredTest()] if arguments.tta else [])]  # type: ignore[attr-defined]
            cli.trainer.test(
                cli.model, datamodule=cli.datamodule, ckpt_path=str(checkpoint), verbose=False, weights_only=True
            )
            images = cli.datamodule.images
            if run.summary.data.identity not in (None, images.identity):
                say(f"note       {images.name} has other images than those that the run was tested on")
            members.append(Answers(*collector.arrays, images.identity))
        if len(runs) > 1 and cli.trainer.is_global_zero:
            print(f"together   {ensemble(f'{len(runs)} runs', runs, members).sentence}")
        cli.leave_together()


if __name__ == "__main__":
    main()
