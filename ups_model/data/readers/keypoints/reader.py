"""Reader of the user's own 2D keypoints: a folder of files of COCO's 17 joints becomes the set "keypoints".

Which files are of which class and for testing: `readers.user_folder`. Formats: `json_formats` (MMPose, COCO,
MediaPipe), `per_frame` (OpenPose, Ultralytics), `landmarks` (MediaPipe, .csv too), `arrays` (.npz; pyskl,
mmaction2) and `videopose3d` (data_2d_custom_*.npz); persons: `tracks`. In the set, coordinates in pixels are
divided by the width of the image, x and y alike, so that bodies keep their form; where the size is not known, by the
larger extent of all that is seen in the clip. Coordinates in parts of the image are put into pixels where the size is
known (`image`), and else stay parts of width and height.

Shape suffixes: N frames, J joints.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from ups_model.data.format.writer import Clip, Track
from ups_model.data.prepare.jobs import LeftOut, Reading, Recording, choose_clip
from ups_model.data.readers import clip_pickles
from ups_model.data.readers.clip_places import Item, OwnFile
from ups_model.data.readers.keypoints import videopose3d
from ups_model.data.readers.keypoints.arrays import read_annotation, read_arrays
from ups_model.data.readers.keypoints.builder import DEFAULT_FPS
from ups_model.data.readers.keypoints.image import in_image
from ups_model.data.readers.keypoints.json_formats import read_json
from ups_model.data.readers.keypoints.landmarks import read_landmark_table
from ups_model.data.readers.keypoints.per_frame import clip_of_frame, read_frames
from ups_model.data.readers.keypoints.tracks import Detections, make_tracks
from ups_model.data.readers.user_folder import first_readable, frames_at_rate, look, make_jobs

READER_VERSION = 5
NAME = "keypoints"
SKELETON = "coco17"
UP_AXIS = "-y"
SUFFIXES = (".json", ".npz", ".csv", ".pkl")


def reading(source: Path, fps: float | None = None) -> Reading:
    """The set "keypoints" from the files in the folder `source`. `fps` is that of all of them, whatever they say.

    The set has the frame rate of the first file that can be read, 30 where that file has none. Of files of another rate
    the frame nearest in time is taken. Left out are clips that cannot be read, and those in which nobody is seen.
    ValueError names the missing folder, or the first file where none can be read.
    """
    own = look(source, SUFFIXES, (), clip_of_frame, _items)
    file, first = first_readable(own, _read_own)
    if fps is None:
        rate = f"{first.fps:g} frames per second, as in {file.name}; other files are put at that rate"
    else:
        first, rate = replace(first, fps=fps), f"{fps:g} frames per second, as --fps says of all files"
    notes = [*own.notes, *clip_pickles.split_notes(own.files), rate, *(f"{file.name}: {note}" for note in first.notes)]
    if first.size is None:
        what = "the form of bodies is not known" if first.units == "normalised" else "clips are scaled to their extent"
        notes.append(f"{file.name} does not tell the size of the image (width, height): {what}")
    description = "Keypoints: 2D detections of COCO's joints in one's own videos, normalised image coordinates"
    info = own.info(NAME, READER_VERSION, SKELETON, 2, first.fps, description)
    return Reading(info, make_jobs(own, partial(_clip, fps=first.fps, same_rate=fps is not None)), tuple(notes))


def clip_names(file: Path) -> tuple[str, ...]:
    """The file's name without suffix, the videos of a file of VideoPose3D, or those of a folder of OpenPose's."""
    return _names(file) or (file.stem,)


def read_recording(file: Path, clip: str | None = None, size: tuple[float, float] | None = None) -> Recording:
    """The clip of a file, in pixels, or normalised where it is in parts of an image whose size is not known; see
    `Reader`. `size` is that of the image in pixels, where the file does not tell it."""
    several = _names(file)
    name = choose_clip(file, several or (file.stem,), clip)
    detections = read_frames(_frame_files(file)[name]) if file.is_dir() else _read(file, name)
    detections = in_image(f"{file}[{name}]" if several else file, detections, size)
    tracks = make_tracks(detections)
    if not tracks:
        raise ValueError(f"{file}: nobody is seen in it; give another clip")
    return Recording(
        name, SKELETON, 2, detections.fps, detections.units, UP_AXIS, tracks, detections.size,
        first_frame=detections.first_frame, frames=detections.length,
    )  # fmt: skip


def is_frame_folder(folder: Path) -> bool:
    """Whether a folder holds frames of OpenPose."""
    return bool(_frame_files(folder))


def _frame_files(folder: Path) -> dict[str, list[Path]]:
    """video -> files of its frames, right in a folder."""
    videos: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if (clip := clip_of_frame(PurePosixPath(folder.absolute().name, file.name))).name != file.name:
            videos.setdefault(clip.stem, []).append(file)
    return videos


def _names(file: Path) -> tuple[str, ...]:
    """The clips of a file or folder that holds several; none of any other."""
    if file.is_dir():
        return tuple(_frame_files(file))
    if file.suffix.lower() == ".pkl":
        return clip_pickles.names(file)
    return videopose3d.video_names(file) if videopose3d.is_custom(file) else ()


def _items(file: Path) -> list[Item] | None:
    if file.suffix.lower() == ".pkl":
        return clip_pickles.items(file, 2)
    return [Item(name) for name in _names(file)] or None


def _read(file: Path, item: str) -> Detections:
    """`item` is the clip's name in a file that holds several."""
    if videopose3d.is_custom(file):
        return videopose3d.read_video(file, item)
    if file.suffix.lower() == ".pkl":
        return read_annotation(file, item)
    if file.suffix.lower() == ".csv":
        return read_landmark_table(file).detections("normalised", DEFAULT_FPS, None)
    return read_arrays(file) if file.suffix.lower() == ".npz" else read_json(file)


