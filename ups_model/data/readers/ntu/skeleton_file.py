"""The `.skeleton` text files of NTU RGB+D: Kinect v2 bodies, 25 joints each, frame by frame.

    numFrames
      numBodies                        of a frame; 0 where the sensor tracks nobody
        bodyID clippedEdges ... trackingState         10 fields
        25
        x y z depthX depthY colorX colorY qW qX qY qZ trackingState     12 fields, 25 lines

A set has 57 or 114 thousand such files, so fields are counted in bulk, only the coordinates are parsed, and a frame
that is like the one before it, in its lines and bodies, is compared with it rather than gone through. Where that fails,
lines are gone through one by one to find the one to blame.

Shape suffixes: N frames in which a body is seen, J joints (25), B blocks of joints, R lines, L characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ups_model.data.readers.io.decimals import parse_decimals

JOINTS = 25
LIMIT_M = 100.0
"""Farthest coordinate from the sensor, metres, that is taken for one: Kinect v2 sees 8 m."""

_BODY_FIELDS, _JOINT_FIELDS = 10, 12
_BODY_LINES = 2 + JOINTS
_JOINT_COUNT = b"%d" % JOINTS
_RUN = 128
"""Frames that are compared with one before them at once."""
_SHORT, _PAUSE = 5, 16
"""After fewer than `_SHORT` equal frames none are compared for `_PAUSE`: it costs more where bodies come and go."""
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

    seen: dict[bytes, list[_Seen]] = {}
    starts: list[np.ndarray] = []
    blocks, frame, at, pause = 0, 0, 1, 0
    while frame < total:
        ids = _frame(file, lines, at, frame, total)
        repeats = 1
        if ids and not pause:
            repeats += _alike(lines, at, ids, total - frame - 1)
            pause = _PAUSE if repeats < _SHORT else 0
        elif pause:
            pause -= 1
        step_N = np.arange(repeats)
        for place, body in enumerate(ids):
            seen.setdefault(body, []).append(_Seen(frame + step_N, blocks + place + len(ids) * step_N))
        size = 1 + len(ids) * _BODY_LINES
        if ids:
            starts.append((at + 3 + size * step_N[:, None] + _BODY_LINES * np.arange(len(ids))).ravel())
        blocks += repeats * len(ids)
        frame += repeats
        at += repeats * size
    if at < len(lines):
        raise ValueError(f"{file}:{at + 1}: {total} frames end here, but {len(lines) - at} lines follow; {_WAY_OUT}")

    joints_BJ3 = _joints(file, lines, starts)
    bodies = {}
    for body, runs in seen.items():
        frames_N = np.concatenate([run.frames_N for run in runs])
        # With one body all the blocks are its own, in order.
        joints_NJ3 = joints_BJ3 if len(seen) == 1 else joints_BJ3[np.concatenate([run.blocks_N for run in runs])]
        bodies[body.decode("ascii")] = Body(frames_N, joints_NJ3)
    return SkeletonFile(total, bodies)


class _Seen(NamedTuple):
    """A body over a run of frames."""

    frames_N: np.ndarray
    blocks_N: np.ndarray
    """Where among all blocks of joints the body's are."""


