"""Reader of NTU RGB+D 60 and 120: raw `.skeleton` files, CTR-GCN's arrays, or pyskl's pickles.

The sets "ntu60" and "ntu120" have the origin "ntu" and the names of recordings as ids, so that a sequence that one
trains on and the other tests on is known to be the same. Columns: `split_test_xsub` (also the default split),
`split_test_xview` or `split_test_xset`, `setup`, `camera`, `replication`, `bodies_dropped` (-1 where whoever made the
file dropped them) and `frames_dropped`. The subject is the performer, the label the action less one.

Sources: Shahroudy et al., CVPR 2016; Liu et al., TPAMI 2019.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ups_model.data.format.writer import Clip
from ups_model.data.prepare.jobs import BLOCK, Job, LeftOut, Reading, Recording, block_jobs, choose_clip, read_items
from ups_model.data.readers.io.files import source_kept
from ups_model.data.readers.ntu import ctrgcn
from ups_model.data.readers.ntu.bodies import Persons, persons_of
from ups_model.data.readers.ntu.clips import FPS, MISSING, SKELETON, UP_AXIS, named_clip, nameless_clip, set_info
from ups_model.data.readers.ntu.files import Selection, choose, digest
from ups_model.data.readers.ntu.names import PUBLISHED_TOTAL, NtuName, belongs, parse_name, read_missing, read_names
from ups_model.data.readers.ntu.pyskl import check_pickle, find_item, item_names, read_pickle
from ups_model.data.readers.ntu.skeleton_file import read_skeleton

READER_VERSION = 3


def recipe(name: str, source: Path, missing: Sequence[Path] = ()) -> dict[str, str | int]:
    """What preparing the set depends on; lists files and reads none. Raises ValueError as `reading`."""
    return _recipe(name, choose(name, source, missing))


def reading(name: str, source: Path, missing: Sequence[Path] = ()) -> Reading:
    """The set "ntu60" or "ntu120" from the folder or file `source`; where it has several layouts, raw files are read.

    Left out are recordings that `missing` or lists in the folder (*missing*.txt) name, those in which nobody is seen
    ("empty"), unreadable ones, and doubled ones. ValueError: nothing of the set is there, a list or file is of another
    format, arrays do not match their names list, or a pickle's splits are not the protocols'.
    """
    selection = choose(name, source, missing)
    info = set_info(name, _recipe(name, selection))
    left_out: set[str] = set()
    notes = list(selection.notes)
    for file in selection.missing:
        names = read_missing(file)
        left_out |= names
        notes.append(f"{file.name}: {len(names)} recordings with missing skeletons are left out")
    make = {"raw": _raw_jobs, "arrays": _array_jobs, "pickle": _pickle_jobs}[selection.layout]
    jobs, more = make(name, selection, frozenset(left_out))
    return Reading(info, tuple(jobs), (*notes, *more))


def clip_names(file: Path) -> tuple[str, ...]:
    """ "train:0".. of arrays, frame_dir of a pickle, or the file's name without suffix; see `Reader`."""
    if file.suffix == ".npz":
        members = ctrgcn.open_arrays(file).members
        return tuple(f"{part}:{row}" for part in ctrgcn.PARTS for row in range(members[f"x_{part}"].rows))
    return item_names(file) if file.suffix == ".pkl" else (file.stem,)


def read_recording(file: Path, clip: str | None = None) -> Recording:
    """One recording of a .skeleton file, of arrays (.npz) or of a pickle (.pkl); see `Reader`."""
    if file.suffix == ".npz":
        name, persons = _row_persons(file, clip)
    elif file.suffix == ".pkl":
        name, persons = find_item(file, clip)
    else:
        name, persons = choose_clip(file, (file.stem,), clip, "recording"), persons_of(read_skeleton(file))
    if not persons.tracks:
        raise ValueError(f"{file}: nobody is seen in {name}; choose another recording")
    return Recording(name, SKELETON, 3, FPS, "metre", UP_AXIS, persons.tracks)


def _recipe(name: str, selection: Selection) -> dict[str, str | int]:
    return {
        "reader": "ntu",
        "reader_version": READER_VERSION,
        "set": name,
        "layout": selection.layout,
        "files": len(selection.files),
        "files_sha256": digest(selection),
    }


# Raw files


@dataclass(frozen=True)
class _RawFile:
    name: str
    path: Path


