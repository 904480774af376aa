"""Joints that detectors write, which of them are COCO's 17, and what files say of them.

Halpe-26, Halpe-136 and COCO-WholeBody (133) begin with COCO's 17 in COCO's order. OpenPose's two layouts have all of
COCO's joints too, in orders of their own; the neck, the middle of the hips and the feet are dropped.
Sources: https://github.com/Fang-Haoshu/Halpe-FullBody, https://github.com/jin-s13/COCO-WholeBody, and OpenPose's
doc/02_output.md. Where a file says other joints than COCO's it is refused: Human3.6M has 17 too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ups_model.data.readers.keypoints.tracks import JOINTS
from ups_model.skeletons import get_skeleton

COCO_FIRST: Mapping[int, tuple[int, ...]] = {count: tuple(range(JOINTS)) for count in (JOINTS, 26, 133, 136)}
"""Joints of a layout -> COCO's 17 among them, for layouts that begin with these."""
OPENPOSE: Mapping[int, tuple[int, ...]] = {
    25: (0, 16, 15, 18, 17, 5, 2, 6, 3, 7, 4, 12, 9, 13, 10, 14, 11),
    18: (0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10),
}
"""The same for BODY_25 and COCO-18."""

COCO_RULE = "17 joints, those of COCO, or 26 (Halpe), 133 (WholeBody) or 136 (Halpe), whose first 17, COCO's, are kept"
OPENPOSE_RULE = "25 joints (BODY_25) or 18 (COCO), of which COCO's 17 are kept"

_SIDES = {"l_": "left_", "r_": "right_"}
_COCO_NAMES = get_skeleton("coco17").joint_names
_COCO_WAY_OUT = "export COCO's 17 keypoints"
CATEGORY_KEY = "categories[].keypoints"


def check_layout(file: Path, key: str, layout: Any) -> None:
    """ValueError where the name of a layout is not one of those that begin with COCO's joints."""
    if not (isinstance(layout, str) and layout.lower().startswith(("coco", "halpe"))):
        raise ValueError(f"{file}: {key} must begin with coco or halpe, got {layout!r:.60}; {_COCO_WAY_OUT}")


def check_names(file: Path, key: str, pairs: Sequence[tuple[str, Any]]) -> None:
    """ValueError where joints, (place as text, name) each, don't begin with COCO's 17 in their order."""
    names = dict(pairs)
    for index, joint in enumerate(_COCO_NAMES):
        got, wanted = names.get(str(index)), _SIDES.get(joint[:2], joint[:2]) + joint[2:]
        if not isinstance(got, str) or _plain(got) not in (_plain(wanted), _plain(joint)):
            shown = "none" if got is None else f"{got!r:.60}"
            raise ValueError(f"{file}: {key} must have {wanted} as joint {index}, got {shown}; {_COCO_WAY_OUT}")
    if len(pairs) not in COCO_FIRST:
        other = next((name for index, name in pairs if index not in map(str, range(JOINTS))), "one twice")
        raise ValueError(f"{file}: {key} must have {COCO_RULE}, got {len(pairs)}, {other!r:.60}; {_COCO_WAY_OUT}")


def check_joints(file: Path, about: Mapping[str, Any]) -> None:
    """The same of what an object of JSON says: MMPose's keypoint_id2name or else keypoint_name2id or else dataset_name,
    or the keypoints of a category of COCO's annotations, under `CATEGORY_KEY`."""
    keys = (CATEGORY_KEY, "keypoint_id2name", "keypoint_name2id")
    key = next((key for key in keys if about.get(key) is not None), None)
    if key is None:
        if about.get("dataset_name") is not None:
            check_layout(file, "dataset_name", about["dataset_name"])
        return
    names = about[key]
    if isinstance(names, list) and key != "keypoint_name2id":
        names = {str(index): name for index, name in enumerate(names)}
    if not isinstance(names, dict):
        raise ValueError(f"{file}: {key} must hold the names of joints, got {type(names).__name__}; {_COCO_WAY_OUT}")
    by_name = key == "keypoint_name2id"
    check_names(file, key, [(str(index), name) for name, index in names.items()] if by_name else list(names.items()))


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace(" ", "")
