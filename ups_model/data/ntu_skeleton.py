"""The `.skeleton` text files of NTU RGB+D: Kinect v2 bodies, 25 joints each, frame by frame.

    numFrames
      numBodies                        of a frame; 0 where the sensor tracks nobody
        bodyID clippedEdges ... trackingState         10 fields
        25
        x y z depthX depthY colorX colorY qW qX qY qZ trackingState     12 fields, 25 lines

A set has 57 or 114 thousand such files, so fields are counted in bulk, and only the coordinates are parsed. Where that
fails, lines are gone through one by one to find the one to blame.

Shape suffixes: N frames in which a body is seen, J joints (25).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

JOINTS = 25
LIMIT_M = 100.0
"""Farthest coordinate from the sensor, metres, that is taken for one: Kinect v2 sees 8 m."""

_BODY_FIELDS, _JOINT_FIELDS = 10, 12
_BODY_LINES = 2 + JOINTS
_JOINT_COUNT = b"%d" % JOINTS
_WAY_OUT = "get the file again"


@dataclass(frozen=True, eq=False)
class Body:
    """What the sensor tracked under one id."""

    frames_N: np.ndarray
    """int64, the frames of the file in which it is there, ascending, from 0."""
    joints_NJ3: np.ndarray
    """float32 [N, 25, 3], metres in the sensor's space, y up."""


@dataclass(frozen=True, eq=False)
class SkeletonFile:
    """One recording."""

    length: int
    """Frames, those without a body too."""
    bodies: dict[str, Body]
    """By id, in order of appearance. Ids are text: they have 17 digits and more, which a float would merge."""


def read_skeleton(file: Path) -> SkeletonFile:
    """Reads a recording.

    Raises:
        ValueError: FILE:LINE of what breaks the format: truncation, wrong counts, fields too many or too few, what is
            no number, is not finite or lies beyond LIMIT_M, an id twice in a frame, text after the last frame.
        OSError: the file cannot be read.
    """
    lines = _Lines(file.read_bytes())
    if not len(lines):
        raise ValueError(f"{file}: must have a number of frames on its first line, is empty; {_WAY_OUT}")
    total = _count(file, lines, 0, "frames")
    if total > len(lines) - 1:
        raise ValueError(f"{file}:1: {total} frames need as many lines, got {len(lines) - 1}; {_WAY_OUT}")

    frames: dict[bytes, list[int]] = {}
    places: dict[bytes, list[int]] = {}  # where among all blocks of joints the body's are
    starts: list[int] = []
    at = 1
    for frame in range(total):
        if at >= len(lines):
            raise ValueError(f"{file}:{at + 1}: ends at frame {frame} of {total}; {_WAY_OUT}")
        bodies = _count(file, lines, at, "bodies")
        at += 1
        if at + bodies * _BODY_LINES > len(lines):
            needed = f"{bodies} bodies need {bodies * _BODY_LINES} lines"
            raise ValueError(f"{file}:{at}: {needed}, {len(lines) - at} are left; {_WAY_OUT}")
        for _ in range(bodies):
            body = _body_id(file, lines, at)
            if lines[at + 1] != _JOINT_COUNT:
                raise ValueError(f"{file}:{at + 2}: bodies must have {JOINTS} joints, got {_shown(lines[at + 1])}")
            seen = frames.setdefault(body, [])
            if seen and seen[-1] == frame:
                raise ValueError(f"{file}:{at + 1}: body {_shown(body)} is twice in frame {frame}; {_WAY_OUT}")
            seen.append(frame)
            places.setdefault(body, []).append(len(starts))
            starts.append(at + 2)
            at += _BODY_LINES
    if at < len(lines):
        raise ValueError(f"{file}:{at + 1}: {total} frames end here, but {len(lines) - at} lines follow; {_WAY_OUT}")

    joints_BJ3 = _joints(file, lines, starts)
    return SkeletonFile(
        total,
        {
            body.decode("ascii"): Body(np.array(frames[body], dtype=np.int64), joints_BJ3[places[body]])
            for body in frames
        },
    )


