"""The four cameras of Human3.6M, for each subject that has 3D poses.

Source: the Human3.6M calibration as published with VideoPose3D, in cameras.txt. The lenses' radial and tangential
distortion is neglected, as `Camera` is a pinhole: it moves a projected point by up to 1.5 pixels at 200 pixels from the
middle of the image, 4.4 at 300 and 13 at 450. So projections serve for checks and drawings; keypoints are used as files
have them.
"""

import numpy as np

from ups_model.data.format.cameras import Camera
from ups_model.data.readers.io.files import packaged_lines

_INTRINSICS: dict[str, tuple[float, ...]] = {}
"""Camera -> f x, f y, c x, c y, width, height; pixels."""
_EXTRINSICS: dict[str, list[tuple[float, ...]]] = {}
"""Subject -> for each camera a quaternion, w first, camera to world, and the position in millimetres."""
for _line in packaged_lines("h36m/cameras.txt"):
    _first, *_rest = _line.split()
    if _first.startswith("S"):
        _EXTRINSICS.setdefault(_first, []).append(tuple(map(float, _rest[1:])))
    else:
        _INTRINSICS[_first] = tuple(map(float, _rest))

CAMERA_IDS: tuple[str, ...] = tuple(_INTRINSICS)
"""Names of the cameras in the order of the files' lists."""

SUBJECTS: tuple[str, ...] = tuple(_EXTRINSICS)
"""The subjects whose 3D poses are public, in order: S1, S5, S6, S7, S8, S9, S11."""

SIZES: tuple[tuple[float, float], ...] = tuple((width, height) for *_, width, height in _INTRINSICS.values())
"""Width and height of each camera's image, pixels; the same for all subjects."""


def cameras_of(subject: str) -> tuple[Camera, ...]:
    """The four cameras that recorded a subject, in the order of CAMERA_IDS. ValueError where it has no calibration."""
    if subject not in _EXTRINSICS:
        raise ValueError(f"subjects with a calibration are {', '.join(SUBJECTS)}, got {subject!r}")
    return tuple(
        Camera(R=rotation(outer[:4]).T, center=np.array(outer[4:]) / 1000, f=inner[:2], c=inner[2:4], wh=inner[4:])
        for inner, outer in zip(_INTRINSICS.values(), _EXTRINSICS[subject], strict=True)
    )


def rotation(quaternion: tuple[float, ...]) -> np.ndarray:
    """The rotation matrix, float64 [3, 3], of a quaternion (w, x, y, z) of any length but 0."""
    w, x, y, z = np.asarray(quaternion, dtype=np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
