"""Kinetics-400 skeletons as ST-GCN publishes them."""
