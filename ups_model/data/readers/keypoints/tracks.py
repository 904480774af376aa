"""Persons of a video: which of a file's detections belong to one another, frame after frame.

By the file's own numbers where every detection has one and no frame has one twice. Else from frame to frame, never
looking ahead: of all pairs of an earlier person and a detection, the nearest is taken first. How far apart they are
is the mean distance of the joints seen in both, over the diagonal of the box around the person; half of it at most. A
person who is not seen for more than 30 frames is another one afterwards. The two who are seen in most frames are kept.

Shape suffixes: N frames, D detections of a file, T earlier persons, E detections of a frame, J 17 joints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ups_model.data.format.writer import Track
from ups_model.data.readers.fill_missing import LEAST_SCORE

Units = Literal["pixel", "normalised"]

JOINTS = 17
PERSONS = 2
"""Tracks kept of a clip."""
MAX_DISTANCE = 0.5
MAX_GAP = 30
"""Frames."""


@dataclass(frozen=True, eq=False)
class Detections:
    """What a file holds, in the order of frames."""

    frame_D: np.ndarray
    """int64, counted from `first_frame`."""
    xy_DJ2: np.ndarray
    """float64."""
    score_DJ: np.ndarray
    """float64; 0 or less: not seen."""
    person_D: Sequence[int] | None
    """The file's own numbers of persons; None where it has none."""
    length: int
    """Frames of the file."""
    units: Units
    """pixel, or normalised where the size of the image is needed and not known."""
    fps: float
    size: tuple[float, float] | None
    first_frame: int = 0
    """The file's own number of its first frame."""
    notes: tuple[str, ...] = ()
    """What the user should know of how the file was taken, one line each."""


def make_tracks(detections: Detections) -> tuple[Track, ...]:
    """The two persons seen in most frames, the one seen longer first; frames in between have confidence 0.

    Positions are float32 [N, 17, 2] in the file's units and 0 where not seen.
    """
    seen_D = np.flatnonzero((detections.score_DJ >= LEAST_SCORE).any(axis=1))
    if not len(seen_D):
        return ()
    if detections.person_D is not None:
        numbers = np.array([detections.person_D[index] for index in seen_D.tolist()])
    else:
        numbers = associate(detections.frame_D[seen_D], detections.xy_DJ2[seen_D], detections.score_DJ[seen_D])
    _, first, which = np.unique(numbers, return_index=True, return_inverse=True)
    count = np.bincount(which)
    ranked = sorted(range(len(count)), key=lambda person: (-count[person], first[person]))
    return tuple(_track(detections, seen_D[which == person]) for person in ranked[:PERSONS])


def associate(frame_D: np.ndarray, xy_DJ2: np.ndarray, score_DJ: np.ndarray) -> np.ndarray:
    """int64 [D]: the number of each detection's person. Frames ascend; every detection has a seen joint."""
    person_D = np.full(len(frame_D), -1, dtype=np.int64)
    latest: dict[int, int] = {}  # person -> its last detection
    starts = np.flatnonzero(np.diff(frame_D, prepend=-1))
    count = 0
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(frame_D)], strict=True):
        frame = int(frame_D[start])
        latest = {person: last for person, last in latest.items() if frame - int(frame_D[last]) <= MAX_GAP}
        if latest:
            lasts = list(latest.values())
            distance_TE = distances(xy_DJ2[lasts], score_DJ[lasts], xy_DJ2[start:stop], score_DJ[start:stop])
            for row, column in _nearest_first(distance_TE):
                person_D[start + column] = list(latest)[row]
        for index in range(start, stop):
            if person_D[index] < 0:
                person_D[index] = count
                count += 1
            latest[int(person_D[index])] = index
    return person_D


def distances(xy_TJ2: np.ndarray, score_TJ: np.ndarray, xy_EJ2: np.ndarray, score_EJ: np.ndarray) -> np.ndarray:
    """[T, E]: mean distance of the joints seen in both, in box diagonals; infinite where no joint is."""
    seen_TJ, seen_EJ = score_TJ >= LEAST_SCORE, score_EJ >= LEAST_SCORE
    size_TE = np.maximum(_diagonal(xy_TJ2, seen_TJ)[:, None], _diagonal(xy_EJ2, seen_EJ)[None])
    both_TEJ = seen_TJ[:, None] & seen_EJ[None]
    away_TEJ = np.linalg.norm(xy_TJ2[:, None] - xy_EJ2[None], axis=-1)
    count_TE = both_TEJ.sum(axis=-1)
    mean_TE = (away_TEJ * both_TEJ).sum(axis=-1) / np.maximum(count_TE, 1)
    # Two single points at one place are one person; a tiny size keeps 0 / 0 out.
    return np.where(count_TE > 0, mean_TE / np.maximum(size_TE, 1e-12), np.inf)


def _diagonal(xy_DJ2: np.ndarray, seen_DJ: np.ndarray) -> np.ndarray:
    low_D2 = np.where(seen_DJ[..., None], xy_DJ2, np.inf).min(axis=1)
    high_D2 = np.where(seen_DJ[..., None], xy_DJ2, -np.inf).max(axis=1)
    return np.linalg.norm(high_D2 - low_D2, axis=-1)


def _nearest_first(distance_TE: np.ndarray) -> list[tuple[int, int]]:
    """Pairs within reach, each person and each detection once. Ties, to 9 decimals, go to the earlier of them."""
    rounded_TE = distance_TE.round(9)
    pairs, rows, columns = [], set(), set()
    for flat in np.argsort(rounded_TE, axis=None, kind="stable").tolist():
        row, column = divmod(flat, rounded_TE.shape[1])
        if rounded_TE[row, column] > MAX_DISTANCE:
            break
        if row not in rows and column not in columns:
            pairs.append((row, column))
            rows.add(row)
            columns.add(column)
    return pairs


def _track(detections: Detections, chosen_D: np.ndarray) -> Track:
    frame_D = detections.frame_D[chosen_D]
    first = int(frame_D[0])
    length = int(frame_D[-1]) - first + 1
    xy_NJ2 = np.zeros((length, JOINTS, 2), dtype=np.float32)
    score_NJ = np.zeros((length, JOINTS), dtype=np.float32)
    score_DJ = detections.score_DJ[chosen_D]
    seen_DJ = score_DJ >= LEAST_SCORE
    xy_NJ2[frame_D - first] = np.where(seen_DJ[..., None], detections.xy_DJ2[chosen_D], 0)
    score_NJ[frame_D - first] = np.where(seen_DJ, score_DJ, 0)
    return Track(xy_NJ2, first, score_NJ)
