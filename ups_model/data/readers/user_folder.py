"""Clips in folders of the user's own: which file is of which class, and which are for testing.

    SOURCE/CLASS/.../NAME        about one clip in five is for testing
    SOURCE/NAME                  without classes, likewise
    SOURCE/train/..., SOURCE/test/...    either of the above within; what is in test is for testing

A clip's id is its path from SOURCE without the suffix, and behind it the clip's name where a file holds several.
Nothing else is read out of names: subjects, and other classes and splits, are told by tables (`split_table`). Where
nothing tells a split, the sha256 of the id alone, or of the subject where subjects are known, says whether a clip is
for testing (`for_testing`): what a model was trained on stays in the training clips when files are added.
"""

import errno
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

from ups_model.data.format.clip_set import FORMAT, MANIFEST, Camera, ClipSetInfo
from ups_model.data.format.writer import Clip
from ups_model.data.prepare.jobs import Job, LeftOut, block_jobs, read_items
from ups_model.data.readers.clip_places import Item, OwnFile, find_places, no_target, own_files, part_of
from ups_model.data.readers.io.files import files_sha256, status_of, walk_folders
from ups_model.data.readers.split_table import TABLES, read_tables
from ups_model.wording import count

ONE_IN = 5
"""A clip is for testing where its number, the sha256 of its id, is divisible by this."""

MAX_FRAMES = 1_000_000
"""Of a clip at the frame rate of its set."""

_MANIFEST_BYTES = 16 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class OwnFiles:
    """What a folder holds."""

    files: tuple[OwnFile, ...]
    """In the order of ids."""
    classes: tuple[str, ...]
    """Names of the folders, sorted."""
    split: str
    """Where the test clips come from: "folders", "files", "tables", "sha256 of the id" or "sha256 of the subject"."""
    digest: str
    """sha256 of the listing: name, size and time of change of each file, no content."""
    notes: tuple[str, ...]

    def info(
        self,
        name: str,
        version: int,
        skeleton: str,
        dims: int,
        fps: float,
        description: str,
        camera_groups: tuple[tuple[Camera, ...], ...] = (),
        **recipe: str,
    ) -> ClipSetInfo:
        """The set of these files, in metres with z up or in parts of the image; `recipe` is what else it depends on."""
        return ClipSetInfo(
            name=name,
            skeleton=skeleton,
            dims=dims,
            fps=fps,
            units="metre" if dims == 3 else "normalised",
            up_axis="z" if dims == 3 else "-y",
            licence="that of the files",
            classes=self.classes,
            synthetic=False,
            description=description,
            camera_groups=camera_groups,
            recipe={
                "reader": name,
                "reader_version": version,
                "files": len(self.files),
                "files_sha256": self.digest,
                "split": self.split,
                "fps": repr(fps),
                "resampling": "linear" if dims == 3 else "nearest frame",
                **recipe,
            },
        )


def look(
    source: Path,
    suffixes: Sequence[str],
    beside: Sequence[str] = (),
    clip_of: Callable[[PurePosixPath], PurePosixPath] = lambda path: path,
    items_of: Callable[[Path], Sequence[Item] | None] = lambda path: None,
) -> OwnFiles:
    """Goes through a folder and the folders in it, but for hidden ones and prepared clip sets.

    Args:
        source: the folder.
        suffixes: of the clips' files, in lower case; upper case is taken too.
        beside: names of further files right in `source` that change the result, where they are there; tables do too.
        clip_of: from a file's path to that of the clip, with a suffix, where frames are files of their own.
        items_of: the clips of a file that holds several, None of any other. A ValueError leaves the file out.

    Raises:
        ValueError: no such folder, no such files in it, some in train/ or test/ and others in neither, or a file
            beside them is a link to nothing.
    """
    beside = (*beside, *TABLES)
    wanted = " or ".join(f"*{suffix}" for suffix in suffixes)
    if not source.is_dir():
        raise ValueError(f"{source}: must be a folder with {wanted} in it, or in a folder for each class")
    all_paths, prepared = _walk(source)
    paths = sorted(path for path in all_paths if path.suffix.lower() in suffixes and str(path) not in beside)
    if not paths and PurePosixPath(".") in prepared:
        raise ValueError(f"{source}: is a prepared clip set; give the folder of the files that it was made from")
    if not paths:
        raise ValueError(f"{source}: there must be {wanted} in it, or in a folder for each class; there is none")
    companions = [path for path in all_paths if str(path) in beside]
    status = {path: status_of(source / path) for path in sorted({*paths, *companions})}
    for path in companions:
        if status[path] is None:
            raise ValueError(no_target(source / path))
    parts = _parts(source, paths)
    places = find_places(source, paths, status, clip_of, items_of, parts)
    tables = read_tables(source)
    files, classes = own_files(source, places, tables)
    _check_subjects(source, files)
    notes = [f"{folder}/ is a prepared clip set, so it is not read" for folder in prepared]
    if not classes:
        notes.append("no folders of classes, so the clips have no labels: recognition can't be trained on them")
    if parts == {"test"} and not tables.tells_splits:
        notes.append("no folder train/, so the set has no training clips")
    split = "folders" if "test" in parts else "files" if any(place.test is not None for place in places) else ""
    if strange := sorted(tables.clips.keys() - {place.name for place in places}):
        notes.append(
            f"{' and '.join(TABLES)}: no clip here for {count(len(strange), 'row')}, the first of {strange[0]!r}"
        )
    if tables.tells_splits:
        split = "tables"
        sides = {file.split_test for file in files if file.left_out is None}
        for is_test, part in ((False, "training"), (True, "test")):
            if is_test not in sides:
                notes.append(f"{' and '.join(TABLES)} leave no {part} clips: a set to train on needs both kinds")
    if not split:
        split, files, more = _split_by_hash(files, classes)
        if sum(file.left_out is None for file in files) == 1:
            more.append(
                "one clip can't train a model: a set needs training and test clips; predict reads the file as it is"
            )
        notes += more
    listing = [(str(path), *((-1, -1) if at is None else (at.st_size, at.st_mtime_ns))) for path, at in status.items()]
    return OwnFiles(tuple(files), tuple(classes), split, files_sha256(listing), tuple(notes))


