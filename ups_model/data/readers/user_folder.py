"""Clips in folders of the user's own: which file is of which class, and which are for testing.

    SOURCE/CLASS/.../NAME        about one clip in five is for testing
    SOURCE/NAME                  without classes, likewise
    SOURCE/train/..., SOURCE/test/...    either of the above within; what is in test is for testing

A clip's id is its path from SOURCE without the suffix. Nothing else is read out of names: subjects are unknown. Without
a folder test/ the sha256 of the id alone tells whether a clip is for testing (`for_testing`): what a model was trained
on stays in the training clips when files are added.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

from ups_model.data.format.clip_set import FORMAT, MANIFEST
from ups_model.data.format.writer import Clip
from ups_model.data.prepare.jobs import Job, LeftOut
from ups_model.data.readers.io.source_files import listing_sha256

ONE_IN = 5
"""A clip is for testing where its number, the sha256 of its id, is divisible by this."""

MAX_FRAMES = 1_000_000
"""Of a clip at the frame rate of its set."""

_BLOCK = 256
_MANIFEST_BYTES = 16 << 20
_NO_TARGET = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_PARTS = ("train", "test")
T = TypeVar("T")


@dataclass(frozen=True)
class OwnFile:
    """A file of one clip."""

    path: str
    name: str
    """The clip's id."""
    label: int
    """-1 where there are no classes."""
    split_test: bool
    left_out: LeftOut | None = None
    """Why it is no clip, where its place tells that already."""


@dataclass(frozen=True)
class OwnFiles:
    """What a folder holds."""

    files: tuple[OwnFile, ...]
    """In the order of ids."""
    classes: tuple[str, ...]
    """Names of the folders, sorted."""
    split: str
    """Where the test clips come from: "folders", or "sha256 of the id"."""
    digest: str
    """sha256 of the listing: name, size and time of change of each file, no content."""
    notes: tuple[str, ...]


def look(source: Path, suffixes: Sequence[str], beside: Sequence[str] = ()) -> OwnFiles:
    """Goes through a folder and the folders in it. Hidden files and folders are not looked at, nor are
    prepared clip sets.

    Args:
        source: the folder.
        suffixes: of the files wanted, in lower case; upper case is taken too.
        beside: names of further files right in `source` that change the result, where they are there.

    Raises:
        ValueError: no such folder, no such files in it, some in train/ or test/ and others in neither, or a file
            beside them is a link to nothing.
        OSError: a folder cannot be read.
    """
    source = Path(source)
    wanted = " or ".join(f"*{suffix}" for suffix in suffixes)
    if not source.is_dir():
        raise ValueError(f"{source}: must be a folder with {wanted} in it, or in a folder for each class")
    paths, prepared = _walk(source)
    found = sorted(path for path in paths if path.suffix.lower() in suffixes and str(path) not in beside)
    if not found and PurePosixPath(".") in prepared:
        raise ValueError(f"{source}: is a prepared clip set; give the folder of the files that it was made from")
    if not found:
        raise ValueError(f"{source}: there must be {wanted} in it, or in a folder for each class; there is none")
    status = {
        path: _status(source / path) for path in sorted({path for path in paths if str(path) in beside}.union(found))
    }
    for path in status:
        if str(path) in beside and status[path] is None:
            raise ValueError(_no_target(source / path))
    parts = _parts(source, found)
    depth = 1 if parts else 0
    classes = sorted({path.parts[depth] for path in found if len(path.parts) > depth + 1 and str(path).isprintable()})
    labels = {name: label for label, name in enumerate(classes)}
    files: list[OwnFile] = []
    seen: dict[str, PurePosixPath] = {}
    for path in sorted(found, key=lambda path: (str(path.with_suffix("")), path.suffix)):
        name = str(path.with_suffix(""))
        label = labels.get(path.parts[depth], -1) if len(path.parts) > depth + 1 else -1
        left_out = None
        if not str(path).isprintable():
            left_out = LeftOut(ascii(name)[1:-1], "unreadable", "a file's path must be printable text; rename it")
        elif classes and label < 0:
            left_out = LeftOut(name, "in no class folder", f"{source / path}: others are in folders of classes")
        elif (about := status[path]) is None:
            left_out = LeftOut(name, "a link to nothing", _no_target(source / path))
        elif not stat.S_ISREG(about.st_mode):
            left_out = LeftOut(name, "not a file", f"{source / path}: must be a plain file, it is a pipe or a device")
        elif seen.setdefault(name, path) != path:
            left_out = LeftOut(str(path), "duplicate", f"{source / path}: {source / seen[name]} has the same id")
        files.append(OwnFile(str(source / path), name, label, "test" in parts and _part(path) == "test", left_out))
    notes = [f"{folder}/ is a prepared clip set, so it is not read" for folder in prepared]
    if not classes:
        notes.append("no folders of classes, so the clips have no labels: they train pose estimation alone")
    if parts == {"test"}:
        notes.append("no folder train/, so the set has no training clips")
    by_folder = "test" in parts
    if not by_folder:
        chosen, mended = for_testing([(file.name, file.label) for file in files if file.left_out is None])
        files = [replace(file, split_test=file.left_out is None and file.name in chosen) for file in files]
        notes.append(
            f"no folder test/, so about one clip in {ONE_IN} is for testing: where the sha256 of its id is divisible "
            f"by {ONE_IN}, whatever other files there are"
        )
        if mended:
            which = ", ".join(classes[label] for label in mended) if classes else "the set"
            notes.append(
                f"that leaves {which} without test or without training clips, so the clip of lowest sha256 there is "
                "for testing, or that of highest for training; more files may change which one"
            )
    listing = [(str(path), *((-1, -1) if at is None else (at.st_size, at.st_mtime_ns))) for path, at in status.items()]
    digest = listing_sha256(listing)
    split = "folders" if by_folder else "sha256 of the id"
    return OwnFiles(tuple(files), tuple(classes), split, digest, tuple(notes))


