"""Reader of the user's own motion capture: a folder of BVH files becomes the set "bvh".

Which files are of which class and for testing: `readers.user_folder`. Clips have Human3.6M's joints (`joints`), are
turned from y up to z up, scaled to metres, and moved so that the first frame's root is over the origin and the lowest
joint of the clip on the floor. Four cameras stand around it (`cameras`).

Shape suffixes: N frames, J joints of h36m17.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ups_model.data.format.writer import Clip, Track
from ups_model.data.prepare.jobs import LeftOut, Reading, Recording, choose_clip
from ups_model.data.readers.bvh.cameras import corner_cameras, leaves_view
from ups_model.data.readers.bvh.joints import JOINT_NAMES, JOINTS_FILE, SKELETON, joints_beside, match_joints
from ups_model.data.readers.bvh.kinematics import bone_lengths, path_length, world_positions
from ups_model.data.readers.bvh.parser import read_bvh
from ups_model.data.readers.clip_places import OwnFile
from ups_model.data.readers.user_folder import first_readable, frames_at_rate, look, make_jobs

READER_VERSION = 3
NAME = "bvh"
UNITS = (0.01, 1.0, 0.0254, 0.0564444, 0.001)
"""Metres in a unit, as files have it: centimetre, metre, inch, CMU's unit (an inch over 0.45), millimetre."""
BODY_HEIGHT = (1.1, 2.2)
"""Metres between which a person's bones from ankle to head add up. No two units give one person both such heights."""
MAX_METRES = 100.0
"""From the file's origin; what is further away is taken for damage."""

_DIGITS = 6  # What is stored is rounded to micrometres, so that a machine's last bits do not change a fingerprint.


@dataclass(frozen=True, eq=False)
class _Motion:
    pose_NJ3: np.ndarray
    """Metres, z up."""
    fps: float
    metres_per_unit: float
    height: float
    """Metres of bones from ankle to head."""
    tallest_axis: str
    """Of the file, along which the person is tallest, on the mean: "y" in most files."""


def reading(source: Path, metres_per_unit: float | None = None, fps: float | None = None) -> Reading:
    """The set "bvh" from the BVH files in the folder `source`, and its `joints.json` where joints have other names.

    The set has the frame rate of the first file that can be read; others are resampled to it, linearly in position.
    Left out are clips that cannot be read, and those that leave the cameras' view ("walks out of view"). ValueError
    names the missing folder, the damaged joints.json, or the first file where none can be read.

    Args:
        metres_per_unit: of all files; None takes for each file the one of UNITS that gives a person's height.
        fps: of all files, whatever they say; None takes what each file says.
    """
    if metres_per_unit is not None and not 0 < metres_per_unit <= MAX_METRES:
        raise ValueError(f"--metres-per-unit must be above 0 and at most {MAX_METRES:g}, got {metres_per_unit}")
    own = look(source, (".bvh",), (JOINTS_FILE,))
    own_names = joints_beside([source])
    read_motion = partial(_read, metres_per_unit=metres_per_unit, own_names=own_names, fps=fps)
    first, motion = first_readable(own, lambda file: read_motion(Path(file.path)))
    notes = list(own.notes)
    if own_names:
        notes.append(f"{JOINTS_FILE} tells {len(own_names)} of the {len(JOINT_NAMES)} joints")
    if metres_per_unit is None:
        notes.append(
            f"a unit is taken as {motion.metres_per_unit:g} m in {first.name}, whose person is then "
            f"{motion.height:.2f} m from ankle to head; likewise for each file"
        )
    if motion.tallest_axis != "y":
        notes.append(
            f"in {first.name} the person is tallest along {motion.tallest_axis}; files are read as y up, so if another "
            "axis points up in them, export them with y up"
        )
    rate = f"as in {first.name}; files of another rate are resampled to it" if fps is None else "as --fps says of all"
    notes.append(f"{motion.fps:g} frames per second, {rate}")
    unit = "told from the height" if metres_per_unit is None else repr(float(metres_per_unit))
    description = "BVH: motion capture files of one's own, in Human3.6M joints, four virtual cameras"
    cameras = (corner_cameras(),)
    info = own.info(NAME, READER_VERSION, SKELETON, 3, motion.fps, description, cameras, metres_per_unit=unit)
    read = partial(_clip, fps=motion.fps, read=read_motion)
    return Reading(info, make_jobs(own, read), tuple(notes))


def clip_names(file: Path) -> tuple[str, ...]:
    """The file's name without suffix."""
    return (file.stem,)


