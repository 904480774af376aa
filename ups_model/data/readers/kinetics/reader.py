"""Reader of the Kinetics skeletons published with ST-GCN: 2D poses that OpenPose found in Kinetics-400 videos.

The videos were resized to 340 x 256 pixels and to 30 frames per second before the detection, so 30 is the rate of all
clips; at most 300 frames (10 seconds) each. Coordinates are in parts of the image's width and height, less 0.5, so a
clip does not tell the shape of its image. Two layouts are read:

    kinetics_train/ID.json, kinetics_val/ID.json, kinetics_train_label.json, kinetics_val_label.json
    train_data.npy, train_label.pkl, val_data.npy, val_label.pkl

Source: S. Yan, Y. Xiong, D. Lin, "Spatial Temporal Graph Convolutional Networks", AAAI 2018.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.format.clip_set import ClipSetInfo
from ups_model.data.format.writer import Clip, Track
from ups_model.data.prepare.jobs import Job, LeftOut, Reading, Recording, block_jobs, choose_clip, read_items
from ups_model.data.readers.io.files import files_sha256, load_json, no_target, source_kept
from ups_model.data.readers.io.safe_pickle import shown
from ups_model.data.readers.kinetics.json_format import read_video
from ups_model.data.readers.kinetics.npy import label_file, open_rows, read_labels, read_row
from ups_model.data.readers.kinetics.tracks import KINETICS_CLASSES, SKELETON, label_fault, make_tracks

READER_VERSION = 2

NAME = "kinetics"
FPS = 30.0
PARTS = ("train", "val")
"""The val part is the test split: the labels of Kinetics' own test part are not part of these files."""

PUBLISHED_COUNTS: Mapping[str, Mapping[str, tuple[int, int]]] = {NAME: {"default": (240_436, 19_796)}}
"""Set -> protocol -> clips to train and to test on, as commonly counted: those that have a skeleton."""

_MAX_LABEL_BYTES = 1 << 30


@dataclass(frozen=True)
class _Video:
    """A video of which nothing tells against reading it yet."""

    name: str
    label: int
    row: int = -1
    """Of the array."""


def recipe(source: Path) -> dict[str, str | int]:
    """What preparing the set from `source` depends on: names, sizes and times of the files, not their content.
    ValueError where files of neither layout are there, or a link to nothing is among them."""
    layout, parts = _layout(source)
    listing = files_sha256(sorted(_listing(source, layout, parts)))
    return {"reader": NAME, "reader_version": READER_VERSION, "layout": layout, "files_sha256": listing}


def reading(source: Path) -> Reading:
    """The set "kinetics" from the files in the folder `source`.

    Left out are videos without a skeleton (as the label file says), in which nobody is seen, whose label is not one of
    the 400 or is given differently in two places, whose file is missing or unreadable, and training videos that are
    also in the val part. ValueError where there are no files of either layout, or a label file or array is damaged.
    """
    layout, parts = _layout(source)
    set_recipe = recipe(source)
    notes = [f"read from {'JSON files' if layout == 'json' else 'arrays (.npy)'}: {', '.join(parts)}"]
    if layout == "json" and any((source / f"{part}_data.npy").exists() for part in PARTS):
        notes.append("there are arrays (.npy) too; they are not read")
    for part, what in zip(PARTS, ("training", "test"), strict=True):
        if part not in parts:
            notes.append(f"no {part} part here, so the set has no {what} clips")
    list_videos, read = (_json_videos, _read_videos) if layout == "json" else (_array_videos, _read_rows)
    videos = {part: [_printable(video) for video in list_videos(source, part)] for part in parts}
    if "train" in videos:
        # What is tested on must not be trained on; the test part is kept whole, so that figures compare with others'.
        tested = {video.name for video in videos.get("val", ())}
        videos["train"] = [
            LeftOut(video.name, "in both parts", "it belongs to the val part")
            if isinstance(video, _Video) and video.name in tested
            else video
            for video in videos["train"]
        ]
    jobs: list[Job] = []
    for part, items in videos.items():
        jobs += block_jobs(part, items, partial(read, source, part))
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
        recipe=set_recipe,
    )
    return Reading(info, tuple(jobs), tuple(notes))


def clip_names(file: Path) -> tuple[str, ...]:
    """The video of a JSON file; names of the rows of a data file, or numbers where no label file lies beside it."""
    if file.suffix != ".npy":
        return (file.stem,)
    rows = len(open_rows(file))
    labels = label_file(file)
    return tuple(read_labels(labels, rows)[0] if labels.exists() else map(str, range(rows)))


def read_recording(file: Path, clip: str | None = None) -> Recording:
    """One video of a JSON file, or of a data file by its name or the number of its row, from 0; see `Reader`."""
    if file.suffix == ".npy":
        names = clip_names(file)
        row = _row(file, names, clip)
        name, tracks = names[row], make_tracks(*read_row(file, open_rows(file), row))
    else:
        name = choose_clip(file, (file.stem,), clip, "video")
        video = read_video(file)
        tracks = make_tracks(video.xy_NPJ2, video.score_NPJ)
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


