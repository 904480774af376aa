"""Arrays and tables of 3D motion of the user's own, parsed and checked.

.npz   positions [N, J, 3] or [P, N, J, 3], and joint_names or skeleton, fps, up_axis, unit; without pickle
.npy   the array alone; motion.json says the rest
.csv   a line of column names, then a row a frame: JOINT_x, JOINT_y, JOINT_z of each joint; other columns don't count.
       An empty cell is a joint that is not seen

A joint that isn't finite is not seen, nor is a person at 0 in all joints.
Shape suffixes: P persons, N frames, J joints.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.readers.io.files import damage_named, is_numeric, persons_first, read_rows
from ups_model.data.readers.io.safe_pickle import shown
from ups_model.data.readers.motion.layouts import About, about_of

MAX_BYTES = 1 << 30
MAX_TABLE_BYTES = 128 << 20
MAX_PERSONS = 20
MAX_JOINTS = 400
_AXIS = re.compile(r"(?P<joint>.*[^ _.:-])[ _.:-]+(?P<axis>[xyz])", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Motion:
    """What a file holds."""

    pose_PNJ3: np.ndarray
    """float64, in the file's unit and axes; not finite where not seen."""
    about: About


def read_motion(file: Path) -> Motion:
    """Reads and checks one file, by its suffix. ValueError names the file and what is damaged or breaks a rule."""
    limit = MAX_TABLE_BYTES if file.suffix.lower() == ".csv" else MAX_BYTES
    if (size := file.stat().st_size) > limit:
        raise ValueError(f"{file}: must have at most {limit} bytes, got {size}; cut it into clips")
    match file.suffix.lower():
        case ".npz":
            motion = _read_npz(file)
        case ".npy":
            with damage_named(f"{file}: not a whole .npy file", "write the file again"):
                motion = Motion(np.load(file, allow_pickle=False), About())
        case _:
            motion = _read_table(file)
    pose_PNJ3 = checked(str(file), motion.pose_PNJ3)
    if len(pose_PNJ3) > pose_PNJ3.shape[1]:
        raise ValueError(f"{file}: {persons_first(pose_PNJ3.shape)}")
    return Motion(pose_PNJ3, motion.about)


def checked(where: str, pose: Any) -> np.ndarray:
    """Poses as float64 [P, N, J, 3]. ValueError for another shape or type begins with `where`."""
    is_array, got = is_numeric(pose), shown(pose)
    if is_array and pose.ndim == 3:
        pose = pose[None]
    if not is_array or pose.ndim != 4 or pose.shape[3] != 3:
        raise ValueError(f"{where}: must be numbers [frames, joints, 3] or [persons, frames, joints, 3], got {got}")
    persons, frames, joints, _ = pose.shape
    if not (1 <= persons <= MAX_PERSONS and 1 <= frames <= 1_000_000 and 1 <= joints <= MAX_JOINTS):
        rule = f"1..{MAX_PERSONS} persons, 1..1000000 frames and 1..{MAX_JOINTS} joints"
        raise ValueError(f"{where}: must have {rule}, got {got}")
    return np.asarray(pose, dtype=np.float64)


def _read_npz(file: Path) -> Motion:
    with (
        damage_named(f"{file}: not a whole .npz file of plain arrays", "write the file again"),
        np.load(file, allow_pickle=False) as archive,
    ):
        arrays = {key: archive[key] for key in ("positions", *About.__dataclass_fields__) if key in archive.files}
    if "positions" not in arrays:
        raise ValueError(f"{file}: must have an array 'positions' [frames, joints, 3]; is it motion?")
    return Motion(arrays.pop("positions"), about_of(str(file), {key: each.tolist() for key, each in arrays.items()}))


def joint_columns(header: list[str]) -> dict[str, dict[str, int]]:
    """joint -> axis -> its place, of the columns of a table."""
    columns: dict[str, dict[str, int]] = {}
    for place, name in enumerate(header):
        if match := _AXIS.fullmatch(name.strip()):
            columns.setdefault(match["joint"], {})[match["axis"].lower()] = place
    return {joint: axes for joint, axes in columns.items() if len(axes) == 3}


def _read_table(file: Path) -> Motion:
    rows = read_rows(file)
    header = rows[0] if rows else []
    columns = joint_columns(header)
    if not columns or len(rows) < 2:
        raise ValueError(
            f"{file}: must have columns JOINT_x, JOINT_y and JOINT_z of each joint and a row a frame, got "
            f"{len(rows)} lines and the columns {', '.join(header)!r:.80}; name them so"
        )
    places = [axes[axis] for axes in columns.values() for axis in "xyz"]
    values = []
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise ValueError(f"{file}:{line}: must have {len(header)} columns, got {len(row)}; mend the row")
        values.append([_number(file, line, header[place], row[place]) for place in places])
    return Motion(np.array(values).reshape(len(values), len(columns), 3), About(joint_names=tuple(columns)))


def _number(file: Path, line: int, column: str, text: str) -> float:
    try:
        if "_" in text:
            raise ValueError("digits grouped by underscores")
        return float(text) if text.strip() else float("nan")
    except ValueError as error:
        raise ValueError(f"{file}:{line}: {column} must be a number or empty, got {text!r:.60}; mend it") from error