def read_recording(file: Path, clip: str | None = None) -> Recording:
    """The motion of a file, as `reading` has it but at its own frame rate; see `Reader`. A joints.json counts that is
    in the file's folder or one of the two above it. ValueError too where the file lacks joints, or its person is of no
    plausible height."""
    name = choose_clip(file, clip_names(file), clip)
    motion = _read(file, None, joints_beside(file.absolute().parents[:3]))
    return Recording(name, SKELETON, 3, motion.fps, "metre", "z", (Track(_stored(motion.pose_NJ3)),))


def _clip(file: OwnFile, fps: float, read: Callable[[Path], _Motion]) -> Clip | LeftOut:
    motion = read(Path(file.path))
    if fault := leaves_view(motion.pose_NJ3):
        return LeftOut(file.name, "walks out of view", f"{file.path}: {fault}")
    count = frames_at_rate(Path(file.path), len(motion.pose_NJ3), motion.fps, fps)
    pose_NJ3 = _stored(resample(motion.pose_NJ3, motion.fps, fps, count))
    track = Track(pose_NJ3)
    return Clip(file.name, (track,), file.label, file.subject, split_test=file.split_test, camera_group=0)


def _stored(pose_NJ3: np.ndarray) -> np.ndarray:
    return np.round(pose_NJ3, _DIGITS).astype(np.float32)


def _read(file: Path, metres_per_unit: float | None, own_names: Mapping[str, str], fps: float | None = None) -> _Motion:
    bvh = read_bvh(file)
    lengths_V = bone_lengths(bvh.nodes, bvh.values_NC)
    joints = match_joints(file, bvh.nodes, lengths_V, own_names)
    ankles = [joints[JOINT_NAMES.index(f"{side}_ankle")][0] for side in ("l", "r")]
    head = JOINT_NAMES.index("head")
    height = sum(path_length(bvh.nodes, lengths_V, ankle, joints[head][0]) for ankle in ankles) / 2
    unit = metres_per_unit or _unit(file, height)
    indices = sorted({index for nodes in joints for index in nodes})
    world_NW3 = world_positions(bvh.nodes, bvh.values_NC, indices) * unit
    raw_NJ3 = np.stack([world_NW3[:, [indices.index(index) for index in nodes]].mean(axis=1) for nodes in joints], 1)
    if not (near_NJ := np.abs(raw_NJ3).max(axis=2) <= MAX_METRES).all():
        frame, joint = np.argwhere(~near_NJ)[0].tolist()
        raise ValueError(
            f"{file}: joints must be within {MAX_METRES:g} m of the origin, got {raw_NJ3[frame, joint].tolist()} for "
            f"{JOINT_NAMES[joint]} in frame {frame} at {unit:g} m a unit; give another --metres-per-unit"
        )
    ankle_N3 = (raw_NJ3[:, JOINT_NAMES.index("l_ankle")] + raw_NJ3[:, JOINT_NAMES.index("r_ankle")]) / 2
    upward_3 = (raw_NJ3[:, head] - ankle_N3).mean(axis=0)
    x_NJ, y_NJ, z_NJ = np.moveaxis(raw_NJ3, 2, 0)
    pose_NJ3 = np.stack([x_NJ, -z_NJ, y_NJ], axis=2)
    pose_NJ3 -= [*pose_NJ3[0, 0, :2], pose_NJ3[..., 2].min()]
    return _Motion(pose_NJ3, fps or bvh.fps, unit, height * unit, axis_of(upward_3))


def axis_of(direction_3: np.ndarray) -> str:
    """The axis along which a direction points most, with its sign."""
    axis = int(np.abs(direction_3).argmax())
    return ("-" if direction_3[axis] < 0 else "") + "xyz"[axis]


def _unit(file: Path, height: float) -> float:
    """Metres in a unit, from the units of bones between ankle and head."""
    low, high = BODY_HEIGHT
    for unit in UNITS:
        if low <= height * unit <= high:
            return unit
    raise ValueError(
        f"{file}: the bones from ankle to head must add up to {low:g}..{high:g} m in one of the units "
        f"{', '.join(f'{unit:g}' for unit in UNITS)} m, got {height:g} units; give --metres-per-unit"
    )


def resample(pose_NJ3: np.ndarray, fps: float, new_fps: float, count: int) -> np.ndarray:
    """The first `count` frames of the motion at another frame rate, linear between frames."""
    if math.isclose(fps, new_fps, rel_tol=1e-9):
        return pose_NJ3
    last = len(pose_NJ3) - 1
    at_N = np.arange(count) * (fps / new_fps)
    before_N = np.minimum(at_N.astype(np.int64), last)
    after_N = np.minimum(before_N + 1, last)
    part_N11 = np.minimum(at_N - before_N, 1.0)[:, None, None]
    return pose_NJ3[before_N] * (1 - part_N11) + pose_NJ3[after_N] * part_N11
