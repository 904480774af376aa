"""Reader of the Kinetics skeletons published with ST-GCN: 2D poses that OpenPose found in Kinetics-400 videos.

The videos were resized to 340 x 256 pixels and to 30 frames per second before the detection, so 30 is the rate of all
clips; at most 300 frames (10 seconds) each. Coordinates are in parts of the image's width and height, less 0.5, so a
clip does not tell the shape of its image. Two layouts are read:

    kinetics_train/ID.json, kinetics_val/ID.json, kinetics_train_label.json, kinetics_val_label.json
    train_data.npy, train_label.pkl, val_data.npy, val_label.pkl

Source: S. Yan, Y. Xiong, D. Lin, "Spatial Temporal Graph Convolutional Networks", AAAI 2018.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ups_model.data.format.clip_set import ClipSetInfo
from ups_model.data.format.writer import Clip, Track
from ups_model.data.prepare.jobs import Job, LeftOut, Reading, Recording
from ups_model.data.readers.io.json_files import load_json
from ups_model.data.readers.io.safe_pickle import shown
from ups_model.data.readers.io.source_files import listing_sha256, source_kept
from ups_model.data.readers.kinetics.json_format import read_video
from ups_model.data.readers.kinetics.npy import label_file, open_rows, read_listing, read_row
from ups_model.data.readers.kinetics.tracks import KINETICS_CLASSES, SKELETON, label_fault, make_tracks

READER_VERSION = 2
"""Raised when the reader changes what it writes, so that prepared sets are made again."""

NAME = "kinetics"
FPS = 30.0
PARTS = ("train", "val")
"""The val part is the test split: the labels of Kinetics' own test part are not part of these files."""

PUBLISHED_COUNTS: Mapping[str, Mapping[str, tuple[int, int]]] = {NAME: {"default": (240_436, 19_796)}}
"""Set -> protocol -> clips to train and to test on, as commonly counted: those that have a skeleton."""

_BLOCK = 256
_MAX_LABEL_BYTES = 1 << 30
_Entry = tuple[str, int] | LeftOut
"""A video's id and label; or why it is left out, which is known before its file is opened."""


def recipe(source: Path) -> dict[str, str | int]:
    """What preparing the set from `source` depends on. Reads names, sizes and times of the files, not their content.

    Raises:
        ValueError: no files of either layout in `source`, or a link to nothing among them.
        OSError: a folder cannot be listed.
    """
    layout, parts = _find(Path(source))
    files = sorted(_listing(Path(source), layout, parts))
    digest = listing_sha256(files)
    return {"reader": NAME, "reader_version": READER_VERSION, "layout": layout, "files_sha256": digest}


def reading(source: Path) -> Reading:
    """The set "kinetics" from the files in the folder `source`.

    Left out are videos without a skeleton (as the label file says), in which nobody is seen, whose label is not one of
    the 400 or is given differently in two places, whose file is missing or unreadable, and training videos that are
    also in the val part.

    Raises:
        ValueError: no files of either layout, or a label file or array that is no such thing; names it.
    """
    source = Path(source)
    layout, parts = _find(source)
    notes = [f"read from {'JSON files' if layout == 'json' else 'arrays (.npy)'}: {', '.join(parts)}"]
    if layout == "json" and any((source / f"{part}_data.npy").exists() for part in PARTS):
        notes.append("there are arrays (.npy) too; they are not read")
    for part, what in zip(PARTS, ("training", "test"), strict=True):
        if part not in parts:
            notes.append(f"no {part} part here, so the set has no {what} clips")
    listing = _json_entries if layout == "json" else _array_entries
    entries = {part: [_named(entry) for entry in listing(source, part)] for part in parts}
    tested = {entry.name if isinstance(entry, LeftOut) else entry[0] for entry in entries.get("val", ())}
    read = _read_videos if layout == "json" else _read_rows
    jobs = []
    for part, listed in entries.items():
        if part == "train":
            listed = [_unless_tested(entry, tested) for entry in listed]
        for start in range(0, len(listed), _BLOCK):
            block = tuple(listed[start : start + _BLOCK])
            jobs.append(Job(f"{part} {start}", len(block), partial(read, source, part, start, block)))
    info = ClipSetInfo(
        name=NAME,
        skeleton=SKELETON,
        dims=2,
        fps=FPS,
        units="normalised",
        up_axis="-y",
        licence="Kinetics skeletons, for research; see the terms of Kinetics-400 and of the ST-GCN project",
        classes=KINETICS_CLASSES,
        synthetic=False,
        description="Kinetics-400 skeletons: OpenPose detections in web videos, normalised image coordinates",
        filled=True,
        recipe=recipe(source),
    )
    return Reading(info, tuple(jobs), tuple(notes))


