"""Which joints of a BVH file are Human3.6M's, told from their names.

Names differ by the program that wrote them. Namespaces and prefixes (mixamorig:, Character1_, Bip01 ) do not count, nor
do case, spaces and underscores; sides are Left.., L .., .._l. What is left of a name is looked up in the order of
joint_names.toml.

- The joint between clavicle and elbow is LeftArm, or LeftShoulder where there is no LeftArm: in the first family of
  names LeftShoulder is the clavicle, in the other the clavicle is LeftCollar.
- thorax is the base of the neck, nose the joint of the head, head its top: Human3.6M has them there. Where a file has
  no top of the head, head is the head's joint and nose is half way between it and the neck.
- spine is the joint between pelvis and thorax nearest to half way along the bones; where none is between a quarter and
  three quarters of the way, the middle of pelvis and thorax.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from ups_model.data.readers.bvh.kinematics import ancestors, path_between, path_length
from ups_model.data.readers.bvh.parser import Node
from ups_model.data.readers.io.files import load_json, packaged_table
from ups_model.skeletons import get_skeleton

SKELETON = "h36m17"
JOINT_NAMES = get_skeleton(SKELETON).joint_names
JOINTS_FILE = "joints.json"
"""In the source folder: {joint of h36m17: joint of the files}; joints that are not in it are told from their names."""

NAMES: Mapping[str, Mapping[str, Sequence[str]]] = packaged_table("joint_names.toml")
"""Tables of what joints are called, the surest name first."""

_PREFIX = re.compile(r"^(?:mixamorig\d*[ _.-]*|(?:character|bip|cc_base|valvebiped|actor)\d*[ _.-]+)", re.IGNORECASE)
_SIDES = (
    re.compile(r"^(?P<side>left|right)[ _.-]*(?P<base>.+)$", re.IGNORECASE),
    re.compile(r"^(?P<side>[lr])[ _.-]+(?P<base>.+)$", re.IGNORECASE),
    re.compile(r"^(?P<base>.+?)[ _.-]+(?P<side>l|r|left|right)$", re.IGNORECASE),
    re.compile(r"^(?P<side>[lrLR])(?P<base>[A-Z][a-z].*)$"),
)
_MAX_LISTED = 80


def read_joints(file: Path) -> dict[str, str]:
    """The user's own names: {joint of h36m17: joint of the files}. ValueError names a file that is not such a one."""
    content = load_json(file, 1 << 20)
    if not isinstance(content, dict) or not content:
        raise ValueError(f'{file}: must hold an object such as {{"l_hip": "LeftUpLeg"}}, got {type(content).__name__}')
    for joint, name in content.items():
        if joint not in JOINT_NAMES:
            raise ValueError(f"{file}: keys must be joints of {SKELETON} ({', '.join(JOINT_NAMES)}), got {joint!r:.60}")
        if not isinstance(name, str):
            raise ValueError(f"{file}: {joint} must be the name of a joint, got {name!r:.60}")
    return content


def joints_beside(folders: Iterable[Path]) -> dict[str, str]:
    """`read_joints` of the first of these folders that has such a file; nothing where none has."""
    return next((read_joints(folder / JOINTS_FILE) for folder in folders if (folder / JOINTS_FILE).is_file()), {})


def match_joints(
    file: Path, nodes: Sequence[Node], lengths_V: np.ndarray, own_names: Mapping[str, str]
) -> tuple[tuple[int, ...], ...]:
    """For each joint of h36m17 the nodes whose middle it is. ValueError where a joint is not found, stands twice, or is
    not above the next one of its limb; names `file`.

    `lengths_V` are of the bones above the nodes; in the user's `own_names` an end site is "JOINT End Site".
    """
    finder = _Finder(file, nodes)
    nodes_of: dict[str, tuple[int, ...]] = {joint: (finder.exact(joint, name),) for joint, name in own_names.items()}
    missing: list[str] = []
    limbs = [(f"{side}_{part}", side, names) for part, names in NAMES["sided"].items() for side in ("l", "r")]
    for joint, side, names in [*((joint, "", names) for joint, names in NAMES["middle"].items()), *limbs]:
        if joint in nodes_of:
            continue
        if (index := finder.by_name(side, names)) is None:
            sides = {"l": "Left", "r": "Right", "": ""}
            missing.append(f"{joint} ({', '.join(sides[side] + name.capitalize() for name in names)})")
        else:
            nodes_of[joint] = (index,)
    if missing:
        joints = [node.name for node in nodes if not node.is_end]
        more = f" and {len(joints) - _MAX_LISTED} more" if len(joints) > _MAX_LISTED else ""
        raise ValueError(
            f"{file}: no joint was found for {'; '.join(missing)}; its joints are "
            f"{', '.join(joints[:_MAX_LISTED])}{more}; tell which they are in {JOINTS_FILE} in the source folder"
        )
    _check_limbs(file, nodes, nodes_of, own_names)
    if "head" not in nodes_of:
        top = _top(finder, nodes, lengths_V, nodes_of)
        if top is None:
            nodes_of["head"] = nodes_of["nose"]
            if "nose" not in own_names:
                nodes_of["nose"] = (*nodes_of["thorax"], *nodes_of["nose"])
        else:
            nodes_of["head"] = (top,)
    if "spine" not in nodes_of:
        nodes_of["spine"] = _spine(nodes, lengths_V, nodes_of["pelvis"][0], nodes_of["thorax"][0])
    return tuple(nodes_of[joint] for joint in JOINT_NAMES)


