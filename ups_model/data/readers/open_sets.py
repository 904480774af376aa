"""Readers of the three open sets of real motion: UI-PRMD, UTD-MHAD and J-HMDB, each packed as one .npz file, or in the
files that their authors publish (`open_originals`).

Every file holds all sequences end to end: sequence i is `positions[start[i] : start[i] + length[i]]`. docs/data.md has
the layout. Shape suffixes: F frames of the file, K cameras.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.sparse.csgraph import connected_components

from ups_model.data.format.clip_set import Camera, ClipSet, ClipSetInfo
from ups_model.data.format.splits import GROUP
from ups_model.data.format.writer import Clip, Track, write_clip_set
from ups_model.data.readers.io.files import damage_named
from ups_model.data.readers.open_originals import OPEN_SETS, OpenSet, content_digest, load_originals, original_files
from ups_model.skeletons import get_skeleton

READER_VERSION = 3
"""Raised when a reader changes what it writes, so that prepared sets are made again."""

_KEYS = "positions start length label names split_test joint_names parents fps units up_axis licence"
_CAMERA_KEYS = "cam_R cam_center cam_f cam_c cam_wh"
NEAR = 0.35
"""Distance below which two clips are taken for parts of one video. With it a nearest-neighbour classifier is right on
61 % of held-out training clips of J-HMDB (mean of five folds) and on 60 % of its test clips; with clips held out one
by one, on 72 %."""


def recipe(name: str, source: Path) -> dict[str, str | int]:
    """What preparing `name` from the folder (or file) `source` depends on. Raises ValueError naming a missing file."""
    reader: dict[str, str | int] = {"reader": "open_sets", "reader_version": READER_VERSION}
    file = packed_file(name, source)
    if file is None:
        files = _originals(name, source)
        digest = content_digest(files)
        return reader | {"source": f"{len(files)} original files", "source_sha256": digest}
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return reader | {"source": file.name, "source_sha256": digest}


def packed_file(name: str, source: Path) -> Path | None:
    """The .npz file of `name` in the folder `source`, which may also be the file itself; None where it isn't there."""
    file = source if source.suffix == ".npz" else source / OPEN_SETS[name].file
    return file if file.is_file() else None


def _originals(name: str, source: Path) -> list[Path]:
    """ValueError where there are none either."""
    files = [] if source.suffix == ".npz" else original_files(name, source)
    if not files:
        spec = OPEN_SETS[name]
        file = source if source.suffix == ".npz" else source / spec.file
        raise ValueError(
            f"{file}: no such file, and no original files ({spec.originals}) below {source}; {name} is prepared from "
            "either, give their folder with --source"
        )
    return files


def prepare(name: str, source: Path, path: Path) -> ClipSet:
    """Makes the clip set `name` at `path` from the .npz file in the folder `source`, or from its original files.
    ValueError names files that are missing, truncated, lack an array, or hold values that break the layout."""
    spec = OPEN_SETS[name]
    file = packed_file(name, source)
    arrays = load_originals(name, _originals(name, source)) if file is None else _load(file, spec)
    _check(file or source, spec, arrays)

    cameras: tuple[tuple[Camera, ...], ...] = ()
    if spec.has_cameras:
        *views, wh = (arrays[key] for key in _CAMERA_KEYS.split())
        cameras = (tuple(Camera(R, center, f, c, wh) for R, center, f, c in zip(*views, strict=True)),)
    info = ClipSetInfo(
        name=name,
        skeleton=spec.skeleton,
        dims=spec.dims,
        fps=float(arrays["fps"]),
        units="metre" if spec.dims == 3 else "normalised",
        up_axis=str(arrays["up_axis"]),
        licence=str(arrays["licence"]),
        classes=tuple(arrays["names"].tolist()),
        synthetic=False,
        description=spec.description,
        camera_groups=cameras,
        recipe=recipe(name, source),
    )
    positions, starts, lengths = arrays["positions"], arrays["start"].tolist(), arrays["length"].tolist()
    columns = {key: arrays[key] for key in spec.columns}
    if not spec.has_subjects:
        columns[GROUP] = near_groups(arrays, spec.columns)
    clips = (
        Clip(
            clip_id=f"{name}-{row:05d}",
            tracks=(Track(positions[start : start + length]),),
            label=int(arrays["label"][row]),
            subject=int(arrays["subject"][row]) if spec.has_subjects else -1,
            split_test=bool(arrays["split_test"][row]),
            camera_group=0 if spec.has_cameras else -1,
            extra={key: int(column[row]) for key, column in columns.items()},
        )
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True))
    )
    return write_clip_set(path, info, clips, dtype=positions.dtype.name)


