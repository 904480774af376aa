"""Which joints a file of 3D motion has, and what it and motion.json say of them.

A file's joints are one of the layouts in `skeletons`, by its name (`skeleton`) or by the names of all its joints
(`joint_names`), which are looked up as `bvh.joints` reads names: sides are Left.., L .., .._l, and case, spaces and
underscores don't count. Of the layouts whose joints are all there, the one of most joints is taken; other joints are
dropped. joints.json beside the files tells which of their joints are those of h36m17.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.readers.bvh.joints import NAMES, name_key
from ups_model.data.readers.io.files import checked_fps, load_json
from ups_model.skeletons import SKELETONS, Skeleton, get_skeleton

MOTION_FILE = "motion.json"
"""Beside the files: what holds for those of them that don't say so, any fields of `About`."""
UNITS: Mapping[str, float] = {"m": 1.0, "metre": 1.0, "meter": 1.0, "cm": 0.01, "mm": 0.001, "inch": 0.0254}
"""Metres in a unit."""
UP_AXES = ("x", "y", "z", "-x", "-y", "-z")


@dataclass(frozen=True)
class About:
    """What is said of a file's motion; None where nothing is."""

    skeleton: str | None = None
    joint_names: tuple[str, ...] | None = None
    fps: float | None = None
    up_axis: str | None = None
    unit: str | None = None

    def else_as(self, other: "About") -> "About":
        """This, and what is not said of `other`."""
        mine = {key: value for key, value in vars(self).items() if value is not None}
        if {"skeleton", "joint_names"} & mine.keys():
            other = replace(other, skeleton=None, joint_names=None)
        return replace(other, **mine)


def about_of(where: str, values: Mapping[str, Any]) -> About:
    """The facts in an object of JSON or the members of an archive. ValueError begins with `where`."""
    kept = {key: values[key] for key in About.__dataclass_fields__ if values.get(key) is not None}
    names = kept.get("joint_names")
    if names is not None:
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{where}: joint_names must be a list of names, got {names!r:.60}; write it so")
        kept["joint_names"] = tuple(names)
    for key, choices in (("skeleton", tuple(SKELETONS)), ("up_axis", UP_AXES), ("unit", tuple(UNITS))):
        if key in kept and (not isinstance(kept[key], str) or kept[key] not in choices):
            raise ValueError(f"{where}: {key} must be one of {', '.join(choices)}, got {kept[key]!r:.60}")
    if "fps" in kept:
        kept["fps"] = checked_fps(where, kept["fps"], "give --fps")
    return About(**kept)


def about_beside(folders: Iterable[Path]) -> About:
    """`read_about` of the first of these folders that has such a file; nothing where none has."""
    return next((read_about(folder / MOTION_FILE) for folder in folders if (folder / MOTION_FILE).is_file()), About())


def read_about(file: Path) -> About:
    """The facts of a motion.json. ValueError names a file that is not such a one."""
    content = load_json(file, 1 << 20)
    if not isinstance(content, dict) or not content or content.keys() - About.__dataclass_fields__.keys():
        got = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        keys = ", ".join(About.__dataclass_fields__)
        raise ValueError(f"{file}: must hold an object with any of the keys {keys}, got {got!r:.60}")
    return about_of(str(file), content)


def layout_of(file: Path, about: About, joints: int, own_names: Mapping[str, str]) -> tuple[Skeleton, np.ndarray]:
    """The layout of a file's `joints` joints, and the place of each joint of the layout among them, int64.
    `own_names` is {joint of h36m17: joint of the file}.

    Raises:
        ValueError: neither names nor a layout, another number of joints, or no layout's joints are all there.
    """
    if about.joint_names is None and about.skeleton is None:
        raise ValueError(
            f"{file}: must say which its {joints} joints are, got neither joint_names nor skeleton (one of "
            f"{', '.join(SKELETONS)}); write one of them into the file, or into {MOTION_FILE} beside it"
        )
    if about.joint_names is None:
        skeleton = get_skeleton(about.skeleton or "")
        if skeleton.joints != joints:
            raise ValueError(
                f"{file}: {skeleton.name} has {skeleton.joints} joints, got {joints}; name another skeleton"
            )
        return skeleton, np.arange(joints)
    if len(about.joint_names) != joints:
        raise ValueError(f"{file}: must have {joints} joint_names, one a joint, got {len(about.joint_names)}")
    wanted = [get_skeleton(about.skeleton)] if about.skeleton else list(SKELETONS.values())
    matched = [(skeleton, _find(skeleton, about.joint_names, own_names)) for skeleton in wanted]
    whole = [(skeleton, places) for skeleton, places in matched if None not in places]
    if whole:
        skeleton, places = max(whole, key=lambda pair: pair[0].joints)
        return skeleton, np.array(places, dtype=np.int64)
    skeleton, places = min(matched, key=lambda pair: pair[1].count(None))
    missing = [joint for joint, place in zip(skeleton.joint_names, places, strict=True) if place is None]
    raise ValueError(
        f"{file}: its joints must hold those of one of {', '.join(one.name for one in wanted)}; {skeleton.name} comes "
        f"nearest and lacks {', '.join(missing)}, there are {', '.join(about.joint_names):.300}; rename them, or tell "
        "which are h36m17's in joints.json"
    )


def _find(skeleton: Skeleton, names: Sequence[str], own_names: Mapping[str, str]) -> list[int | None]:
    """The place of each joint of a layout among names; None where none is, or several are."""
    places: dict[tuple[str, str], list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name_key(name), []).append(place)
    own_keys = {name_key(joint) for joint in skeleton.joint_names}
    result: list[int | None] = []
    for joint in skeleton.joint_names:
        if skeleton.name == "h36m17" and joint in own_names:
            result.append(names.index(own_names[joint]) if own_names[joint] in names else None)
            continue
        side, base = key = name_key(joint)
        # Another name doesn't count where it is a joint of the layout's own: a foot is no ankle of ntu25.
        others = NAMES["sided"].get(base, ()) if side else NAMES["layouts"].get(joint, ())
        keys = [key, *((side, other) for other in others if (side, other) not in own_keys)]
        same = next((places[one] for one in keys if one in places), [])
        result.append(same[0] if len(same) == 1 else None)
    return result
