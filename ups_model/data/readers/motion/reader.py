"""Reader of the user's own 3D motion: a folder of arrays, tables, C3D files or pickles becomes the set "motion".

Which clips are of which class, subject and split: `readers.user_folder`. Formats: `files`, `c3d` and `clip_pickles`
(pickles of pyskl and mmaction2); joints: `layouts`. A set has one layout, that of the first file that can be read.
Motion is scaled to metres, turned to z up, and moved so that the first person's first root is over the origin and the
lowest joint of the clip on the floor. Clips of h36m17 get the four cameras of `bvh.cameras`.

A joint that is not seen stays where it was last; the frames before all joints were seen once are cut.
Shape suffixes: P persons, N frames, J joints.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ups_model.data.format.writer import Clip, Track
from ups_model.data.prepare.jobs import LeftOut, Reading, Recording, choose_clip
from ups_model.data.readers import clip_pickles
from ups_model.data.readers.bvh.cameras import corner_cameras, leaves_view
from ups_model.data.readers.bvh.joints import JOINTS_FILE, joints_beside
from ups_model.data.readers.bvh.reader import axis_of, resample
from ups_model.data.readers.clip_places import Item, OwnFile
from ups_model.data.readers.motion.c3d import read_c3d
from ups_model.data.readers.motion.files import Motion, checked, read_motion
from ups_model.data.readers.motion.layouts import MOTION_FILE, UNITS, About, about_beside, layout_of
from ups_model.data.readers.user_folder import first_readable, frames_at_rate, look, make_jobs
from ups_model.skeletons import Skeleton

READER_VERSION = 3
NAME = "motion"
SUFFIXES = (".npz", ".npy", ".csv", ".c3d", ".pkl")
DEFAULT_FPS = 30.0
BODY_EXTENT = (0.3, 4.0)
"""Metres between which the largest extent of a body along an axis lies, in the median of frames."""
MAX_METRES = 100.0
"""From the file's origin; what is further away is taken for damage."""
PERSONS = 2
CAMERA_LAYOUT = "h36m17"
_DIGITS = 6


@dataclass(frozen=True)
class _Options:
    """How files are read, whatever they say themselves."""

    about: About
    """What motion.json says."""
    own_names: Mapping[str, str]
    """What joints.json says."""
    metres_per_unit: float | None = None
    fps: float | None = None


@dataclass(frozen=True, eq=False)
class _Clip:
    tracks: tuple[Track, ...]
    """Metres, z up, the longest first."""
    skeleton: Skeleton
    fps: float | None
    up_axis: str
    """Of the file."""
    has_up_axis: bool
    """Whether the file or motion.json has it, else it is where the heads are."""
    seen_up_axis: str
    """Where the head is above the ankles in the median of frames."""


def reading(source: Path, metres_per_unit: float | None = None, fps: float | None = None) -> Reading:
    """The set "motion" from the files in the folder `source`; motion.json and joints.json beside them count for all.

    The set has the layout and the frame rate of the first file that can be read; files of another rate are resampled,
    linearly in position. Left out are clips that cannot be read, that have another layout ("another layout"), and, with
    cameras, those that leave their view ("walks out of view"). ValueError names the missing folder, the damaged
    motion.json or joints.json, or the first file where none can be read.

    Args:
        metres_per_unit: of all files, whatever they say; None takes their unit, or metres.
        fps: of all files, whatever they say; None takes what each says, or 30.
    """
    own = look(source, SUFFIXES, (MOTION_FILE, JOINTS_FILE), items_of=_items)
    options = _Options(about_beside([source]), joints_beside([source]), metres_per_unit, fps)
    file, first = first_readable(own, partial(_read, options=options))
    rate = first.fps or DEFAULT_FPS
    notes = [*own.notes, *clip_pickles.split_notes(own.files), f"joints are {first.skeleton.name}'s, as in {file.name}"]
    origin = "from --fps" if fps else f"as in {file.name}" if first.fps else "the default, set another with --fps"
    notes.append(f"{rate:g} frames per second, {origin}")
    if not first.has_up_axis:
        notes.append(
            f"{file.name} has no up_axis: bodies are tallest along {first.up_axis}, which is taken as up; set up_axis "
            f"in the file or {MOTION_FILE} if it isn't"
        )
    elif first.seen_up_axis != first.up_axis:
        notes.append(
            f"{file.name} has up_axis {first.up_axis}, but heads are above ankles along {first.seen_up_axis} in the "
            f"median frame; correct up_axis in the file or {MOTION_FILE} unless people lie or stand on their heads"
        )
    layout, unit = first.skeleton.name, repr(metres_per_unit)
    cameras = (corner_cameras(),) if layout == CAMERA_LAYOUT else ()
    description = "Motion: 3D poses of one's own"
    info = own.info(NAME, READER_VERSION, layout, 3, rate, description, cameras, metres_per_unit=unit)
    read = partial(_clip, options=options, skeleton=layout, fps=rate)
    return Reading(info, make_jobs(own, read), tuple(notes))


