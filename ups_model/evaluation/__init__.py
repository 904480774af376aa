"""Metrics, measuring, outcomes by clip and the health of a run."""
