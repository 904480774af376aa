"""Reader of NTU RGB+D 60 and 120: raw `.skeleton` files, CTR-GCN's arrays, or pyskl's pickles.

The sets "ntu60" and "ntu120" have the origin "ntu" and the names of recordings as ids, so that a sequence that one
trains on and the other tests on is known to be the same. Columns: `split_test_xsub` (also the default split),
`split_test_xview` or `split_test_xset`, `setup`, `camera`, `replication`, `bodies_dropped` (-1 where whoever made the
file dropped them) and `frames_dropped`. The subject is the performer, the label the action less one.

Sources: Shahroudy et al., CVPR 2016; Liu et al., TPAMI 2019.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ups_model.data.format.writer import Clip
from ups_model.data.prepare.jobs import Job, LeftOut, Reading, Recording
from ups_model.data.readers.io.source_files import source_kept
from ups_model.data.readers.ntu import ctrgcn
from ups_model.data.readers.ntu.bodies import Persons, persons_of
from ups_model.data.readers.ntu.clips import FPS, MISSING, SKELETON, UP_AXIS, named_clip, nameless_clip, set_info
from ups_model.data.readers.ntu.files import Chosen, choose, digest, look, sets_in
from ups_model.data.readers.ntu.names import (
    PROTOCOLS,
    PUBLISHED_COUNTS,
    PUBLISHED_TOTAL,
    NtuName,
    belongs,
    parse_name,
    read_missing,
    read_names,
)
from ups_model.data.readers.ntu.pyskl import check_pickle, find_item, item_names, read_pickle
from ups_model.data.readers.ntu.skeleton_file import read_skeleton

__all__ = ["PROTOCOLS", "PUBLISHED_COUNTS", "available", "clip_names", "read_missing", "read_recording", "reading"]

READER_VERSION = 2
"""Raised when the reader changes what it writes, so that prepared sets are made again."""

_BLOCK = 256


def available(source: Path) -> tuple[str, ...]:
    """Which of "ntu60" and "ntu120" a folder (searched with the folders in it) or file has. Reads file names alone.

    Raises:
        ValueError: no such file or folder, or nothing of NTU RGB+D in it.
    """
    return sets_in(look(source))


def recipe(name: str, source: Path, missing: Sequence[Path] = ()) -> dict[str, str | int]:
    """What preparing the set depends on; lists files and reads none. Raises ValueError as `reading`."""
    return _recipe(name, choose(name, look(source), missing))


def reading(name: str, source: Path, missing: Sequence[Path] = ()) -> Reading:
    """The set "ntu60" or "ntu120" from the folder or file `source`; where it has several layouts, raw files are read.

    Left out are recordings that `missing` or lists in the folder (*missing_skeletons*.txt) name, those in which nobody
    is seen ("empty"), unreadable ones, and doubled ones.

    Raises:
        ValueError: nothing of the set is there, a list is none, a file is of another format, arrays do not match
            their names list, or a pickle's splits are not the protocols'; names the file.
        OSError: a file cannot be read.
    """
    chosen = choose(name, look(source), missing)
    info = set_info(name, _recipe(name, chosen))
    left_out: set[str] = set()
    notes = list(chosen.notes)
    for file in chosen.missing:
        listed = read_missing(file)
        left_out |= listed
        notes.append(f"{file.name}: {len(listed)} recordings with missing skeletons are left out")
    make = {"raw": _raw_jobs, "arrays": _array_jobs, "pickle": _pickle_jobs}[chosen.layout]
    jobs, more = make(name, chosen, frozenset(left_out))
    return Reading(info, tuple(jobs), (*notes, *more))


def clip_names(file: Path) -> tuple[str, ...]:
    """What `read_recording` takes as `clip` for a file: "train:0".. of arrays, frame_dir of a pickle, or a name.

    Raises:
        ValueError: the file is damaged or none of NTU RGB+D's; names it.
    """
    file = Path(file)
    if file.suffix == ".npz":
        members = ctrgcn.open_arrays(file).members
        return tuple(f"{part}:{row}" for part in ctrgcn.PARTS for row in range(members[f"x_{part}"].rows))
    if file.suffix == ".pkl":
        return item_names(file)
    return (file.stem,)


def read_recording(file: Path, clip: str | None = None) -> Recording:
    """One recording of a file.

    Args:
        file: a .skeleton file, arrays (.npz) or a pickle (.pkl).
        clip: which of several, see `clip_names`; may be left out where there is one.

    Raises:
        ValueError: the file is damaged or none of NTU RGB+D's, has no such clip, or nobody is seen in it; names it.
        OSError: the file cannot be read.
    """
    file = Path(file)
    if file.suffix == ".npz":
        name, persons = _read_row(file, clip)
    elif file.suffix == ".pkl":
        name, persons = find_item(file, clip)
    else:
        if clip not in (None, file.stem):
            raise ValueError(f"{file}: holds one recording, {file.stem}, got {clip!r}")
        name, persons = file.stem, persons_of(read_skeleton(file))
    if not persons.tracks:
        raise ValueError(f"{file}: nobody is seen in {name}; choose another recording")
    return Recording(name, SKELETON, 3, FPS, "metre", UP_AXIS, persons.tracks)


def _recipe(name: str, chosen: Chosen) -> dict[str, str | int]:
    return {
        "reader": "ntu",
        "reader_version": READER_VERSION,
        "set": name,
        "layout": chosen.layout,
        "files": len(chosen.files),
        "files_sha256": digest(chosen),
    }


# Raw files


def _raw_jobs(name: str, chosen: Chosen, missing: frozenset[str]) -> tuple[list[Job], list[str]]:
    files = sorted(chosen.files, key=lambda file: (file.stem, str(file)))
    first = {file.stem: file for file in reversed(files)}
    listed = [(str(file), str(first[file.stem]) if first[file.stem] != file else "") for file in files]
    jobs = []
    for start in range(0, len(listed), _BLOCK):
        block = listed[start : start + _BLOCK]
        here = missing & {Path(file).stem for file, _ in block}
        job_name = f"{Path(block[0][0]).stem} and {len(block) - 1} more"
        jobs.append(Job(job_name, len(block), partial(_read_raw, name, tuple(block), here)))
    notes = []
    if not chosen.missing:
        notes.append("no list of missing skeletons: give the published one, or damaged recordings are trained on")
    if (there := len(first.keys() - missing)) != PUBLISHED_TOTAL[name]:
        notes.append(f"{there} recordings are there, the published set has {PUBLISHED_TOTAL[name]}")
    return jobs, notes


def _read_raw(set_name: str, files: Sequence[tuple[str, str]], missing: frozenset[str]) -> Iterator[Clip | LeftOut]:
    for path, before in files:
        file = Path(path)
        if file.stem in missing:
            yield LeftOut(file.stem, MISSING)
        elif before:
            yield LeftOut(file.stem, "duplicate", f"{file}: is also {before}")
        else:
            yield _read_raw_file(set_name, file)


def _read_raw_file(set_name: str, file: Path) -> Clip | LeftOut:
    try:
        name = parse_name(file.stem)
        with source_kept(file):
            if file.stat().st_size == 0:
                return LeftOut(file.stem, "empty", f"{file}: has no content")
            recording = read_skeleton(file)
        persons = persons_of(recording)
    except ValueError as error:
        return LeftOut(file.stem, "unreadable", str(error))
    if not persons.tracks:
        return LeftOut(file.stem, "empty", f"{file}: no frame has a body")
    return named_clip(name, set_name, persons)


# Arrays


def _array_jobs(name: str, chosen: Chosen, missing: frozenset[str]) -> tuple[list[Job], list[str]]:
    arrays = ctrgcn.open_arrays(chosen.files[0])
    rows = {part: arrays.members[f"x_{part}"].rows for part in ctrgcn.PARTS}
    notes = []
    names: dict[str, tuple[NtuName, ...]] | None = None
    if chosen.names is not None:
        listed = [recording for recording in read_names(chosen.names) if belongs(recording, name)]
        names = ctrgcn.match_names(arrays, listed, chosen.names)
        notes.append(f"{chosen.names.name}: rows are named by it, every label agrees")
    else:
        notes.append(
            f"{arrays.file.name} has no names (no {ctrgcn.NAMES_FILE}): subjects are unknown, {arrays.protocol} is "
            "the only protocol, and whether another set holds the same clips can be told by their content alone"
        )
        if missing:
            notes.append("without names, lists of missing skeletons are not used: the arrays were made without them")
    if not arrays.mapped:
        notes.append(f"{arrays.file.name} is compressed, so one process reads it front to back")
        read = partial(_read_compressed, arrays, names, missing)
        return [Job(arrays.file.name, sum(rows.values()), read)], notes
    repeated = {} if names is not None else ctrgcn.repeats(arrays)
    jobs = []
    for part in ctrgcn.PARTS:
        for start in range(0, rows[part], _BLOCK):
            stop = min(start + _BLOCK, rows[part])
            here = None if names is None else names[part][start:stop]
            again = {row: repeated[part, row] for row in range(start, stop) if (part, row) in repeated}
            read = partial(_read_rows, arrays, part, start, stop, here, missing, again)
            jobs.append(Job(f"{part} {start}-{stop - 1}", stop - start, read))
    return jobs, notes


def _read_rows(
    arrays: ctrgcn.ArrayFile,
    part: str,
    start: int,
    stop: int,
    names: Sequence[NtuName] | None,
    missing: frozenset[str],
    repeated: Mapping[int, int] | Counter[str],
) -> Iterator[Clip | LeftOut]:
    """Rows of a part. `repeated` counts equal ones before: by row, or a Counter of ids that is added to."""
    with source_kept(arrays.file):
        label_R = ctrgcn.labels_of(arrays.members[f"y_{part}"], start, stop)
    for first, block in _kept_blocks(arrays, part, start, stop):
        for row, row_NC in enumerate(block, start=first):
            where = f"{part}:{row}"
            name = None if names is None else names[row - start]
            if name is not None and name.text in missing:
                yield LeftOut(name.text, MISSING)
                continue
            shown = where if name is None else name.text
            try:
                persons = ctrgcn.persons_of_row(row_NC, f"{arrays.file}[x_{part}][{row}]")
                if label_R[row - start] < 0:
                    raise ValueError(f"{arrays.file}[y_{part}][{row}]: must be one-hot; leave it out")
            except ValueError as error:
                yield LeftOut(shown, "unreadable", str(error))
                continue
            if not persons.tracks:
                yield LeftOut(shown, "empty", f"{arrays.file}[x_{part}][{row}]: no frame has a body")
            elif name is not None:
                yield named_clip(name, arrays.set_name, persons)
            else:
                clip_id = ctrgcn.content_id(row_NC)
                if isinstance(repeated, Counter):
                    times = repeated[clip_id]
                    repeated[clip_id] += 1
                else:
                    times = repeated.get(row, 0)
                clip_id += f"-{times + 1}" if times else ""
                yield nameless_clip(clip_id, int(label_R[row - start]), arrays.protocol, part == "test", persons)


def _kept_blocks(arrays: ctrgcn.ArrayFile, part: str, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
    with source_kept(arrays.file):
        yield from arrays.members[f"x_{part}"].row_blocks(start, stop)


def _read_compressed(
    arrays: ctrgcn.ArrayFile, names: Mapping[str, Sequence[NtuName]] | None, missing: frozenset[str]
) -> Iterator[Clip | LeftOut]:
    repeated: Counter[str] = Counter()
    for part in ctrgcn.PARTS:
        rows = arrays.members[f"x_{part}"].rows
        here = None if names is None else names[part]
        yield from _read_rows(arrays, part, 0, rows, here, missing, repeated)


def _read_row(file: Path, clip: str | None) -> tuple[str, Persons]:
    arrays = ctrgcn.open_arrays(file)
    part, _, row = (clip or "").partition(":")
    if part not in ctrgcn.PARTS or not (row.isascii() and row.isdigit()) or len(row) > 9:
        raise ValueError(f'{file}: give a clip as "train:0" or "test:0", got {clip!r:.60}')
    member = arrays.members[f"x_{part}"]
    if int(row) >= member.rows:
        raise ValueError(f"{file}: x_{part} has rows 0..{member.rows - 1}, got {row}")
    ((_, block),) = member.row_blocks(int(row), int(row) + 1, block=1)
    return f"{part}:{int(row)}", ctrgcn.persons_of_row(block[0], f"{file}[x_{part}][{row}]")


# Pickles


def _pickle_jobs(name: str, chosen: Chosen, missing: frozenset[str]) -> tuple[list[Job], list[str]]:
    (file,) = chosen.files
    check_pickle(file, name)
    # The number of annotations is known at the end; the published files have all of them.
    return [Job(file.name, PUBLISHED_TOTAL[name], partial(_read_pickle, name, file, missing))], []


def _read_pickle(set_name: str, file: Path, missing: frozenset[str]) -> Iterator[Clip | LeftOut]:
    with source_kept(file):
        yield from read_pickle(file, set_name, missing)
