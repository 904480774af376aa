"""Parsers of 2D keypoints in JSON, as pose estimators write them for a video.

MMPose:     [{"frame_id": 0, "instances": [{"keypoints": [[x, y] 17], "keypoint_scores": [17], "track_id": 1}]}], or
            {"meta_info": {...}, "instance_info": [the same]}
COCO:       [{"image_id": "12.jpg", "category_id": 1, "keypoints": [x, y, score, ... 51], "score": 2.5, "idx": 1}], the
            results of COCO's evaluation, which AlphaPose, ViTPose and detectron write
MediaPipe:  [null, [{"x": 0.5, "y": 0.5, "visibility": 0.9} 33], ...]; the 33 may be under "landmark", "landmarks" or
            "pose_landmarks", the frames under "frames", beside "width", "height", "fps". x, y in parts of the image

"width", "height" (pixels) and "fps" are taken from the outermost object or its "meta_info", where there is one. So is
what MMPose says of the joints, "keypoint_id2name" or else "keypoint_name2id" or else "dataset_name": Human3.6M has 17
joints too.
Shape suffixes: D detections of a file, J 17 joints, L 33 landmarks.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.readers.io.files import NUMBERS, load_json
from ups_model.data.readers.keypoints.tracks import JOINTS, Detections, Units
from ups_model.skeletons import get_skeleton

DEFAULT_FPS = 30.0
MAX_BYTES = 128 << 20
MAX_FRAME = 1_000_000
MAX_PERSONS = 200
"""Detections of a frame."""
MAX_PIXELS = 1e6
MAX_PARTS = 100.0
"""Of coordinates in parts of the image: landmarks may be out of it, not a hundred times its size."""
MAX_SCORE = 1000.0
FPS_BOUNDS = (1.0, 1000.0)
LANDMARKS = 33
COCO_LANDMARKS = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
"""MediaPipe's landmark for each joint of COCO: nose, eyes, ears, shoulders, .. ankles, the left one first."""

_MIN_SPARSE_FRAMES = 1000
_MAX_DIGITS = 18
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]*\Z")
_WAY_OUT = "write the file again"
_LANDMARK_KEYS = ("landmark", "landmarks", "pose_landmarks")
_SIDES = {"l_": "left_", "r_": "right_"}
_COCO_NAMES = tuple(_SIDES.get(name[:2], name[:2]) + name[2:] for name in get_skeleton("coco17").joint_names)
_COCO_WAY_OUT = "export COCO's 17 keypoints"


@dataclass
class _Builder:
    """Detections as they are read."""

    file: Path
    frames: set[int] = field(default_factory=set)
    frame: list[int] = field(default_factory=list)
    xy: list[list[float]] = field(default_factory=list)
    score: list[list[float]] = field(default_factory=list)
    person: list[int | None] = field(default_factory=list)
    persons_are_sure: bool = True
    """Whether two detections of a frame must not have one number."""

    def fault(self, key: str, rule: str, got: Any) -> ValueError:
        shown = got if isinstance(got, str) else repr(got)
        return ValueError(f"{self.file}: {key} {rule}, got {shown:.60}; {_WAY_OUT}")

    def add_frame(self, key: str, frame: Any) -> int:
        if type(frame) is not int or not 0 <= frame <= MAX_FRAME:
            raise self.fault(key, f"must be a frame's number in 0..{MAX_FRAME}", frame)
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

    def numbers(self, key: str, values: Any, count: int, bound: float, what: str = "numbers") -> list[float]:
        for index, value in enumerate(self.list_of(key, values, count, what)):
            if type(value) not in NUMBERS or not -bound <= value <= bound:
                raise self.fault(f"{key}[{index}]", f"must be a number within {bound:g}", value)
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
            raise self.fault(key, "must be a whole number", value)
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
            raise self.fault("a frame", f"must have at most {MAX_PERSONS} persons", most)
        persons = [person for index in order_D.tolist() if (person := self.person[index]) is not None]
        numbers: list[int] | None = persons if len(persons) == len(frame_D) else None
        if numbers:
            ((frame, person), times), *_ = Counter(zip(frame_D.tolist(), numbers, strict=True)).most_common(1)
            if times > 1 and self.persons_are_sure:
                raise self.fault(f"frame {frame + first}", "must have each track_id once", f"{person} {times} times")
            numbers = numbers if times == 1 else None
        xy_DJ2 = np.array(self.xy, dtype=np.float64).reshape(-1, JOINTS, 2)[order_D]
        score_DJ = np.array(self.score, dtype=np.float64).reshape(-1, JOINTS)[order_D]
        return Detections(frame_D, xy_DJ2, score_DJ, numbers, length, units, fps, size, first)


