"""Parsers of 2D keypoints in arrays: pickles of pyskl or mmaction2 (`clip_pickles`), whose 17 joints are COCO's, 18 and
25 OpenPose's, and .npz files of COCO joints:

    keypoints  [N, 17, 2 or 3] or [M, N, 17, 2 or 3]: pixels, the third is the score; M persons. Of 26, 133 or 136
               joints the first 17 are kept (`layouts`)
    scores     [N, 17] or [M, N, 17], optional
    fps, width, height   numbers, optional
    skeleton   name of the layout, optional: begins with coco or halpe
    joint_names   names of the joints, optional: COCO's 17 come first, in their order

Other arrays are not read, which is noted.

Without scores every joint was seen, but for persons whose 17 points are all at 0 in a frame: they are not there.
Shape suffixes: M persons, N frames, D detections of a file, J 17 joints.
"""

import math
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.readers import clip_pickles
from ups_model.data.readers.io.files import damage_named, first_outside, is_numeric, persons_first, read_npy_header
from ups_model.data.readers.io.safe_pickle import shown
from ups_model.data.readers.keypoints import builder, layouts
from ups_model.data.readers.keypoints.builder import WAY_OUT
from ups_model.data.readers.keypoints.layouts import COCO_FIRST, COCO_RULE
from ups_model.data.readers.keypoints.tracks import JOINTS, Detections

MAX_BYTES = 1 << 30
"""Of an array, unpacked."""
_NUMBERS = ("keypoints", "scores", "fps", "width", "height")
_TEXTS = ("skeleton", "joint_names")
_ARRAYS = (*_NUMBERS, *_TEXTS)
_LAYOUTS = {**COCO_FIRST, **layouts.OPENPOSE}


def read_arrays(file: Path) -> Detections:
    """Reads and checks one .npz file, without pickle. ValueError names the file and the array that breaks a rule."""
    arrays, others = _load(file)
    if "keypoints" not in arrays:
        raise ValueError(f"{file}: must have an array 'keypoints'; is it keypoints?")
    about: dict[str, Any] = {
        key: _single(file, key, arrays[key], "number") for key in ("fps", "width", "height") if key in arrays
    }
    fps, size = builder.fps_of(file, about), builder.size_of(file, about)
    keypoints, scores = arrays["keypoints"], arrays.get("scores")
    shape = list(keypoints.shape)
    if keypoints.ndim not in (3, 4) or keypoints.shape[-2] not in COCO_FIRST or keypoints.shape[-1] not in (2, 3):
        form = f"[N, {JOINTS}, 2 or 3] or [M, N, {JOINTS}, 2 or 3]"
        raise ValueError(f"{file}[keypoints]: must be {form} of {COCO_RULE}, got {shape}")
    _check_joints(file, arrays, shape[-2])
    if len(shape) == 4 and shape[0] > shape[1]:
        raise ValueError(f"{file}[keypoints]: {persons_first(shape)}")
    if keypoints.shape[-1] == 3:
        if scores is not None:
            raise ValueError(f"{file}[scores]: scores must stand once, they are in keypoints {shape} too; {WAY_OUT}")
        keypoints, scores = keypoints[..., :2], keypoints[..., 2]
    if scores is not None and scores.shape != keypoints.shape[:-1]:
        raise ValueError(f"{file}[scores]: must be {shape[:-1]} as keypoints, got {list(scores.shape)}; {WAY_OUT}")
    if keypoints.ndim == 3:
        keypoints, scores = keypoints[None], None if scores is None else scores[None]
    kept = None if scores is None else scores[:, :, :JOINTS]
    detections = detections_of(f"{file}[keypoints]", keypoints[:, :, :JOINTS], kept, fps, size)
    unread = f"no meaning is known for {', '.join(others)}, known are {', '.join(_ARRAYS)}"
    return replace(detections, notes=(unread,)) if others else detections


def _check_joints(file: Path, arrays: dict[str, np.ndarray], joints: int) -> None:
    """ValueError where the file says that its joints are others than COCO's."""
    if "skeleton" in arrays:
        layouts.check_layout(file, "skeleton", _single(file, "skeleton", arrays["skeleton"], "name"))
    if "joint_names" in arrays:
        names = np.atleast_1d(arrays["joint_names"])
        if names.shape != (joints,):
            raise ValueError(f"{file}[joint_names]: must have a name for each of {joints} joints, got {len(names)}")
        layouts.check_names(file, "joint_names", [(str(index), str(name)) for index, name in enumerate(names)])


