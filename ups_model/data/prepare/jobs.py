"""What readers of motion files give: recordings, clips or the reason why there is none, and jobs for processes.

Shape suffixes: N frames of a track, J joints, C coordinates.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np

from ups_model.data.format.info import ClipSetInfo
from ups_model.data.format.writer import Clip, Track

BLOCK = 256
"""Recordings of a job, where they can be read on their own."""


@dataclass(frozen=True, eq=False)
class Recording:
    """One clip as a file of the user's has it, its persons in a known skeleton."""

    name: str
    skeleton: str
    """A name in `ups_model.skeletons.SKELETONS`."""
    dims: int
    """2 or 3 coordinates."""
    fps: float
    units: Literal["metre", "normalised", "pixel"]
    """metre in 3D; pixel where the image size can be known, else normalised, in 2D."""
    up_axis: str
    """As in `ClipSetInfo`."""
    tracks: tuple[Track, ...]
    """The persons, `positions` [N, J, C] each."""
    size: tuple[float, float] | None = None
    """Width and height of the image in pixels, where the file tells it."""
    truth: Track | None = None
    """The poses to compare a prediction with, in camera metres, where the file or its companion has them."""
    first_frame: int = 0
    """The number that the file itself gives its first frame; tracks count from it."""
    cameras: int = 0
    """Of a prepared 3D clip: how many saw it. "NAME/0" is the clip of what the first one saw."""
    frames: int = 0
    """Of the whole clip, which may go on after everybody has left."""
    projected: Track | None = None
    """Of what a prepared set's camera saw, where `tracks` has detections: the exact projection."""

    @property
    def way_to_poses(self) -> str:
        """What to give in place of it where keypoints in pixels are needed."""
        if self.cameras:
            return f"name one of its {self.cameras} cameras, the first with --clip '{self.name}/0'"
        return "give a file of keypoints in pixels, or another --task"

    @property
    def length(self) -> int:
        """Frames: those of the clip, at least to where the last person's track ends."""
        return max((self.frames, *(track.end for track in self.tracks)))


def seen_frames(track: Track) -> np.ndarray:
    """bool [N]: the frames in which at least one of the person's joints was seen."""
    if track.confidence is None:
        return np.ones(len(track.positions), dtype=bool)
    seen_NJ = np.asarray(track.confidence > 0)
    return np.asarray(seen_NJ.any(axis=1))


class Reader(Protocol):
    """The module of a file format. Its function `reading` makes the `Reading` of a whole source, and its READER_VERSION
    is raised when it changes what it writes, so that prepared sets are made again."""

    def clip_names(self, file: Path) -> Sequence[str]:
        """What `read_recording` takes as `clip`, in the file's order. Raises as it does."""

    def read_recording(self, file: Path, clip: str | None = None) -> Recording:
        """One clip of a file; `clip` may be left out where there is one. ValueError names a file that is damaged or of
        another format, has no such clip, or in which nobody is seen. OSError where it cannot be read."""


@dataclass(frozen=True)
class LeftOut:
    """A recording of the source that does not become a clip."""

    name: str
    """The file, or the row or key within it."""
    reason: str
    """A few words that many share: they are counted by it. "unreadable" is for damaged content."""
    detail: str = ""
    """What is wrong, with file and line."""


@dataclass(frozen=True)
class Job:
    """A part of a source that one process reads."""

    name: str
    items: int
    """Recordings that it goes through, for the progress shown; at least what it yields."""
    read: Callable[[], Iterator[Clip | LeftOut]]
    """Goes through them once, in a fixed order, holding a few at a time. Picklable: a `functools.partial` of a module's
    function. Content that breaks a rule is a LeftOut; a ValueError or OSError ends the whole preparation."""


@dataclass(frozen=True)
class Reading:
    """A source that is ready to be read: what the set will be, and the jobs whose clips, in order, are the set's."""

    info: ClipSetInfo
    """Without `left_out`, with `recipe`."""
    jobs: Sequence[Job]
    notes: tuple[str, ...] = ()
    """What the user should know of how the source was taken, one line each."""


class Named(Protocol):
    """What a clip is read from."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


def read_items(read: Callable[[T], Clip | LeftOut], items: Sequence[T | LeftOut]) -> Iterator[Clip | LeftOut]:
    """The clips of items, in order; a ValueError of `read` leaves an item out as unreadable."""
    for item in items:
        if isinstance(item, LeftOut):
            yield item
            continue
        try:
            yield read(item)
        except ValueError as error:
            yield LeftOut(item.name, "unreadable", str(error))


def block_jobs(
    what: str,
    items: Sequence[T | LeftOut],
    read: Callable[[Sequence[T | LeftOut]], Iterator[Clip | LeftOut]],
) -> list[Job]:
    """Jobs of BLOCK items each, called after `what` and their place. `read` must be picklable."""
    blocks = [(start, tuple(items[start : start + BLOCK])) for start in range(0, len(items), BLOCK)]
    return [Job(f"{what} {start}", len(block), partial(read, block)) for start, block in blocks]


def choose_clip(file: Path, names: Sequence[str], clip: str | None, what: str = "clip") -> str:
    """The clip that is named, or the only one. ValueError where there is none."""
    if clip is None and len(names) == 1:
        return names[0]
    if clip is None or clip not in names:
        several = f"{len(names)} {what}s; name one with --clip, such as {names[0]}"
        holds = several if len(names) > 1 else f"one {what}, {names[0]}"
        raise ValueError(f"{file}: holds {holds}, got {clip!r:.60}")
    return clip
