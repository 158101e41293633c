"""Measure the project's speed against other ways to train: every figure is a ratio within one run."""
