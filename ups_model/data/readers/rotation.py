"""Rotations about coordinate axes. Shape suffixes: N frames."""

import numpy as np


def about_axis(axis: int, angle_N: np.ndarray) -> np.ndarray:
    """[N, 3, 3] float64: right-handed rotations about axis 0, 1 or 2 by angles in radians."""
    cos_N, sin_N = np.cos(angle_N), np.sin(angle_N)
    rotation_N33 = np.zeros((len(angle_N), 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rotation_N33[:, axis, axis] = 1
    rotation_N33[:, i, i] = rotation_N33[:, j, j] = cos_N
    rotation_N33[:, j, i], rotation_N33[:, i, j] = sin_N, -sin_N
    return rotation_N33