def read_annotation(file: Path, name: str) -> Detections:
    """A clip of a pickle; img_shape is the size of the image. ValueError names the clip and the rule it breaks."""
    item, where = clip_pickles.find(file, name), f"{file}[{name}]"
    pose: Any = item.get("keypoint")
    scores: Any = item.get("keypoint_score")
    shape = item.get("img_shape")
    if not is_numeric(pose) or pose.ndim != 4 or pose.shape[2] not in _LAYOUTS or pose.shape[3] != 2:
        rule = f"[persons, frames, joints, 2] of {COCO_RULE}, or of {layouts.OPENPOSE_RULE}"
        raise ValueError(f"{where}: keypoint must be numbers {rule}, got {shown(pose)}; {WAY_OUT}")
    if scores is not None and (not is_numeric(scores) or scores.shape != pose.shape[:3]):
        rule = f"keypoint_score must be numbers {list(pose.shape[:3])}"
        raise ValueError(f"{where}: {rule}, got {shown(scores)}; {WAY_OUT}")
    size = None
    if isinstance(shape, list | tuple) and len(shape) >= 2:
        height, width = (value.item() if isinstance(value, np.generic) else value for value in shape[:2])
        size = builder.size_of(file, {"width": width, "height": height})
    joints_J = list(_LAYOUTS[pose.shape[2]])
    return detections_of(
        where, pose[:, :, joints_J], None if scores is None else scores[:, :, joints_J], builder.DEFAULT_FPS, size
    )


def detections_of(
    where: str,
    keypoints_MNJ2: np.ndarray,
    scores_MNJ: np.ndarray | None,
    fps: float,
    size: tuple[float, float] | None,
) -> Detections:
    """The detections in arrays of COCO's joints. ValueError for values out of bounds begins with `where`."""
    people, frames = keypoints_MNJ2.shape[:2]
    if not 1 <= people <= builder.MAX_PERSONS or not 1 <= frames <= builder.MAX_FRAME:
        rule = f"must have 1..{builder.MAX_PERSONS} persons and 1..{builder.MAX_FRAME} frames"
        raise ValueError(f"{where}: {rule}, got {list(keypoints_MNJ2.shape)}")
    xy_MNJ2 = _bounded(where, keypoints_MNJ2, builder.MAX_PIXELS)
    if scores_MNJ is None:
        there_MN11 = (xy_MNJ2 != 0).any(axis=(2, 3))[..., None]
        score_MNJ = np.broadcast_to(there_MN11, xy_MNJ2.shape[:3]).astype(np.float64)
    else:
        score_MNJ = _bounded(where, scores_MNJ, builder.MAX_SCORE)
    return Detections(
        np.repeat(np.arange(frames), people),
        xy_MNJ2.swapaxes(0, 1).reshape(-1, JOINTS, 2),
        score_MNJ.swapaxes(0, 1).reshape(-1, JOINTS),
        np.tile(np.arange(people), frames).tolist(),
        frames,
        "pixel",
        fps,
        size,
    )


def _load(file: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays that mean something, and the names of the others."""
    with damage_named(f"{file}: not a whole .npz file of this layout", WAY_OUT), zipfile.ZipFile(file) as archive:
        members = archive.namelist()
        if len(set(members)) < len(members):
            raise ValueError("it has an array twice")
        arrays = {key: _member(archive, f"{key}.npy") for key in _ARRAYS if f"{key}.npy" in members}
        return arrays, sorted({name.removesuffix(".npy") for name in members} - set(_ARRAYS))


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array, of which nothing is unpacked before its header is known to be that of numbers of a bearable size."""
    if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} must be packed as NumPy packs it or not at all")
    with archive.open(name) as stream:
        shape, fortran, dtype = read_npy_header(stream)
        what, kinds = ("text", "U") if name.removesuffix(".npy") in _TEXTS else ("numbers", "fiu")
        if dtype.kind not in kinds:
            raise ValueError(f"{name} must hold {what}, got {dtype}")
        size = math.prod(shape) * dtype.itemsize
        if any(length < 0 for length in shape) or size > MAX_BYTES:
            raise ValueError(f"{name} must have at most {MAX_BYTES} bytes, got {list(shape)} of {dtype}")
        raw = stream.read(size + 1)
        if len(raw) != size:
            raise ValueError(f"{name} must have {size} bytes, got {len(raw)}{'' if len(raw) < size else ' or more'}")
    return np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def _bounded(where: str, values: np.ndarray, bound: float) -> np.ndarray:
    values = values.astype(np.float64)
    if (place := first_outside(values, -bound, bound)) is not None:
        way_out = "give a joint that is not seen score 0" if np.isnan(values[place]) else WAY_OUT
        raise ValueError(
            f"{where}: must be numbers within {bound:g}, got {values[place]} for person {place[0]}, frame "
            f"{place[1]}, joint {place[2]}; {way_out}"
        )
    return values


def _single(file: Path, key: str, array: np.ndarray, what: str) -> Any:
    if array.size != 1:
        raise ValueError(f"{file}[{key}]: must be one {what}, got {list(array.shape)}; {WAY_OUT}")
    return array.item()
