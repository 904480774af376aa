"""Which files of NTU RGB+D a folder holds, and which of them a clip set is read from."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ups_model.data.readers.io.source_files import listing_sha256
from ups_model.data.readers.ntu.ctrgcn import FILES, NAMES_FILE
from ups_model.data.readers.ntu.names import PROTOCOLS, belongs, parse_name

SKELETON_SUFFIX = ".skeleton"
_MISSING = "missing_skeletons"
_FORMS = f"*{SKELETON_SUFFIX}, {', '.join(FILES)}, ntu60_3danno.pkl, ntu120_3danno.pkl"
_Entry = tuple[str, int, int]
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclass(frozen=True)
class Found:
    """What a folder holds, by kind; each sorted."""

    source: Path
    skeletons: tuple[Path, ...] = ()
    arrays: tuple[Path, ...] = ()
    pickles: tuple[Path, ...] = ()
    names: tuple[Path, ...] = ()
    missing: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Chosen:
    """What one clip set is read from."""

    layout: str
    """raw, arrays or pickle."""
    source: Path
    files: tuple[Path, ...]
    names: Path | None
    missing: tuple[Path, ...]
    notes: tuple[str, ...]


def look(source: Path) -> Found:
    """Goes through a folder and the folders in it. `source` may also be one file.

    Raises:
        ValueError: no such file or folder, a folder in it that cannot be listed, a link to no folder, or none of the
            forms that NTU RGB+D comes in.
    """
    source = Path(source)
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder; give what holds {_FORMS}")
    kinds: dict[str, list[Path]] = {kind: [] for kind in ("skeletons", "arrays", "pickles", "names", "missing")}
    files = _walk(source) if source.is_dir() else [source, *_companions(source)]
    for file in files:
        if (kind := _kind(file)) is not None:
            kinds[kind].append(file)
    if not (kinds["skeletons"] or kinds["arrays"] or kinds["pickles"]):
        raise ValueError(f"{source}: holds no NTU RGB+D; there must be {_FORMS}")
    return Found(source, **{kind: tuple(sorted(paths)) for kind, paths in kinds.items()})


def sets_in(found: Found) -> tuple[str, ...]:
    """Which of the sets "ntu60" and "ntu120" can be made. NTU60's files alone make no NTU120."""
    sets = {FILES[file.name][0] for file in found.arrays}
    sets |= {name for file in found.pickles for name in PROTOCOLS if _is_pickle_of(file, name)}
    for file in found.skeletons:
        if len(sets) == len(PROTOCOLS):
            break
        try:
            sets.add("ntu60" if belongs(parse_name(file.stem), "ntu60") else "ntu120")
        except ValueError:
            continue
    return tuple(name for name in PROTOCOLS if name in sets)


def choose(name: str, found: Found, missing: Sequence[Path]) -> Chosen:
    """What the set `name` is read from: raw files before arrays before a pickle.

    Raises:
        ValueError: no such set, or nothing of it is there.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"NTU RGB+D makes the sets {', '.join(PROTOCOLS)}, got {name!r}")
    skeletons = tuple(file for file in found.skeletons if _may_belong(file, name))
    arrays = tuple(file for key, spec in FILES.items() if spec[0] == name for file in found.arrays if file.name == key)
    pickles = tuple(file for file in found.pickles if _is_pickle_of(file, name))
    pickles = tuple(sorted(pickles, key=lambda file: "3d" not in file.name))
    layouts = {"raw": skeletons, "arrays": arrays[:1], "pickle": pickles[:1]}
    there = [layout for layout, files in layouts.items() if files]
    if not there:
        raise ValueError(f"{found.source}: holds nothing of {name}; there must be {_FORMS}")
    notes = []
    rest = [file.name for layout in there[1:] for file in layouts[layout]]
    if others := [file.name for group in (arrays, pickles) if group[:1] == layouts[there[0]] for file in group[1:]]:
        rest = others + rest
    if rest:
        taken = "the raw .skeleton files" if there[0] == "raw" else layouts[there[0]][0].name
        notes.append(f"{taken} are read; {', '.join(rest)} could be too, and are not")
    names = _names_list(layouts["arrays"][0], found) if there[0] == "arrays" else None
    lists = (*found.missing, *(Path(file) for file in missing))
    return Chosen(there[0], found.source, layouts[there[0]], names, tuple(dict.fromkeys(lists)), tuple(notes))


def digest(chosen: Chosen) -> str:
    """sha256 of the listing of all files that are read: name, size and time of change of each, no content.

    Raises:
        ValueError: a file is a link to nothing.
        OSError: a file is not there.
    """
    files = [*chosen.files, *([chosen.names] if chosen.names else []), *chosen.missing]
    listing = sorted(_entry(file, chosen.source) for file in files)
    return listing_sha256(listing)


def _walk(folder: Path) -> list[Path]:
    files, seen = [], set()
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        files += [Path(place, name) for name in names]
    for file in files:
        # What may be a link to a folder of recordings; links to files are looked at where they are listed.
        if "." not in file.name and file.is_symlink() and not file.exists():
            raise _no_target(file)
    return files


def _no_target(link: Path) -> ValueError:
    # Many such links are a disk that isn't there: leaving them out would make a set of what happens to be there.
    rule = f"links must lead to a file or folder, this one leads to {os.readlink(link)}, which is not there"
    return ValueError(f"{link}: {rule}; bring it back, or delete the link")


def _refuse(error: OSError) -> None:
    # By default a folder that can't be listed is passed over, and its recordings would be missing without a word.
    raise ValueError(
        f"{error.filename}: every folder must be readable, got {error.strerror}; let it be read, or move it away"
    ) from error


def _companions(file: Path) -> list[Path]:
    if file.suffix != ".npz":
        return []
    places = (file.parent / NAMES_FILE, file.parent / "statistics" / NAMES_FILE)
    return [place for place in places if place.is_file()]


def _kind(file: Path) -> str | None:
    if file.suffix == SKELETON_SUFFIX:
        return "skeletons"
    if file.name in FILES:
        return "arrays"
    if file.suffix == ".pkl" and file.name.startswith(tuple(PROTOCOLS)):
        return "pickles"
    if file.name == NAMES_FILE:
        return "names"
    if _MISSING in file.name and file.suffix == ".txt":
        return "missing"
    return None


def _is_pickle_of(file: Path, name: str) -> bool:
    return file.name.startswith((f"{name}_", f"{name}."))


def _may_belong(file: Path, name: str) -> bool:
    try:
        return belongs(parse_name(file.stem), name)
    except ValueError:
        return True  # is left out with the reason


def _names_list(arrays: Path, found: Found) -> Path | None:
    near = [file for file in found.names if file.is_relative_to(arrays.parent)] or list(found.names)
    if len(near) > 1:
        raise ValueError(f"{arrays}: one {NAMES_FILE} must tell its names, got {near[0]} and {near[1]}; keep one")
    return near[0] if near else None


def _entry(file: Path, source: Path) -> _Entry:
    try:
        status = file.stat()
    except OSError as error:
        if error.errno not in _NOTHING_THERE or not file.is_symlink():
            raise
        raise _no_target(file) from error
    relative = file.relative_to(source).as_posix() if file.is_relative_to(source) and file != source else file.name
    return relative, status.st_size, status.st_mtime_ns