def _check_subjects(source: Path, files: Sequence[OwnFile]) -> None:
    """ValueError where the subjects of some clips are known and those of others are not."""
    there = [file for file in files if file.left_out is None]
    unknown = [file.name for file in there if file.subject < 0]
    if 0 < len(unknown) < len(there):
        raise ValueError(
            f"{source}: subjects must be known for all clips or for none, got none of {count(len(unknown), 'clip')}, "
            f"the first {unknown[0]!r}; add them to {TABLES[1]}"
        )


def _split_by_hash(files: Sequence[OwnFile], classes: Sequence[str]) -> tuple[str, list[OwnFile], list[str]]:
    """What the split goes by, the files with it, and what to tell of it."""
    there = [file for file in files if file.left_out is None]
    if there and all(file.subject >= 0 for file in there):
        chosen, _ = for_testing([(subject, 0) for subject in sorted({file.subject_name for file in there})])
        which = ", ".join(sorted(chosen)) or "none"
        notes = [f"no splits: about one subject in {ONE_IN} is for testing, by the sha256 of its name: {which}"]
        files = [replace(file, split_test=file.subject_name in chosen) for file in files]
        return "sha256 of the subject", list(files), notes
    chosen, mended = for_testing([(file.name, file.label) for file in there])
    notes = [
        f"no folder test/, so about one clip in {ONE_IN} is for testing: where the sha256 of its id is divisible "
        f"by {ONE_IN}, whatever other files there are"
    ]
    if mended:
        which = ", ".join(classes[label] for label in mended) if classes else "the set"
        notes.append(
            f"that leaves {which} without test or without training clips, so the clip of lowest sha256 there is "
            "for testing, or that of highest for training; more files may change which one"
        )
    files = [replace(file, split_test=file.left_out is None and file.name in chosen) for file in files]
    return "sha256 of the id", files, notes


def for_testing(clips: Sequence[tuple[str, int]]) -> tuple[set[str], list[int]]:
    """Of clips (id, label) the ids that are for testing: those whose sha256, as a number, is divisible by ONE_IN.

    Where that leaves a class of two or more clips without a test clip, the one of the lowest number is for testing;
    where without a training clip, the one of the highest is for training. Returns the classes that needed it too.
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


def frames_at_rate(file: Path, length: int, fps: float, new_fps: float) -> int:
    """Frames of a clip of `length` frames at another rate, not past its last one. ValueError above MAX_FRAMES."""
    count = math.floor((length - 1) * new_fps / fps + 1e-9) + 1
    if count > MAX_FRAMES:
        raise ValueError(
            f"{file}: a clip must have at most {MAX_FRAMES} frames, got {count} when put from {fps:g} to {new_fps:g} a "
            "second; prepare files of such different rates apart"
        )
    return count


def make_jobs(own: OwnFiles, read: Callable[[OwnFile], Clip | LeftOut]) -> tuple[Job, ...]:
    """Jobs that read the files. `read` makes the clip of a file and is picklable; a ValueError of it leaves the file
    out as unreadable, an OSError ends the job, for the disk may give tomorrow what it does not today."""
    items = [file.left_out or file for file in own.files]
    return tuple(block_jobs("files", items, partial(read_items, partial(_read_named, read))))


def _read_named(read: Callable[[OwnFile], Clip | LeftOut], file: OwnFile) -> Clip | LeftOut:
    with _errors_named(file.path):
        return read(file)


def first_readable(own: OwnFiles, read: Callable[[OwnFile], T]) -> tuple[OwnFile, T]:
    """The first file that can be read, and what `read` makes of it. ValueError says why the first cannot, if none can;
    OSError names a file that could not be read for another reason than its content."""
    fault = ""
    for file in own.files:
        if file.left_out is not None:
            fault = fault or file.left_out.detail
            continue
        try:
            with _errors_named(file.path):
                return file, read(file)
        except ValueError as error:
            fault = fault or str(error)
    raise ValueError(f"none of the {len(own.files)} files can be read; the first: {fault}")


@contextmanager
def _errors_named(path: str) -> Iterator[None]:
    """OSErrors with the file's name, which those of reading, unlike those of opening, do not have."""
    try:
        yield
    except OSError as error:
        what = f"{error.strerror or error}; make the file readable or take it away, and run the same command again"
        raise OSError(error.errno or errno.EIO, what, path) from error


def _walk(source: Path) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    """Paths of files, from `source`, and of folders that are prepared clip sets, whose files are not among them."""
    paths, prepared = [], []
    for place, folders, names in walk_folders(source):
        here = PurePosixPath(place.relative_to(source).as_posix())
        if MANIFEST in names and _is_manifest(place / MANIFEST):
            prepared.append(here)
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
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


def _parts(source: Path, paths: Sequence[PurePosixPath]) -> set[str]:
    """Which of train and test there are; empty where clips are not in such folders."""
    parts = {part_of(path): path for path in reversed(paths)}
    if parts.keys() != {""} and "" in parts:
        raise ValueError(
            f"{source}: where there is a folder train/ or test/, every clip must be in one of them; {parts['']} is not"
        )
    return set(parts) - {""}
