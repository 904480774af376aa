"""Pickles of skeletons of one's own, as pyskl and mmaction2 take them: many clips in a file, in 2D or 3D.

    {"split": {"train": [frame_dir, ...], "val": ..., ...},
     "annotations": [{"frame_dir": name, "label": 0.., "total_frames": N, "keypoint": [M, N, V, 2 or 3],
                      "keypoint_score": [M, N, V], "img_shape": (height, width)}, ...]}

or the list of annotations alone. Of several protocols, such as xsub_train and xsub_val beside xview_train, the first is
taken. What is in test, or else in val, is for testing. Read by `safe_pickle`, which runs nothing.
Source: pyskl's tools/data/README.md. Shape suffixes: M persons, N frames, V joints.
"""

from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.readers.clip_places import Item, OwnFile
from ups_model.data.readers.io.safe_pickle import load, shown
from ups_model.wording import count

MAX_LABEL = 10_000
_WAY_OUT = "write the file again"
_TEST_PARTS = ("test", "val")


def names(file: Path) -> tuple[str, ...]:
    """frame_dir of every annotation, in order. Raises as `items`."""
    return tuple(_load(file)[0])


def dims(file: Path) -> int:
    """Coordinates of the first annotation's joints, 2 or 3. Raises as `items`."""
    clips, _ = _load(file)
    pose = next(iter(clips.values())).get("keypoint")
    if not isinstance(pose, np.ndarray) or pose.ndim < 3 or pose.shape[-1] not in (2, 3):
        rule = "keypoint must be an array [persons, frames, joints, 2 or 3]"
        raise ValueError(f"{file}: {rule}, got {shown(pose)}; {_WAY_OUT}")
    return pose.shape[-1]


def items(file: Path, coordinates: int) -> list[Item]:
    """The clips of a file with their classes and splits. ValueError names the file: another format, other coordinates
    than wanted, a name that stands twice, or a clip that is for training and for testing."""
    clips, splits = _load(file)
    if (there := dims(file)) != coordinates:
        way = "keypoints" if there == 2 else "motion"
        raise ValueError(f"{file}: must hold {coordinates}D poses, got {there}D ones; prepare {way} reads these")
    labels = {name: _label(item) for name, item in clips.items()}
    width = len(str(max((label for label in labels.values() if label is not None), default=0)))
    tests = _tests(file, splits)
    _without_clip(file, file.stat().st_mtime_ns)
    listed = []
    for name, label in labels.items():
        if label is None:
            rule = f"label must be a number of a class in 0..{MAX_LABEL}, got {shown(clips[name].get('label'))}"
            listed.append(Item(name, test=tests.get(name), fault=f"{file}[{name}]: {rule}"))
        else:
            listed.append(Item(name, "" if label < 0 else f"{label:0{width}d}", tests.get(name)))
    return listed


def split_notes(files: Iterable[OwnFile]) -> list[str]:
    """What to tell of names in the splits of pickles that `items` has read: those of no annotation."""
    notes = []
    for file in sorted({Path(one.path) for one in files if one.item and one.path.lower().endswith(".pkl")}):
        if strange := _without_clip(file, file.stat().st_mtime_ns):
            names_of = f"{count(len(strange), 'name')}, the first {strange[0]!r:.80}"
            notes.append(f"{file.name}['split']: no annotation here for {names_of}")
    return notes


@cache  # Known from `items`, when the file was in memory.
def _without_clip(file: Path, changed_ns: int) -> tuple[str, ...]:
    """Names in the splits, of the protocol that is taken, that no annotation has."""
    clips, splits = _load(file)
    return tuple(sorted(_tests(file, splits).keys() - clips.keys()))


def find(file: Path, name: str) -> Mapping[str, Any]:
    """An annotation by its name. Raises as `items`."""
    return _load(file)[0][name]


def _load(file: Path) -> tuple[dict[str, Mapping[str, Any]], Any]:
    return _read(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=1)  # Jobs read one clip after the other.
def _read(file: Path, changed_ns: int) -> tuple[dict[str, Mapping[str, Any]], Any]:
    """Annotations by name, and the splits. `changed_ns` keeps a file apart from what it was."""
    with file.open("rb") as stream:
        whole = load(stream, str(file))
    splits = whole.get("split") if isinstance(whole, dict) else None
    entries = whole.get("annotations") if isinstance(whole, dict) else whole
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file}: must hold a list of annotations, alone or under 'annotations', got {shown(whole)}")
    clips: dict[str, Mapping[str, Any]] = {}
    for index, entry in enumerate(entries):
        name = entry.get("frame_dir") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not 0 < len(name) < 200 or name in clips:
            raise ValueError(
                f"{file}[{index}]: frame_dir must be a name that stands once, got {shown(name)}; {_WAY_OUT}"
            )
        clips[name] = entry
    return clips, splits


def _label(item: Mapping[str, Any]) -> int | None:
    """-1 where there is none, None where it can't be one."""
    label = item.get("label", -1)
    if isinstance(label, bool) or not isinstance(label, int | np.integer) or not -1 <= label <= MAX_LABEL:
        return None
    return int(label)


def _tests(file: Path, splits: Any) -> dict[str, bool]:
    """clip -> whether the first protocol tests on it; none without splits."""
    if splits is None:
        return {}
    if not isinstance(splits, dict) or not all(isinstance(key, str) for key in splits):
        raise ValueError(f"{file}['split']: must be a dict of lists of names, got {shown(splits)}; {_WAY_OUT}")
    parts = {key: key.rpartition("_") for key in splits}
    protocol = next((prefix for prefix, _, part in parts.values() if part == "train"), None)
    own = {part: splits[key] for key, (prefix, _, part) in parts.items() if prefix == protocol}
    testing = next((part for part in _TEST_PARTS if part in own), None)
    if protocol is None or testing is None:
        rule = "must have train and test (or val), such as xsub_train and xsub_val"
        raise ValueError(f"{file}['split']: {rule}, got {', '.join(splits)!r:.80}; name them so")
    for part, names_of in own.items():
        if not isinstance(names_of, list | tuple | set) or not all(isinstance(name, str) for name in names_of):
            raise ValueError(f"{file}['split']: {part} must be a list of names, got {shown(names_of)}; {_WAY_OUT}")
    for part, listed in own.items():
        if part != testing and (both := sorted(set(listed).intersection(own[testing]))):
            raise ValueError(
                f"{file}['split']: a clip must be in one of {part} and {testing}, got {both[0]!r:.80} in both"
                f"{f' and {len(both) - 1} more' if len(both) > 1 else ''}; take it out of one"
            )
    return {name: part == testing for part, listed in own.items() for name in listed}
