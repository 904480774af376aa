"""NTU RGB+D as CTR-GCN's pre-processing writes it: NTU60_CS.npz, NTU60_CV.npz, NTU120_CSub.npz, NTU120_CSet.npz.

    x_train, x_test    float32 [rows, frames, 150]: two persons of 25 joints of 3 coordinates, 0 where nobody is
    y_train, y_test    [rows, 60 or 120]: one-hot labels

A file holds one protocol and no names. That pre-processing also moves each recording so that the spine of its first
frame is at the origin: coordinates differ from the raw files' by a constant. Stored members are mapped, and read in
blocks of rows by several processes; compressed ones can only be read front to back.

Shape suffixes: R rows, N frames, P persons (2), J joints (25), L labels.
"""

import hashlib
import math
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from ups_model.data.format.splits import CONTENT_ID
from ups_model.data.readers.io.files import damage_named, read_npy_header
from ups_model.data.readers.ntu.bodies import PERSONS, Persons, tracks_of
from ups_model.data.readers.ntu.names import CLASSES, NtuName, is_test
from ups_model.data.readers.ntu.skeleton_file import JOINTS, MAX_METRES, Body

FILES = {
    "NTU60_CS.npz": ("ntu60", "xsub"),
    "NTU60_CV.npz": ("ntu60", "xview"),
    "NTU120_CSub.npz": ("ntu120", "xsub"),
    "NTU120_CSet.npz": ("ntu120", "xset"),
}
"""File -> (set, protocol)."""

NAMES_FILE = "skes_available_name.txt"
"""The names list in the `statistics` folder of CTR-GCN's pre-processing."""

PARTS = ("train", "test")
_WIDTH = PERSONS * JOINTS * 3
_NO_NAMES = "move the list away to go without names"


