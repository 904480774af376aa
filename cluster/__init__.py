"""Files that start clusters (AWS, own machines, SLURM, Kubernetes) and what checks them before money is spent."""