def _layout(source: Path) -> tuple[str, tuple[str, ...]]:
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
    files, folder = [], source / f"kinetics_{part}"
    if not folder.is_dir():
        raise ValueError(f"{folder}: must be a folder of a JSON file for each video")
    with os.scandir(folder) as entries:
        for entry in entries:
            # "._ID.json" is what macOS leaves beside a file when it unpacks an archive.
            if not entry.name.endswith(".json") or entry.name.startswith("._"):
                continue
            if entry.is_file():
                files.append(entry)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                raise no_target(Path(entry.path), "file")
    return files


def _json_videos(source: Path, part: str) -> list[_Video | LeftOut]:
    """Every video of the folder or the label file, in the order of ids."""
    file = source / f"kinetics_{part}_label.json"
    labels = load_json(file, _MAX_LABEL_BYTES)
    if not isinstance(labels, dict) or not labels:
        raise ValueError(f"{file}: must hold an object with an entry for each video; is it a label file?")
    names = {entry.name.removesuffix(".json") for entry in _video_files(source, part)}
    return [_labelled(name, labels.get(name), name in names) for name in sorted(names | labels.keys())]


def _labelled(name: str, entry: Any, has_file: bool) -> _Video | LeftOut:
    """A video by its entry in the label file."""
    if entry is None:
        return LeftOut(name, "without a label", "it is not in the label file")
    if not isinstance(entry, dict) or not isinstance(entry.get("has_skeleton"), bool):
        return LeftOut(name, "without a label", "has_skeleton must be true or false in the label file")
    if not entry["has_skeleton"]:
        return LeftOut(name, "without a skeleton")
    if fault := label_fault(entry.get("label_index"), entry.get("label")):
        return LeftOut(name, "label at odds", f"in the label file {fault}")
    if not has_file:
        return LeftOut(name, "without a file", "it is in the label file, and the folder has no such file")
    return _Video(name, entry["label_index"])


def _array_videos(source: Path, part: str) -> list[_Video | LeftOut]:
    """Every row, in order."""
    file = source / f"{part}_data.npy"
    names, labels = read_labels(label_file(file), len(open_rows(file)))
    videos: list[_Video | LeftOut] = []
    first: dict[str, int] = {}
    for row, (name, label) in enumerate(zip(names, labels, strict=True)):
        place = f"{label_file(file).name}[{row}]"
        if first.setdefault(name, row) != row:
            videos.append(LeftOut(name, "twice", f"{place}: it is row {first[name]} already"))
        elif type(label) is not int or not 0 <= label < len(KINETICS_CLASSES):
            bound = len(KINETICS_CLASSES) - 1
            videos.append(LeftOut(name, "label at odds", f"{place}: must be in 0..{bound}, got {shown(label)}"))
        else:
            videos.append(_Video(name, label, row))
    return videos


def _printable(video: _Video | LeftOut) -> _Video | LeftOut:
    if video.name.isprintable():
        return video
    # Half a character of a damaged name can't be written to any file.
    return LeftOut(ascii(video.name), "unreadable", "the video's name must be printable text")


def _read_videos(source: Path, part: str, videos: Sequence[_Video | LeftOut]) -> Iterator[Clip | LeftOut]:
    return read_items(partial(_json_clip, source / f"kinetics_{part}", part), videos)


def _json_clip(folder: Path, part: str, video: _Video) -> Clip | LeftOut:
    file = folder / f"{video.name}.json"
    with source_kept(file):
        content = read_video(file)
    # A file may say nothing of its label; what it does say must agree.
    if content.label_index is not None or content.label is not None:
        fault = label_fault(content.label_index, content.label)
        if not fault and content.label_index != video.label:
            fault = f"label_index must be {video.label}, as in the label file, got {content.label_index}"
        if fault:
            return LeftOut(video.name, "label at odds", f"{file}: {fault}")
    return _clip(video, part, make_tracks(content.xy_NPJ2, content.score_NPJ))


def _read_rows(source: Path, part: str, videos: Sequence[_Video | LeftOut]) -> Iterator[Clip | LeftOut]:
    file = source / f"{part}_data.npy"
    with source_kept(file):
        array = open_rows(file)
    return read_items(partial(_row_clip, file, part, array), videos)


def _row_clip(file: Path, part: str, array: np.ndarray, video: _Video) -> Clip | LeftOut:
    return _clip(video, part, make_tracks(*read_row(file, array, video.row)))


def _clip(video: _Video, part: str, tracks: tuple[Track, ...]) -> Clip | LeftOut:
    if not tracks:
        return LeftOut(video.name, "nobody seen")
    return Clip(video.name, tracks, label=video.label, split_test=part == "val")
