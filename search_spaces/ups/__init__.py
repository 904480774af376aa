"""Studies and search spaces of UPS: the tables of its paper, and first runs."""
