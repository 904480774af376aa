"""Invented motion for tests and first runs."""
