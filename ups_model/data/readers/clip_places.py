"""Where the clips of a user's folder are, and what places, files and tables tell of each: class, split, subject."""

import os
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ups_model.data.prepare.jobs import LeftOut
from ups_model.data.readers.split_table import TABLES, Tables

PARTS = ("train", "test")


@dataclass(frozen=True)
class Item:
    """A clip of a file that holds several."""

    name: str
    label: str = ""
    """Number of its class; empty where the file doesn't tell."""
    test: bool | None = None
    """None where the file doesn't tell."""
    fault: str = ""
    """Why it is no clip, where what the file says of it tells that already."""


@dataclass(frozen=True)
class OwnFile:
    """Where one clip is."""

    path: str
    name: str
    """The clip's id."""
    label: int
    """-1 where there are no classes."""
    split_test: bool
    left_out: LeftOut | None = None
    """Why it is no clip, where its place tells that already."""
    subject: int = -1
    subject_name: str = ""
    """As tables have it, numbers without leading zeros; whatever other subjects there are."""
    frames: tuple[str, ...] = ()
    """Its files, where each frame is one; `path` is the first."""
    item: str = ""
    """Its name in a file that holds several."""


@dataclass(frozen=True)
class Place:
    """Where a clip may be, and what its place tells of it."""

    name: str
    path: PurePosixPath
    """Of the file, or of the first one of its frames."""
    status: os.stat_result | None
    frames: tuple[PurePosixPath, ...]
    item: Item | None
    label: str
    """Name of the class; empty where it has none."""
    test: bool | None
    """None where neither folders nor the file tell."""
    fault: str = ""
    """Why the file, or the clip in it, can't be read."""


def find_places(
    source: Path,
    paths: Sequence[PurePosixPath],
    status: Mapping[PurePosixPath, os.stat_result | None],
    clip_of: Callable[[PurePosixPath], PurePosixPath],
    items_of: Callable[[Path], Sequence[Item] | None],
    parts: Collection[str],
) -> list[Place]:
    """The clips in the order of ids; folders tell classes, below those of `parts` where there are such."""
    depth = 1 if parts else 0
    groups: dict[PurePosixPath, list[PurePosixPath]] = {}
    for path in paths:
        groups.setdefault(clip_of(path), []).append(path)
    places = []
    for clip, members in groups.items():
        at, whole = status[members[0]], members == [clip]
        label = clip.parts[depth] if len(clip.parts) > depth + 1 and str(clip).isprintable() else ""
        test = part_of(clip) == "test" if "test" in parts else None
        one = Place(str(clip.with_suffix("")), members[0], at, () if whole else tuple(members), None, label, test)
        fault, items = "", None
        if whole and at is not None and stat.S_ISREG(at.st_mode):
            try:
                items = items_of(source / clip)
            except ValueError as error:
                fault = str(error)
        if items is None:
            places.append(replace(one, fault=fault))
            continue
        for item in items:
            name = f"{one.name}/{item.name}"
            own = replace(one, name=name, item=item, label=item.label or label, fault=item.fault)
            places.append(replace(own, test=item.test if test is None else test))
    return sorted(places, key=lambda place: (place.name, place.path.suffix))


def own_files(source: Path, places: Sequence[Place], tables: Tables) -> tuple[list[OwnFile], list[str]]:
    """The files in the order of ids, and the names of classes."""
    rows = [tables.row(place.name) for place in places]
    # Classes that files number are one class whatever the digits of the largest number in each file.
    digits = max((len(place.item.label) for place in places if place.item), default=0)
    names = [
        row.label or (place.label.zfill(digits) if place.item and place.item.label else place.label)
        for place, row in zip(places, rows, strict=True)
    ]
    classes = sorted({name for name in names if name})
    subjects = _numbers({row.subject for row in rows if row.subject is not None})
    split = tables.tells_splits or any(place.test is not None for place in places)
    strange = {_as_id(name): name for name in sorted(tables.clips.keys() - {place.name for place in places})}
    files: list[OwnFile] = []
    first: dict[str, Place] = {}
    for place, row, label in zip(places, rows, names, strict=True):
        path, test = source / place.path, place.test if row.test is None else row.test
        left_out = None
        if not place.name.isprintable() or not str(place.path).isprintable():
            name = ascii(place.name)[1:-1]
            left_out = LeftOut(name, "unreadable", "a file's path must be printable text; rename it")
        elif place.fault:
            left_out = LeftOut(place.name, "unreadable", place.fault)
        elif classes and not label:
            left_out = LeftOut(place.name, "in no class folder", f"{path}: others are in folders of classes")
        elif place.status is None:
            left_out = LeftOut(place.name, "a link to nothing", no_target(path))
        elif not stat.S_ISREG(place.status.st_mode):
            left_out = LeftOut(place.name, "not a file", f"{path}: must be a plain file, it is a pipe or a device")
        elif first.setdefault(place.name, place) is not place:
            other = source / first[place.name].path
            left_out = LeftOut(str(place.path), "duplicate", f"{path}: {other} has the same id")
        elif split and test is None:
            where = " or ".join(TABLES) if tables.tells_splits else "the file's splits"
            detail = f"{path}: must be in train or test of {where}{_other_id(place.name, strange)}"
            left_out = LeftOut(place.name, "in no split", detail)
        files.append(
            OwnFile(
                str(path),
                place.name,
                classes.index(label) if label else -1,
                bool(test),
                left_out,
                subjects.get(row.subject or "", -1),
                _subject_name(row.subject or ""),
                tuple(str(source / frame) for frame in place.frames),
                "" if place.item is None else place.item.name,
            )
        )
    return files, classes


def _as_id(name: str) -> str:
    """The id that a table's name of a clip would be without a suffix and with slashes."""
    return str(PurePosixPath(name.replace("\\", "/")).with_suffix("")) if name.strip("./\\") else name


def _other_id(name: str, strange: Mapping[str, str]) -> str:
    """For a clip that no row is of, what a table calls it, or what it calls some clip that is not there."""
    if not strange:
        return ""
    row = strange.get(name, next(iter(strange.values())))
    return f"; its id is {name!r:.80}, a path without suffix, but a table has {row!r:.80}; write it so"


def _numbers(subjects: set[str]) -> dict[str, int]:
    """The number of each subject: its own where all are numbers, else its place among them, sorted, from 1."""
    if all(map(_is_number, subjects)):
        return {subject: int(subject) for subject in subjects}
    return {subject: number for number, subject in enumerate(sorted(subjects), start=1)}


def _subject_name(subject: str) -> str:
    return str(int(subject)) if _is_number(subject) else subject


def _is_number(subject: str) -> bool:
    return subject.isascii() and subject.isdigit() and len(subject) < 9


def no_target(path: Path) -> str:
    return f"{path}: must be a file, it is a link to {os.readlink(path)!a}, where none is; mend or delete the link"


def part_of(path: PurePosixPath) -> str:
    top = path.parts[0].lower() if len(path.parts) > 1 else ""
    return top if top in PARTS else ""
