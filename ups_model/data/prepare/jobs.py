"""What readers of motion files give: recordings, or why one was left out; and how a source is divided among processes.

A reader of a source has two sides. `read_recording(file, clip)` of its module reads one clip, for a look at it or a
prediction. Its jobs read everything, for a clip set (`ups_model.data.prepare.runner`).

Shape suffixes: N frames of a track, J joints, C coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ups_model.data.format.clip_set import ClipSetInfo
from ups_model.data.format.writer import Clip, Track


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
    """Where the file, or its companion, holds them: the poses to compare a prediction with, in camera metres."""

    @property
    def length(self) -> int:
        """Frames: where the last person's track ends."""
        return max((track.offset + len(track.positions) for track in self.tracks), default=0)


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
