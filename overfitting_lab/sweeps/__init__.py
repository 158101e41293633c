"""Grids of settings: trials shared out to workers, and their effects."""
