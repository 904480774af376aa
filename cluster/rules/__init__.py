"""What `cluster.check` holds files to: `text` any, `ray_yaml` and `aws` those of `ray up`, `slurm`, `kubernetes`."""
