"""Hyperparameter searches with Optuna over the same units."""
