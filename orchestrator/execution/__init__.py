"""All of Ray: the driver, Tune's trials, the cluster's nodes."""