def clip_names(file: Path) -> tuple[str, ...]:
    """The clips of a file: the video of a JSON file; names of the rows of a data file, or their numbers where no label
    file lies beside it.

    Raises:
        ValueError: the file is not whole, or its label file does not belong to it.
    """
    file = Path(file)
    if file.suffix != ".npy":
        return (file.stem,)
    rows = len(open_rows(file))
    labels = label_file(file)
    return read_listing(labels, rows).names if labels.exists() else tuple(map(str, range(rows)))


def read_recording(file: Path, clip: str | None = None) -> Recording:
    """One video: of a JSON file, or of a data file (`clip` is its name or the number of its row, from 0).

    Raises:
        ValueError: the file or row is damaged, there is no such clip, or nobody is seen in it.
        OSError: the file cannot be read.
    """
    file = Path(file)
    if file.suffix == ".npy":
        array, names = open_rows(file), clip_names(file)
        row = _row(file, names, clip)
        name, tracks = names[row], make_tracks(*read_row(file, array, row))
    else:
        if clip not in (None, file.stem):
            raise ValueError(f"{file}: holds one video, {file.stem}, got the clip {clip!r:.60}")
        video = read_video(file)
        name, tracks = file.stem, make_tracks(video.xy_NPJ2, video.score_NPJ)
    if not tracks:
        raise ValueError(f"{file}: nobody is seen in {name}; take another video")
    return Recording(name, SKELETON, 2, FPS, "normalised", "-y", tracks)


def _row(file: Path, names: Sequence[str], clip: str | None) -> int:
    if clip is None and len(names) == 1:
        return 0
    if clip in names:
        return names.index(clip)
    # Digits of a length that int() takes.
    if clip is not None and clip.isascii() and clip.isdigit() and len(clip) <= 9 and int(clip) < len(names):
        return int(clip)
    near = ", ".join(names[:3])
    raise ValueError(f"{file}: holds {len(names)} videos; give a name such as {near} or a row number, got {clip!r:.60}")


def _find(source: Path) -> tuple[str, tuple[str, ...]]:
    """The layout in a folder, "json" or "npy", and the parts that are there."""
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder; give the one that holds kinetics_train or train_data.npy")
    for layout, pattern in (("json", "kinetics_{}"), ("npy", "{}_data.npy")):
        if parts := tuple(part for part in PARTS if (source / pattern.format(part)).exists()):
            return layout, parts
    raise ValueError(
        f"{source}: holds no Kinetics skeletons; they are folders kinetics_train and kinetics_val with their "
        "_label.json files, or train_data.npy and val_data.npy with their _label.pkl files"
    )


