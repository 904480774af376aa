"""Detections that come frame by frame: OpenPose's JSON, a file a frame, and Ultralytics' (YOLO) results.

OpenPose     {"version": 1.3, "people": [{"person_id": [-1], "pose_keypoints_2d": [x, y, score, ... 75 or 54]}]} in
             VIDEO_000000000012_keypoints.json: the number before _keypoints is the frame, what is before it the video.
             Coordinates of keypoint_scale 0 (pixels) and 3 (parts of the image) are read
Ultralytics  [[{"name": "person", "box": {...}, "track_id": 1, "keypoints": {"x": [17], "y": [17], "visible": [17]}}],
             ...], each frame as `Results.to_json()` gives it, as text too; of an image the list of its persons. Who is
             named otherwise than person is none. Coordinates may be normalised
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from ups_model.data.readers.io.files import load_json
from ups_model.data.readers.keypoints.builder import DEFAULT_FPS, MAX_PIXELS, MAX_SCORE, Builder
from ups_model.data.readers.keypoints.layouts import COCO_FIRST, COCO_RULE, OPENPOSE, OPENPOSE_RULE
from ups_model.data.readers.keypoints.tracks import Detections

MAX_FRAME_BYTES = 16 << 20
_FRAME_FILE = re.compile(r"(?P<video>.*?)[_-]?(?P<frame>[0-9]{1,18})_keypoints\.json", re.IGNORECASE)


def clip_of_frame(path: PurePosixPath) -> PurePosixPath:
    """The path, with a suffix, of the clip that a file is a frame of: VIDEO.json beside it, or its folder's where the
    name is a number alone (frames.json where it is in no folder). Of any other file the path itself."""
    match = _FRAME_FILE.fullmatch(path.name)
    if match is None:
        return path
    if match["video"] or not path.parent.name:
        return path.with_name(f"{match['video'] or 'frames'}.json")
    return path.parent.with_name(f"{path.parent.name}.json")


def frame_of_name(file: PurePath) -> int:
    """The frame that the name of one of OpenPose's files tells; 0 for any other file."""
    match = _FRAME_FILE.fullmatch(file.name)
    return int(match["frame"]) if match else 0


def read_frames(files: Sequence[Path]) -> Detections:
    """A video whose frames are files. ValueError names one that is not OpenPose's, or is of another one's frame."""
    builder = Builder(files[0].parent)
    for file in sorted(files, key=lambda file: (frame_of_name(file), file.name)):
        builder.file = file
        content = load_json(file, MAX_FRAME_BYTES)
        if not isinstance(content, dict) or not isinstance(content.get("people"), list):
            raise ValueError(
                f"{file}: must be an object with a list under 'people', as OpenPose writes; is it another's?"
            )
        frame = builder.add_frame("the file's name", frame_of_name(file), once="must have a number of its own")
        add_people(builder, frame, content["people"])
    builder.file = files[0]
    return builder.detections("pixel", DEFAULT_FPS, None)


def add_people(builder: Builder, frame: int, people: list[Any]) -> None:
    """OpenPose's persons of a frame; those without a body (hands or a face alone) are none."""
    for index, person in enumerate(people):
        where = f"people[{index}]"
        person = builder.object_of(where, person)
        name = "pose_keypoints_2d" if "pose_keypoints_2d" in person else "pose_keypoints"
        if person.get(name) == []:
            continue
        who = builder.person_of(f"{where}.person_id", person.get("person_id"))
        builder.add_triples(frame, f"{where}.{name}", person.get(name), OPENPOSE, OPENPOSE_RULE, who)


def is_box(entry: object) -> bool:
    """Whether an entry is one of Ultralytics, with keypoints or without."""
    return isinstance(entry, dict) and isinstance(entry.get("box"), dict)


def is_other_object(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of Ultralytics is something else than a person."""
    name, of_ultralytics = entry.get("name"), is_box(entry) or isinstance(entry.get("keypoints"), dict)
    return of_ultralytics and isinstance(name, str) and name.lower() != "person"


def add_ultralytics(builder: Builder, frame: int, where: str, person: dict[str, Any]) -> None:
    """A person of Ultralytics. Joints without `visible` are seen but at 0, 0, where they are put that are not."""
    points = person["keypoints"]
    kept = builder.joints_of(f"{where}.keypoints.x", points.get("x"), COCO_FIRST, COCO_RULE)
    count = len(points["x"])
    x, y = (builder.numbers(f"{where}.keypoints.{axis}", points.get(axis), count, MAX_PIXELS) for axis in "xy")
    scores = points.get("visible")
    if scores is None:
        scores = [float(place != (0, 0)) for place in zip(x, y, strict=True)]
    builder.numbers(f"{where}.keypoints.visible", scores, count, MAX_SCORE, "scores")
    who = builder.person_of(f"{where}.track_id", person.get("track_id"))
    builder.add(frame, [axis[joint] for joint in kept for axis in (x, y)], [scores[joint] for joint in kept], who)
