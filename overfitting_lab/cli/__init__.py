"""The command line: turns a configuration into a run, and a mistake into a message."""

from overfitting_lab.cli.errors import reported_errors
from overfitting_lab.cli.experiment import ExperimentCLI

__all__ = ["ExperimentCLI", "reported_errors"]
