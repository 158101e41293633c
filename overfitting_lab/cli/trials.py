"""One trial of a search: training without a test, with reports to the study."""

from collections.abc import Sequence

from overfitting_lab.callbacks.doctor import HopelessError
from overfitting_lab.callbacks.epochs import DivergedError, recorder_of
from overfitting_lab.cli.errors import Report
from overfitting_lab.cli.experiment import ExperimentCLI
from overfitting_lab.cli.searches import ParsedExperiment
from overfitting_lab.runs.files import RunFiles, experiments_folder
from overfitting_lab.sweeps.pruning import TrialReport
from overfitting_lab.sweeps.storage import open_storage, running_trial
from overfitting_lab.sweeps.tuning import LOST, study_of


def train_trial(fit: Sequence[str], name: str, storage: str | None, report: Report) -> None:
    """Train the run of a trial as ``fit.py`` would, but do not test it. Resume the run if it was begun.

    Args:
        fit: the flags of ``fit.py`` that all trials have in common.
        name: the study's kind and the trial's number, such as ``search:3``.
        storage: URL of a database, or path of Optuna's journal file; by default a journal file beside the runs.
        report: gets the run's logger, for an error's trace.
    """
    config = ParsedExperiment([*fit], keep=False).config
    folder = experiments_folder(config.trainer.default_root_dir) / config.experiment
    kind, _, number = name.partition(":")
    opened = open_storage(folder, storage, LOST, of_trial=True)
    study = study_of(opened, folder, kind, config.monitor, config.trainer.max_epochs)
    trial = running_trial(opened, study, int(number))
    begun = folder / trial.user_attrs["run"] if "run" in trial.user_attrs else None
    resume = ["--resume", str(begun)] if begun and RunFiles(begun).summary.is_file() else []
    cli = ExperimentCLI([*resume, *fit, *trial.user_attrs["flags"]])
    assert cli.logger is not None, "flags that keep no run are refused"
    report.logger = cli.logger
    callbacks = cli.trainer.callbacks  # type: ignore[attr-defined]
    own = TrialReport(trial, cli.config.monitor, cli.logger)
    callbacks.insert(callbacks.index(recorder_of(cli.trainer)) + 1, own)
    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.resume_from, weights_only=True)
    except (DivergedError, HopelessError) as error:
        if cli.trainer.is_global_zero:
            trial.set_user_attr("hopeless", str(error))
        raise
    cli.leave_together()


def small_config(arguments: Sequence[str]) -> str:
    """Return a configuration that says the same as a command line of ``fit.py``, without the defaults."""
    cli = ParsedExperiment([*arguments])
    return str(cli.parser.dump(cli.config, format="replayable", skip_validation=True, skip_default=True))
