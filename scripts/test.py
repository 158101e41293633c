"""python scripts/test.py lightning_logs/overfit/version_0.

Evaluate a run's best checkpoint on the test images again, with the run's own configuration. --ckpt_path names another
checkpoint of the same network. Flags of fit.py override settings, such as --data.root FOLDER if the data moved.
"""

import argparse
import warnings
from pathlib import Path

try:
    from overfitting_lab.cli import ExperimentCLI, reported_errors
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}; install the project first: pip install -e .") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

from overfitting_lab.runs import Run, RunError
from overfitting_lab.runs.checkpoints import checked_checkpoint


def main() -> None:
    """Test the checkpoint and print the result. The run's folder stays as it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--ckpt_path", type=Path, help="a checkpoint other than the run's best")
    arguments, overrides = parser.parse_known_args()
    with reported_errors(needs_screen=True):
        run = Run(arguments.run)
        checkpoint = checked_checkpoint(arguments.ckpt_path) if arguments.ckpt_path else run.best_checkpoint
        own = ["--config", str(run.files.config), *overrides]
        cli = ExperimentCLI(own, description=__doc__, keep=False, trains=False)
        if cli.config.trainer.limit_test_batches == 0:
            raise RunError("--trainer.limit_test_batches 0: leaves nothing to test; say 1.0 for all images")
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")  # testing needs no callback
        cli.trainer.test(
            cli.model, datamodule=cli.datamodule, ckpt_path=str(checkpoint), verbose=False, weights_only=True
        )
        cli.leave_together()


if __name__ == "__main__":
    main()
