"""Losses, schedule, checkpoints and results of a run."""