@dataclass(frozen=True)
class Member:
    """One array of an .npz file, located but not read."""

    file: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int | None
    """Where its values begin in the file; None where it is compressed."""

    @property
    def rows(self) -> int:
        return self.shape[0]

    def row_blocks(self, start: int = 0, stop: int | None = None, block: int = 64) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, block of rows) from `start` to `stop`. ValueError names a file whose checksum tells damage."""
        stop = self.rows if stop is None else stop
        if self.offset is not None:
            for first in range(start, stop, block):
                # Mapped anew, so that pages of blocks that are done with do not stay resident.
                mapped = np.memmap(self.file, dtype=self.dtype, mode="r", offset=self.offset, shape=self.shape)
                yield first, np.asarray(mapped[first : min(first + block, stop)])
            return
        row_bytes = math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize
        with (
            damage_named(f"{self.file}[{self.name}]: damaged or truncated"),
            zipfile.ZipFile(self.file) as archive,
            archive.open(f"{self.name}.npy") as stream,
        ):
            _header(stream)
            for first in range(0, stop, block):
                count = min(block, stop - first)
                values = np.frombuffer(stream.read(count * row_bytes), self.dtype).reshape(count, *self.shape[1:])
                if first + count > start:
                    skip = max(start - first, 0)
                    yield first + skip, values[skip:]
            stream.read(1)  # so that the end is reached, where the checksum is compared


@dataclass(frozen=True)
class ArrayFile:
    """An opened file: members by name, their shapes checked."""

    file: Path
    set_name: str
    protocol: str
    members: dict[str, Member]


def open_arrays(file: Path) -> ArrayFile:
    """Finds the four arrays of a file and checks their shapes; reads no rows. ValueError names the file: its name is
    none of FILES, it is no such file, or its shapes are not those above."""
    if file.name not in FILES:
        raise ValueError(f"{file}: its name must be one of {', '.join(FILES)}: it tells the set and the protocol")
    set_name, protocol = FILES[file.name]
    keys = [f"{kind}_{part}" for part in PARTS for kind in "xy"]
    with (
        damage_named(f"{file}: not a whole .npz file of NTU RGB+D"),
        zipfile.ZipFile(file) as archive,
        file.open("rb") as raw,
    ):
        if missing := [key for key in keys if f"{key}.npy" not in archive.namelist()]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        members = {key: _member(file, archive, raw, key) for key in keys}
    faults = []
    for part in PARTS:
        x, y = members[f"x_{part}"], members[f"y_{part}"]
        if len(x.shape) != 3 or x.shape[1] < 1 or x.shape[2] != _WIDTH or np.dtype(x.dtype).kind != "f":
            faults.append(f"x_{part} must be floats [rows, frames, {_WIDTH}], got {x.dtype} {list(x.shape)}")
        expected = (*x.shape[:1], len(CLASSES[set_name]))
        if y.shape != expected or np.dtype(y.dtype).kind not in "fiub":
            faults.append(f"y_{part} must be one-hot numbers {list(expected)}, got {y.dtype} {list(y.shape)}")
    if faults:
        raise ValueError(f"{file}: " + "; ".join(faults))
    return ArrayFile(file, set_name, protocol, members)


def labels_of(member: Member, start: int = 0, stop: int | None = None) -> np.ndarray:
    """int64 [rows]: the labels of one-hot rows, -1 where a row is not one-hot."""
    parts = [np.zeros(0, dtype=np.int64)]
    for _, block_RL in member.row_blocks(start, stop, block=4096):
        one_hot_R = ((block_RL == 0) | (block_RL == 1)).all(axis=1) & ((block_RL == 1).sum(axis=1) == 1)
        parts.append(np.where(one_hot_R, block_RL.argmax(axis=1), -1))
    return np.concatenate(parts).astype(np.int64)


def persons_of_poses(pose_PNJ3: np.ndarray, where: str) -> Persons:
    """The persons of padded poses [P, N, 25, 3]: who is nowhere nonzero is none, a frame of zeros is one not seen.
    `bodies_dropped` is -1: who made the arrays knows. ValueError, which begins with `where`, for values that are not
    finite or lie beyond MAX_METRES, or more than two persons."""
    within_N = (np.abs(pose_PNJ3) <= MAX_METRES).all(axis=(0, 2, 3))  # false of NaN too
    if not within_N.all():
        frame = int(within_N.argmin())
        raise ValueError(
            f"{where}: frame {frame}: coordinates must be finite and within {MAX_METRES:g} m; leave it out"
        )
    bodies = []
    for pose_NJ3 in pose_PNJ3:
        frames_N = np.flatnonzero(pose_NJ3.any(axis=(1, 2)))
        if len(frames_N):
            bodies.append(Body(frames_N, pose_NJ3[frames_N].astype(np.float32)))
    if len(bodies) > PERSONS:
        raise ValueError(f"{where}: must have at most {PERSONS} persons, got {len(bodies)}; leave it out")
    tracks, frames = tracks_of(bodies)
    last = max((int(body.frames_N[-1]) + 1 for body in bodies), default=0)
    return Persons(tracks, -1, last - frames)


def persons_of_row(row_NC: np.ndarray, where: str) -> Persons:
    """The persons of a row [N, 150]. Raises as `persons_of_poses`."""
    return persons_of_poses(row_NC.reshape(len(row_NC), PERSONS, JOINTS, 3).swapaxes(0, 1), where)


def content_id(row_NC: np.ndarray) -> str:
    """A name made of the values themselves, up to the last frame in which anybody is."""
    seen = np.flatnonzero(row_NC.any(axis=1))
    valid = row_NC[: int(seen[-1]) + 1 if len(seen) else 0].astype("<f4", order="C")
    return CONTENT_ID + hashlib.sha256(valid.tobytes()).hexdigest()[:16]


def repeats(arrays: ArrayFile) -> dict[tuple[str, int], int]:
    """(part, row) -> how many equal rows come before it, for rows that have such; the training part comes first.

    Equal rows have equal first frames, so only those that share one are read whole.
    """
    alike: dict[bytes, list[tuple[str, int]]] = {}
    for part in PARTS:
        for first, block in arrays.members[f"x_{part}"].row_blocks():
            for row, head in enumerate(block[:, 0].astype("<f4"), start=first):
                alike.setdefault(hashlib.blake2b(head.tobytes(), digest_size=16).digest(), []).append((part, row))
    repeated = {}
    for rows in alike.values():
        if len(rows) < 2:
            continue
        counts: dict[str, int] = {}
        for part, row in rows:
            ((_, block),) = arrays.members[f"x_{part}"].row_blocks(row, row + 1, block=1)
            name = content_id(block[0])
            if counts.setdefault(name, 0):
                repeated[part, row] = counts[name]
            counts[name] += 1
    return repeated


def match_names(arrays: ArrayFile, names: Sequence[NtuName], source: Path) -> dict[str, tuple[NtuName, ...]]:
    """The names of the rows of each part, from the list of all names.

    Rows come in the list's order, or as CTR-GCN's pre-processing puts them: subject by subject, camera by camera or
    setup by setup, each in the list's order. The labels tell which: those of both parts must agree with the names.
    ValueError names files and row: counts differ, the labels agree with neither order, or with both where these are not
    the same, as where everybody does the same actions in the same order.
    """
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{source}: names must differ, got {repeated.text} twice")
    group = {"xsub": "performer", "xview": "camera", "xset": "setup"}[arrays.protocol]
    grouped, listed, labels = {}, {}, {}
    for part in PARTS:
        labels[part] = labels_of(arrays.members[f"y_{part}"])
        order = [name for name in names if is_test(name, arrays.set_name, arrays.protocol) == (part == "test")]
        if len(order) != len(labels[part]):
            raise ValueError(
                f"{source}: its names have {len(order)} sequences of {arrays.protocol} {part}, {arrays.file} has "
                f"{len(labels[part])}; {_NO_NAMES}"
            )
        listed[part] = tuple(order)
        grouped[part] = tuple(sorted(order, key=lambda name: getattr(name, group)))
    agreeing = [order for order in (grouped, listed) if all(not len(_odd_rows(order[p], labels[p])) for p in PARTS)]
    if not agreeing:
        part = next(part for part in PARTS if len(_odd_rows(grouped[part], labels[part])))
        row = int(_odd_rows(grouped[part], labels[part])[0])
        label = f"action {labels[part][row] + 1}" if labels[part][row] >= 0 else "no one-hot label"
        raise ValueError(
            f"{arrays.file}[y_{part}][{row}]: has {label}, by {source} the row is {grouped[part][row].text}; "
            f"{_NO_NAMES}"
        )
    if len(agreeing) > 1 and grouped != listed:
        part = next(part for part in PARTS if grouped[part] != listed[part])
        row = next(row for row, pair in enumerate(zip(grouped[part], listed[part], strict=True)) if pair[0] != pair[1])
        raise ValueError(
            f"{arrays.file}[y_{part}]: the labels do not tell in which order the rows are; by {source} row {row} is "
            f"{listed[part][row].text}, or {grouped[part][row].text} if rows go {group} by {group}; {_NO_NAMES}"
        )
    return agreeing[0]


def _odd_rows(names: Sequence[NtuName], label_R: np.ndarray) -> np.ndarray:
    """The rows whose label is not that of their name."""
    return np.flatnonzero(np.array([name.action - 1 for name in names], dtype=np.int64) != label_R)


def _member(file: Path, archive: zipfile.ZipFile, raw: BinaryIO, key: str) -> Member:
    info = archive.getinfo(f"{key}.npy")
    with archive.open(info) as stream:
        shape, dtype = _header(stream)
        header_bytes = stream.tell()
    size = header_bytes + math.prod(shape) * dtype.itemsize
    if size != info.file_size:
        raise ValueError(f"{key} must have {size} bytes by its header, got {info.file_size}")
    offset = None
    if info.compress_type == zipfile.ZIP_STORED:
        # The lengths of the name and of the extra field may differ from those in the archive's directory.
        raw.seek(info.header_offset)
        local = struct.unpack("<4s5H3L2H", raw.read(30))
        offset = info.header_offset + 30 + local[-2] + local[-1] + header_bytes
        if offset + size - header_bytes > file.stat().st_size:
            raise ValueError(f"{key} ends beyond the file")
    return Member(str(file), key, shape, dtype.str, offset)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    shape, fortran, dtype = read_npy_header(stream)
    if dtype.hasobject or (fortran and len(shape) > 1):
        raise ValueError(f"arrays must be numbers in C order, got {dtype}, fortran_order={fortran}")
    if any(size < 0 for size in shape):
        raise ValueError(f"sizes must not be negative, got {list(shape)}")
    return shape, dtype
