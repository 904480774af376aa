"""The rules of the clip format, as functions that list what breaks them. Used when writing, opening and verifying.

Shape suffixes: F frames of the set, K cameras, J joints, C coordinates.
"""

import hashlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from ups_model.data.format.info import ClipSetInfo
from ups_model.skeletons import get_skeleton

FRAME_ARRAYS = ("positions", "confidence", "keypoints")
TRACK_TABLE = {"track_start": np.int64, "track_length": np.int32, "track_clip": np.int32, "track_offset": np.int32}
CLIP_TABLE = {
    "clip_id": np.str_,
    "label": np.int32,
    "subject": np.int32,
    "split_test": np.bool_,
    "clip_length": np.int32,
    "camera_group": np.int32,
}
_BLOCK_FRAMES = 1 << 14

DAMAGED: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    SyntaxError,
    tokenize.TokenError,
)
"""What numpy and zipfile raise on damaged .npy and .npz files. The last two: numpy takes a damaged header for one of
Python 2, and lets the errors of its tokenizer through."""


def sha256_of(array: np.ndarray) -> str:
    """sha256 of an array's bytes in C order, block by block."""
    digest = hashlib.sha256()
    for start in range(0, len(array), _BLOCK_FRAMES):
        digest.update(np.ascontiguousarray(array[start : start + _BLOCK_FRAMES]).tobytes())
    return digest.hexdigest()


def shape_faults(info: ClipSetInfo, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """What is wrong with the shapes and dtypes of the arrays: nothing that needs their contents."""
    faults = []
    joints = get_skeleton(info.skeleton).joints
    positions = arrays["positions"]
    frames, clips = len(positions), len(arrays["clip_id"])
    if positions.shape != (frames, joints, info.dims) or positions.dtype not in (np.float16, np.float32):
        faults.append(
            f"positions.npy: must be float16 or float32 of shape [F, {joints}, {info.dims}], "
            f"got {positions.dtype} {list(positions.shape)}"
        )
    if (confidence := arrays.get("confidence")) is not None and confidence.shape != (frames, joints):
        faults.append(f"confidence.npy: must have shape {[frames, joints]}, got {list(confidence.shape)}")
    keypoints = arrays.get("keypoints")
    if keypoints is not None and (keypoints.ndim != 4 or keypoints.shape != (frames, keypoints.shape[1], joints, 2)):
        faults.append(f"keypoints.npy: must have shape [{frames}, K, {joints}, 2], got {list(keypoints.shape)}")
    tables = TRACK_TABLE | CLIP_TABLE | {key: np.int32 for key in arrays if key.startswith("column_")}
    for key, kind in tables.items():
        rows = clips if key not in TRACK_TABLE else len(arrays["track_start"])
        array = arrays[key]
        if array.shape != (rows,) or not np.issubdtype(array.dtype, kind):
            faults.append(
                f"{key}.npy: must be {kind.__name__} of shape {[rows]}, got {array.dtype} {list(array.shape)}"
            )
    return faults


def table_faults(
    info: ClipSetInfo, tables: Mapping[str, np.ndarray], frames: int, keypoints: np.ndarray | None
) -> list[str]:
    """What is wrong with the contents of the track and clip tables of a set of `frames` frames."""
    start, length, clip, offset = (np.asarray(tables[key], dtype=np.int64) for key in TRACK_TABLE)
    clip_id, label, subject = tables["clip_id"], tables["label"], tables["subject"]
    clip_length, group, clips = np.asarray(tables["clip_length"], dtype=np.int64), tables["camera_group"], len(clip_id)
    faults = []

    def rule(file: str, text: str, broken: np.ndarray) -> None:
        if (count := int(np.count_nonzero(broken))) > 0:
            faults.append(f"{file}.npy: {text} ({count} rows, first {int(np.flatnonzero(broken)[0])})")

    names, counts = np.unique(clip_id, return_counts=True)
    if (counts > 1).any():
        faults.append(f"clip_id.npy: ids must be unique, got {str(names[counts > 1][0])!r} {counts.max()} times")
    rule("clip_id", "ids must not be empty", clip_id == "")
    rule("clip_length", "lengths must be >= 1", clip_length < 1)
    rule("label", f"labels must be in -1..{len(info.classes) - 1}", (label < -1) | (label >= len(info.classes)))
    rule("subject", "subjects must be >= -1", subject < -1)
    if (subject < 0).any() and (subject >= 0).any():
        faults.append("subject.npy: subjects must be known for every clip or for none (-1)")
    groups = len(info.camera_groups)
    rule("camera_group", f"camera groups must be in -1..{groups - 1}", (group < -1) | (group >= groups))
    if keypoints is not None:
        sizes = np.array([len(cameras) for cameras in info.camera_groups] + [keypoints.shape[1]])
        in_range = np.where((group >= -1) & (group < groups), group, -1)
        rule(
            "camera_group",
            f"groups must have the {keypoints.shape[1]} cameras of keypoints",
            sizes[in_range] != sizes[-1],
        )
    rule("track_length", "lengths must be >= 1", length < 1)
    rule("track_start", "tracks must lie end to end", start != np.concatenate([[0], np.cumsum(length)[:-1]]))
    if int(length.sum()) != frames:
        faults.append(f"track_length.npy: lengths must add up to the {frames} frames, got {int(length.sum())}")
    rule("track_clip", "tracks must be in the order of their clips", np.diff(clip, prepend=0) < 0)
    valid = (clip >= 0) & (clip < clips)
    rule("track_clip", f"clips must be in 0..{clips - 1}", ~valid)
    rule("clip_id", "every clip must have a track", np.bincount(clip[valid], minlength=clips) == 0)
    ends_late = valid.copy()
    ends_late[valid] = offset[valid] + length[valid] > clip_length[clip[valid]]
    rule("track_offset", "tracks must lie inside their clip", ends_late | (offset < 0))
    for key, column in tables.items():
        if key.startswith("column_split_test_"):
            rule(key, "split columns must hold 0 or 1", (column != 0) & (column != 1))
    return faults


def count_non_finite(array: np.ndarray) -> int:
    """How many values are infinite or not a number, block by block."""
    starts = range(0, len(array), _BLOCK_FRAMES)
    return sum(int((~np.isfinite(array[start : start + _BLOCK_FRAMES])).sum()) for start in starts)