def clip_names(file: Path) -> tuple[str, ...]:
    """The file's name without suffix, or the clips of a pickle."""
    return clip_pickles.names(file) if file.suffix.lower() == ".pkl" else (file.stem,)


def read_recording(file: Path, clip: str | None = None) -> Recording:
    """The motion of a file as `reading` has it, but at its own frame rate; see `Reader`. A motion.json or joints.json
    counts that is in the file's folder or one of the two above it."""
    name = choose_clip(file, clip_names(file), clip)
    item = name if file.suffix.lower() == ".pkl" else ""
    places = file.absolute().parents[:3]
    options = _Options(about_beside(places), joints_beside(places))
    one = _read(OwnFile(str(file), name, -1, False, item=item), options)
    return Recording(name, one.skeleton.name, 3, one.fps or DEFAULT_FPS, "metre", "z", one.tracks)


def _items(file: Path) -> list[Item] | None:
    return clip_pickles.items(file, 3) if file.suffix.lower() == ".pkl" else None


def _clip(file: OwnFile, options: _Options, skeleton: str, fps: float) -> Clip | LeftOut:
    one = _read(file, options)
    if one.skeleton.name != skeleton:
        detail = f"{file.path}: has the joints of {one.skeleton.name}, the set those of {skeleton}; prepare it apart"
        return LeftOut(file.name, "another layout", detail)
    own_fps = one.fps or fps
    cameras = skeleton == CAMERA_LAYOUT
    tracks = []
    for track in one.tracks:
        if cameras and (fault := leaves_view(track.positions)):
            return LeftOut(file.name, "walks out of view", f"{file.path}: {fault}")
        count = frames_at_rate(Path(file.path), len(track.positions), own_fps, fps)
        pose_NJ3 = np.asarray(resample(track.positions, own_fps, fps, count), dtype=np.float32)
        tracks.append(Track(pose_NJ3, offset=math.floor(track.offset * fps / own_fps + 0.5)))
    group = 0 if cameras else -1
    return Clip(file.name, tuple(tracks), file.label, file.subject, split_test=file.split_test, camera_group=group)


def _read(file: OwnFile, options: _Options) -> _Clip:
    path = Path(file.path)
    if file.item:
        item = clip_pickles.find(path, file.item)
        motion = Motion(checked(f"{path}[{file.item}]", item.get("keypoint")), _pickled_about(item, options))
    else:
        motion = read_c3d(path) if path.suffix.lower() == ".c3d" else read_motion(path)
    about = motion.about.else_as(options.about)
    skeleton, places_J = layout_of(path, about, motion.pose_PNJ3.shape[2], options.own_names)
    unit = options.metres_per_unit or UNITS[about.unit or "m"]
    tracks = _tracks(path, motion.pose_PNJ3[:, :, places_J] * unit)
    _check_extent(path, tracks, unit)
    upward_N3 = _upward(tracks, skeleton)
    up_axis = about.up_axis or axis_of(upward_N3.mean(axis=0))
    seen_up_axis = axis_of(np.median(upward_N3, axis=0))
    turned = _placed([_turned(track.positions, up_axis) for track in tracks])
    tracks = [
        Track(np.round(pose_NJ3, _DIGITS).astype(np.float32), offset=track.offset)
        for pose_NJ3, track in zip(turned, tracks, strict=True)
    ]
    return _Clip(tuple(tracks), skeleton, options.fps or about.fps, up_axis, about.up_axis is not None, seen_up_axis)


