"""Writing clip sets: streamed, checked, and put in place in one step.

Shape suffixes: N frames of a track, K cameras, J joints, C coordinates.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from ups_model.data.format.clip_set import FORMAT, MANIFEST, VERSION, ClipSet, ClipSetInfo, fingerprint_of
from ups_model.data.format.rules import CLIP_TABLE, FRAME_ARRAYS, TRACK_TABLE, sha256_of, shape_faults, table_faults

log = logging.getLogger(__name__)

_MAX_ATTEMPTS = 20


@dataclass(frozen=True, eq=False)
class Track:
    """One person of a clip."""

    positions: np.ndarray
    """[N, J, C], in the set's units."""
    offset: int = 0
    """First frame of the clip in which the person is there."""
    confidence: np.ndarray | None = None
    """[N, J]."""
    keypoints: np.ndarray | None = None
    """[N, K, J, 2], pixels."""

    @property
    def end(self) -> int:
        """The clip's frame after the person's last."""
        return self.offset + len(self.positions)


@dataclass(frozen=True, eq=False)
class Clip:
    """One recording, as `write_clip_set` takes it."""

    clip_id: str
    tracks: tuple[Track, ...]
    label: int = -1
    subject: int = -1
    split_test: bool = False
    camera_group: int = -1
    length: int | None = None
    """Frames; by default where the last track ends."""
    extra: Mapping[str, int] = field(default_factory=dict)
    """Further integer columns; the same keys in every clip."""


def write_clip_set(
    path: str | Path,
    info: ClipSetInfo,
    clips: Iterable[Clip],
    dtype: str = "float32",
    files: Mapping[str, str] | None = None,
) -> ClipSet:
    """Writes a clip set to the folder `path` and opens it.

    Clips are streamed, so a set may be larger than memory. Everything is written to a temporary folder beside `path`
    that is renamed once whole: a reader sees all of a set or none, whatever is killed and whoever writes at once. A set
    of the same fingerprint already there is kept; another one is replaced, and those who have it open keep it.

    Args:
        path: the folder to make; its parents are made too.
        info: what the set is.
        clips: all clips, in order. Give all or none of them confidence, keypoints and each extra column.
        dtype: of positions, "float16" (about 0.5 mm at 1 m) or "float32".
        files: further text files for people, by name; not part of the fingerprint.

    Raises:
        ValueError: the clips break a rule of the format (all faults are listed), or `path` holds something else.
            Nothing is left behind.
    """
    path = Path(path).expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    try:
        fingerprint = _write_files(temporary, info, clips, np.dtype(dtype))
        for name, text in (files or {}).items():
            (temporary / name).write_text(text, "utf-8")
        _move_into_place(temporary, path, fingerprint)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ClipSet.open(path)