class _Lines:
    """The lines of a file, with the number of fields of each and where they end, found in one pass."""

    def __init__(self, raw: bytes) -> None:
        text = (raw.replace(b"\r\n", b"\n") if b"\r" in raw else raw).rstrip() + b"\n"
        codes = np.frombuffer(text, dtype=np.uint8)
        space = np.flatnonzero(codes <= 32)
        kind = codes[space]
        if space[0] == 0 or (np.diff(space) == 1).any() or not ((kind == 10) | (kind == 32)).all():
            text = b"".join(b" ".join(line.split()) + b"\n" for line in text.split(b"\n")[:-1])
            codes = np.frombuffer(text, dtype=np.uint8)
            space = np.flatnonzero((codes == 10) | (codes == 32))  # other control characters part no fields
        self.text, self.codes, self.space = text, codes, space
        last = np.flatnonzero(codes[space] == 10)
        self.first_space = np.concatenate([[0], last[:-1] + 1])
        """For each line, the place in `space` of the end of its first field."""
        self.fields = last - self.first_space + 1
        """For each line; 1 for an empty one."""
        self.end = space[last]
        self.start = np.concatenate([[0], self.end[:-1] + 1])
        self._starts, self._ends = self.start.tolist(), self.end.tolist()

    def __len__(self) -> int:
        return len(self._starts) if len(self.text) > 1 else 0

    def __getitem__(self, at: int) -> bytes:
        return self.text[self._starts[at] : self._ends[at]]

    def first_three(self, rows: np.ndarray) -> bytes:
        """The first three fields of some lines, a space after each; the lines must have that many."""
        start = self.start[rows]
        length = self.space[self.first_space[rows] + 2] + 1 - start
        place = np.repeat((start - np.concatenate([[0], np.cumsum(length)[:-1]])).astype(np.int32), length)
        place += np.arange(len(place), dtype=np.int32)
        return self.codes[place].tobytes()


def _count(file: Path, lines: _Lines, at: int, what: str) -> int:
    text = lines[at]
    if not text.isdigit() or len(text) > 9:
        raise ValueError(f"{file}:{at + 1}: must be a number of {what}, got {_shown(lines[at])}; {_WAY_OUT}")
    return int(text)


def _body_id(file: Path, lines: _Lines, at: int) -> bytes:
    fields = lines[at].split()
    if len(fields) != _BODY_FIELDS:
        raise ValueError(
            f"{file}:{at + 1}: a body's line must have {_BODY_FIELDS} fields, got {len(fields)}; {_WAY_OUT}"
        )
    if not fields[0].isdigit():
        raise ValueError(f"{file}:{at + 1}: a body's id must be a number, got {_shown(fields[0])}; {_WAY_OUT}")
    return fields[0]


def _joints(file: Path, lines: _Lines, starts: list[int]) -> np.ndarray:
    """float32 [B, 25, 3]: the joints of the B blocks of lines that begin at `starts`."""
    if not starts:
        return np.zeros((0, JOINTS, 3), dtype=np.float32)
    rows = (np.array(starts)[:, None] + np.arange(JOINTS)).ravel()
    if (wrong := np.flatnonzero(lines.fields[rows] != _JOINT_FIELDS)).size:
        at = int(rows[wrong[0]])
        got = len(lines[at].split())
        raise ValueError(f"{file}:{at + 1}: a joint's line must have {_JOINT_FIELDS} fields, got {got}; {_WAY_OUT}")
    joints = _parse(lines.first_three(rows), 3 * len(rows))
    if joints is None:
        joints = _parse_one_by_one(file, lines, rows)
    within = np.abs(joints) <= LIMIT_M  # false of NaN too
    if not within.all():
        at = int(rows[np.flatnonzero(~within.all(axis=1))[0]])
        raise ValueError(
            f"{file}:{at + 1}: coordinates must be finite and within {LIMIT_M:g} m, got {_shown(lines[at])}; "
            "leave the recording out"
        )
    return joints.astype(np.float32).reshape(len(starts), JOINTS, 3)


def _parse(text: bytes, count: int) -> np.ndarray | None:
    """float64 [rows, 3] of `count` numbers, or None where not all are such."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what is no number older numpy warns, and stops there
        try:
            numbers = np.fromstring(text, dtype=np.float64, sep=" ")
        except ValueError:
            return None
    return numbers.reshape(-1, 3) if len(numbers) == count else None


def _parse_one_by_one(file: Path, lines: _Lines, rows: np.ndarray) -> np.ndarray:
    """The same, slowly; finds the line to blame."""
    found = []
    for at in rows.tolist():
        fields = lines[at].split()[:3]
        try:
            if b"_" in b"".join(fields):  # Python's floats may have them
                raise ValueError("an underscore")
            found.append([float(field) for field in fields])
        except ValueError as error:
            raise ValueError(
                f"{file}:{at + 1}: coordinates must be numbers, got {_shown(lines[at])}; {_WAY_OUT}"
            ) from error
    return np.array(found, dtype=np.float64)


def _shown(text: bytes) -> str:
    return repr(text.strip()[:60].decode("ascii", "backslashreplace"))