def _pickled_about(item: Mapping[str, object], options: _Options) -> About:
    """pyskl's 25 joints are NTU RGB+D's, unless motion.json says otherwise."""
    named = options.about.skeleton is not None or options.about.joint_names is not None
    pose = item.get("keypoint")
    of_ntu = isinstance(pose, np.ndarray) and pose.shape[-2:-1] == (25,)
    return About(skeleton="ntu25") if of_ntu and not named else About()


def _tracks(file: Path, pose_PNJ3: np.ndarray) -> list[Track]:
    """The persons, the longest first, each from the frame on in which all of its joints were seen once."""
    tracks = []
    for pose_NJ3 in pose_PNJ3:
        seen_NJ = np.isfinite(pose_NJ3).all(axis=2) & (np.nan_to_num(pose_NJ3) != 0).any(axis=(1, 2))[:, None]
        frames_N = np.flatnonzero(seen_NJ.any(axis=1))
        last_NJ = np.maximum.accumulate(np.where(seen_NJ, np.arange(len(seen_NJ))[:, None], -1), axis=0)
        whole_N = np.flatnonzero((last_NJ >= 0).all(axis=1))
        if not len(whole_N) or whole_N[0] > frames_N[-1]:
            continue
        rows_NJ = last_NJ[whole_N[0] : frames_N[-1] + 1]
        held_NJ3 = pose_NJ3[rows_NJ, np.arange(pose_NJ3.shape[1])]
        if not (near_NJ := np.abs(held_NJ3).max(axis=2) <= MAX_METRES).all():
            frame, joint = np.argwhere(~near_NJ)[0].tolist()
            raise ValueError(
                f"{file}: joints must be within {MAX_METRES:g} m of the origin, got {held_NJ3[frame, joint].tolist()} "
                f"in frame {frame + int(whole_N[0])}; say the unit of the file, or give --metres-per-unit"
            )
        tracks.append(Track(held_NJ3, offset=int(whole_N[0])))
    if not tracks:
        raise ValueError(f"{file}: in no frame all joints of a person have been seen; leave it out")
    tracks = sorted(tracks, key=lambda track: -len(track.positions))[:PERSONS]
    start = min(track.offset for track in tracks)
    return [Track(track.positions, offset=track.offset - start) for track in tracks]


def _check_extent(file: Path, tracks: list[Track], unit: float) -> None:
    """ValueError where bodies aren't of a person's size, as when the unit is wrong."""
    extent = float(np.median(np.ptp(tracks[0].positions, axis=1).max(axis=1)))
    low, high = BODY_EXTENT
    if not low <= extent <= high:
        raise ValueError(
            f"{file}: a body must be {low:g}..{high:g} m large, got {extent:g} m at {unit:g} m a unit; write its unit "
            f"({', '.join(UNITS)}) into the file or {MOTION_FILE}, or give --metres-per-unit"
        )


def _upward(tracks: list[Track], skeleton: Skeleton) -> np.ndarray:
    """float64 [N, 3]: from the middle of the first person's ankles to the head."""
    names = skeleton.joint_names
    top = next(names.index(joint) for joint in ("head", "face", "nose") if joint in names)
    ankles = [names.index("l_ankle"), names.index("r_ankle")]
    return np.asarray(tracks[0].positions[:, top] - tracks[0].positions[:, ankles].mean(axis=1))


def _turned(pose_NJ3: np.ndarray, up_axis: str) -> np.ndarray:
    """Poses with z up, by a rotation."""
    x, y, z = np.moveaxis(pose_NJ3, 2, 0)
    turned = {
        "z": (x, y, z),
        "-z": (x, -y, -z),
        "y": (x, -z, y),
        "-y": (x, z, -y),
        "x": (y, z, x),
        "-x": (-y, z, -x),
    }[up_axis]
    return np.stack(turned, axis=2)


def _placed(poses: list[np.ndarray]) -> list[np.ndarray]:
    """Persons moved together: the first one's first joint over the origin, the lowest joint on the floor."""
    floor = min(float(pose_NJ3[..., 2].min()) for pose_NJ3 in poses)
    return [pose_NJ3 - [*poses[0][0, 0, :2], floor] for pose_NJ3 in poses]
