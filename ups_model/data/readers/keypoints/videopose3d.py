"""VideoPose3D's keypoints of one's own videos, data_2d_custom_NAME.npz.

    positions_2d   {video: {"custom": [[N, 17, 2] of one camera]}}, pixels
    metadata       {"layout_name": "coco", "num_joints": 17, "video_metadata": {video: {"w": .., "h": .., "fps": ..}}}

Both are pickled, and read by `safe_pickle`. Frames without a detection are interpolated in such files already.
Shape suffixes: N frames, J 17 joints.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.readers.io.files import first_outside, is_numeric
from ups_model.data.readers.io.safe_pickle import read_object_array, shown
from ups_model.data.readers.keypoints.arrays import detections_of
from ups_model.data.readers.keypoints.builder import MAX_FRAME, MAX_PIXELS, WAY_OUT, fps_of, size_of
from ups_model.data.readers.keypoints.tracks import JOINTS, Detections

PREFIX = "data_2d_custom"


def is_custom(file: Path) -> bool:
    """Whether a file is called as VideoPose3D wants it for videos of one's own."""
    return file.name.startswith(PREFIX) and file.suffix.lower() == ".npz"


def video_names(file: Path) -> tuple[str, ...]:
    """The videos of a file, in its order. Raises as `read_video`."""
    return tuple(_videos(file)[0])


def read_video(file: Path, video: str) -> Detections:
    """A video of the file. ValueError names file and key: no such video, joints that are not COCO's, or a bad value."""
    videos, about = _videos(file)
    if video not in videos:
        raise ValueError(f"{file}: has no video {video!r:.60}; it has {', '.join(list(videos)[:10])}")
    where = f"{file}[positions_2d][{video!r}]"
    cameras = videos[video]
    views = cameras.get("custom", next(iter(cameras.values()), None)) if isinstance(cameras, Mapping) else None
    if not isinstance(views, list | tuple | np.ndarray) or len(views) != 1:
        raise ValueError(f"{where}: must be {{'custom': [keypoints of one camera]}}, got {shown(cameras)}; {WAY_OUT}")
    array = views[0]
    if not is_numeric(array) or array.ndim != 3 or array.shape[1:] != (JOINTS, 2) or not 1 <= len(array) <= MAX_FRAME:
        raise ValueError(f"{where}: must be numbers [frames, {JOINTS}, 2], got {shown(array)}; {WAY_OUT}")
    if (place := first_outside(array, -MAX_PIXELS, MAX_PIXELS)) is not None:
        raise ValueError(f"{where}: must be within {MAX_PIXELS:g}, got {array[place]} in frame {place[0]}; {WAY_OUT}")
    own = about.get(video)
    own = own if isinstance(own, Mapping) else {}
    plain = {"width": own.get("w"), "height": own.get("h"), "fps": own.get("fps")}
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in plain.items()}
    fps = fps_of(file, {key: value for key, value in plain.items() if value is not None})
    return detections_of(where, array[None], np.ones((1, len(array), JOINTS)), fps, size_of(file, plain))


def _videos(file: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    return _content(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=1)  # Jobs read one video after the other.
def _content(file: Path, changed_ns: int) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """video -> what the file has of it, and what it says of each. `changed_ns` keeps a file apart from what it was."""
    videos, metadata = read_object_array(file, "positions_2d"), read_object_array(file, "metadata")
    if not isinstance(videos, dict) or not videos or not all(isinstance(name, str) for name in videos):
        got = "an empty one" if videos == {} else shown(videos)
        raise ValueError(f"{file}[positions_2d]: must be a dict of videos, got {got}; {WAY_OUT}")
    if not isinstance(metadata, Mapping):
        raise ValueError(f"{file}[metadata]: must be a dict, got {shown(metadata)}; {WAY_OUT}")
    layout, joints = metadata.get("layout_name"), metadata.get("num_joints")
    if not isinstance(layout, str) or layout != "coco" or not isinstance(joints, int | np.integer) or joints != JOINTS:
        raise ValueError(
            f"{file}[metadata]: layout_name and num_joints must be coco and {JOINTS}, got {shown(layout)} and "
            f"{shown(joints)}; detect COCO's joints, whose 17 are kept as they are"
        )
    about = metadata.get("video_metadata")
    return videos, about if isinstance(about, Mapping) else {}
