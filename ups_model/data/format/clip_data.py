"""Clips as arrays, on disk (`clip_set.ClipSet`) or in memory (`batching.in_memory`).

Shape suffixes: F frames of the set, N frames of a track, K cameras, J joints, C coordinates, T tracks, M clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ups_model.data.format.cameras import Camera
from ups_model.data.format.info import ClipSetInfo
from ups_model.skeletons import Skeleton, get_skeleton


@dataclass(frozen=True, eq=False, repr=False)
class ClipData:
    """What clips are, and their arrays; `clip_set` says what each holds."""

    info: ClipSetInfo
    positions: np.ndarray
    confidence: np.ndarray | None
    keypoints: np.ndarray | None
    track_start: np.ndarray
    track_length: np.ndarray
    track_clip: np.ndarray
    track_offset: np.ndarray
    clip_id: np.ndarray
    label: np.ndarray
    subject: np.ndarray
    split_test: np.ndarray
    clip_length: np.ndarray
    camera_group: np.ndarray
    extra: Mapping[str, np.ndarray]
    """Further integer columns, [M] each."""

    def __len__(self) -> int:
        return len(self.clip_id)

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def origin(self) -> str:
        """What qualifies the clip ids: sets of one origin share clips."""
        return self.info.origin or self.info.name

    @property
    def skeleton(self) -> Skeleton:
        return get_skeleton(self.info.skeleton)

    def tracks(self, clip: int) -> range:
        """Indices into the track table of the persons of a clip."""
        first, last = np.searchsorted(self.track_clip, [clip, clip + 1])
        return range(int(first), int(last))

    def frames(self, track: int) -> slice:
        """The rows of `positions`, `confidence` and `keypoints` that hold a track."""
        start = int(self.track_start[track])
        return slice(start, start + int(self.track_length[track]))

    def clip(self, clip: int) -> list[tuple[int, np.ndarray]]:
        """(offset, positions [N, J, C]) of each person of a clip: there from frame `offset` of the clip on.

        Raises:
            IndexError: no such clip.
        """
        if not 0 <= clip < len(self):
            raise IndexError(f"{self.name} has clips 0..{len(self) - 1}, got {clip}")
        return [(int(self.track_offset[track]), self.positions[self.frames(track)]) for track in self.tracks(clip)]

    def cameras(self, clip: int) -> tuple[Camera, ...]:
        """The cameras that saw a clip; empty where none are known."""
        group = int(self.camera_group[clip])
        return self.info.camera_groups[group] if group >= 0 else ()
