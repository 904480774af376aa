"""The four virtual cameras in which BVH clips are seen, so that they train pose estimation too.

Shape suffixes: N frames, J joints.
"""

from __future__ import annotations

import numpy as np

from ups_model.data.format.cameras import Camera, to_camera

DISTANCE = 5.0
"""Metres from the middle, over the floor, to the corners of a square."""
HEIGHT = 1.6
TARGET_HEIGHT = 1.0
"""What they look at: over the middle."""
REACH = 3.0
"""Metres that the root may go from the middle."""
NEAREST = 1.0
"""Metres that every joint must stay in front of every camera."""


def corner_cameras() -> tuple[Camera, ...]:
    """Cameras with an image about like Human3.6M's, level, z up."""
    side = DISTANCE / np.sqrt(2)
    return tuple(_facing(np.array([x * side, y * side, HEIGHT])) for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1)))


def leaves_view(pose_NJ3: np.ndarray) -> str:
    """How a clip leaves the cameras' view; empty where it does not. The root is joint 0."""
    away = float(np.linalg.norm(pose_NJ3[:, 0, :2], axis=-1).max())
    if away > REACH:
        return f"the root must stay within {REACH:g} m of where it starts, it goes {away:.2f} m away"
    depth = min(float(to_camera(pose_NJ3, camera)[..., 2].min()) for camera in corner_cameras())
    if depth < NEAREST:
        return f"joints must stay {NEAREST:g} m in front of the cameras, one comes to {depth:.2f} m"
    return ""


def _facing(center_3: np.ndarray) -> Camera:
    forward_3 = np.array([0.0, 0.0, TARGET_HEIGHT]) - center_3
    forward_3 /= np.linalg.norm(forward_3)
    right_3 = np.cross(forward_3, [0.0, 0.0, 1.0])
    right_3 /= np.linalg.norm(right_3)
    # Rounded, so that a machine's last bits do not change a fingerprint.
    R_33 = np.round([right_3, np.cross(forward_3, right_3), forward_3], 9)
    return Camera(R_33, np.round(center_3, 9), (1145, 1145), (512, 512), (1000, 1000))
