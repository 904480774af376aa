"""One recording as clips in memory, so that a prediction goes through the code that evaluation goes through.

Shape suffixes: N frames of a track, F frames of all tracks, J joints, T tracks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ups_model.data.format.cameras import Camera
from ups_model.data.format.clip_data import ClipData
from ups_model.data.format.info import ClipSetInfo
from ups_model.data.format.splits import Split
from ups_model.data.format.writer import Track
from ups_model.data.prepare.jobs import Recording
from ups_model.data.readers.fill_missing import fill_undetected

ONLY = Split(np.array([0]), np.array([], dtype=np.int64), np.array([0]))
"""The one clip. That it is a training clip too means nothing: nothing is trained."""


def class_set(recording: Recording) -> ClipData:
    """For class tasks: the recording as it is. Its class is unknown, so it gets a stand-in."""
    return _in_memory(recording, recording.dims, recording.tracks, recording.length, None, ())


def pose_set(recording: Recording, person: int = 0) -> ClipData:
    """For pose estimation: a person's keypoints as detections in the image of one camera at the origin.

    Positions are the true poses in camera metres where the recording has them, else zeros.

    Args:
        recording: 2D keypoints in pixels, with the size of the image.
        person: counted from 0, those who are there longest first.

    Raises:
        ValueError: the recording isn't that, or has fewer persons.
    """
    if recording.dims != 2 or recording.units != "pixel":
        raise ValueError(
            f"pose estimation needs 2D keypoints in pixels, {recording.name!r} has {recording.dims}D {recording.units} "
            f"coordinates; {recording.way_to_poses}"
        )
    if recording.size is None:
        raise ValueError(f"the image size of {recording.name!r} is not in the file; give it with --size WIDTHxHEIGHT")
    ranked = sorted(recording.tracks, key=lambda track: -len(track.positions))
    if not 0 <= person < len(ranked):
        raise ValueError(f"--person must be 0..{len(ranked) - 1} in {recording.name!r}, got {person}")
    track = ranked[person]
    keypoints_NJ2 = np.asarray(track.positions, dtype=np.float32)
    if track.confidence is not None:
        keypoints_NJ2 = fill_undetected(keypoints_NJ2, track.confidence)
    if recording.truth is not None:
        truth_NJ3 = np.asarray(recording.truth.positions, dtype=np.float32)
    else:
        truth_NJ3 = np.zeros((*keypoints_NJ2.shape[:2], 3), dtype=np.float32)
    width, height = recording.size
    camera = Camera(np.eye(3), (0, 0, 0), (width, width), (width / 2, height / 2), (width, height))
    alone = Track(truth_NJ3)  # Its offset in the recording is the caller's to add.
    return _in_memory(recording, 3, (alone,), alone.end, keypoints_NJ2[:, None], (camera,))


def _in_memory(
    recording: Recording,
    dims: int,
    tracks: Sequence[Track],
    length: int,
    keypoints_FKJ2: np.ndarray | None,
    cameras: Sequence[Camera],
) -> ClipData:
    if not tracks:
        raise ValueError(f"nobody is seen in {recording.name!r}; give another clip")
    info = ClipSetInfo(
        name=recording.name.lstrip(".").replace("/", "_") or "recording",
        skeleton=recording.skeleton,
        dims=dims,
        fps=recording.fps,
        units="metre" if dims == 3 else "normalised",
        up_axis=recording.up_axis,
        licence="",
        classes=("unknown",),
        synthetic=False,
        description=recording.name,
        camera_groups=(tuple(cameras),) if cameras else (),
    )
    length_T = np.array([len(track.positions) for track in tracks], dtype=np.int32)
    confidences = [track.confidence for track in tracks if track.confidence is not None]
    return ClipData(
        info=info,
        positions=np.concatenate([np.asarray(track.positions, dtype=np.float32) for track in tracks]),
        confidence=np.concatenate(confidences) if len(confidences) == len(tracks) else None,
        keypoints=keypoints_FKJ2,
        track_start=np.cumsum(length_T, dtype=np.int64) - length_T,
        track_length=length_T,
        track_clip=np.zeros(len(tracks), dtype=np.int32),
        track_offset=np.array([track.offset for track in tracks], dtype=np.int32),
        clip_id=np.array([recording.name]),
        label=np.zeros(1, dtype=np.int32),
        subject=np.full(1, -1, dtype=np.int32),
        split_test=np.ones(1, dtype=bool),
        clip_length=np.array([length], dtype=np.int32),
        camera_group=np.full(1, 0 if cameras else -1, dtype=np.int32),
        extra={},
    )
