"""Detections as a parser collects them, with checks of every value.

Shape suffixes: D detections of a file, J 17 joints.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.readers.io.files import NUMBERS, checked_fps
from ups_model.data.readers.keypoints.tracks import JOINTS, Detections, Units
from ups_model.wording import count

DEFAULT_FPS = 30.0
MAX_FRAME = 1_000_000
MAX_PERSONS = 200
"""Detections of a frame."""
MAX_PIXELS = 1e6
MAX_SCORE = 1000.0
WAY_OUT = "write the file again"

_MIN_SPARSE_FRAMES = 1000
_MAX_LISTED = 5


@dataclass
class Builder:
    """Detections as they are read."""

    file: Path
    frames: set[int] = field(default_factory=set)
    frame: list[int] = field(default_factory=list)
    xy: list[list[float]] = field(default_factory=list)
    score: list[list[float]] = field(default_factory=list)
    person: list[int | None] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    """Names of objects that are no persons."""
    notes: list[str] = field(default_factory=list)
    persons_are_sure: bool = True
    """Whether two detections of a frame must not have one number."""

    def fault(self, key: str, rule: str, got: str) -> ValueError:
        return ValueError(f"{self.file}: {key} {rule}, got {got:.60}; {WAY_OUT}")

    def value_fault(self, key: str, rule: str, value: Any) -> ValueError:
        """`fault` of a value of the file, which is quoted with its type: '1' is no 1."""
        return self.fault(key, rule, repr(value))

    def add_frame(self, key: str, frame: Any, once: str = "") -> int:
        """`once` is the rule for a frame that must not be there already; none where it may."""
        if type(frame) is not int or not 0 <= frame <= MAX_FRAME:
            raise self.value_fault(key, f"must be a frame's number in 0..{MAX_FRAME}", frame)
        if once and frame in self.frames:
            raise self.value_fault(key, once, frame)
        self.frames.add(frame)
        return frame

    def add(self, frame: int, xy: list[float], score: list[float], person: int | None) -> None:
        self.frame.append(frame)
        self.xy.append(xy)
        self.score.append(score)
        self.person.append(person)

    def list_of(self, key: str, values: Any, count: int, what: str) -> list[Any]:
        if not isinstance(values, list) or len(values) != count:
            got = f"{len(values)} of them" if isinstance(values, list) else type(values).__name__
            raise self.fault(key, f"must have {count} {what}", got)
        return values

    def joints_of(
        self, key: str, values: Any, layouts: Mapping[int, Sequence[int]], rule: str, width: int = 1
    ) -> Sequence[int]:
        """Which joints of a list are COCO's; `width` values of the list are a joint."""
        count, odd = divmod(len(values), width) if isinstance(values, list) else (-1, 0)
        if count not in layouts or odd:
            got = f"{len(values)} of them" if isinstance(values, list) else type(values).__name__
            shown = f"numbers, {width} for each of {rule}" if width > 1 else rule
            raise self.fault(key, f"must have {shown}", got)
        return layouts[count]

    def add_triples(
        self, frame: int, key: str, values: Any, layouts: Mapping[int, Sequence[int]], rule: str, person: int | None
    ) -> None:
        """A person as x, y and score of each joint in one list."""
        kept = self.joints_of(key, values, layouts, rule, 3)
        self.numbers(key, values, len(values), MAX_PIXELS)
        self.numbers(f"{key}' scores", values[2::3], len(values) // 3, MAX_SCORE, "scores")
        xy = [value for joint in kept for value in values[3 * joint : 3 * joint + 2]]
        self.add(frame, xy, [values[3 * joint + 2] for joint in kept], person)

    def numbers(self, key: str, values: Any, count: int, bound: float, what: str = "numbers") -> list[float]:
        for index, value in enumerate(self.list_of(key, values, count, what)):
            if type(value) not in NUMBERS or not -bound <= value <= bound:
                raise self.value_fault(f"{key}[{index}]", f"must be a number within {bound:g}", value)
        return values

    def object_of(self, key: str, value: Any, what: str = "object") -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fault(key, f"must be an {what}", type(value).__name__)
        return value

    def person_of(self, key: str, value: Any) -> int | None:
        """A person's number; None where there is none, which trackers write as -1 too."""
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value is None:
            return None
        if type(value) not in NUMBERS or not -(2**53) <= value <= 2**53 or value != int(value):
            raise self.value_fault(key, "must be a whole number", value)
        return int(value) if value >= 0 else None

    def detections(self, units: Units, fps: float, size: tuple[float, float] | None) -> Detections:
        """What was added, in the order of frames. ValueError where frames or persons break a rule."""
        first, last = min(self.frames), max(self.frames)
        length = last - first + 1
        if length > _MIN_SPARSE_FRAMES and len(self.frames) < length / 100:
            rule = f"must follow one another, {len(self.frames)} frames are there"
            raise self.fault("frames", rule, f"numbers {first}..{last}")
        frame_D = np.array(self.frame, dtype=np.int64)
        order_D = np.argsort(frame_D, kind="stable")
        frame_D = frame_D[order_D] - first
        if len(frame_D) and (most := int(np.bincount(frame_D).max())) > MAX_PERSONS:
            raise self.value_fault("a frame", f"must have at most {MAX_PERSONS} persons", most)
        persons = [person for index in order_D.tolist() if (person := self.person[index]) is not None]
        numbers: list[int] | None = persons if len(persons) == len(frame_D) else None
        if numbers:
            ((frame, person), times), *_ = Counter(zip(frame_D.tolist(), numbers, strict=True)).most_common(1)
            if times > 1 and self.persons_are_sure:
                raise self.fault(f"frame {frame + first}", "must have each track_id once", f"{person} {times} times")
            numbers = numbers if times == 1 else None
        xy_DJ2 = np.array(self.xy, dtype=np.float64).reshape(-1, JOINTS, 2)[order_D]
        score_DJ = np.array(self.score, dtype=np.float64).reshape(-1, JOINTS)[order_D]
        notes = list(self.notes)
        if self.others:
            what = ", ".join(f"{name!r:.60}" for name in sorted(self.others)[:_MAX_LISTED])
            notes.append(f"no persons, by their names: {count(self.others.total(), 'object')} named {what}")
        return Detections(frame_D, xy_DJ2, score_DJ, numbers, length, units, fps, size, first, tuple(notes))


def size_of(file: Path, about: dict[str, Any]) -> tuple[float, float] | None:
    """Width and height in pixels. Raises ValueError where they are not numbers or one is missing."""
    size: list[Any] = [about.get(key) for key in ("width", "height")]
    if size == [None, None]:
        return None
    for key, value in zip(("width", "height"), size, strict=True):
        if type(value) not in NUMBERS or not 1 <= value <= MAX_PIXELS:
            raise ValueError(f"{file}: {key} must be pixels in 1..{MAX_PIXELS:g}, got {value!r:.60}; {WAY_OUT}")
    return float(size[0]), float(size[1])


def fps_of(file: Path, about: dict[str, Any]) -> float:
    """Frames per second, 30 where the file does not say. Raises ValueError where it is no number in bounds."""
    return checked_fps(file, about.get("fps", DEFAULT_FPS), WAY_OUT)
