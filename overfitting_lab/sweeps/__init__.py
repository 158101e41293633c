"""Ablations and searches: many runs by a plan, whose trials any number of workers share."""