def _write_files(folder: Path, info: ClipSetInfo, clips: Iterable[Clip], dtype: np.dtype) -> str:
    """Writes arrays, then the manifest, into `folder`; returns the fingerprint."""
    if dtype not in (np.float16, np.float32):
        raise ValueError(f"dtype must be float16 or float32, got {dtype}")
    streams: dict[str, _Stream] = {}
    rows: dict[str, list[Any]] = {key: [] for key in (*TRACK_TABLE, *CLIP_TABLE)}
    columns: dict[str, list[int]] | None = None
    frames = 0
    try:
        for index, clip in enumerate(clips):
            if columns is None:
                columns = {key: [] for key in clip.extra}
            if clip.extra.keys() != columns.keys():
                raise ValueError(f"clip {clip.clip_id}: columns must be {sorted(columns)}, got {sorted(clip.extra)}")
            for key, column in columns.items():
                column.append(int(clip.extra[key]))
            for track in clip.tracks:
                _write_track(folder, streams, clip.clip_id, track, dtype, first=frames == 0)
                track_row = (frames, len(track.positions), index, track.offset)
                for key, value in zip(TRACK_TABLE, track_row, strict=True):
                    rows[key].append(value)
                frames += len(track.positions)
            length = max((track.end for track in clip.tracks), default=0) if clip.length is None else clip.length
            clip_row = (clip.clip_id, clip.label, clip.subject, clip.split_test, length, clip.camera_group)
            for key, entry in zip(CLIP_TABLE, clip_row, strict=True):
                rows[key].append(entry)
        specs = {key: stream.finish() for key, stream in streams.items()}
    finally:
        for stream in streams.values():
            stream.file.close()
    if not frames:
        raise ValueError(f"clip set {info.name!r}: there must be at least one clip with frames, got none")

    tables = {key: np.array(rows[key], dtype=kind) for key, kind in (TRACK_TABLE | CLIP_TABLE).items()}
    tables |= {f"column_{key}": np.array(column, dtype=np.int32) for key, column in (columns or {}).items()}
    written = {key: np.load(folder / f"{key}.npy", mmap_mode="r") for key in specs}
    faults = shape_faults(info, written | tables) + table_faults(info, tables, frames, written.get("keypoints"))
    faults += [f"column names must be identifiers, got {key[7:]!r}" for key in tables if not key.isidentifier()]
    if faults:
        raise ValueError(f"clip set {info.name!r}: " + "; ".join(faults))
    for key, table in tables.items():
        with (folder / f"{key}.npy").open("wb") as file:
            np.save(file, table)
            _sync(file)
        specs[key] = _spec(table.dtype, table.shape, sha256_of(table))

    cameras = written["keypoints"].shape[1] if "keypoints" in written else 0
    counts = {
        "frames": frames,
        "tracks": len(tables["track_start"]),
        "clips": len(tables["clip_id"]),
        "cameras": cameras,
    }
    manifest = {"format": FORMAT, "version": VERSION, **info.to_json(), "counts": counts, "arrays": specs}
    manifest["fingerprint"] = fingerprint_of(manifest)
    manifest["provenance"] = {"left_out": dict(info.left_out), "recipe": dict(info.recipe)}
    with (folder / MANIFEST).open("wb") as file:
        file.write(json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n")
        _sync(file)
    return manifest["fingerprint"]


def _write_track(
    folder: Path, streams: dict[str, "_Stream"], clip_id: str, track: Track, dtype: np.dtype, first: bool
) -> None:
    frames = len(track.positions)
    dtypes = {"positions": dtype, "confidence": np.dtype(np.float16), "keypoints": np.dtype(np.float32)}
    for key in FRAME_ARRAYS:
        array = getattr(track, key)
        if array is None and key not in streams:
            continue
        if first and key not in streams:
            streams[key] = _Stream(folder / f"{key}.npy", array.shape[1:], dtypes[key])
        if array is None or key not in streams:
            raise ValueError(f"clip {clip_id}: all tracks or none must have {key}")
        stream = streams[key]
        if array.shape != (frames, *stream.shape):
            raise ValueError(
                f"clip {clip_id}: {key} must have shape {[frames, *stream.shape]}, got {list(array.shape)}"
            )
        stream.append(array, clip_id)


class _Stream:
    """A .npy file whose first axis grows; hashes what it writes."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.key, self.shape, self.dtype = path.stem, shape, dtype.newbyteorder("<")
        self.length, self.digest = 0, hashlib.sha256()
        self.file = path.open("wb")
        self._header()

    def _header(self) -> None:
        # numpy pads headers so that the first axis can grow to any length in place.
        spec = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length, *self.shape)}
        npy.write_array_header_1_0(self.file, spec)

    def append(self, array: np.ndarray, clip_id: str) -> None:
        with np.errstate(over="ignore"):  # An overflow is infinite, which is refused below.
            block = np.ascontiguousarray(array, dtype=self.dtype)
        if bad := int((~np.isfinite(block)).sum()):
            raise ValueError(
                f"clip {clip_id}: {self.key} must be finite in {self.dtype}, got {bad} values that are not"
            )
        raw = block.tobytes()
        self.file.write(raw)
        self.digest.update(raw)
        self.length += len(block)

    def finish(self) -> dict[str, Any]:
        end = self.file.tell()
        self.file.seek(0)
        self._header()
        size = int(np.prod((self.length, *self.shape))) * self.dtype.itemsize
        assert self.file.tell() + size == end, "the header changed its length"
        _sync(self.file)
        self.file.close()
        return _spec(self.dtype, (self.length, *self.shape), self.digest.hexdigest())


def _spec(dtype: np.dtype, shape: tuple[int, ...], digest: str) -> dict[str, Any]:
    return {"dtype": dtype.str, "shape": list(shape), "sha256": digest}


def _sync(file: BinaryIO) -> None:
    """On disk before the rename, so that a power cut leaves no whole-looking folder with empty files."""
    file.flush()
    os.fsync(file.fileno())


def _move_into_place(temporary: Path, path: Path, fingerprint: str) -> None:
    """Renames `temporary` to `path`. Keeps an equal set that is there, moves away and deletes another one."""
    for _ in range(_MAX_ATTEMPTS):
        try:
            os.rename(temporary, path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        try:
            if ClipSet.open(path).fingerprint == fingerprint:
                return
            log.info("%s: replacing a clip set of other content", path)
        except ValueError as error:
            if not path.exists():  # Another process is replacing it.
                continue
            if not (path / MANIFEST).exists():
                raise ValueError(f"{path}: holds files that are not a clip set; choose another folder") from error
            log.warning("replacing a damaged clip set: %s", error)
        away = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
        try:
            os.rename(path, away)
        except FileNotFoundError:
            continue
        shutil.rmtree(away, ignore_errors=True)
    raise ValueError(f"{path}: other processes keep replacing this clip set; give each its own --out folder")