class _Finder:
    """The nodes by what their names say."""

    def __init__(self, file: Path, nodes: Sequence[Node]) -> None:
        self.file, self.nodes = file, nodes
        self.by_key: dict[tuple[str, str], list[int]] = {}
        for index, node in enumerate(nodes):
            if not node.is_end:
                self.by_key.setdefault(name_key(node.name), []).append(index)

    def by_name(self, side: str, names: Sequence[str]) -> int | None:
        for name in names:
            if indices := self.by_key.get((side, name)):
                if len(indices) > 1:
                    both = " and ".join(self.nodes[index].name for index in indices[:2])
                    raise ValueError(
                        f"{self.file}: names must tell joints apart, got {both}; say in {JOINTS_FILE} which"
                    )
                return indices[0]
        return None

    def exact(self, joint: str, name: str) -> int:
        indices = [index for index, node in enumerate(self.nodes) if node.name == name]
        if len(indices) != 1:
            times = "more than once" if indices else "not"
            names = ", ".join(node.name for node in self.nodes[:_MAX_LISTED])
            raise ValueError(
                f"{self.file}: {JOINTS_FILE} says {joint} is {name!r:.60}, which is {times} there; there are {names}"
            )
        return indices[0]


def name_key(name: str) -> tuple[str, str]:
    """Side ("l", "r" or "") and the rest of a joint's name, in lower case without prefix and separators."""
    base, side = name.strip().rsplit(":", 1)[-1], ""
    while (shorter := _PREFIX.sub("", base)) not in (base, ""):
        base = shorter
    for pattern in _SIDES:
        if match := pattern.match(base):
            base, side = match["base"], match["side"][0].lower()
            break
    return side, re.sub(r"[\W_]", "", base.lower())


def _check_limbs(
    file: Path, nodes: Sequence[Node], nodes_of: Mapping[str, tuple[int, ...]], own_names: Mapping[str, str]
) -> None:
    limbs = [("hip", "knee", "ankle"), ("shoulder", "elbow", "wrist")]
    lines = [[f"{side}_{part}" for part in limb] for limb in limbs for side in ("l", "r")] + [["thorax", "nose"]]
    for line in lines:
        for upper, lower in pairwise(line):
            above, below = nodes_of[upper][0], nodes_of[lower][0]
            if upper in own_names or lower in own_names or (above != below and above in ancestors(nodes, below)):
                continue
            raise ValueError(
                f"{file}: {upper} must be above {lower} in the hierarchy, got {nodes[above].name} and "
                f"{nodes[below].name}; tell which they are in {JOINTS_FILE} in the source folder"
            )


def _top(
    finder: _Finder, nodes: Sequence[Node], lengths_V: np.ndarray, nodes_of: Mapping[str, tuple[int, ...]]
) -> int | None:
    """The top of the head; None where there is none, or it lies in the head's joint as some exporters write it."""
    (head,) = nodes_of["nose"]
    ends = [index for index, node in enumerate(nodes) if node.is_end and node.parent == head]
    named = finder.by_name("", NAMES["top"]["head"])
    shin = path_length(nodes, lengths_V, nodes_of["l_knee"][0], nodes_of["l_ankle"][0])
    for index in ([] if named is None else [named]) + ends:
        if path_length(nodes, lengths_V, head, index) > shin / 10:
            return index
    return None


def _spine(nodes: Sequence[Node], lengths_V: np.ndarray, pelvis: int, thorax: int) -> tuple[int, ...]:
    path, _ = path_between(nodes, pelvis, thorax)
    whole = path_length(nodes, lengths_V, pelvis, thorax)
    shares = {index: path_length(nodes, lengths_V, pelvis, index) / whole for index in path[1:-1] if whole > 0}
    near = min(shares, key=lambda index: abs(shares[index] - 0.5), default=None)
    return (near,) if near is not None and 0.25 <= shares[near] <= 0.75 else (pelvis, thorax)
