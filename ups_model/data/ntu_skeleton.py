"""The `.skeleton` text files of NTU RGB+D: Kinect v2 bodies, 25 joints each, frame by frame.

    numFrames
      numBodies                        of a frame; 0 where the sensor tracks nobody
        bodyID clippedEdges ... trackingState         10 fields
        25
        x y z depthX depthY colorX colorY qW qX qY qZ trackingState     12 fields, 25 lines

A set has 57 or 114 thousand such files, so lines are counted and checked in bulk, and numpy parses the three fields of
25 that are kept. Where a bulk check fails, the lines are gone through one by one to accept unusual spacing or to find
the line to blame.

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
_ODD_SPACING = (b"  ", b" \n", b" \r", b"\n ", b"\t")  # with these, counting spaces does not count fields
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
    raw = file.read_bytes()
    lines = raw.split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
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
            if lines[at + 1] != _JOINT_COUNT and lines[at + 1].strip() != _JOINT_COUNT:
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

    joints_BJ3 = _joints(file, lines, starts, plain=not any(odd in raw for odd in _ODD_SPACING))
    return SkeletonFile(
        total,
        {
            body.decode("ascii"): Body(np.array(frames[body], dtype=np.int64), joints_BJ3[places[body]])
            for body in frames
        },
    )


def _count(file: Path, lines: list[bytes], at: int, what: str) -> int:
    text = lines[at].strip()
    if not text.isdigit() or len(text) > 9:
        raise ValueError(f"{file}:{at + 1}: must be a number of {what}, got {_shown(lines[at])}; {_WAY_OUT}")
    return int(text)


def _body_id(file: Path, lines: list[bytes], at: int) -> bytes:
    fields = lines[at].split()
    if len(fields) != _BODY_FIELDS:
        raise ValueError(
            f"{file}:{at + 1}: a body's line must have {_BODY_FIELDS} fields, got {len(fields)}; {_WAY_OUT}"
        )
    if not fields[0].isdigit():
        raise ValueError(f"{file}:{at + 1}: a body's id must be a number, got {_shown(fields[0])}; {_WAY_OUT}")
    return fields[0]


def _joints(file: Path, lines: list[bytes], starts: list[int], plain: bool) -> np.ndarray:
    """float32 [B, 25, 3]: the joints of the B blocks of lines that begin at `starts`."""
    joint_lines = [line for start in starts for line in lines[start : start + JOINTS]]
    joints = None
    if plain and {line.count(b" ") for line in joint_lines} == {_JOINT_FIELDS - 1}:
        joints = _parse([line.split(b" ", 3) for line in joint_lines])
    if joints is None:
        joints = _parse_one_by_one(file, lines, starts)
    # Not <= is also true of NaN.
    if not (np.abs(joints) <= LIMIT_M).all():
        row = int(np.flatnonzero(~(np.abs(joints) <= LIMIT_M).all(axis=1))[0])
        line = starts[row // JOINTS] + row % JOINTS
        raise ValueError(
            f"{file}:{line + 1}: coordinates must be finite and within {LIMIT_M:g} m, got {_shown(lines[line])}; "
            "leave the recording out"
        )
    return joints.astype(np.float32).reshape(len(starts), JOINTS, 3)


def _parse(fields: list[list[bytes]]) -> np.ndarray | None:
    """float64 [rows, 3]: the first three fields of each row, or None where not all are numbers of plain spacing."""
    text = b" ".join([b" ".join(row[:3]) for row in fields])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what is no number older numpy warns, and stops there
        try:
            numbers = np.fromstring(text, dtype=np.float64, sep=" ")
        except ValueError:
            return None
    return numbers.reshape(-1, 3) if len(numbers) == 3 * len(fields) else None


def _parse_one_by_one(file: Path, lines: list[bytes], starts: list[int]) -> np.ndarray:
    rows = []
    for start in starts:
        for at in range(start, start + JOINTS):
            fields = lines[at].split()
            if len(fields) != _JOINT_FIELDS:
                raise ValueError(
                    f"{file}:{at + 1}: a joint's line must have {_JOINT_FIELDS} fields, got {len(fields)}; {_WAY_OUT}"
                )
            try:
                if b"_" in b"".join(fields[:3]):  # Python's floats may have them
                    raise ValueError("an underscore")
                rows.append([float(field) for field in fields[:3]])
            except ValueError as error:
                raise ValueError(
                    f"{file}:{at + 1}: coordinates must be numbers, got {_shown(lines[at])}; {_WAY_OUT}"
                ) from error
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def _shown(text: bytes) -> str:
    return repr(text.strip()[:60].decode("ascii", "backslashreplace"))
