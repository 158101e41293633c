"""What goes wrong with a training, by its numbers: measurements, and rules from them to a diagnosis."""

from overfitting_lab.doctor.diagnosis import Diagnosis, Severity

__all__ = ["Diagnosis", "Severity"]
