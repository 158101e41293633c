"""Callbacks that watch a run, one concern a file."""
