"""2D keypoints of a pickle of pyskl or mmaction2 (`clip_pickles`): 17 joints are COCO's, 18 and 25 OpenPose's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.readers import clip_pickles
from ups_model.data.readers.io.safe_pickle import shown
from ups_model.data.readers.keypoints.builder import DEFAULT_FPS, WAY_OUT, size_of
from ups_model.data.readers.keypoints.layouts import COCO_FIRST, COCO_RULE, OPENPOSE, OPENPOSE_RULE
from ups_model.data.readers.keypoints.npz import detections_of
from ups_model.data.readers.keypoints.tracks import Detections

_LAYOUTS: Mapping[int, tuple[int, ...]] = {**COCO_FIRST, **OPENPOSE}


def read_annotation(file: Path, name: str) -> Detections:
    """The detections of a clip of a pickle; img_shape is the size of the image.

    Raises:
        ValueError: another layout, or a value breaks a rule; names the file and the clip.
        OSError: the file cannot be read.
    """
    item, where = clip_pickles.find(file, name), f"{file}[{name}]"
    pose: Any = item.get("keypoint")
    scores: Any = item.get("keypoint_score")
    shape = item.get("img_shape")
    if not _numeric(pose) or pose.ndim != 4 or pose.shape[2] not in _LAYOUTS or pose.shape[3] != 2:
        got = list(pose.shape) if isinstance(pose, np.ndarray) else shown(pose)
        rule = f"[persons, frames, joints, 2] of {COCO_RULE}, or of {OPENPOSE_RULE}"
        raise ValueError(f"{where}: keypoint must be numbers {rule}, got {got}; {WAY_OUT}")
    if scores is not None and (not _numeric(scores) or scores.shape != pose.shape[:3]):
        got = list(scores.shape) if isinstance(scores, np.ndarray) else shown(scores)
        raise ValueError(f"{where}: keypoint_score must be numbers {list(pose.shape[:3])}, got {got}; {WAY_OUT}")
    size = None
    if isinstance(shape, list | tuple) and len(shape) >= 2:
        height, width = (value.item() if isinstance(value, np.generic) else value for value in shape[:2])
        size = size_of(file, {"width": width, "height": height})
    joints_J = list(_LAYOUTS[pose.shape[2]])
    return detections_of(
        where, pose[:, :, joints_J], None if scores is None else scores[:, :, joints_J], DEFAULT_FPS, size
    )


def _numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
