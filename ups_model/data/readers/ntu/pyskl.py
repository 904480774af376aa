"""NTU RGB+D as pyskl publishes it: ntu60_3danno.pkl and ntu120_3danno.pkl.

    {"split": {"xsub_train": [frame_dir, ...], "xsub_val": ..., ...},
     "annotations": [{"frame_dir": name, "label": 0.., "total_frames": N, "keypoint": [persons, N, 25, 3]}, ...]}

One pickle of several gigabytes, read whole, without running anything in it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.format.writer import Clip
from ups_model.data.prepare.jobs import LeftOut
from ups_model.data.readers.io.files import source_kept
from ups_model.data.readers.io.safe_pickle import load, shown
from ups_model.data.readers.ntu.bodies import Persons
from ups_model.data.readers.ntu.clips import MISSING, named_clip
from ups_model.data.readers.ntu.ctrgcn import persons_of_poses
from ups_model.data.readers.ntu.names import PROTOCOLS, belongs, is_test, parse_name
from ups_model.data.readers.ntu.skeleton_file import JOINTS

_LIST = "annotations"
_TEST_PARTS = {"train": False, "val": True}


def check_pickle(file: Path, set_name: str) -> None:
    """Checks the first annotation of a file and its splits. ValueError for another format, 2D keypoints, no
    annotations, or splits that differ from the protocols."""
    items, rest = _load(file)
    if not items:
        raise ValueError(f"{file}: its list {_LIST!r} is empty; get the file again")
    pose = items[0].get("keypoint")
    if isinstance(pose, np.ndarray) and pose.ndim >= 2 and pose.shape[-2] != JOINTS:
        raise ValueError(
            f"{file}: must hold 3D poses of {JOINTS} joints, got keypoints {list(pose.shape)}, which are 2D "
            f"detections in the RGB video; give {set_name}_3danno.pkl"
        )
    if not isinstance(pose, np.ndarray) or not isinstance(items[0].get("frame_dir"), str):
        raise ValueError(f"{file}: annotations must have frame_dir and keypoint, got {sorted(map(str, items[0]))}")
    _check_splits(file, set_name, rest.get("split", {}))


def _check_splits(file: Path, set_name: str, splits: Any) -> None:
    """Raises ValueError naming the first name that a split of the file puts on another side than the protocols do."""
    if not isinstance(splits, Mapping):
        raise ValueError(f"{file}['split']: must be a dict of lists of names, got {type(splits).__name__}")
    for protocol in PROTOCOLS[set_name]:
        for part, test in _TEST_PARTS.items():
            key = f"{protocol}_{part}"
            for text in splits.get(key, ()):
                if is_test(parse_name(str(text)[:60]), set_name, protocol) != test:
                    raise ValueError(
                        f"{file}['split'][{key!r}]: by {protocol} of {set_name}, {text} is not in {part}; "
                        "is it another protocol, or the other set's file?"
                    )


def read_pickle(file: Path, set_name: str, missing: frozenset[str]) -> Iterator[Clip | LeftOut]:
    """The clips of a file in its order. Raises ValueError where the file as a whole is damaged or its splits differ."""
    with source_kept(file):
        items, rest = _load(file)
    _check_splits(file, set_name, rest.get("split", {}))
    seen: set[str] = set()
    for index, item in enumerate(items):
        text = item.get("frame_dir")
        name = text if isinstance(text, str) and text and len(text) < 100 else f"{_LIST}[{index}]"
        if name in missing:
            yield LeftOut(name, MISSING)
            continue
        if name in seen:
            yield LeftOut(name, "duplicate", f"{file}[{index}]: the name came before")
            continue
        seen.add(name)
        try:
            parsed, persons = parse_name(name), _persons(file, index, item)
            if not belongs(parsed, set_name):
                raise ValueError(f"{file}[{index}]: {name} is not in {set_name}")
            if item.get("label") != parsed.action - 1:
                raise ValueError(f"{file}[{index}]: {name} must have the label {parsed.action - 1}, has another")
        except ValueError as error:
            yield LeftOut(name, "unreadable", str(error))
            continue
        yield named_clip(parsed, set_name, persons) if persons.tracks else LeftOut(name, "empty")


def find_item(file: Path, name: str | None) -> tuple[str, Persons]:
    """The annotation called `name`, or the only one of a file. Raises ValueError where there is none, or it is bad."""
    items, _ = _load(file)
    if name is None and len(items) > 1:
        raise ValueError(f"{file}: holds many recordings; give the name of one, such as {items[0].get('frame_dir')}")
    for index, item in enumerate(items):
        if name is None or item.get("frame_dir") == name:
            return str(item.get("frame_dir")), _persons(file, index, item)
    raise ValueError(f"{file}: has no recording {name!r}; it lists its names in frame_dir")


def item_names(file: Path) -> tuple[str, ...]:
    """frame_dir of every annotation, in order."""
    return tuple(str(item.get("frame_dir")) for item in _load(file)[0])


def _load(file: Path) -> tuple[list[dict[Any, Any]], dict[Any, Any]]:
    """The annotations of a file, and the rest of it. Raises ValueError where it has no list of dicts."""
    with file.open("rb") as stream:
        whole = load(stream, str(file))
    if not isinstance(whole, dict) or not isinstance(whole.get(_LIST), list):
        raise ValueError(f"{file}: must hold a dict with a list under {_LIST!r}; is it another format?")
    items = whole.pop(_LIST)
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise ValueError(f"{file}[{_LIST!r}][{index}]: must be a dict, got {type(item).__name__}")
    return items, whole


def _persons(file: Path, index: int, item: Mapping[str, Any]) -> Persons:
    pose, frames = item.get("keypoint"), item.get("total_frames")
    if not isinstance(pose, np.ndarray) or pose.ndim != 4 or pose.shape[2:] != (JOINTS, 3) or pose.dtype.kind != "f":
        rule = f"keypoint must be floats [persons, frames, {JOINTS}, 3]"
        raise ValueError(f"{file}[{index}]: {rule}, got {shown(pose)}")
    if not isinstance(frames, (int, np.integer)) or frames != pose.shape[1]:
        raise ValueError(f"{file}[{index}]: total_frames must be the {pose.shape[1]} frames of keypoint, is not")
    return persons_of_poses(pose, f"{file}[{index}]")
