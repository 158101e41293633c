"""python scripts/test.py lightning_logs/overfit/version_0.

Evaluates a run's best checkpoint on the test images again, with the run's own configuration; --ckpt_path takes another
checkpoint of the same network. Flags of fit.py override the configuration, as --data.root FOLDER where the data moved.
"""

import argparse
import warnings
from pathlib import Path

from overfitting_lab.cli import ExperimentCLI, reported_errors
from overfitting_lab.runs.run import Run, readable_checkpoint


def main() -> None:
    """Tests, and prints what comes of it; the run's folder stays as it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--ckpt_path", type=Path, help="a checkpoint other than the run's best")
    arguments, overrides = parser.parse_known_args()
    with reported_errors():
        run = Run(arguments.run)
        checkpoint = readable_checkpoint(arguments.ckpt_path or run.checkpoint("best"))
        cli = ExperimentCLI(["--config", str(run.config), *overrides], description=__doc__, keep=False)
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")  # testing needs none of them
        cli.trainer.test(
            cli.model, datamodule=cli.datamodule, ckpt_path=str(checkpoint), verbose=False, weights_only=True
        )
        cli.leave_together()


if __name__ == "__main__":
    main()