def near_groups(arrays: Mapping[str, np.ndarray], splits: Sequence[str]) -> np.ndarray:
    """[clips] number of the group of each clip: what was probably cut from one video.

    The packed files have no names of videos. Two clips are linked where they are of one class, are on the same side of
    every published split (which parts no video), and are nearer than NEAR: the mean distance between their poses, 8
    frames each, centred and scaled to unit spread over the clip. Groups are what links connect.
    """
    poses_MX = np.stack(
        [
            _unit_pose(arrays["positions"][start : start + length].astype(np.float64))
            for start, length in zip(arrays["start"].tolist(), arrays["length"].tolist(), strict=True)
        ]
    )
    kinds_MK = np.stack([arrays["label"], *(arrays[name] for name in splits)], axis=1).astype(np.int64)
    groups = np.zeros(len(poses_MX), dtype=np.int64)
    for kind in np.unique(kinds_MK, axis=0):
        rows = np.flatnonzero((kinds_MK == kind).all(axis=1))
        own = poses_MX[rows]
        distance = np.linalg.norm(own[:, None] - own[None], axis=-1).mean(axis=-1)
        _, part = connected_components(distance < NEAR)
        for number in range(part.max() + 1):
            groups[rows[part == number]] = rows[part == number].min()
    return groups


def _unit_pose(pose_NJC: np.ndarray) -> np.ndarray:
    """[8 * J, C] of 8 frames, centred, with unit spread."""
    frames = np.linspace(0, len(pose_NJC) - 1, 8).round().astype(int)
    centred = pose_NJC[frames] - pose_NJC[frames].mean(axis=(0, 1))
    spread = np.sqrt(np.square(centred).sum(axis=-1).mean())
    return (centred / max(spread, 1e-9)).reshape(-1, pose_NJC.shape[-1])


def _load(file: Path, spec: OpenSet) -> dict[str, np.ndarray]:
    keys = [*_KEYS.split(), *spec.columns, *["subject"] * spec.has_subjects, *_CAMERA_KEYS.split() * spec.has_cameras]
    with (
        damage_named(f"{file}: not a whole .npz file of this layout", "download it again"),
        np.load(file, allow_pickle=False) as archive,
    ):
        if missing := sorted(set(keys) - set(archive.files)):
            raise ValueError(f"it lacks {', '.join(missing)}")
        return {key: archive[key] for key in keys}


def _check(file: Path, spec: OpenSet, arrays: Mapping[str, np.ndarray]) -> None:
    skeleton = get_skeleton(spec.skeleton)
    positions, start, length = arrays["positions"], arrays["start"], arrays["length"]
    faults = []
    if positions.ndim != 3 or positions.shape[1:] != (skeleton.joints, spec.dims):
        expected = f"[F, {skeleton.joints}, {spec.dims}]"
        raise ValueError(f"{file}: positions must have shape {expected}, got {list(positions.shape)}")
    if positions.dtype not in (np.float16, np.float32):
        faults.append(f"positions must be float16 or float32, got {positions.dtype}")
    elif bad := int((~np.isfinite(positions)).sum()):
        faults.append(f"positions must be finite, got {bad} values that are not")
    columns = ["length", "label", "split_test", *spec.columns] + ["subject"] * spec.has_subjects
    for key in columns:
        if arrays[key].shape != start.shape or start.ndim != 1:
            faults.append(f"{key} must have one row per start {list(start.shape)}, got {list(arrays[key].shape)}")
    if not faults and ((start < 0) | (length < 1) | (start + length > len(positions))).any():
        faults.append(f"sequences must lie inside the {len(positions)} frames")
    # Joints are matched by position: a file whose joints are in another order would be read as nonsense bodies.
    if tuple(arrays["parents"].tolist()) != skeleton.parents:
        faults.append(f"parents must be those of {skeleton.name} {skeleton.parents}, got {arrays['parents'].tolist()}")
    if faults:
        raise ValueError(f"{file}: " + "; ".join(faults))
