"""Reader of Human3.6M in VideoPose3D's files: 3D poses with 2D keypoints of four cameras.

Two sets are made, of the same poses: "h36m" with the keypoints of a detector (a cascaded pyramid network that was
fine-tuned on Human3.6M), "h36m_gt" with the projections of the poses themselves. Subjects 9 and 11 are for testing.

Shape suffixes: N frames, K cameras, J 17 joints.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ups_model.data.format.cameras import Camera, to_camera
from ups_model.data.format.clip_set import ClipSetInfo
from ups_model.data.format.writer import Clip, Track
from ups_model.data.prepare.jobs import Job, LeftOut, Reading, Recording
from ups_model.data.readers.h36m.cameras import CAMERA_IDS, SIZES, SUBJECTS, cameras_of
from ups_model.data.readers.h36m.files import (
    ACTIONS,
    Actions,
    action_of,
    has_four_views,
    pose_of,
    read_keypoints,
    read_poses,
    view_of,
)
from ups_model.data.readers.io.files import files_sha256

READER_VERSION = 1

POSES_FILE = "data_3d_h36m.npz"
KEYPOINT_FILES: Mapping[str, str] = {
    "h36m": "data_2d_h36m_cpn_ft_h36m_dbb.npz",
    "h36m_gt": "data_2d_h36m_gt.npz",
}
"""The 2D file by the name of the clip set made of it."""

ORIGIN = "h36m"
SKELETON = "h36m17"
FPS = 50.0
TEST_SUBJECTS = frozenset({"S9", "S11"})

LIMIT_PX = 100.0
"""Keypoints that lie farther from the projected 3D than this, in the median, are of another recording or camera."""
_SAMPLED_FRAMES = 250
"""Frames of a recording, evenly spaced, whose distances are looked at: all would take longer and tell no more."""
_FIT_PX = 25.0
"""Keypoints that lie nearer to another camera's projection than this are that camera's."""

_DESCRIPTIONS = {
    "h36m": "Human3.6M: motion capture of 15 actions, with 2D keypoints of a fine-tuned CPN detector in four cameras",
    "h36m_gt": "Human3.6M: motion capture of 15 actions, with exact 2D keypoints in four cameras",
}


def recipe(name: str, source: Path) -> dict[str, str | int]:
    """What preparing `name` depends on: names, sizes and times of the files. ValueError for a missing file."""
    stats = [(file.name, file.stat()) for file in _files(name, source)]
    listing = sorted((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats)
    return {"reader": "h36m", "reader_version": READER_VERSION, "set": name, "files_sha256": files_sha256(listing)}


def reading(name: str, source: Path) -> Reading:
    """The set `name`, "h36m" or "h36m_gt", from the folder `source`. Reads both files once, to see that they fit.

    Keypoints are cut to the length of the poses, as the files' keypoints may run on. Left out are recordings that are
    in one file only, have keypoints of another number of cameras or of fewer frames, or are damaged. ValueError: a file
    is missing, damaged or of another format, has an unknown action or subject, or its keypoints lie more than LIMIT_PX
    (the median over a subject's recordings) from the projected poses of a camera.
    """
    set_recipe = recipe(name, source)
    poses_file, keypoints_file = _files(name, source)
    notes, first, items = [], None, 0
    offsets: dict[str, dict[str, list[float]]] = defaultdict(dict)
    poses, keypoints = read_poses(poses_file), read_keypoints(keypoints_file)
    if strange := sorted(poses.keys() - set(SUBJECTS)):
        raise ValueError(
            f"{poses_file}: subjects with a calibration are {', '.join(SUBJECTS)}, got {', '.join(strange)}; drop these"
        )
    for subject in sorted(keypoints.keys() - poses.keys()):
        notes.append(
            f"{subject} has no 3D poses; its {len(keypoints[subject])} recordings of 2D keypoints are not used"
        )
    if missing := [subject for subject in SUBJECTS if subject not in poses]:
        notes.append(f"no 3D poses of {', '.join(missing)} here: figures do not compare with those of the whole set")
    for item in _matched(poses, keypoints, poses_file, keypoints_file):
        items += 1
        if isinstance(item, LeftOut):
            first = first or item
        else:
            offsets[item.subject][item.action] = _offsets(keypoints_file, item)
    if not offsets:
        detail = f"; the first: {first.name}: {first.reason} {first.detail}" if first else ""
        raise ValueError(
            f"{keypoints_file}: must have recordings of {poses_file.name} in four cameras, got none{detail}"
        )
    notes += _check_offsets(keypoints_file, offsets)
    info = ClipSetInfo(
        name=name,
        skeleton=SKELETON,
        dims=3,
        fps=FPS,
        units="metre",
        up_axis="z",
        licence="Human3.6M, for academic use, not to be passed on; see vision.imar.ro/human3.6m",
        classes=ACTIONS,
        synthetic=False,
        description=_DESCRIPTIONS[name],
        origin=ORIGIN,
        camera_groups=tuple(map(cameras_of, SUBJECTS)),
        recipe=set_recipe,
    )
    # A pickle is read front to back, so this is one job.
    job = Job(keypoints_file.name, items, partial(_read, poses_file, keypoints_file))
    return Reading(info, (job,), tuple(notes))


def clip_names(file: Path) -> tuple[str, ...]:
    """The clips of a 2D file, "S9/Walking 1/54138969": every recording in every camera. Recordings that have another
    number of cameras are none, as it isn't known which theirs are."""
    keypoints = read_keypoints(file)
    return tuple(
        f"{subject}/{action}/{camera}"
        for subject in sorted(keypoints, key=_subject_order)
        for action in sorted(keypoints[subject])
        if has_four_views(keypoints[subject][action])
        for camera in CAMERA_IDS
    )


def read_recording(file: Path, clip: str | None = None) -> Recording:
    """The keypoints of a recording in one camera of a 2D file; see `Reader`.

    `clip` is "S9/Walking 1/54138969", or has the camera's place 0 to 3 in place of its number. `truth` are the poses in
    the camera's space, where data_3d_h36m.npz lies beside the file and has them. Keypoints are then cut to the length
    of the poses; ValueError where they end before.
    """
    keypoints = read_keypoints(file)
    subject, action, camera = _parse(file, keypoints, clip)
    name, where = f"{subject}/{action}", f"[{subject}/{action}]"
    views = keypoints[subject][action]
    if not has_four_views(views):
        raise ValueError(f"{file}{where}: must have keypoints of {len(CAMERA_IDS)} cameras; take another recording")
    view_NJ2 = view_of(f"{file}{where}[{camera}]", views[camera])
    truth = None
    poses_file = file.with_name(POSES_FILE)
    array = read_poses(poses_file).get(subject, {}).get(action) if poses_file.exists() and subject in SUBJECTS else None
    if array is not None:
        pose_NJ3 = pose_of(f"{poses_file}{where}", array)
        if len(view_NJ2) < len(pose_NJ3):
            raise ValueError(
                f"{file}{where}: must have the {len(pose_NJ3)} frames of {POSES_FILE}, got {len(view_NJ2)}; "
                "take both files from one place"
            )
        view_NJ2 = view_NJ2[: len(pose_NJ3)]
        truth = Track(to_camera(pose_NJ3, cameras_of(subject)[camera]).astype(np.float32))
    name = f"{name}/{CAMERA_IDS[camera]}"
    return Recording(name, SKELETON, 2, FPS, "pixel", "-y", (Track(view_NJ2),), SIZES[camera], truth)


def _parse(file: Path, keypoints: Actions, clip: str | None) -> tuple[str, str, int]:
    subject, _, rest = (clip or "").partition("/")
    action, _, camera = rest.rpartition("/")
    cameras = [*CAMERA_IDS, *map(str, range(len(CAMERA_IDS)))]
    if action not in keypoints.get(subject, {}) or camera not in cameras:
        one = next((f"{each}/{next(iter(keypoints[each]))}" for each in keypoints if keypoints[each]), "S9/Walking 1")
        raise ValueError(
            f"{file}: a clip is named by subject, action and camera, {one}/{CAMERA_IDS[0]} for one, got {clip!r}"
        )
    return subject, action, cameras.index(camera) % len(CAMERA_IDS)


def _files(name: str, source: Path) -> tuple[Path, Path]:
    """The 3D file and the 2D file of a set."""
    files = (source / POSES_FILE, source / KEYPOINT_FILES[name])
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: no such file; {name} is prepared from it, give its folder with --source")
    return files


@dataclass(frozen=True, eq=False)
class _Matched:
    """A recording of both files."""

    subject: str
    action: str
    pose_NJ3: np.ndarray
    keypoints_NKJ2: np.ndarray


def _matched(
    poses: Actions, keypoints: Actions, poses_file: Path, keypoints_file: Path
) -> Iterator[_Matched | LeftOut]:
    """Every recording of the subjects of the 3D file. Takes both files' content apart, so that memory is let go."""
    for subject in (one for one in SUBJECTS if one in poses):
        ours, theirs = poses.pop(subject), keypoints.pop(subject, {})
        for action in sorted(ours.keys() | theirs.keys()):
            name = f"{subject}/{action}"
            if action not in theirs or action not in ours:
                which = "2D keypoints" if action not in theirs else "3D poses"
                yield LeftOut(name, f"without {which}")
                continue
            array, views = ours.pop(action), theirs.pop(action)
            if not has_four_views(views):
                got = len(views) if isinstance(views, (list, tuple)) else type(views).__name__
                yield LeftOut(name, "not four cameras", f"{keypoints_file}[{name}]: {len(CAMERA_IDS)}, got {got}")
                continue
            try:
                pose_NJ3 = pose_of(f"{poses_file}[{name}]", array)
                seen = [view_of(f"{keypoints_file}[{name}][{place}]", view) for place, view in enumerate(views)]
            except ValueError as error:
                yield LeftOut(name, "unreadable", str(error))
                continue
            frames, shortest = len(pose_NJ3), min(map(len, seen))
            if shortest < frames:
                detail = f"{keypoints_file}[{name}]: must have {frames} frames, got {shortest}"
                yield LeftOut(name, "2D shorter than 3D", detail)
                continue
            yield _Matched(subject, action, pose_NJ3, np.stack([view_NJ2[:frames] for view_NJ2 in seen], axis=1))


def _read(poses_file: Path, keypoints_file: Path) -> Iterator[Clip | LeftOut]:
    for item in _matched(read_poses(poses_file), read_keypoints(keypoints_file), poses_file, keypoints_file):
        if isinstance(item, LeftOut):
            yield item
            continue
        label, repeat = action_of(str(poses_file), item.action)
        yield Clip(
            clip_id=f"{item.subject}/{item.action}",
            tracks=(Track(item.pose_NJ3, keypoints=item.keypoints_NKJ2),),
            label=label,
            subject=int(item.subject[1:]),
            split_test=item.subject in TEST_SUBJECTS,
            camera_group=SUBJECTS.index(item.subject),
            extra={"repeat": repeat},
        )


def _distance_px(pose_NJ3: np.ndarray, keypoints_NJ2: np.ndarray, camera: Camera) -> float:
    """Median over evenly spaced frames and joints. A point that is not in front of the camera is infinitely far."""
    step = -(-len(pose_NJ3) // _SAMPLED_FRAMES)
    pose_NJ3, keypoints_NJ2 = pose_NJ3[::step], keypoints_NJ2[::step]
    seen_NJ3 = to_camera(pose_NJ3, camera)
    depth_NJ1 = np.where(seen_NJ3[..., 2:] > 0, seen_NJ3[..., 2:], np.nan)
    projected_NJ2 = np.asarray(camera.f) * seen_NJ3[..., :2] / depth_NJ1 + np.asarray(camera.c)
    distance_NJ = np.linalg.norm(projected_NJ2 - keypoints_NJ2, axis=-1)
    return float(np.median(np.nan_to_num(distance_NJ, nan=np.inf)))


def _offsets(file: Path, item: _Matched) -> list[float]:
    """Median distance in pixels of each camera's keypoints from the poses' projection. ValueError where they are
    another camera's."""
    cameras, views_KNJ2 = cameras_of(item.subject), np.moveaxis(item.keypoints_NKJ2, 1, 0)
    offsets = [_distance_px(item.pose_NJ3, view, camera) for view, camera in zip(views_KNJ2, cameras, strict=True)]
    for place in (place for place, offset in enumerate(offsets) if offset > LIMIT_PX):
        for other, camera in enumerate(cameras):
            if _distance_px(item.pose_NJ3, views_KNJ2[place], camera) < _FIT_PX:
                raise ValueError(
                    f"{file}[{item.subject}/{item.action}][{place}]: must be keypoints of camera {CAMERA_IDS[place]}, "
                    f"got those of {CAMERA_IDS[other]} by the 3D poses; the order is {', '.join(CAMERA_IDS)}"
                )
    return offsets


def _check_offsets(file: Path, offsets: Mapping[str, Mapping[str, list[float]]]) -> list[str]:
    """ValueError where a subject's keypoints do not belong to its poses; what to say of the others.

    One recording alone may be off, and is taken: the published poses of some of S9's lie beside the person.
    """
    notes = []
    for subject, actions in offsets.items():
        for place, camera in enumerate(CAMERA_IDS):
            far = [action for action, distances in actions.items() if distances[place] > LIMIT_PX]
            distance = {action: f"{actions[action][place]:.0f} px from the projected 3D" for action in far}
            if np.median([distances[place] for distances in actions.values()]) > LIMIT_PX:
                raise ValueError(
                    f"{file}[{subject}/{far[0]}][{place}]: keypoints of camera {camera} must lie within "
                    f"{LIMIT_PX:g} px in the median, got {distance[far[0]]} ({len(far)} of {len(actions)} recordings); "
                    "are the cameras in another order, or the files of different sets?"
                )
            notes += [f"{subject}/{action}: keypoints of camera {camera} lie {distance[action]}" for action in far]
    overall = np.median([distances for actions in offsets.values() for distances in actions.values()])
    return [f"2D keypoints lie a median of {overall:.1f} px from the projected 3D", *notes]


def _subject_order(subject: str) -> tuple[int, str]:
    return (int(subject[1:]) if subject[1:].isdecimal() else 0, subject)
