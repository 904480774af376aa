"""Parsers of 2D keypoints in JSON, as pose estimators write them for a video or an image.

MMPose 1.x   [{"frame_id": 0, "instances": [PERSON]}], or {"meta_info": {...}, "instance_info": [the same]}; of an image
             [PERSON]. PERSON is {"keypoints": [[x, y] 17], "keypoint_scores": [17], "track_id": 1}
MMPose 0.x   [[PERSON], [], ...], a list a frame; of an image [PERSON]. PERSON is {"keypoints": [[x, y, score] 17]}
COCO         [{"image_id": "12.jpg", "category_id": 1, "keypoints": [x, y, score, ... 51], "score": 2.5, "idx": 1}], the
             results of COCO's evaluation, which AlphaPose, ViTPose and detectron write; or annotations, {"images":
             [...], "annotations": [{"image_id": 12, "keypoints": [x, y, visibility, ... 51]}]}
MediaPipe    `landmarks`; the frames may be under "frames", beside "width", "height", "fps"
OpenPose     `per_frame`, a file a frame
Ultralytics  `per_frame`

17 joints are COCO's; of 26, 133 and 136 the first 17 are (`layouts`). "width", "height" (pixels) and "fps" are taken
from the outermost object or its "meta_info", where there is one. So is what MMPose says of the joints,
"keypoint_id2name" or else "keypoint_name2id" or else "dataset_name": Human3.6M has 17 joints too.
"""

import re
import string
from pathlib import Path
from typing import Any

from ups_model.data.readers.io.files import load_json, parse_json
from ups_model.data.readers.keypoints import per_frame
from ups_model.data.readers.keypoints.builder import MAX_PIXELS, MAX_SCORE, Builder, fps_of, size_of
from ups_model.data.readers.keypoints.landmarks import LANDMARK_KEYS, read_landmarks
from ups_model.data.readers.keypoints.layouts import CATEGORY_KEY, COCO_FIRST, COCO_RULE, check_joints
from ups_model.data.readers.keypoints.tracks import Detections, Units

MAX_BYTES = 128 << 20
MAX_IMAGE_PERSONS = 10
"""Of Ultralytics in a list without frames: more are taken for those of a video's frames end to end."""

_MAX_DIGITS = 18
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]*\Z")
_LISTS = ("instance_info", "frames", "annotations", "people")


def read_json(file: Path) -> Detections:
    """Reads and checks one file, whose first entry tells the format. ValueError names file and key at fault."""
    content = load_json(file, MAX_BYTES)
    builder, about, key = Builder(file), {}, ""
    if isinstance(content, dict):
        meta = content.get("meta_info")
        about = {**(meta if isinstance(meta, dict) else {}), **content}
        key = next((key for key in _LISTS if isinstance(content.get(key), list)), "")
        if not key:
            raise ValueError(f"{file}: an object must have a list under {' or '.join(_LISTS)}; is it keypoints?")
        content = content[key]
    if not isinstance(content, list) or not (content or key == "people"):
        got = "an empty list" if content == [] else type(content).__name__
        raise ValueError(f"{file}: must hold a list of frames or of detections, got {got}; is it keypoints?")
    content = [_unpacked(f"{file}[{index}]", entry) for index, entry in enumerate(content)]
    form = {"annotations": "COCO", "people": "OpenPose"}.get(key) or _form(file, content)
    if key == "annotations":
        about |= _images_about(builder, about)
    if form != "MediaPipe":
        check_joints(file, about)
    size, fps = size_of(file, about), fps_of(file, about)
    units = _read(builder, form, content, about["images"] if key == "annotations" else None)
    return builder.detections(units, fps, size)


def _unpacked(where: str, entry: Any) -> Any:
    """An entry, or what it holds where it is JSON in a text, as `Results.to_json()` of Ultralytics gives it."""
    return parse_json(where, entry) if isinstance(entry, str) and entry.lstrip().startswith(("[", "{")) else entry


