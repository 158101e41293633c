"""The command line: from a configuration to a run, from a mistake to a message."""

from cli.check import check
from cli.errors import reported_errors
from cli.experiment import ExperimentCLI

__all__ = ["ExperimentCLI", "check", "reported_errors"]
