"""The command line: from a configuration to a run, from a mistake to a message."""

from overfitting_lab.cli.errors import reported_errors
from overfitting_lab.cli.experiment import ExperimentCLI

__all__ = ["ExperimentCLI", "reported_errors"]