class _Lines:
    """The lines of a file, with the number of fields of each and where they end, found in one pass."""

    def __init__(self, raw: bytes) -> None:
        text = raw
        if b"\r" in raw or raw[-1:] != b"\n" or raw[-2:-1].isspace():  # else spared: a copy costs as much as a search
            text = raw.replace(b"\r\n", b"\n").rstrip() + b"\n"
        codes = np.frombuffer(text, dtype=np.uint8)
        is_space = codes <= 32
        space = np.flatnonzero(is_space)
        kind = codes.take(space)
        is_end = kind == 10
        if is_space[0] or (is_space[1:] & is_space[:-1]).any() or not (is_end | (kind == 32)).all():
            text = b"".join(b" ".join(line.split()) + b"\n" for line in text.split(b"\n")[:-1])
            codes = np.frombuffer(text, dtype=np.uint8)
            space = np.flatnonzero((codes == 10) | (codes == 32))  # other control characters part no fields
            is_end = codes.take(space) == 10
        self.text, self.codes, self.space = text, codes, space
        last = np.flatnonzero(is_end)
        self.first_space = np.concatenate([[0], last[:-1] + 1])
        """For each line, the place in `space` of the end of its first field."""
        self.fields = last - self.first_space + 1
        """For each line; 1 for an empty one."""
        self.end = space[last]
        self.start = np.concatenate([[0], self.end[:-1] + 1])

    def __len__(self) -> int:
        return len(self.start) if len(self.text) > 1 else 0

    def __getitem__(self, at: int) -> bytes:
        return self.text[self.start[at] : self.end[at]]

    def are(self, at_N: np.ndarray, text: bytes, first_field: bool = False) -> np.ndarray:
        """bool [N]: which of some lines are `text`, or have it as their first field."""
        start_N = self.start[at_N]
        end_N = self.space[self.first_space[at_N]] if first_field else self.end[at_N]
        same_N = end_N - start_N == len(text)
        wanted = np.frombuffer(text, dtype=np.uint8)
        places_NL = start_N[:, None] + np.arange(len(text))
        return same_N & (self.codes.take(places_NL, mode="clip") == wanted).all(axis=1)

    def first_three(self, rows_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the first three fields of some lines begin and end, [3, R] each; the lines must have that many."""
        space_R = self.first_space.take(rows_R)
        end_3R = np.stack([self.space.take(space_R + field) for field in range(3)])
        start_3R = np.concatenate([self.start.take(rows_R)[None], end_3R[:2] + 1])
        return start_3R, end_3R


def _frame(file: Path, lines: _Lines, at: int, frame: int, total: int) -> list[bytes]:
    """The ids of the bodies of the frame whose first line is `at`; everything but its joints is checked."""
    if at >= len(lines):
        raise ValueError(f"{file}:{at + 1}: ends at frame {frame} of {total}; {_WAY_OUT}")
    bodies = _count(file, lines, at, "bodies")
    at += 1
    if at + bodies * _BODY_LINES > len(lines):
        needed = f"{bodies} bodies need {bodies * _BODY_LINES} lines"
        raise ValueError(f"{file}:{at}: {needed}, {len(lines) - at} are left; {_WAY_OUT}")
    ids: dict[bytes, None] = {}
    for _ in range(bodies):
        body = _body_id(file, lines, at)
        if lines[at + 1] != _JOINT_COUNT:
            raise ValueError(f"{file}:{at + 2}: bodies must have {JOINTS} joints, got {_shown(lines[at + 1])}")
        if body in ids:
            raise ValueError(f"{file}:{at + 1}: body {_shown(body)} is twice in frame {frame}; {_WAY_OUT}")
        ids[body] = None
        at += _BODY_LINES
    return list(ids)


def _alike(lines: _Lines, at: int, ids: Sequence[bytes], most: int) -> int:
    """How many of the frames after that at `at`, in a row, have the same bodies, on lines of the form that was checked.

    The first one that differs in anything ends the run, and is looked at as a frame of its own.
    """
    size = 1 + len(ids) * _BODY_LINES
    most = min(most, (len(lines) - at) // size - 1, _RUN)
    at_N = at + size * np.arange(1, most + 1)
    same_N = lines.are(at_N, lines[at])
    for body in ids:
        same_N &= (lines.fields[at_N + 1] == _BODY_FIELDS) & lines.are(at_N + 1, body, first_field=True)
        same_N &= lines.are(at_N + 2, _JOINT_COUNT)
        at_N = at_N + _BODY_LINES
    return most if same_N.all() else int(same_N.argmin())


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


def _joints(file: Path, lines: _Lines, starts: list[np.ndarray]) -> np.ndarray:
    """float32 [B, 25, 3]: the joints of the B blocks of lines that begin at `starts`."""
    if not starts:
        return np.zeros((0, JOINTS, 3), dtype=np.float32)
    rows = (np.concatenate(starts)[:, None] + np.arange(JOINTS)).ravel()
    if (wrong := np.flatnonzero(lines.fields[rows] != _JOINT_FIELDS)).size:
        at = int(rows[wrong[0]])
        got = len(lines[at].split())
        raise ValueError(f"{file}:{at + 1}: a joint's line must have {_JOINT_FIELDS} fields, got {got}; {_WAY_OUT}")
    start_3R, end_3R = lines.first_three(rows)
    numbers, plain = parse_decimals(lines.codes, start_3R.ravel(), end_3R.ravel())
    joints = numbers.reshape(3, -1).T
    if not plain.all():
        odd = np.flatnonzero(~plain.reshape(3, -1).all(axis=0))
        joints[odd] = _parse(file, lines, rows[odd])
    within = np.abs(joints) <= LIMIT_M  # false of NaN too
    if not within.all():
        at = int(rows[np.flatnonzero(~within.all(axis=1))[0]])
        raise ValueError(
            f"{file}:{at + 1}: coordinates must be finite and within {LIMIT_M:g} m, got {_shown(lines[at])}; "
            "leave the recording out"
        )
    return joints.astype(np.float32, order="C").reshape(-1, JOINTS, 3)


def _parse(file: Path, lines: _Lines, rows: np.ndarray) -> np.ndarray:
    """float64 [R, 3]: coordinates of any form, one by one; finds the line to blame."""
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
