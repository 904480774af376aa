"""From the bodies that a Kinect tracked to at most two persons.

The sensor takes furniture for bodies, loses people, and gives them a new id when it finds them again. The rules are
those of the pre-processing published with CTR-GCN (Chen et al., ICCV 2021), which most reported figures rest on:

1. A recording with one body is taken as it is.
2. Of several, those seen in at most NOISE_FRAMES frames are noise.
3. Those that are left are gone through in order of appearance. One that is wide (extent in x over WIDE times the extent
   in y) in the share NOISE_SHARE of its frames, or more, is noise, unless it is the only one that is still left: where
   all are wide, the last stays.
4. The rest are ordered by motion, most first; equal ones in order of appearance. The motion of a body is the sum over
   x, y, z of the variance of all its coordinates: over all frames, or over those in which it is not wide, whichever is
   less.
5. Each in turn continues the first person with whom it shares no frame; else it is a new person, of whom there are
   two at most; else it is dropped.

Ours, where rules differ: if all bodies are noise by rule 2, all are kept for rule 3; and rule 5 goes by shared frames,
so that a body may fill a gap of a person, where theirs, to our knowledge, goes by the interval from a person's first to
its last frame.

The clip's frames are those in which a kept person is seen. Where a person is not seen between two frames in which it
is, its last pose is held: a pose from a later frame would let early prediction see ahead.

Shape suffixes: N frames in which a body is seen, J joints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ups_model.data.format.writer import Track
from ups_model.data.readers.ntu.skeleton_file import Body, SkeletonFile

NOISE_FRAMES = 11
WIDE = 0.8
NOISE_SHARE = 0.69754
PERSONS = 2


@dataclass(frozen=True, eq=False)
class Persons:
    """The persons of a recording, and what was left out of it."""

    tracks: tuple[Track, ...]
    """At most two, that of most motion first; none where nobody was seen."""
    bodies_dropped: int
    frames_dropped: int
    """Frames of the recording in which none of them is seen."""


def persons_of(recording: SkeletonFile) -> Persons:
    """The persons of a recording by the rules above."""
    bodies = list(recording.bodies.values())
    persons: list[list[Body]] = []
    kept = _without_noise(bodies)
    if len(kept) > 1:  # Of one the motion, which takes longer than all the rest, tells nothing.
        kept = sorted(kept, key=_motion, reverse=True)
    for body in kept:
        for person in persons:
            if not any(np.isin(body.frames_N, other.frames_N).any() for other in person):
                person.append(body)
                break
        else:
            if len(persons) < PERSONS:
                persons.append([body])
    tracks, frames = tracks_of([_joined(person) for person in persons])
    return Persons(tracks, len(bodies) - sum(map(len, persons)), recording.length - frames)


def _without_noise(bodies: Sequence[Body]) -> list[Body]:
    """Rules 1 to 3."""
    if len(bodies) < 2:
        return list(bodies)
    long = [body for body in bodies if len(body.frames_N) > NOISE_FRAMES] or list(bodies)
    left = len(long)
    kept = []
    for body in long:
        if left > 1 and _is_wide(body).mean() >= NOISE_SHARE:
            left -= 1
        else:
            kept.append(body)
    return kept


def tracks_of(persons: Sequence[Body]) -> tuple[tuple[Track, ...], int]:
    """Tracks on the timeline of the frames in which any person is seen, and how many frames these are.

    A track goes from the first to the last frame of its person; gaps hold the last pose.
    """
    if not persons:
        return (), 0
    timeline = np.unique(np.concatenate([person.frames_N for person in persons]))
    tracks = []
    for person in persons:
        first, last = np.searchsorted(timeline, person.frames_N[[0, -1]])
        held = np.searchsorted(person.frames_N, timeline[first : last + 1], side="right") - 1
        tracks.append(Track(person.joints_NJ3[held], offset=int(first)))
    return tuple(tracks), len(timeline)


def _joined(parts: Sequence[Body]) -> Body:
    frames_N = np.concatenate([part.frames_N for part in parts])
    order = np.argsort(frames_N)
    return Body(frames_N[order], np.concatenate([part.joints_NJ3 for part in parts])[order])


def _is_wide(body: Body) -> np.ndarray:
    """bool [N]: in which of its frames a body is wider than tall."""
    extent_N3 = np.ptp(body.joints_NJ3, axis=1)
    return extent_N3[:, 0] > WIDE * extent_N3[:, 1]


def _motion(body: Body) -> float:
    """As in rule 4."""
    upright_NJ3 = body.joints_NJ3[~_is_wide(body)]
    if len(upright_NJ3) in (0, len(body.joints_NJ3)):
        return _variance(body.joints_NJ3)
    return min(_variance(body.joints_NJ3), _variance(upright_NJ3))


def _variance(joints_NJ3: np.ndarray) -> float:
    return float(joints_NJ3.reshape(-1, 3).astype(np.float64).var(axis=0).sum())
