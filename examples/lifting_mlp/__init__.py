"""A network that lifts 2D poses to 3D, ablated by the orchestrator: a user's own model on a user's own file."""
