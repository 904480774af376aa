"""Kinetics skeletons as JSON, one file a video: what ST-GCN published as "kinetics-skeleton".

    {"data": [{"frame_index": 1, "skeleton": [{"pose": [x, y, ...] 36, "score": [...] 18}, ...]}, ...],
     "label": "abseiling", "label_index": 0}

`pose` is in parts of the image's width and height. Shape suffixes: N frames, D detections of a file, P persons (slots),
J 18 joints, K numbers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.readers.io.files import NUMBERS, first_outside, load_json
from ups_model.data.readers.kinetics.tracks import JOINTS, MAX_COORDINATE, MAX_FRAMES, MAX_SCORE, PERSONS

MAX_BYTES = 64 << 20
"""Of one video's file: those of ten seconds have about 300 kB."""

_RANKED = 5
"""Persons of a frame among whom those kept are chosen: the first of its list."""
_WAY_OUT = "get the file again"


@dataclass(frozen=True, eq=False)
class VideoFile:
    """What a video's file holds."""

    xy_NPJ2: np.ndarray
    """float32 [N, 2, 18, 2], less 0.5; those of the highest mean score among each frame's first five persons."""
    score_NPJ: np.ndarray
    """float32 [N, 2, 18]; 0 where not seen."""
    label: Any
    label_index: Any
    """As written; None where absent."""


def read_video(file: Path) -> VideoFile:
    """Reads and checks one video's file. ValueError names the file and the key at fault.

    A frame's place is its frame_index less the lowest of the file, as files count from 0 or from 1. Entries come in any
    order, frames without one have nobody, equal ones count once, and two different ones of a frame are an error. As in
    ST-GCN's own tools for the arrays, only the first five persons of a frame are looked at, and ranked by mean score,
    the earlier first where scores are equal to 9 decimals; all persons are checked.
    """
    content = load_json(file, MAX_BYTES)
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise ValueError(f"{file}: must hold an object with a list under 'data'; is it a video of Kinetics skeletons?")
    frames, detections = _collect(file, content["data"])
    pose_DJ2 = _bounded(file, detections, "pose", -MAX_COORDINATE, MAX_COORDINATE).reshape(-1, JOINTS, 2)
    score_DJ = _bounded(file, detections, "score", 0.0, MAX_SCORE).reshape(-1, JOINTS)
    first = min(frames, default=0)
    count = max(frames, default=-1) - first + 1
    xy_NPJ2 = np.zeros((count, PERSONS, JOINTS, 2), dtype=np.float32)
    score_NPJ = np.zeros((count, PERSONS, JOINTS), dtype=np.float32)
    place_D = np.array([detection.frame - first for detection in detections], dtype=np.int64)
    # Rounded, so that the order of a sum's terms, which differs between processors, doesn't break a tie.
    order_D = np.lexsort((-score_DJ.mean(axis=1).round(9), place_D))
    order_D = order_D[np.array([detection.index < _RANKED for detection in detections], dtype=bool)[order_D]]
    place_D = place_D[order_D]
    # The rank within a frame: the place in the sorted list less the place of the frame's first.
    rank_D = np.arange(len(place_D)) - np.searchsorted(place_D, place_D)
    kept_D = rank_D < PERSONS
    xy_NPJ2[place_D[kept_D], rank_D[kept_D]] = pose_DJ2[order_D[kept_D]] - 0.5
    score_NPJ[place_D[kept_D], rank_D[kept_D]] = score_DJ[order_D[kept_D]]
    return VideoFile(xy_NPJ2, score_NPJ, content.get("label"), content.get("label_index"))


@dataclass(frozen=True, slots=True)
class _Detection:
    frame: int
    index: int
    """Place in the frame's list of persons."""
    key: str
    """Where it stands in the file."""
    pose: list[float]
    score: list[float]


def _collect(file: Path, entries: list[Any]) -> tuple[dict[int, int], list[_Detection]]:
    """The frames of a file and the persons seen in them; everything but the numbers' values is checked."""
    places: dict[int, int] = {}
    detections = []
    for number, entry in enumerate(entries):
        key = f"data[{number}]"
        if not isinstance(entry, dict):
            raise ValueError(f"{file}: {key} must be an object, got {type(entry).__name__}; {_WAY_OUT}")
        frame, persons = entry.get("frame_index"), entry.get("skeleton")
        if type(frame) is not int or frame < 0:
            raise ValueError(f"{file}: {key}.frame_index must be an integer >= 0, got {frame!r:.60}; {_WAY_OUT}")
        if not isinstance(persons, list):
            raise ValueError(f"{file}: {key}.skeleton must be a list, got {type(persons).__name__}; {_WAY_OUT}")
        if frame in places:
            if persons == entries[places[frame]]["skeleton"]:
                continue
            raise ValueError(
                f"{file}: a frame must stand once, got frame_index {frame} in data[{places[frame]}] and, different, in "
                f"{key}; {_WAY_OUT}"
            )
        places[frame] = number
        for index, person in enumerate(persons):
            detections.append(_detection(file, f"{key}.skeleton[{index}]", frame, index, person))
    if places and (span := max(places) - min(places) + 1) > MAX_FRAMES:
        raise ValueError(f"{file}: frame_index must span at most {MAX_FRAMES} frames, got {span}; {_WAY_OUT}")
    return places, detections


def _detection(file: Path, key: str, frame: int, index: int, person: Any) -> _Detection:
    if not isinstance(person, dict):
        raise ValueError(f"{file}: {key} must be an object, got {type(person).__name__}; {_WAY_OUT}")
    for name, count in (("pose", 2 * JOINTS), ("score", JOINTS)):
        values = person.get(name)
        if not isinstance(values, list) or len(values) != count:
            got = len(values) if isinstance(values, list) else type(values).__name__
            raise ValueError(f"{file}: {key}.{name} must have {count} numbers, got {got}; {_WAY_OUT}")
        if not NUMBERS.issuperset(map(type, values)):
            odd = next(i for i, value in enumerate(values) if type(value) not in NUMBERS)
            raise ValueError(f"{file}: {key}.{name}[{odd}] must be a number, got {values[odd]!r:.60}; {_WAY_OUT}")
    return _Detection(frame, index, key, person["pose"], person["score"])


def _bounded(file: Path, detections: list[_Detection], name: str, low: float, high: float) -> np.ndarray:
    """float64 [D, K], within bounds."""
    rows = [getattr(detection, name) for detection in detections]
    try:
        values_DK = np.array(rows, dtype=np.float64)
        place = first_outside(values_DK, low, high)
    except OverflowError:  # an integer beyond all floats
        place = next((d, k) for d, row in enumerate(rows) for k, value in enumerate(row) if not low <= value <= high)
    if place is not None:
        d, k = place
        where = f"{file}: {detections[d].key}.{name}[{k}]"
        raise ValueError(f"{where} must be in {low:g}..{high:g}, got {rows[d][k]!s:.30}; {_WAY_OUT}")
    return values_DK