def read_json(file: Path) -> Detections:
    """Reads and checks one file; which of the formats it is is told from its first entry.

    Raises:
        ValueError: not one of the formats, or a value breaks a rule; names the file and the key.
        OSError: the file cannot be read.
    """
    content = load_json(file, MAX_BYTES)
    about: dict[str, Any] = {}
    if isinstance(content, dict):
        meta = content.get("meta_info")
        about = {**(meta if isinstance(meta, dict) else {}), **content}
        key = next((key for key in ("instance_info", "frames") if isinstance(content.get(key), list)), None)
        if key is None:
            raise ValueError(f"{file}: an object must have a list under 'instance_info' or 'frames'; is it keypoints?")
        content = content[key]
    if not isinstance(content, list) or not content:
        got = "an empty list" if content == [] else type(content).__name__
        raise ValueError(f"{file}: must hold a list of frames or of detections, got {got}; is it keypoints?")
    read = _format(file, next((entry for entry in content if entry is not None), None))
    if read is not _read_mediapipe:
        _check_joints(file, about)
    size, fps = size_of(file, about), fps_of(file, about)
    builder = _Builder(file)
    read(builder, content)
    units: Units = "pixel"
    if read is _read_mediapipe and size is None:
        units = "normalised"
    elif read is _read_mediapipe and size is not None:
        for xy in builder.xy:
            xy[::2], xy[1::2] = [x * size[0] for x in xy[::2]], [y * size[1] for y in xy[1::2]]
    return builder.detections(units, fps, size)


def size_of(file: Path, about: dict[str, Any]) -> tuple[float, float] | None:
    """Width and height in pixels. Raises ValueError where they are not numbers or one is missing."""
    size: list[Any] = [about.get(key) for key in ("width", "height")]
    if size == [None, None]:
        return None
    for key, value in zip(("width", "height"), size, strict=True):
        if type(value) not in NUMBERS or not 1 <= value <= MAX_PIXELS:
            raise ValueError(f"{file}: {key} must be pixels in 1..{MAX_PIXELS:g}, got {value!r:.60}; {_WAY_OUT}")
    return float(size[0]), float(size[1])


def fps_of(file: Path, about: dict[str, Any]) -> float:
    """Frames per second, 30 where the file does not say. Raises ValueError where it is no number in bounds."""
    fps = about.get("fps", DEFAULT_FPS)
    low, high = FPS_BOUNDS
    if type(fps) not in NUMBERS or not low <= fps <= high:
        raise ValueError(f"{file}: fps must be in {low:g}..{high:g}, got {fps!r:.60}; {_WAY_OUT}")
    return float(fps)


def _check_joints(file: Path, about: dict[str, Any]) -> None:
    """Raises ValueError where the file says that its joints are not COCO's 17 in their order."""
    key = next((key for key in ("keypoint_id2name", "keypoint_name2id") if about.get(key) is not None), None)
    if key is None:
        dataset = about.get("dataset_name")
        if dataset is not None and not (isinstance(dataset, str) and dataset.lower().startswith("coco")):
            raise ValueError(f"{file}: dataset_name must begin with coco, got {dataset!r:.60}; {_COCO_WAY_OUT}")
        return
    names = about[key]
    if isinstance(names, list) and key == "keypoint_id2name":
        names = {str(index): name for index, name in enumerate(names)}
    if not isinstance(names, dict):
        raise ValueError(f"{file}: {key} must hold the names of joints, got {type(names).__name__}; {_COCO_WAY_OUT}")
    pairs = names.items() if key == "keypoint_id2name" else [(str(index), name) for name, index in names.items()]
    by_index = dict(pairs)
    for index, wanted in enumerate(_COCO_NAMES):
        got = by_index.get(str(index))
        if not isinstance(got, str) or _plain(got) != _plain(wanted):
            shown = "none" if got is None else f"{got!r:.60}"
            raise ValueError(f"{file}: {key} must have {wanted} as joint {index}, got {shown}; {_COCO_WAY_OUT}")
    if len(names) != JOINTS:
        other = next((name for index, name in pairs if index not in map(str, range(JOINTS))), "one twice")
        raise ValueError(f"{file}: {key} must have {JOINTS} joints, got {len(names)}, {other!r:.60}; {_COCO_WAY_OUT}")


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace(" ", "")


def _format(file: Path, first: Any) -> Callable[[_Builder, list[Any]], None]:
    if isinstance(first, dict):
        if "instances" in first:
            return _read_mmpose
        if "image_id" in first and "keypoints" in first:
            return _read_coco
        if any(key in first for key in _LANDMARK_KEYS):
            return _read_mediapipe
        what = f"keys {', '.join(first)}"
    elif first is None or isinstance(first, list):
        return _read_mediapipe
    else:
        what = type(first).__name__
    raise ValueError(
        f"{file}: entries must be MMPose's (instances), COCO results (image_id, keypoints) or MediaPipe's (landmarks), "
        f"got {what:.100}; is it keypoints?"
    )


