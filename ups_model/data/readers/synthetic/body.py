"""The body of the synthetic sets: bone lengths, and joint positions from joint angles by forward kinematics.

Body frame: x to the person's left, y backward, z up, metres. Shape suffixes: F frames, P points of the body (31).
"""

import numpy as np

from ups_model.data.readers.io.files import packaged_lines
from ups_model.data.readers.rotation import about_axis
from ups_model.data.readers.synthetic.motion import LIMB, TRUNK
from ups_model.skeletons import SLOT_NAMES


def _read_body() -> dict[str, tuple[str, tuple[float, float, float]]]:
    """Point -> its parent and its offset from it; parents come before their children."""
    body: dict[str, tuple[str, tuple[float, float, float]]] = {}
    for line in packaged_lines("synthetic/body.txt"):
        name, parent, *offset = line.split()
        x, y, z = map(float, offset)
        body[name] = (parent.strip("-"), (x, y, z))
        if name.startswith("l_"):
            body[f"r_{name[2:]}"] = (f"r_{parent[2:]}" if parent.startswith("l_") else parent, (-x, y, z))
    return body


_BODY = _read_body()
POINTS = (*SLOT_NAMES, *(name for name in _BODY if name not in SLOT_NAMES))
"""Names of the body's points; the first 25 are the common slots."""

_INDEX = {name: index for index, name in enumerate(POINTS)}


def draw_body(rng: np.random.Generator) -> np.ndarray:
    """Bone offsets [P, 3] of a person: a size, and a variation of every bone, the same on both sides."""
    size = rng.normal(1.0, 0.07)
    bones = {name.removeprefix("l_").removeprefix("r_"): rng.normal(1.0, 0.05) for name in _BODY}
    return np.array([np.multiply(_BODY[n][1], size * bones[n.removeprefix("l_").removeprefix("r_")]) for n in POINTS])


def pose(offsets_FP3: np.ndarray, angles_FA: np.ndarray, right_F: np.ndarray, yaw_F: np.ndarray) -> np.ndarray:
    """Joint positions by forward kinematics.

    Args:
        offsets_FP3: bone offsets of the person in each frame, metres.
        angles_FA: [F, A] degrees, in the order of `synthetic_motion.ANGLES`.
        right_F: whether the dominant side is the right one.
        yaw_F: facing of the body, radians.

    Returns:
        [F, P, 3] metres, z up, the lower foot on the ground (z = 0) and the base of the spine above x = y = 0.
    """
    radians_FA = np.deg2rad(angles_FA)
    trunk = dict(zip(TRUNK, radians_FA[:, : len(TRUNK)].T, strict=True))
    dominant, other = radians_FA[:, len(TRUNK) : len(TRUNK) + len(LIMB)], radians_FA[:, len(TRUNK) + len(LIMB) :]
    right_F1 = right_F[:, None]
    limbs = {"r": np.where(right_F1, dominant, other), "l": np.where(right_F1, other, dominant)}

    # Rotation of each joint relative to its parent; joints that are not here do not rotate.
    root = about_axis(2, yaw_F + trunk["turn"]) @ about_axis(0, trunk["lean"]) @ about_axis(1, trunk["sway"])
    half = about_axis(0, trunk["bend"] / 2) @ about_axis(1, trunk["side"] / 2) @ about_axis(2, trunk["twist"] / 2)
    head = about_axis(0, trunk["nod"]) @ about_axis(2, trunk["look"])
    local = {"spine_base": root, "spine_mid": half, "spine_shoulder": half, "neck": head}
    for side, out in (("l", -1.0), ("r", 1.0)):
        limb = dict(zip(LIMB, limbs[side].T, strict=True))
        arm = about_axis(0, -limb["flex"]) @ about_axis(1, out * limb["abd"]) @ about_axis(2, out * limb["rot"])
        local[f"{side}_shoulder"] = arm
        local[f"{side}_elbow"] = about_axis(0, -np.maximum(limb["elbow"], 0))  # Elbows and knees bend one way.
        local[f"{side}_hip"] = about_axis(0, -limb["hip"]) @ about_axis(1, out * limb["splay"])
        local[f"{side}_knee"] = about_axis(0, np.maximum(limb["knee"], 0))

    points_FP3 = np.zeros_like(offsets_FP3)
    turned: dict[str, np.ndarray] = {}
    for name, (parent, _) in _BODY.items():
        turned[name] = turned[parent] if parent else np.broadcast_to(np.eye(3), (len(angles_FA), 3, 3))
        if parent:
            step_F3 = np.einsum("fij,fj->fi", turned[parent], offsets_FP3[:, _INDEX[name]])
            points_FP3[:, _INDEX[name]] = points_FP3[:, _INDEX[parent]] + step_F3
        if name in local:
            turned[name] = turned[name] @ local[name]
    feet = [_INDEX[name] for name in ("l_foot", "r_foot", "l_ankle", "r_ankle")]
    points_FP3[..., 2] -= points_FP3[:, feet, 2].min(axis=1, keepdims=True)
    return points_FP3
