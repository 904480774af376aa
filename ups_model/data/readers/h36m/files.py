"""VideoPose3D's files of Human3.6M: parsed and checked, one recording at a time.

    data_3d_h36m.npz    positions_3d: {subject: {action: [N, 32, 3]}}, metres in the world, z up
    data_2d_h36m_*.npz  positions_2d: {subject: {action: [[N', 17, 2] per camera]}}, pixels; metadata: {num_joints, ...}

Members are pickled objects, read by `safe_pickle`. Source: D. Pavllo et al., "3D human pose estimation in video with
temporal convolutions and semi-supervised training", CVPR 2019, and the files its authors describe.

Shape suffixes: N frames, J 17 joints, K cameras.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.readers.h36m.cameras import CAMERA_IDS, SUBJECTS
from ups_model.data.readers.io.files import first_outside, is_numeric
from ups_model.data.readers.io.safe_pickle import read_object_array, shown

_ACTION_NAMES = """
Directions Discussion Eating Greeting Phoning Photo Posing Purchases Sitting SittingDown Smoking Waiting WalkDog Walking
WalkTogether
"""
ACTIONS: tuple[str, ...] = tuple(_ACTION_NAMES.split())
"""In label order, as VideoPose3D's files spell them."""

KEPT_JOINTS: tuple[int, ...] = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)
"""Of the 32 joints of the 3D file: those that move on their own, in the order of the skeleton h36m17."""

MAX_METRES = 100.0
"""Bound of a 3D coordinate: the recording room is smaller by far, and millimetres exceed it."""
MAX_PIXELS = 1e6
"""Bound of a keypoint's coordinate: detections may lie outside an image of 1000 pixels, not this far."""

_FILE_JOINTS = 32
_SIDES = ((4, 5, 6, 11, 12, 13), (1, 2, 3, 14, 15, 16))
"""Left and right joints of h36m17, by which its order is told from COCO's, which also has 17."""

Actions = dict[str, dict[str, Any]]
"""subject -> action -> what the file has for it, unchecked."""


def read_poses(file: Path) -> Actions:
    """The 3D file's content, its arrays unchecked. ValueError where it is none, naming file and key."""
    return _nested(f"{file}[positions_3d]", read_object_array(file, "positions_3d"))


def read_keypoints(file: Path) -> Actions:
    """The same of the 2D file. ValueError also where it has other joints than h36m17."""
    metadata = read_object_array(file, "metadata")
    if not isinstance(metadata, Mapping):
        raise ValueError(
            f"{file}[metadata]: must be a dict, got {type(metadata).__name__}; is it a file of VideoPose3D?"
        )
    joints = metadata.get("num_joints")
    if not isinstance(joints, (int, np.integer)) or joints != len(KEPT_JOINTS):
        raise ValueError(
            f"{file}[metadata]: num_joints must be 17, got {shown(joints)}; take the file of Human3.6M's joints"
        )
    layout, sides = metadata.get("layout_name", "h36m"), metadata.get("keypoints_symmetry")
    if not isinstance(layout, str) or layout != "h36m" or _joints(sides) != _joints(_SIDES):
        raise ValueError(
            f"{file}[metadata]: the joints must be Human3.6M's, with keypoints_symmetry {_joints(_SIDES)}, got "
            f"layout {shown(layout)} and {_joints(sides) or _what(sides)}; take the file of Human3.6M's joints"
        )
    return _nested(f"{file}[positions_2d]", read_object_array(file, "positions_2d"))


def action_of(where: str, name: str) -> tuple[int, int]:
    """Label and repeat: (13, 1) of "Walking 1", (13, 0) of "Walking". ValueError for another action lists near ones."""
    match = re.fullmatch(r"(\w+)(?: ([0-9]{1,4}))?", name, re.ASCII)
    if match is None or match[1] not in ACTIONS:
        near = difflib.get_close_matches(name.split(" ")[0], ACTIONS, n=3) or ACTIONS
        raise ValueError(
            f"{where}: must be an action of Human3.6M, perhaps with a number after a space, got {name!r:.60}; "
            f"try {', '.join(near)}"
        )
    return ACTIONS.index(match[1]), int(match[2] or 0)


def pose_of(where: str, array: Any) -> np.ndarray:
    """The joints of a recording, float32 [N, J, 3], a new array. ValueError for another shape or type, no frames, or
    values out of bounds."""
    _check_shape(where, array, [(_FILE_JOINTS, 3)])
    return _bounded(where, array[:, KEPT_JOINTS], MAX_METRES, "metres")


def view_of(where: str, array: Any) -> np.ndarray:
    """Keypoints in one camera, float32 [N, J, 2], a new array. A third value, a confidence, is ignored. Raises as
    `pose_of`."""
    _check_shape(where, array, [(len(KEPT_JOINTS), 2), (len(KEPT_JOINTS), 3)])
    return _bounded(where, array[..., :2], MAX_PIXELS, "pixels")


def has_four_views(value: Any) -> bool:
    """Whether this is what the 2D file has for a recording: keypoints of each of the four cameras."""
    listed = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)
    return listed and len(value) == len(CAMERA_IDS)


def _nested(where: str, content: Any) -> Actions:
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{where}: must be a dict of subjects, got {_what(content)}; is it a file of VideoPose3D?")
    for subject, actions in content.items():
        if not isinstance(subject, str) or not isinstance(actions, dict):
            raise ValueError(f"{where}[{subject!r:.60}]: must be a dict of actions, got {_what(actions)}")
        for action in actions:
            if not isinstance(action, str):
                raise ValueError(f"{where}[{subject!r:.60}]: actions must be names, got {action!r:.60}")
            if subject in SUBJECTS:
                action_of(f"{where}[{subject!r}]", action)
    return content


def _check_shape(where: str, array: Any, shapes: list[tuple[int, int]]) -> None:
    if not is_numeric(array) or array.ndim != 3 or array.shape[1:] not in shapes or not len(array):
        joints, coordinates = shapes[0]
        raise ValueError(f"{where}: must be numbers of shape [frames, {joints}, {coordinates}], got {_what(array)}")


def _bounded(where: str, values: np.ndarray, bound: float, unit: str) -> np.ndarray:
    if (place := first_outside(values, -bound, bound)) is not None:
        frame, joint, _ = place
        raise ValueError(
            f"{where}: must be within {bound:g} {unit} of 0, got {float(values[place])} in frame {frame}, joint {joint}"
        )
    return values.astype(np.float32)


def _joints(sides: Any) -> list[list[int]] | None:
    """Two lists of joints as plain integers; None where it is none."""
    try:
        if len(sides) != 2 or max(map(len, sides)) > len(KEPT_JOINTS):
            return None
        return [[int(joint) for joint in side] for side in sides]
    except (TypeError, ValueError, OverflowError):
        return None


def _what(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    sized = isinstance(value, (list, tuple, dict, str))
    return f"{type(value).__name__} of {len(value)}" if sized else repr(value)[:60]
