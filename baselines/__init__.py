"""Other networks on the same clip sets: the rows beside UPS, with its data, splits, samples and metrics."""
