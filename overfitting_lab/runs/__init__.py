"""The folder of a run: the one interface between training and everything that comes after."""

from overfitting_lab.runs.files import RunError, RunFiles, UsageError
from overfitting_lab.runs.run import Run, runs_of, runs_with

__all__ = ["Run", "RunError", "RunFiles", "UsageError", "runs_of", "runs_with"]