def _raw_jobs(name: str, selection: Selection, missing: frozenset[str]) -> tuple[list[Job], list[str]]:
    items: list[_RawFile | LeftOut] = []
    first: dict[str, Path] = {}
    for file in sorted(selection.files, key=lambda file: (file.stem, str(file))):
        before = first.setdefault(file.stem, file)
        if file.stem in missing:
            items.append(LeftOut(file.stem, MISSING))
        elif before != file:
            items.append(LeftOut(file.stem, "duplicate", f"{file}: is also {before}"))
        else:
            items.append(_RawFile(file.stem, file))
    notes = []
    if not selection.missing:
        notes.append("no list of missing skeletons: give the published one, or damaged recordings are trained on")
    if (there := len(first.keys() - missing)) != PUBLISHED_TOTAL[name]:
        notes.append(f"{there} recordings are there, the published set has {PUBLISHED_TOTAL[name]}")
    return block_jobs("files", items, partial(read_items, partial(_raw_clip, name))), notes


def _raw_clip(set_name: str, file: _RawFile) -> Clip | LeftOut:
    name = parse_name(file.name)
    with source_kept(file.path):
        if file.path.stat().st_size == 0:
            return LeftOut(file.name, "empty", f"{file.path}: has no content")
        recording = read_skeleton(file.path)
    persons = persons_of(recording)
    if not persons.tracks:
        return LeftOut(file.name, "empty", f"{file.path}: no frame has a body")
    return named_clip(name, set_name, persons)


# Arrays


def _array_jobs(name: str, selection: Selection, missing: frozenset[str]) -> tuple[list[Job], list[str]]:
    arrays = ctrgcn.open_arrays(selection.files[0])
    rows = {part: arrays.members[f"x_{part}"].rows for part in ctrgcn.PARTS}
    notes = []
    names: dict[str, tuple[NtuName, ...]] | None = None
    if selection.names is not None:
        listed = [recording for recording in read_names(selection.names) if belongs(recording, name)]
        names = ctrgcn.match_names(arrays, listed, selection.names)
        notes.append(f"{selection.names.name}: rows are named by it, every label agrees")
    else:
        notes.append(
            f"{arrays.file.name} has no names (no {ctrgcn.NAMES_FILE}): subjects are unknown, {arrays.protocol} is "
            "the only protocol, and whether another set holds the same clips can be told by their content alone"
        )
        if missing:
            notes.append("without names, lists of missing skeletons are not used: the arrays were made without them")
    if any(member.offset is None for member in arrays.members.values()):
        notes.append(f"{arrays.file.name} is compressed, so one process reads it front to back")
        return [Job(arrays.file.name, sum(rows.values()), partial(_read_compressed, arrays, names, missing))], notes
    repeated = {} if names is not None else ctrgcn.repeats(arrays)
    jobs = []
    for part in ctrgcn.PARTS:
        for start in range(0, rows[part], BLOCK):
            stop = min(start + BLOCK, rows[part])
            names_here = None if names is None else names[part][start:stop]
            repeated_here = {row: repeated[part, row] for row in range(start, stop) if (part, row) in repeated}
            read = partial(_read_rows, arrays, part, start, stop, names_here, missing, repeated_here)
            jobs.append(Job(f"{part} {start}-{stop - 1}", stop - start, read))
    return jobs, notes


def _read_compressed(
    arrays: ctrgcn.ArrayFile, names: Mapping[str, Sequence[NtuName]] | None, missing: frozenset[str]
) -> Iterator[Clip | LeftOut]:
    repeated: Counter[str] = Counter()
    for part in ctrgcn.PARTS:
        rows = arrays.members[f"x_{part}"].rows
        yield from _read_rows(arrays, part, 0, rows, None if names is None else names[part], missing, repeated)


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
        for first, block in arrays.members[f"x_{part}"].row_blocks(start, stop):
            for row, row_NC in enumerate(block, start=first):
                name = None if names is None else names[row - start]
                if name is not None and name.text in missing:
                    yield LeftOut(name.text, MISSING)
                    continue
                shown = f"{part}:{row}" if name is None else name.text
                label = int(label_R[row - start])
                try:
                    persons = ctrgcn.persons_of_row(row_NC, f"{arrays.file}[x_{part}][{row}]")
                    if label < 0:
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
                    yield nameless_clip(clip_id, label, arrays.protocol, part == "test", persons)


def _row_persons(file: Path, clip: str | None) -> tuple[str, Persons]:
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


def _pickle_jobs(name: str, selection: Selection, missing: frozenset[str]) -> tuple[list[Job], list[str]]:
    (file,) = selection.files
    check_pickle(file, name)
    # The number of annotations is known at the end; the published files have all of them.
    return [Job(file.name, PUBLISHED_TOTAL[name], partial(read_pickle, file, name, missing))], []
