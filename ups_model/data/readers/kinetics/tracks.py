"""Persons of a Kinetics clip: what the two layouts of its files have in common.

Coordinates are image coordinates over width and height, less 0.5, so that the image is -0.5..0.5 each way, y downward.
Shape suffixes: N frames, P persons (slots), J 18 joints.
"""

import re

import numpy as np

from ups_model.data.format.writer import Track
from ups_model.data.readers.fill_missing import LEAST_SCORE, fill_undetected
from ups_model.data.readers.io.files import packaged_lines

KINETICS_CLASSES: tuple[str, ...] = packaged_lines("kinetics/class_names.txt")
"""The 400 actions in label order, which is alphabetical but for letter case.

Source: W. Kay et al., "The Kinetics Human Action Video Dataset", 2017, appendix A; the order is that of the label files
of the Kinetics skeletons published with ST-GCN.
"""

SKELETON = "openpose18"
JOINTS = 18
PERSONS = 2
"""Persons kept in a frame."""
MAX_FRAMES = 10_000
"""Clips are ten seconds, 300 frames; a longer recording is taken for damage."""
MAX_COORDINATE = 10.0
"""In image widths and heights: a person reaches out of the image, not ten times as far."""
MAX_SCORE = 10.0
"""Of detections, whose scores are near 0..1."""


def make_tracks(xy_NPJ2: np.ndarray, score_NPJ: np.ndarray) -> tuple[Track, ...]:
    """A track for each slot in which anybody is seen, from the first to the last frame in which it is filled.

    Persons are not tracked from frame to frame: a slot may hold one person now and another then, as in the protocol.
    Joints of score 0, unseen, are put where their slot last saw them (`fill_undetected`), without a person too; their
    coordinates are not looked at, those of others are centred.
    """
    score_NPJ = np.where(score_NPJ >= LEAST_SCORE, score_NPJ, 0)
    tracks = []
    for person in range(score_NPJ.shape[1]):
        filled = np.flatnonzero((score_NPJ[:, person] > 0).any(axis=1))
        if not len(filled):
            continue
        frames = slice(int(filled[0]), int(filled[-1]) + 1)
        score_NJ = np.asarray(score_NPJ[frames, person], dtype=np.float32)
        xy_NJ2 = np.where(score_NJ[..., None] > 0, xy_NPJ2[frames, person], 0)
        tracks.append(Track(fill_undetected(xy_NJ2, score_NJ), frames.start, score_NJ))
    return tuple(tracks)


def label_fault(index: object, name: object) -> str:
    """Why number and name are not those of one class; empty where they are, but for case, spaces and punctuation."""
    if type(index) is not int or not 0 <= index < len(KINETICS_CLASSES):
        return f"label_index must be in 0..{len(KINETICS_CLASSES) - 1}, got {index!r:.60}"
    if not isinstance(name, str) or _letters(name) != _letters(KINETICS_CLASSES[index]):
        return f"the label of index {index} must be {KINETICS_CLASSES[index]!r}, got {name!r:.60}"
    return ""


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())