def _listing(source: Path, layout: str, parts: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """(relative name, size, time) of the files that are read."""
    for part in parts:
        if layout == "json":
            entries = [(f"kinetics_{part}/{entry.name}", entry.stat()) for entry in _video_files(source, part)]
            names = [f"kinetics_{part}_label.json"]
        else:
            entries, names = [], [f"{part}_data.npy", f"{part}_label.pkl"]
        for name in names:
            if not (source / name).is_file():
                raise ValueError(f"{source / name}: no such file; it belongs to the {part} part")
            entries.append((name, (source / name).stat()))
        for name, stat in entries:
            yield name, stat.st_size, stat.st_mtime_ns


def _video_files(source: Path, part: str) -> list[os.DirEntry[str]]:
    """What may be videos' files in the folder of a part, in no order."""
    files = []
    with os.scandir(source / f"kinetics_{part}") as found:
        for entry in found:
            # "._ID.json" is what macOS leaves beside a file when it unpacks an archive.
            if not entry.name.endswith(".json") or entry.name.startswith("._"):
                continue
            if entry.is_file():
                files.append(entry)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                # Many such links are a disk that isn't there: leaving them out would make a set of what happens to be.
                rule = f"links must lead to a file, this one leads to {os.readlink(entry.path)}, which is not there"
                raise ValueError(f"{entry.path}: {rule}; bring it back, or delete the link")
    return files


def _json_entries(source: Path, part: str) -> list[_Entry]:
    """Every video of the folder or the label file, in the order of ids."""
    file = source / f"kinetics_{part}_label.json"
    try:
        listed = load_json(file, _MAX_LABEL_BYTES)
    except FileNotFoundError as error:
        raise ValueError(f"{file}: no such file; it belongs to the folder kinetics_{part}") from error
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{file}: must hold an object with an entry for each video; is it a label file?")
    try:
        found = {entry.name.removesuffix(".json") for entry in _video_files(source, part)}
    except NotADirectoryError as error:
        raise ValueError(f"{source / f'kinetics_{part}'}: must be a folder of a JSON file for each video") from error
    return [_json_entry(video, listed.get(video), video in found) for video in sorted(found | listed.keys())]


def _json_entry(video: str, said: Any, found: bool) -> _Entry:
    if said is None:
        return LeftOut(video, "without a label", "it is not in the label file")
    if not isinstance(said, dict) or not isinstance(said.get("has_skeleton"), bool):
        return LeftOut(video, "without a label", "has_skeleton must be true or false in the label file")
    if not said["has_skeleton"]:
        return LeftOut(video, "without a skeleton")
    if fault := label_fault(said.get("label_index"), said.get("label")):
        return LeftOut(video, "label at odds", f"in the label file {fault}")
    if not found:
        return LeftOut(video, "without a file", "it is in the label file, and the folder has no such file")
    return video, said["label_index"]


def _array_entries(source: Path, part: str) -> list[_Entry]:
    """Every row, in order."""
    file = source / f"{part}_data.npy"
    listing = read_listing(label_file(file), len(open_rows(file)))
    entries: list[_Entry] = []
    first: dict[str, int] = {}
    for row, (video, label) in enumerate(zip(listing.names, listing.labels, strict=True)):
        place = f"{label_file(file).name}[{row}]"
        if first.setdefault(video, row) != row:
            entries.append(LeftOut(video, "twice", f"{place}: it is row {first[video]} already"))
        elif type(label) is not int or not 0 <= label < len(KINETICS_CLASSES):
            bound = len(KINETICS_CLASSES) - 1
            entries.append(LeftOut(video, "label at odds", f"{place}: must be in 0..{bound}, got {shown(label)}"))
        else:
            entries.append((video, label))
    return entries


def _named(entry: _Entry) -> _Entry:
    name = entry.name if isinstance(entry, LeftOut) else entry[0]
    if name.isprintable():
        return entry
    # Half a character of a damaged name can't be written to any file.
    return LeftOut(ascii(name), "unreadable", "the video's name must be printable text")


def _unless_tested(entry: _Entry, tested: set[str]) -> _Entry:
    # What is tested on must not be trained on; the test part is kept whole, so that figures compare with others'.
    if isinstance(entry, LeftOut) or entry[0] not in tested:
        return entry
    return LeftOut(entry[0], "in both parts", "it belongs to the val part")


def _read_videos(source: Path, part: str, start: int, entries: Sequence[_Entry]) -> Iterator[Clip | LeftOut]:
    folder = source / f"kinetics_{part}"
    for entry in entries:
        if isinstance(entry, LeftOut):
            yield entry
            continue
        video, label = entry
        try:
            with source_kept(folder / f"{video}.json"):
                content = read_video(folder / f"{video}.json")
        except ValueError as error:
            yield LeftOut(video, "unreadable", str(error))
            continue
        # A file may say nothing of its label; what it does say must agree.
        fault = ""
        if content.label_index is not None or content.label is not None:
            fault = label_fault(content.label_index, content.label)
            if not fault and content.label_index != label:
                fault = f"label_index must be {label}, as in the label file, got {content.label_index}"
        if fault:
            yield LeftOut(video, "label at odds", f"{folder / video}.json: {fault}")
        else:
            yield _clip(video, label, part, make_tracks(content.xy_NPJ2, content.score_NPJ))


def _read_rows(source: Path, part: str, start: int, entries: Sequence[_Entry]) -> Iterator[Clip | LeftOut]:
    file = source / f"{part}_data.npy"
    with source_kept(file):
        array = open_rows(file)
    for row, entry in enumerate(entries, start):
        if isinstance(entry, LeftOut):
            yield entry
            continue
        video, label = entry
        try:
            tracks = make_tracks(*read_row(file, array, row))
        except ValueError as error:
            yield LeftOut(video, "unreadable", str(error))
        else:
            yield _clip(video, label, part, tracks)


def _clip(video: str, label: int, part: str, tracks: tuple[Track, ...]) -> Clip | LeftOut:
    if not tracks:
        return LeftOut(video, "nobody seen")
    return Clip(video, tracks, label=label, split_test=part == "val")
