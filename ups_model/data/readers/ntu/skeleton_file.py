"""The `.skeleton` text files of NTU RGB+D: Kinect v2 bodies, 25 joints each, frame by frame.

    numFrames
      numBodies                        of a frame; 0 where the sensor tracks nobody
        bodyID clippedEdges ... trackingState         10 fields
        25
        x y z depthX depthY colorX colorY qW qX qY qZ trackingState     12 fields, 25 lines

Shape suffixes: N frames in which a body is seen, J joints (25), B blocks of joints, R joints' lines.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

JOINTS = 25
MAX_METRES = 100.0
"""Farthest coordinate from the sensor, metres, that is taken for one: Kinect v2 sees 8 m."""

_BODY_FIELDS, _JOINT_FIELDS = 10, 12
_BODY_LINES = 2 + JOINTS
_JOINT_COUNT = [b"%d" % JOINTS]
_WAY_OUT = "get the file again"
_Lines = list[list[bytes]]
"""The fields of each line of a file."""


@dataclass(frozen=True, eq=False)
class Body:
    """What the sensor tracked under one id."""

    frames_N: np.ndarray
    """int64, the frames of the file in which it is there, ascending, from 0."""
    joints_NJ3: np.ndarray
    """float32 [N, 25, 3], metres in the sensor's space, y up; at least one coordinate of a frame is not 0."""


@dataclass(frozen=True, eq=False)
class SkeletonFile:
    """One recording."""

    length: int
    """Frames, those without a body too."""
    bodies: dict[str, Body]
    """By id, in order of appearance. Ids are text: they have 17 digits and more, which a float would merge. A body at
    0 in all joints of a frame is not there: that is how every layout writes a body that is not tracked."""


def read_skeleton(file: Path) -> SkeletonFile:
    """Reads a recording. ValueError names FILE:LINE of what breaks the format: truncation, wrong counts, numbers that
    are none or lie beyond MAX_METRES, an id twice in a frame, text after the last frame."""
    text = file.read_bytes().rstrip()
    if not text:
        raise ValueError(f"{file}: must have a number of frames on its first line, is empty; {_WAY_OUT}")
    lines = [line.split() for line in text.split(b"\n")]
    total = _count(file, lines, 0, "frames")
    if total > len(lines) - 1:
        raise _fault(file, 0, f"{total} frames need as many lines, got {len(lines) - 1}")

    seen: dict[bytes, list[tuple[int, int]]] = {}  # body id -> its frames, and its blocks of joints among all
    starts_B: list[int] = []  # the line of each block's first joint
    at = 1
    for frame in range(total):
        for body, start in _bodies(file, lines, at, frame, total).items():
            seen.setdefault(body, []).append((frame, len(starts_B)))
            starts_B.append(start)
            at = start + JOINTS - 1
        at += 1
    if at < len(lines):
        raise _fault(file, at, f"{total} frames end here, but {len(lines) - at} lines follow")

    joints_BJ3 = _joints(file, lines, starts_B)
    bodies = {}
    for body, places in seen.items():
        frames_N, blocks_N = np.array(places, dtype=np.int64).T
        tracked_N = joints_BJ3[blocks_N].any(axis=(1, 2))
        if tracked_N.any():
            bodies[body.decode("ascii")] = Body(frames_N[tracked_N], joints_BJ3[blocks_N[tracked_N]])
    return SkeletonFile(total, bodies)


def _bodies(file: Path, lines: _Lines, at: int, frame: int, total: int) -> dict[bytes, int]:
    """Body ids of the frame that begins at line `at`, each with the line of its first joint. Checks all but joints."""
    if at >= len(lines):
        raise _fault(file, at, f"ends at frame {frame} of {total}")
    bodies = _count(file, lines, at, "bodies")
    at += 1
    if at + bodies * _BODY_LINES > len(lines):
        needed = f"{bodies} bodies need {bodies * _BODY_LINES} lines"
        raise _fault(file, at - 1, f"{needed}, {len(lines) - at} are left")
    starts: dict[bytes, int] = {}
    for _ in range(bodies):
        body = _body_id(file, lines, at)
        if lines[at + 1] != _JOINT_COUNT:
            raise ValueError(f"{file}:{at + 2}: bodies must have {JOINTS} joints, got {_shown(lines[at + 1])}")
        if body in starts:
            raise _fault(file, at, f"body {_shown([body])} is twice in frame {frame}")
        starts[body] = at + 2
        at += _BODY_LINES
    return starts


def _count(file: Path, lines: _Lines, at: int, what: str) -> int:
    text = b" ".join(lines[at])
    if not text.isdigit() or len(text) > 9:
        raise _fault(file, at, f"must be a number of {what}, got {_shown(lines[at])}")
    return int(text)


def _body_id(file: Path, lines: _Lines, at: int) -> bytes:
    fields = lines[at]
    if len(fields) != _BODY_FIELDS:
        raise _fault(file, at, f"a body's line must have {_BODY_FIELDS} fields, got {len(fields)}")
    if not fields[0].isdigit():
        raise _fault(file, at, f"a body's id must be a number, got {_shown(fields[:1])}")
    return fields[0]


def _joints(file: Path, lines: _Lines, starts_B: list[int]) -> np.ndarray:
    """float32 [B, 25, 3]: the joints of the blocks of lines that begin at `starts_B`."""
    rows_R = [row for start in starts_B for row in range(start, start + JOINTS)]
    for at in rows_R:
        if len(lines[at]) != _JOINT_FIELDS:
            raise _fault(file, at, f"a joint's line must have {_JOINT_FIELDS} fields, got {len(lines[at])}")
    joints_R3 = _numbers(file, lines, rows_R)
    within_R = (np.abs(joints_R3) <= MAX_METRES).all(axis=1)  # false of NaN too
    if not within_R.all():
        at = rows_R[int(within_R.argmin())]
        rule = f"coordinates must be finite and within {MAX_METRES:g} m, got {_shown(lines[at])}"
        raise _fault(file, at, rule, "leave the recording out")
    return joints_R3.astype(np.float32).reshape(-1, JOINTS, 3)


def _numbers(file: Path, lines: _Lines, rows_R: list[int]) -> np.ndarray:
    """float64 [R, 3], the coordinates on some lines, each the float64 nearest to its text."""
    texts_R = [lines[at][:3] for at in rows_R]
    try:
        if b"_" in b"".join(map(b"".join, texts_R)):
            raise ValueError("digits grouped by underscores")  # numpy and Python take them for numbers
        return np.array(texts_R, dtype=np.float64).reshape(-1, 3)
    except ValueError as error:
        if len(rows_R) > 1:
            return np.concatenate([_numbers(file, lines, [at]) for at in rows_R])  # finds the line to blame
        at = rows_R[0]
        raise _fault(file, at, f"coordinates must be numbers, got {_shown(lines[at])}") from error


def _fault(file: Path, at: int, text: str, way_out: str = _WAY_OUT) -> ValueError:
    return ValueError(f"{file}:{at + 1}: {text}; {way_out}")


def _shown(fields: list[bytes]) -> str:
    return repr(b" ".join(fields)[:60].decode("ascii", "backslashreplace"))
