"""Detections and the image that they are of: parts of it are put into pixels, and a size that can't be is refused.

Shape suffixes: F frames in which anybody is seen, D detections of a file, J 17 joints, S seen joints.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ups_model.data.readers.fill_missing import LEAST_SCORE
from ups_model.data.readers.keypoints.tracks import Detections

MAX_SHARE = 1.5
"""Coordinates of a whole clip within this are parts of the image: no body is so small in pixels."""
MARGIN = 0.1
"""Of the width and the height: how far outside the image joints may be, as detectors put those that are cut off."""


def in_image(where: Path | str, detections: Detections, size: tuple[float, float] | None = None) -> Detections:
    """Detections in pixels where the size of the image is known, from the user (`size`) or else the file. ValueError,
    which begins with `where`: sizes differ, or in the median frame most seen joints are outside the image."""
    size = same_size(where, detections.size, size)
    xy_DJ2, seen_DJ = detections.xy_DJ2, detections.score_DJ >= LEAST_SCORE
    units = detections.units
    if seen_DJ.any() and np.abs(xy_DJ2[seen_DJ]).max() <= MAX_SHARE:
        units = "normalised"
    if units == "normalised" and size is not None:
        xy_DJ2, units = xy_DJ2 * size, "pixel"
    detections = replace(detections, xy_DJ2=xy_DJ2, units=units, size=size)
    if size is not None or units == "normalised":
        _check_inside(where, detections, seen_DJ)
    return detections


def same_size(
    where: Path | str, own: tuple[float, float] | None, size: tuple[float, float] | None
) -> tuple[float, float] | None:
    """The size of the image by the file or by the user. ValueError where both say it and differ."""
    if own is not None and size is not None and own != size:
        raise ValueError(f"{where}: its image is {_text(own)}, got --size {_text(size)}; leave --size out")
    return own if size is None else size


def _check_inside(where: Path | str, detections: Detections, seen_DJ: np.ndarray) -> None:
    size = detections.size or (1.0, 1.0)
    xy_S2 = detections.xy_DJ2[seen_DJ]
    frame_S = np.broadcast_to(detections.frame_D[:, None], seen_DJ.shape)[seen_DJ]
    outside_S = ((xy_S2 < -MARGIN * np.array(size)) | (xy_S2 > (1 + MARGIN) * np.array(size))).any(axis=1)
    if not outside_S.any():
        return
    _, which_S = np.unique(frame_S, return_inverse=True)
    share_F = np.bincount(which_S, weights=outside_S) / np.bincount(which_S)
    if float(np.median(share_F)) <= 0.5:
        return
    (left, top), (right, bottom) = xy_S2.min(axis=0), xy_S2.max(axis=0)
    got = f"got x in {left:g}..{right:g} and y in {top:g}..{bottom:g}"
    if detections.size is None:
        raise ValueError(
            f"{where}: coordinates that small are parts of the image, and most must lie in 0..1, {got}; write them in "
            "pixels"
        )
    raise ValueError(
        f"{where}: most joints must lie in the image, which is {_text(size)} (width x height), {got}; give the size of "
        "the image that they were detected in"
    )


def _text(size: tuple[float, float]) -> str:
    return f"{size[0]:g}x{size[1]:g}"
