"""What runs in a worker process: one unit."""
