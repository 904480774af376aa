"""Pose estimation and action recognition in one network, with early exits."""