def _read_own(file: OwnFile) -> Detections:
    path = Path(file.path)
    detections = read_frames([Path(frame) for frame in file.frames]) if file.frames else _read(path, file.item)
    return in_image(f"{path}[{file.item}]" if file.item else path, detections)


def _clip(file: OwnFile, fps: float, same_rate: bool = False) -> Clip | LeftOut:
    path = Path(file.path)
    detections = _read_own(file)
    if same_rate:
        detections = replace(detections, fps=fps)
    tracks = make_tracks(detections)
    if not tracks:
        return LeftOut(file.name, "nobody seen", f"{path}: no joint has a score above 0")
    if detections.units == "pixel":
        tracks = _normalised(path, tracks, detections.size)
    length = detections.length
    if not math.isclose(fps, detections.fps, rel_tol=1e-9):
        count = frames_at_rate(path, length, detections.fps, fps)
        tracks, length = at_rate(tracks, length, detections.fps, fps, count), count
        if not tracks:
            return LeftOut(file.name, "nobody seen", f"{path}: in none of the frames kept at {fps:g} a second")
    return Clip(file.name, tracks, label=file.label, subject=file.subject, split_test=file.split_test, length=length)


def _normalised(file: Path, tracks: Sequence[Track], size: tuple[float, float] | None) -> tuple[Track, ...]:
    if size is not None:
        unit = size[0]
    else:
        seen = np.concatenate([track.positions[_seen(track)] for track in tracks])
        unit = float(np.ptp(seen, axis=0).max())
        if unit <= 0:
            raise ValueError(f"{file}: joints must not all be at one point, got {seen[0].tolist()}; leave it out")
    return tuple(replace(track, positions=(track.positions / unit).astype(np.float32)) for track in tracks)


def _seen(track: Track) -> np.ndarray:
    assert track.confidence is not None, "detections have scores"
    return track.confidence > 0


def at_rate(tracks: Sequence[Track], length: int, fps: float, new_fps: float, count: int) -> tuple[Track, ...]:
    """The first `count` frames of tracks at another rate: for each instant the frame nearest to it, the earlier of two.

    Detections are not mixed: half a joint that was not seen is no joint.
    """
    taken_N = np.minimum(np.ceil(np.arange(count) * (fps / new_fps) - 0.5 - 1e-9).astype(np.int64), length - 1)
    kept = []
    for track in tracks:
        confidence_NJ = track.confidence
        assert confidence_NJ is not None, "detections have scores"
        inside = np.flatnonzero((taken_N >= track.offset) & (taken_N < track.offset + len(track.positions)))
        inside = inside[(confidence_NJ[taken_N[inside] - track.offset] > 0).any(axis=1)]
        if not len(inside):
            continue
        first, last = int(inside[0]), int(inside[-1])
        rows = taken_N[first : last + 1] - track.offset
        kept.append(Track(track.positions[rows], first, confidence_NJ[rows]))
    return tuple(kept)
