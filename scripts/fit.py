"""python scripts/fit.py --config overfit.yaml.

Trains the experiment that the configuration describes, tests the best checkpoint by validation accuracy once, and
leaves a folder in lightning_logs/. Any setting can be overridden: --data.source synthetic, --model.dropout 0.5,
--trainer.max_epochs 3. Configurations go on top of each other: --config overfit --config optimizer/sgd_momentum.

With --check it examines the experiment for some seconds and trains nothing. With --doctor stop it ends a run that
cannot succeed. A run that was stopped in any way is resumed with --resume lightning_logs/overfit/version_0.
"""

from overfitting_lab.cli import ExperimentCLI, reported_errors
from overfitting_lab.cli.memory import keep_freed_memory
from overfitting_lab.doctor.check import check


def main() -> None:
    """Fit, then test; or check."""
    keep_freed_memory()
    with reported_errors():
        cli = ExperimentCLI(description=__doc__)
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