def _read_mmpose(builder: _Builder, entries: list[Any]) -> None:
    for number, entry in enumerate(entries):
        key = f"[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("instances"), list):
            raise builder.fault(key, "must be an object with a list under 'instances'", type(entry).__name__)
        before = len(builder.frames)
        frame = builder.add_frame(f"{key}.frame_id", entry.get("frame_id", number))
        if len(builder.frames) == before:
            raise builder.fault(f"{key}.frame_id", "must stand once", frame)
        for index, person in enumerate(entry["instances"]):
            where = f"{key}.instances[{index}]"
            points = builder.object_of(where, person).get("keypoints")
            xy = []
            for joint, point in enumerate(
                builder.list_of(f"{where}.keypoints", points, JOINTS, "points, those of COCO")
            ):
                xy += builder.numbers(f"{where}.keypoints[{joint}]", point, 2, MAX_PIXELS)
            scores = person.get("keypoint_scores")
            builder.numbers(f"{where}.keypoint_scores", scores, JOINTS, MAX_SCORE, "scores")
            builder.add(frame, xy, scores, builder.person_of(f"{where}.track_id", person.get("track_id")))


def _read_coco(builder: _Builder, entries: list[Any]) -> None:
    videos: dict[str, str] = {}
    for number, entry in enumerate(entries):
        key = f"[{number}]"
        if (category := builder.object_of(key, entry).get("category_id", 1)) != 1 or isinstance(category, bool):
            raise builder.fault(f"{key}.category_id", "must be 1, a person", category)
        image, video = entry.get("image_id"), ""
        if isinstance(image, str):
            image, video = _number_in(builder, f"{key}.image_id", image)
        videos.setdefault(video, key)
        if len(videos) > 1:
            names = " and ".join(f"{name!r:.40}" for name in videos)
            raise builder.fault(f"{key}.image_id", "must be of one video; part the file by video", names)
        frame = builder.add_frame(f"{key}.image_id", image)
        values = builder.numbers(f"{key}.keypoints", entry.get("keypoints"), 3 * JOINTS, MAX_PIXELS)
        scores = builder.numbers(f"{key}.keypoints' scores", values[2::3], JOINTS, MAX_SCORE, "scores")
        xy = [value for joint in range(JOINTS) for value in values[3 * joint : 3 * joint + 2]]
        if "track_id" not in entry and "idx" in entry:
            # AlphaPose writes idx without tracking too, the same for all.
            builder.persons_are_sure = False
        who = builder.person_of(f"{key}.track_id or idx", entry.get("track_id", entry.get("idx")))
        builder.add(frame, xy, scores, who)


def _number_in(builder: _Builder, key: str, image: str) -> tuple[int, str]:
    """The number in which text ends, but for a suffix, and what is before it."""
    stem = _SUFFIX.sub("", image)
    video = stem.rstrip(string.digits)
    digits = stem[len(video) :]
    if not digits:
        raise builder.fault(key, "must be a number, or text that ends in one, such as 12.jpg", image)
    if len(digits) > _MAX_DIGITS:
        raise builder.fault(key, f"must have a number of at most {_MAX_DIGITS} digits", image)
    return int(digits), video


def _visibility(landmark: dict[str, Any]) -> Any:
    """1 where it is absent or null, as interfaces write it that do not estimate it."""
    value = landmark.get("visibility")
    return 1.0 if value is None else value


def _read_mediapipe(builder: _Builder, entries: list[Any]) -> None:
    for number, entry in enumerate(entries):
        key = f"[{number}]"
        frame = builder.add_frame(key, number)
        for name in (*_LANDMARK_KEYS, *_LANDMARK_KEYS):  # {"pose_landmarks": {"landmark": [...]}} too
            if isinstance(entry, dict) and name in entry:
                entry, key = entry[name], f"{key}.{name}"
        if entry is None or entry == []:
            continue
        if not isinstance(entry, list):
            raise builder.fault(key, f"must be null or a list of {LANDMARKS} landmarks", type(entry).__name__)
        several = isinstance(entry[0], list)  # The newer interface gives a list for each person.
        for index, person in enumerate(entry if several else [entry]):
            where = f"{key}[{index}]" if several else key
            xy, scores = [], []
            landmarks = builder.list_of(where, person, LANDMARKS, "landmarks, those of MediaPipe's pose")
            for index_L, landmark in enumerate(landmarks):
                place = f"{where}[{index_L}]"
                point = builder.object_of(place, landmark, "object with x and y")
                xy.append(builder.numbers(f"{place}.xy", [point.get("x"), point.get("y")], 2, MAX_PARTS))
                scores += builder.numbers(f"{place}.visibility", [_visibility(point)], 1, MAX_SCORE)
            in_coco = [value for landmark in COCO_LANDMARKS for value in xy[landmark]]
            builder.add(frame, in_coco, [scores[landmark] for landmark in COCO_LANDMARKS], None)
