"""Names of the files of a run. Imports no torch."""

STATE = "state.json"
"""In each checkpoint: written last, so a checkpoint without it is none."""