def _read(builder: Builder, form: str, content: list[Any], images: Any) -> Units:
    """Adds the content of a file, and tells the units, which `image` may tell to be others."""
    if form == "MediaPipe":
        read_landmarks(builder, content)
        return "normalised"
    if form == "COCO":
        _read_coco(builder, content, images)
    elif form == "instances":
        _read_instances(builder, content)
    elif form == "OpenPose":
        frame = builder.add_frame("the file's name", per_frame.frame_of_name(builder.file))
        per_frame.add_people(builder, frame, content)
    else:  # Persons of an image, or of each frame.
        frames = [(number, persons, f"[{number}]") for number, persons in enumerate(content)]
        if form == "image":
            frames = [(per_frame.frame_of_name(builder.file), content, "")]
        for number, persons, key in frames:
            frame = builder.add_frame(key or "the file's name", number)
            if not isinstance(persons, list | None):
                raise builder.fault(key, "must be a list of persons", type(persons).__name__)
            for index, person in enumerate(persons or ()):
                _add_person(builder, frame, f"{key}[{index}]", person)
        if form == "image":
            _check_image(builder, content)
    if builder.others and not builder.frame:
        raise builder.value_fault("name", "must be person somewhere", min(builder.others))
    return "pixel"


def _check_image(builder: Builder, persons: list[Any]) -> None:
    """Notes how many persons of Ultralytics an image has; ValueError where they must be those of several images."""
    count = len(builder.frame)
    if any(isinstance(person["keypoints"], dict) for person in persons if "keypoints" in person):
        if count > MAX_IMAGE_PERSONS:
            rule = f"a list of persons is one image, which must have at most {MAX_IMAGE_PERSONS}"
            way_out = "write a list for each frame, [[PERSON, ..], ..], as for one image of so many"
            raise ValueError(f"{builder.file}: {rule}, got {count}; {way_out}")
        if count > 1:
            builder.notes.append(f"{count} persons, in one list, so all are of one image")


def _form(file: Path, content: list[Any]) -> str:
    """What the first entry that is not empty is."""
    first = next((entry for entry in content if entry not in (None, [])), None)
    if isinstance(first, dict):
        if "instances" in first:
            return "instances"
        if "image_id" in first and "keypoints" in first:
            return "COCO"
        if any(key in first for key in LANDMARK_KEYS):
            return "MediaPipe"
        if "keypoints" in first or (per_frame.is_box(first) and _have_keypoints(file, content)):
            return "image"
        what = f"keys {', '.join(first)}"
    elif first is None or isinstance(first, list):
        people = [person for entry in content if isinstance(entry, list) for person in entry]
        person = people[0] if people else None
        if per_frame.is_box(person):
            _have_keypoints(file, people)
            return "frames"
        return "frames" if isinstance(person, dict) and "keypoints" in person else "MediaPipe"
    else:
        what = type(first).__name__
    raise ValueError(
        f"{file}: entries must be MMPose's (instances, or keypoints), COCO results (image_id, keypoints), Ultralytics' "
        f"(keypoints) or MediaPipe's (landmarks), got {what:.100}; is it keypoints?"
    )


def _have_keypoints(file: Path, people: list[Any]) -> bool:
    """True; ValueError where none of Ultralytics' boxes has keypoints."""
    if any(isinstance(person, dict) and "keypoints" in person for person in people):
        return True
    raise ValueError(
        f"{file}: persons must have keypoints, got boxes alone; detect with a pose model, as yolo11n-pose.pt"
    )


def _read_instances(builder: Builder, entries: list[Any]) -> None:
    for number, entry in enumerate(entries):
        key = f"[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("instances"), list):
            raise builder.fault(key, "must be an object with a list under 'instances'", type(entry).__name__)
        frame = builder.add_frame(f"{key}.frame_id", entry.get("frame_id", number), once="must stand once")
        for index, person in enumerate(entry["instances"]):
            _add_person(builder, frame, f"{key}.instances[{index}]", person)


def _add_person(builder: Builder, frame: int, where: str, person: Any) -> None:
    """A person of MMPose, whose scores stand beside the points or in them, or of Ultralytics."""
    person = builder.object_of(where, person)
    points, scores = person.get("keypoints"), person.get("keypoint_scores")
    if per_frame.is_other_object(person):
        builder.others[person["name"]] += 1
        return
    if isinstance(points, dict):
        per_frame.add_ultralytics(builder, frame, where, person)
        return
    kept = builder.joints_of(f"{where}.keypoints", points, COCO_FIRST, COCO_RULE)
    width = 3 if scores is None and isinstance(points[0], list) and len(points[0]) == 3 else 2
    values = [
        builder.numbers(f"{where}.keypoints[{joint}]", point, width, MAX_PIXELS) for joint, point in enumerate(points)
    ]
    if width == 3:
        scores = [point[2] for point in values]
    builder.numbers(f"{where}.keypoint_scores", scores, len(points), MAX_SCORE, "scores")
    who = builder.person_of(f"{where}.track_id", person.get("track_id"))
    builder.add(frame, [value for joint in kept for value in values[joint][:2]], [scores[joint] for joint in kept], who)


