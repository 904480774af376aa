"""One clip of a file of any format that is read here: its name and first content tell which reader it is for."""

import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from ups_model.data.format.cameras import project, to_camera
from ups_model.data.format.clip_set import MANIFEST, ClipSet
from ups_model.data.format.writer import Track
from ups_model.data.prepare.jobs import Reader, Recording
from ups_model.data.readers import clip_pickles
from ups_model.data.readers.bvh import reader as bvh
from ups_model.data.readers.h36m import reader as h36m
from ups_model.data.readers.io.files import load_json
from ups_model.data.readers.keypoints import reader as keypoints
from ups_model.data.readers.keypoints import videopose3d
from ups_model.data.readers.keypoints.image import same_size
from ups_model.data.readers.keypoints.json_formats import MAX_BYTES
from ups_model.data.readers.keypoints.landmarks import is_landmark_table
from ups_model.data.readers.kinetics import reader as kinetics
from ups_model.data.readers.motion import reader as motion
from ups_model.data.readers.ntu import reader as ntu
from ups_model.data.readers.ntu.names import PROTOCOLS, parse_name

FORMATS = (
    "a prepared clip set, NTU .skeleton, CTR-GCN .npz, pyskl .pkl, VideoPose3D 2D .npz, ST-GCN Kinetics .json and "
    ".npy, .bvh, 3D motion as .npz, .npy, .csv or .c3d, keypoints as .json, .npz or .csv, and a folder of OpenPose's"
)


def read_recording(path: Path, clip: str | None = None, size: tuple[float, float] | None = None) -> Recording:
    """The clip of a file.

    Args:
        path: a file of one of FORMATS, or the folder of a prepared clip set.
        clip: which one, where there are several; see `clip_names`.
        size: width and height of the image in pixels, where the file does not tell it. Keypoints in parts of the image
            are put into pixels.

    Raises:
        ValueError: another format, damaged content, no such clip, or another size than the file's; names the file.
    """
    path = path.expanduser()
    prepared = (path / MANIFEST).is_file()
    reader = None if prepared else _reader(path)
    if reader is keypoints:
        return keypoints.read_recording(path, clip, size)
    recording = _prepared(ClipSet.open(path), clip) if reader is None else reader.read_recording(path, clip)
    return replace(recording, size=same_size(path, recording.size, size))


def clip_names(path: Path) -> list[str]:
    """What `read_recording` takes as `clip`, in the file's order."""
    path = path.expanduser()
    if (path / MANIFEST).is_file():
        return ClipSet.open(path).clip_id.tolist()
    return list(_reader(path).clip_names(path))


def _reader(path: Path) -> Reader:
    if not path.exists():
        raise ValueError(f"{path}: no such file; give {FORMATS}")
    if path.is_dir():
        if keypoints.is_frame_folder(path):
            return keypoints
        raise ValueError(
            f"{path}: a folder, but no prepared clip set (it has no {MANIFEST}), and without OpenPose's frames "
            "(*_keypoints.json); give one of its files"
        )
    if not path.is_file():
        raise ValueError(f"{path}: not a file; give {FORMATS}")
    match path.suffix.lower():
        case ".skeleton":
            return ntu
        case ".pkl":
            return _pickle_reader(path)
        case ".bvh":
            return bvh
        case ".npy":
            return kinetics if path.stem in ("train_data", "val_data") else motion
        case ".c3d":
            return motion
        case ".npz":
            return keypoints if videopose3d.is_custom(path) else _npz_reader(path)
        case ".csv":
            return keypoints if is_landmark_table(path) else motion
        case ".json":
            return _json_reader(path)
    raise ValueError(f"{path}: no known format; known are {FORMATS}")


def _npz_reader(path: Path) -> Reader:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy") for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path}: not a whole .npz file ({error}); get the file again, or write it again") from error
    readers: dict[str, Reader]
    readers = {"x_train": ntu, "x_test": ntu, "positions_2d": h36m, "keypoints": keypoints, "positions": motion}
    for array, reader in readers.items():
        if array in members:
            return reader
    raise ValueError(
        f"{path}: its arrays {', '.join(sorted(members)) or '(none)'} are of no known format: CTR-GCN's files have "
        "x_train, VideoPose3D's 2D files positions_2d, files of COCO keypoints keypoints, files of 3D motion positions"
    )


def _pickle_reader(path: Path) -> Reader:
    """NTU RGB+D's by the file's name or the first recording's, else those of one's own."""
    if path.name.startswith(tuple(PROTOCOLS)):
        return ntu
    if clip_pickles.dims(path) == 2:
        return keypoints
    try:
        parse_name(clip_pickles.names(path)[0])
    except ValueError:
        return motion
    return ntu


def _json_reader(path: Path) -> Reader:
    content = load_json(path, MAX_BYTES)
    frames = content.get("data") if isinstance(content, dict) else None
    if isinstance(frames, list) and all(isinstance(frame, dict) and "skeleton" in frame for frame in frames):
        return kinetics
    return keypoints


def _prepared(clips: ClipSet, name: str | None) -> Recording:
    """A clip by its id, or "ID/0" for what camera 0 saw of it."""
    ids = clips.clip_id.tolist()
    if name is None and len(ids) == 1:
        name = ids[0]
    if name is None:
        raise ValueError(f"{clips.path}: holds {len(ids):,} clips; name one with --clip, such as {ids[0]}")
    camera = None
    if name not in ids and (parts := name.rsplit("/", 1))[0] in ids and re.fullmatch("[0-9]{1,3}", parts[-1]):
        name, camera = parts[0], int(parts[1])
    if name not in ids:
        raise ValueError(f"{clips.path}: has no clip {name!r}; --list shows them, the first is {ids[0]}")
    row = ids.index(name)
    if camera is not None:
        return _seen(clips, row, camera)
    info = clips.info
    # In a filled set, what was missed has been put in its place already.
    confidence_FJ = None if info.filled else clips.confidence
    tracks = tuple(
        Track(
            np.asarray(clips.positions[frames]),
            int(clips.track_offset[track]),
            None if confidence_FJ is None else np.asarray(confidence_FJ[frames]),
        )
        for track in clips.tracks(row)
        for frames in [clips.frames(track)]
    )
    units: Literal["metre", "normalised"] = "metre" if info.units == "metre" else "normalised"
    cameras = len(clips.cameras(row)) if info.dims == 3 else 0
    return Recording(
        name, info.skeleton, info.dims, info.fps, units, info.up_axis, tracks, cameras=cameras,
        frames=int(clips.clip_length[row]),
    )  # fmt: skip


def _seen(clips: ClipSet, row: int, number: int) -> Recording:
    """What a camera saw: the set's keypoints, else exact projections, which are at hand beside them too."""
    cameras = clips.cameras(row)
    if number >= len(cameras):
        raise ValueError(f"{clips.path}: clip {clips.clip_id[row]} has {len(cameras)} cameras, got camera {number}")
    camera, frames = cameras[number], clips.frames(clips.tracks(row)[0])
    world_NJ3 = np.asarray(clips.positions[frames], dtype=np.float32)
    projected, truth = (
        Track(pose.astype(np.float32)) for pose in (project(world_NJ3, camera), to_camera(world_NJ3, camera))
    )
    name, info, track = f"{clips.clip_id[row]}/{number}", clips.info, projected
    if clips.keypoints is not None:
        track = Track(clips.keypoints[frames, number].astype(np.float32))
    return Recording(
        name, info.skeleton, 2, info.fps, "pixel", "-y", (track,), camera.wh, truth, projected=projected,
    )  # fmt: skip
