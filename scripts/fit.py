"""python scripts/fit.py --config overfit.yaml.

Train the experiment in a configuration, test the checkpoint of the best validation once, and write a folder into
lightning_logs/. The best has the highest accuracy, unless --monitor says otherwise. Flags override settings:
--data.source synthetic, --model.dropout 0.5, --trainer.max_epochs 3. Later configurations override earlier ones:
--config overfit --config optimizer/sgd_momentum.

--check examines the experiment for a few seconds without training. --doctor stop ends a run that cannot succeed.
--resume lightning_logs/overfit/version_0 resumes a run, however it was interrupted. --resume auto resumes the newest
run with the same data and settings, or begins one: the same command may be started again at any time.
"""

try:
    from overfitting_lab.cli import ExperimentCLI, reported_errors
except ImportError as error:
    remedy = "activate the project's environment, or install it: pip install -e . (or take its namesake off PYTHONPATH)"
    raise SystemExit(f"{error}; {remedy}") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

from overfitting_lab.cli.check import check
from overfitting_lab.cli.memory import keep_freed_memory


def main() -> None:
    """Check the experiment, or train and test it."""
    keep_freed_memory()
    with reported_errors() as report:
        cli = ExperimentCLI(description=__doc__)
        report.logger = cli.logger
        if cli.config.check:
            check(cli.trainer, cli.model, cli.datamodule)
            return
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.resume_from, weights_only=True)
        cli.trainer.test(
            cli.model, datamodule=cli.datamodule, ckpt_path=cli.best_checkpoint, verbose=False, weights_only=True
        )
        cli.leave_together()


if __name__ == "__main__":
    main()
