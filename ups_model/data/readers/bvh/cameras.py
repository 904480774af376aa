"""The four virtual cameras in which BVH clips are seen, so that they train pose estimation too.

Shape suffixes: N frames, J joints.
"""

import numpy as np

from ups_model.data.format.cameras import Camera, to_camera

DISTANCE = 5.0
"""Metres from the middle, over the floor, to the corners of a square."""
HEIGHT = 1.6
TARGET_HEIGHT = 1.0
"""What they look at: over the middle."""
MAX_ROOT_METRES = 3.0
"""Metres that the root may go from the middle."""
MIN_DEPTH_METRES = 1.0
"""Metres that every joint must stay in front of every camera."""


def corner_cameras() -> tuple[Camera, ...]:
    """Cameras with an image about like Human3.6M's, level, z up."""
    side = DISTANCE / np.sqrt(2)
    centers = [np.array([x * side, y * side, HEIGHT]) for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
    target, size = (0.0, 0.0, TARGET_HEIGHT), (1000, 1000)
    cameras = (Camera.facing(center, target, (1145, 1145), (512, 512), size) for center in centers)
    return tuple(Camera(each.R, np.round(each.center, 9), each.f, each.c, each.wh) for each in cameras)


def leaves_view(pose_NJ3: np.ndarray) -> str:
    """How a clip leaves the cameras' view; empty where it does not. The root is joint 0."""
    away = float(np.linalg.norm(pose_NJ3[:, 0, :2], axis=-1).max())
    if away > MAX_ROOT_METRES:
        return f"the root must stay within {MAX_ROOT_METRES:g} m of where it starts, it goes {away:.2f} m away"
    depth = min(float(to_camera(pose_NJ3, camera)[..., 2].min()) for camera in corner_cameras())
    if depth < MIN_DEPTH_METRES:
        return f"joints must stay {MIN_DEPTH_METRES:g} m in front of the cameras, one comes to {depth:.2f} m"
    return ""