def for_testing(clips: Sequence[tuple[str, int]]) -> tuple[set[str], list[int]]:
    """The ids that are for testing: those whose sha256, as a number, is divisible by ONE_IN.

    Where that leaves a class of two or more clips without a test clip, the one of the lowest number is for testing;
    where without a training clip, the one of the highest is for training.

    Args:
        clips: ids, all different, and labels.

    Returns:
        The ids, and the labels of the classes in which the last rule was needed.
    """
    members: dict[int, list[str]] = {}
    number = {name: int(hashlib.sha256(name.encode()).hexdigest(), 16) for name, _ in clips}
    for name, label in clips:
        members.setdefault(label, []).append(name)
    chosen = {name for name in number if number[name] % ONE_IN == 0}
    mended = []
    for label, names in sorted(members.items()):
        count = len(chosen.intersection(names))
        if len(names) < 2 or 0 < count < len(names):
            continue
        mended.append(label)
        if count:
            chosen.remove(max(names, key=number.__getitem__))
        else:
            chosen.add(min(names, key=number.__getitem__))
    return chosen, mended


def frames_at_rate(file: Path, length: int, fps: float, wanted: float) -> int:
    """Frames of a clip of `length` frames at another rate: those not past its last one.

    Raises:
        ValueError: they are more than MAX_FRAMES.
    """
    count = math.floor((length - 1) * wanted / fps + 1e-9) + 1
    if count > MAX_FRAMES:
        raise ValueError(
            f"{file}: a clip must have at most {MAX_FRAMES} frames, got {count} when put from {fps:g} to {wanted:g} a "
            "second; prepare files of such different rates apart"
        )
    return count


def make_jobs(own: OwnFiles, read: Callable[[OwnFile], Clip | LeftOut]) -> tuple[Job, ...]:
    """Jobs of 256 files each.

    Args:
        own: the files.
        read: makes the clip of a file; picklable. A ValueError of it leaves the file out as unreadable; an OSError ends
            the job, for the disk may give tomorrow what it does not today.
    """
    blocks = [own.files[start : start + _BLOCK] for start in range(0, len(own.files), _BLOCK)]
    return tuple(
        Job(f"files {index * _BLOCK}-{index * _BLOCK + len(block) - 1}", len(block), partial(_read_block, read, block))
        for index, block in enumerate(blocks)
    )


def first_readable(own: OwnFiles, read: Callable[[Path], T]) -> tuple[OwnFile, T]:
    """The first file that can be read, and what `read` makes of it.

    Raises:
        ValueError: no file can be; says why the first one cannot.
        OSError: a file could not be read for another reason than its content; names it.
    """
    first = ""
    for file in own.files:
        if file.left_out is not None:
            first = first or file.left_out.detail
            continue
        try:
            return file, read(Path(file.path))
        except ValueError as error:
            first = first or str(error)
        except OSError as error:
            raise _named(error, file.path) from error
    raise ValueError(f"none of the {len(own.files)} files can be read; the first: {first}")


def _read_block(read: Callable[[OwnFile], Clip | LeftOut], files: Sequence[OwnFile]) -> Iterator[Clip | LeftOut]:
    for file in files:
        if file.left_out is not None:
            yield file.left_out
            continue
        try:
            yield read(file)
        except ValueError as error:
            yield LeftOut(file.name, "unreadable", str(error))
        except OSError as error:
            raise _named(error, file.path) from error


def _named(error: OSError, path: str) -> OSError:
    """With the file's name, which errors of reading, unlike those of opening, do not have."""
    what = f"{error.strerror or error}; make the file readable or take it away, and run the same command again"
    return OSError(error.errno or errno.EIO, what, path)


def _walk(source: Path) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    """Paths of files, from `source`, and of folders that are prepared clip sets, whose files are not among them."""

    def stop(error: OSError) -> None:
        raise error

    paths, prepared, seen = [], [], set()
    for place, folders, names in os.walk(source, onerror=stop, followlinks=True):
        about = os.stat(place)
        if (about.st_dev, about.st_ino) in seen:  # A link to a folder above it, or to one seen before.
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        here = PurePosixPath(Path(place).relative_to(source).as_posix())
        if MANIFEST in names and _is_manifest(Path(place) / MANIFEST):
            prepared.append(here)
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [here / name for name in names if not name.startswith(".")]
    return paths, prepared


def _is_manifest(file: Path) -> bool:
    """Whether a file is a clip set's manifest, of whatever version, and not a user's clip of that name."""
    if not file.is_file() or file.stat().st_size > _MANIFEST_BYTES:
        return False
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _status(path: Path) -> os.stat_result | None:
    """None for a link to nothing, or to itself."""
    try:
        return path.stat()
    except OSError as error:
        if error.errno in _NO_TARGET and path.is_symlink():
            return None
        raise


def _no_target(path: Path) -> str:
    return f"{path}: must be a file, it is a link to {os.readlink(path)!a}, where none is; mend or delete the link"


def _part(path: PurePosixPath) -> str:
    top = path.parts[0].lower() if len(path.parts) > 1 else ""
    return top if top in _PARTS else ""


def _parts(source: Path, paths: Sequence[PurePosixPath]) -> set[str]:
    """Which of train and test there are; empty where clips are not in such folders."""
    parts = {_part(path): path for path in reversed(paths)}
    if parts.keys() != {""} and "" in parts:
        raise ValueError(
            f"{source}: where there is a folder train/ or test/, every clip must be in one of them; {parts['']} is not"
        )
    return set(parts) - {""}
