"""Pinhole cameras without distortion: world metres -> camera metres -> pixels.

Shape suffixes: N points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Camera:
    """A pinhole camera, x right, y down, z forward. Fields take arrays and are kept as tuples of floats."""

    R: tuple[tuple[float, float, float], ...]
    """World to camera rotation, 3 x 3."""
    center: tuple[float, float, float]
    """Position in the world, metres."""
    f: tuple[float, float]
    """Focal lengths, pixels."""
    c: tuple[float, float]
    """Principal point, pixels."""
    wh: tuple[float, float]
    """Image width and height, pixels."""

    if TYPE_CHECKING:

        def __init__(self, R: ArrayLike, center: ArrayLike, f: ArrayLike, c: ArrayLike, wh: ArrayLike) -> None: ...

    def __post_init__(self) -> None:
        faults = []
        for name, shape in (("R", (3, 3)), ("center", (3,)), ("f", (2,)), ("c", (2,)), ("wh", (2,))):
            value = np.asarray(getattr(self, name), dtype=np.float64)
            if value.shape != shape or not np.isfinite(value).all():
                faults.append(f"{name} must hold finite numbers of shape {shape}, got {value.tolist()}")
                continue
            plain = value.tolist()
            object.__setattr__(self, name, tuple(map(tuple, plain)) if name == "R" else tuple(plain))
        if not faults:
            R_33 = np.asarray(self.R)
            if not np.allclose(R_33 @ R_33.T, np.eye(3), atol=1e-3) or np.linalg.det(R_33) < 0:
                faults.append(f"R must be a rotation (orthonormal, determinant +1), got {self.R}")
            if min(self.f + self.wh) <= 0:
                faults.append(f"f and wh must be positive, got f={self.f}, wh={self.wh}")
        if faults:
            raise ValueError("camera: " + "; ".join(faults))

    @classmethod
    def facing(cls, center: ArrayLike, target: ArrayLike, f: ArrayLike, c: ArrayLike, wh: ArrayLike) -> Camera:
        """A level camera at `center` that looks at `target`, in a world with z up."""
        forward_3 = np.subtract(target, center) / np.linalg.norm(np.subtract(target, center))
        right_3 = np.cross(forward_3, (0.0, 0.0, 1.0))
        right_3 /= np.linalg.norm(right_3)
        # Rounded, so that a machine's last bits do not change a fingerprint.
        return cls(np.round([right_3, np.cross(forward_3, right_3), forward_3], 9), center, f, c, wh)

    def to_json(self) -> dict[str, Any]:
        """The camera as plain lists; `Camera(**camera.to_json())` is the same camera."""
        return {"R": [list(row) for row in self.R]} | {k: list(getattr(self, k)) for k in ("center", "f", "c", "wh")}


def to_camera(points_N3: np.ndarray, camera: Camera) -> np.ndarray:
    """World points to camera space, R (X - center): [..., 3] metres -> [..., 3] metres, float64."""
    return (np.asarray(points_N3, dtype=np.float64) - np.asarray(camera.center)) @ np.asarray(camera.R).T


def project(points_N3: np.ndarray, camera: Camera) -> np.ndarray:
    """World points to pixels, f * X[:2] / X[2] + c with X in camera space: [..., 3] metres -> [..., 2] pixels, float64.

    Points may fall outside the image (compare with `wh`).

    Raises:
        ValueError: a point is not in front of the camera, so it has no image.
    """
    camera_N3 = to_camera(points_N3, camera)
    depth_N1 = camera_N3[..., 2:]
    behind = int((depth_N1 <= 0).sum())
    if behind:
        raise ValueError(f"only points in front of a camera can be projected, got {behind} with depth <= 0 m")
    return np.asarray(camera.f) * camera_N3[..., :2] / depth_N1 + np.asarray(camera.c)
