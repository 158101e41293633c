"""Measurements of a training run, and rules that turn them into a diagnosis."""

from overfitting_lab.doctor.diagnosis import Diagnosis, Severity

__all__ = ["Diagnosis", "Severity"]
