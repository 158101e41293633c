"""Experiments that show what over-fitting is, and what regularization and data augmentation buy."""