def _read_coco(builder: Builder, entries: list[Any], images: Any) -> None:
    """Results, or annotations where `images` are given: the frames that the file has, with anybody or not."""
    names = _image_names(builder, images)
    videos: dict[str, str] = {}
    bare = 0
    for image, key in names.values():
        frame = _frame_of(builder, f"{key}.file_name", image, videos)
        builder.add_frame(f"{key}.file_name", frame)
    for number, entry in enumerate(entries):
        key = f"[{number}]"
        if images is not None and "keypoints" not in builder.object_of(key, entry):
            bare += 1
            continue  # Another kind of object.
        if (category := builder.object_of(key, entry).get("category_id", 1)) != 1 or isinstance(category, bool):
            raise builder.value_fault(f"{key}.category_id", "must be 1, a person", category)
        image = entry.get("image_id")
        if names:
            if type(image) not in (int, str) or image not in names:
                raise builder.value_fault(f"{key}.image_id", "must be the id of one of the images", image)
            image = names[image][0]
        frame = builder.add_frame(f"{key}.image_id", _frame_of(builder, f"{key}.image_id", image, videos))
        if "track_id" not in entry and "idx" in entry:
            # AlphaPose writes idx without tracking too, the same for all.
            builder.persons_are_sure = False
        who = builder.person_of(f"{key}.track_id or idx", entry.get("track_id", entry.get("idx")))
        builder.add_triples(frame, f"{key}.keypoints", entry.get("keypoints"), COCO_FIRST, COCO_RULE, who)
        if images is not None:  # 1 is hidden, 2 visible; the place is known of both.
            builder.score[-1] = [float(score > 0) for score in builder.score[-1]]
    if bare == len(entries):
        keys = ", ".join(entries[0])
        raise ValueError(
            f"{builder.file}: annotations must have keypoints, got {keys:.100}; give person_keypoints_*.json"
        )


def _images_about(builder: Builder, about: dict[str, Any]) -> dict[str, Any]:
    """The images of annotations, their size where it is one, and the joints' names where a category has them."""
    lists = {key: about.get(key, []) for key in ("images", "categories")}
    for key, values in lists.items():
        if not isinstance(values, list):
            raise builder.fault(key, "must be a list", type(values).__name__)
        for index, value in enumerate(values):
            builder.object_of(f"{key}[{index}]", value)
    images, categories = lists["images"], [one for one in lists["categories"] if one.get("keypoints", []) != []]
    sizes = {(repr(image.get("width")), repr(image.get("height"))) for image in images}
    known = {key: images[0].get(key) for key in ("width", "height") if len(sizes) == 1}
    return {"images": images} | known | ({CATEGORY_KEY: categories[0]["keypoints"]} if categories else {})


def _image_names(builder: Builder, images: Any) -> dict[Any, tuple[Any, str]]:
    """id -> (file name, else id; key) of images."""
    names: dict[Any, tuple[Any, str]] = {}
    for number, image in enumerate(images or ()):
        key, name = f"images[{number}]", image.get("id")
        if type(name) not in (int, str) or name in names:
            raise builder.value_fault(f"{key}.id", "must be a number or text, and stand once", name)
        names[name] = (image.get("file_name", name), key)
    return names


def _frame_of(builder: Builder, key: str, image: Any, videos: dict[str, str]) -> Any:
    """The frame that an image's number or name tells. ValueError where names are of several videos."""
    video = ""
    if isinstance(image, str):
        image, video = _number_in(builder, key, image)
    videos.setdefault(video, key)
    if len(videos) > 1:
        names = " and ".join(f"{name!r:.40}" for name in videos)
        raise builder.fault(key, "must be of one video; part the file by video", names)
    return image


def _number_in(builder: Builder, key: str, image: str) -> tuple[int, str]:
    """The number in which text ends, but for a suffix, and what is before it."""
    stem = _SUFFIX.sub("", image)
    video = stem.rstrip(string.digits)
    digits = stem[len(video) :]
    if not digits:
        raise builder.value_fault(key, "must be a number, or text that ends in one, such as 12.jpg", image)
    if len(digits) > _MAX_DIGITS:
        raise builder.value_fault(key, f"must have a number of at most {_MAX_DIGITS} digits", image)
    return int(digits), video
