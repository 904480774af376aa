"""Joint layouts, and how each maps into the 25 common slots that every model block is sized for.

Blocks are shared between tasks and the temporal block is J * width wide, so all tasks need one J. The common layout is
that of NTU RGB+D; other layouts are mapped in linearly, and slots that a layout cannot fill are absent (zero, masked).

Shape suffixes: N frames, J native joints, S slots (25), C coordinates.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import numpy as np

SLOTS = 25
"""Joints of the common layout."""

ROOT_SLOT = 0
"""The slot that poses are centred on: the base of the spine. (The graph is directed at slot 20, see SLOT_EDGES.)"""

_SLOTS_TEXT = """
spine_base spine_mid neck head l_shoulder l_elbow l_wrist l_hand r_shoulder r_elbow r_wrist r_hand
l_hip l_knee l_ankle l_foot r_hip r_knee r_ankle r_foot spine_shoulder l_hand_tip l_thumb r_hand_tip r_thumb
"""
SLOT_NAMES = tuple(_SLOTS_TEXT.split())
"""Names of the slots, in NTU RGB+D order."""

# Inward edges, 1-based, as NTU RGB+D publishes them, so that they can be compared with the source by eye.
_EDGES_TEXT = """
1-2 2-21 3-21 4-3 5-21 6-5 7-6 8-7 9-21 10-9 11-10 12-11
13-1 14-13 15-14 16-15 17-1 18-17 19-18 20-19 22-23 23-8 24-25 25-12
"""
_EDGES = [tuple(map(int, edge.split("-"))) for edge in _EDGES_TEXT.split()]
SLOT_EDGES: tuple[tuple[int, int], ...] = tuple((child - 1, parent - 1) for child, parent in _EDGES)
"""The 24 bones as (child, parent), 0-based, directed to slot 20 (spine at the shoulders), as in CTR-GCN."""

SLOT_PARENTS: tuple[int, ...] = tuple(dict(SLOT_EDGES).get(slot, -1) for slot in range(SLOTS))
"""Parent of each slot along SLOT_EDGES; -1 for slot 20, where the edges meet."""


def _mirror(names: tuple[str, ...]) -> np.ndarray:
    """The permutation that swaps every `l_x` with `r_x`."""
    swapped = {"l_": "r_", "r_": "l_"}
    flip = np.array([names.index(swapped.get(name[:2], name[:2]) + name[2:]) for name in names], dtype=np.int64)
    flip.setflags(write=False)
    return flip


SLOT_FLIP: np.ndarray = _mirror(SLOT_NAMES)
"""int [25]: slot i of a mirrored body is slot SLOT_FLIP[i] of the original (and the x axis changes sign)."""


@dataclass(frozen=True)
class Skeleton:
    """A joint layout and its linear mapping into the 25 slots."""

    name: str
    joint_names: tuple[str, ...]
    """Native order; sides are written `l_` and `r_`."""
    parents: tuple[int, ...]
    """Native parent of each joint, -1 for the root."""
    slot_weights: Mapping[int, Mapping[int, float]] = field(hash=False)
    """slot (0-based) -> {native joint: weight}; a slot is the weighted mean of its joints."""

    def __post_init__(self) -> None:
        faults = []
        if len(self.parents) != len(self.joint_names):
            faults.append(f"parents must match joint_names, got {len(self.parents)} for {len(self.joint_names)}")
        joints = range(len(self.joint_names))
        for slot, weights in self.slot_weights.items():
            if not 0 <= slot < SLOTS:
                faults.append(f"slots must be in 0..{SLOTS - 1}, got {slot}")
            if not weights or any(joint not in joints or not weight > 0 for joint, weight in weights.items()):
                faults.append(f"slot {slot} needs known joints with positive weights, got {dict(weights)}")
        if faults:
            raise ValueError(f"skeleton {self.name}: " + "; ".join(faults))
        frozen = {slot: MappingProxyType(dict(weights)) for slot, weights in self.slot_weights.items()}
        object.__setattr__(self, "slot_weights", MappingProxyType(frozen))

    @property
    def joints(self) -> int:
        """J, the number of native joints."""
        return len(self.joint_names)

    @cached_property
    def slot_matrix(self) -> np.ndarray:
        """float32 [25, J]; rows of present slots sum to 1, rows of absent slots are 0."""
        matrix_SJ = np.zeros((SLOTS, self.joints), dtype=np.float32)
        for slot, weights in self.slot_weights.items():
            for joint, weight in weights.items():
                matrix_SJ[slot, joint] = weight / sum(weights.values())
        matrix_SJ.setflags(write=False)
        return matrix_SJ

    @cached_property
    def slots_present(self) -> tuple[int, ...]:
        """The slots this layout fills, ascending."""
        return tuple(sorted(self.slot_weights))

    @cached_property
    def flip(self) -> np.ndarray:
        """int64 [J]: joint i of a mirrored body is joint flip[i] of the original."""
        return _mirror(self.joint_names)

    @cached_property
    def native_slot(self) -> np.ndarray:
        """int64 [J]: the slot that holds this joint alone, or -1; gives pose targets back in native order."""
        slots_J = np.full(self.joints, -1, dtype=np.int64)
        for slot, weights in self.slot_weights.items():
            if len(weights) == 1:
                slots_J[next(iter(weights))] = slot
        slots_J.setflags(write=False)
        return slots_J


def to_slots(pose_NJC: np.ndarray, skeleton: Skeleton, valid_NJ: np.ndarray | None = None) -> np.ndarray:
    """Maps native joints into the 25 slots.

    Args:
        pose_NJC: [..., J, C], any unit.
        skeleton: the layout of the J axis.
        valid_NJ: bool [..., J], which joints were seen. A slot is then the mean of its seen joints alone, and 0 where
            none was: an undetected joint is stored at the origin and would pull the middle of two hips half way there.

    Returns:
        [..., 25, C] float32 (float64 for float64 input); absent slots are 0.

    Raises:
        ValueError: the joint axis does not have the skeleton's J.
    """
    if pose_NJC.ndim < 2 or pose_NJC.shape[-2] != skeleton.joints:
        raise ValueError(f"skeleton {skeleton.name} has {skeleton.joints} joints, got a pose of shape {pose_NJC.shape}")
    dtype = np.float64 if pose_NJC.dtype == np.float64 else np.float32
    pose_NJC = pose_NJC.astype(dtype, copy=False)
    matrix_SJ = skeleton.slot_matrix.astype(dtype, copy=False)
    if valid_NJ is None:
        return np.matmul(matrix_SJ, pose_NJC)
    if valid_NJ.shape != pose_NJC.shape[:-1]:
        raise ValueError(f"valid must be one flag per joint {pose_NJC.shape[:-1]}, got shape {valid_NJ.shape}")
    seen_NJ1 = valid_NJ.astype(dtype)[..., None]
    weight_NS1 = np.matmul(matrix_SJ, seen_NJ1)
    sum_NSC = np.matmul(matrix_SJ, np.where(seen_NJ1 > 0, pose_NJC, 0))  # type: ignore[operator]  # of floats
    return np.divide(sum_NSC, weight_NS1, out=np.zeros_like(sum_NSC), where=weight_NS1 > 0)


def get_skeleton(name: str) -> Skeleton:
    """The skeleton called `name`.

    Raises:
        ValueError: no such skeleton; lists near names.
    """
    if name in SKELETONS:
        return SKELETONS[name]
    near = difflib.get_close_matches(name, SKELETONS, n=3) or sorted(SKELETONS)
    raise ValueError(f"unknown skeleton {name!r}; try {', '.join(near)}")


def _skeleton(name: str, joints: str, parents: tuple[int, ...], slots: Mapping[str, str]) -> Skeleton:
    """Builds a layout from joint names; `slots` gives, beside like-named ones, slot name -> "joint joint ..."."""
    joint_names = tuple(joints.split())
    weights: dict[int, dict[int, float]] = {}
    for slot, slot_name in enumerate(SLOT_NAMES):
        joints_of = slots.get(slot_name, slot_name if slot_name in joint_names else "").split()
        if joints_of:
            weights[slot] = {joint_names.index(joint): float(joints_of.count(joint)) for joint in joints_of}
    return Skeleton(name, joint_names, parents, weights)


# Slots of like name are filled by themselves; the mapping lists the others. A joint named twice has twice the weight.
_H36M17 = _skeleton(
    "h36m17",
    "pelvis r_hip r_knee r_ankle l_hip l_knee l_ankle spine thorax nose head "
    "l_shoulder l_elbow l_wrist r_shoulder r_elbow r_wrist",
    (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15),
    {"spine_base": "pelvis", "spine_mid": "spine", "spine_shoulder": "thorax", "neck": "nose"},
)
_NTU25 = _skeleton("ntu25", " ".join(SLOT_NAMES), SLOT_PARENTS, {})
_OPENPOSE18 = _skeleton(
    "openpose18",
    "nose neck r_shoulder r_elbow r_wrist l_shoulder l_elbow l_wrist r_hip r_knee r_ankle l_hip l_knee l_ankle "
    "r_eye l_eye r_ear l_ear",
    (1, -1, 1, 2, 3, 1, 5, 6, 1, 8, 9, 1, 11, 12, 0, 0, 14, 15),
    {
        "spine_base": "r_hip l_hip",
        "spine_mid": "r_hip l_hip neck neck",  # the middle of slots 1 and 21
        "neck": "neck nose",
        "head": "nose",
        "spine_shoulder": "neck",
    },
)
_KINECT20 = _skeleton(
    "kinect20",
    "head shoulder_center spine hip_center l_shoulder l_elbow l_wrist l_hand r_shoulder r_elbow r_wrist r_hand "
    "l_hip l_knee l_ankle l_foot r_hip r_knee r_ankle r_foot",
    (1, 2, 3, -1, 1, 4, 5, 6, 1, 8, 9, 10, 3, 12, 13, 14, 3, 16, 17, 18),
    {
        "spine_base": "hip_center",
        "spine_mid": "spine",
        "spine_shoulder": "shoulder_center",
        "neck": "shoulder_center head",
    },
)
_JHMDB15 = _skeleton(
    "jhmdb15",
    "neck belly face r_shoulder l_shoulder r_hip l_hip r_elbow l_elbow r_knee l_knee r_wrist l_wrist r_ankle l_ankle",
    (1, -1, 0, 0, 0, 1, 1, 3, 4, 5, 6, 7, 8, 9, 10),
    {
        "spine_base": "r_hip l_hip",
        "spine_mid": "belly",
        "spine_shoulder": "neck",
        "neck": "neck face",
        "head": "face",
    },
)
_COCO17 = _skeleton(
    "coco17",
    "nose l_eye r_eye l_ear r_ear l_shoulder r_shoulder l_elbow r_elbow l_wrist r_wrist "
    "l_hip r_hip l_knee r_knee l_ankle r_ankle",
    (-1, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14),
    {
        "spine_base": "r_hip l_hip",
        "spine_mid": "r_hip l_hip r_shoulder l_shoulder",
        "spine_shoulder": "r_shoulder l_shoulder",
        "neck": "r_shoulder l_shoulder nose nose",  # half way from the shoulders' middle to the nose
        "head": "nose",
    },
)

SKELETONS: Mapping[str, Skeleton] = MappingProxyType(
    {skeleton.name: skeleton for skeleton in (_H36M17, _NTU25, _OPENPOSE18, _KINECT20, _JHMDB15, _COCO17)}
)
"""The layouts by name."""
