"""Joints that a detector missed: stored at confidence 0, usually at the origin, which is no place for a joint.

Shape suffixes: F frames of all tracks end to end, J native joints, C coordinates.
"""

import numpy as np


def fill_undetected(
    positions_FJC: np.ndarray, confidence_FJ: np.ndarray, track_start: np.ndarray, track_length: np.ndarray
) -> np.ndarray:
    """Put each joint of confidence 0 where its track last saw it; before that, at the mean of the frame's seen joints.

    Nothing is taken from later frames, so that an early part of a clip tells nothing of the rest. A frame in which no
    joint was ever seen stays as it is.

    Returns:
        float32 [F, J, C].
    """
    seen_FJ = np.asarray(confidence_FJ) > 0
    out_FJC = np.array(positions_FJC, dtype=np.float32)
    if seen_FJ.all():
        return out_FJC
    frames = np.arange(len(out_FJC))
    first_F = np.zeros(len(out_FJC), dtype=np.int64)
    for start, length in zip(track_start.tolist(), track_length.tolist(), strict=True):
        first_F[start : start + length] = start
    last_FJ = np.maximum.accumulate(np.where(seen_FJ, frames[:, None], -1), axis=0)
    known_FJ = last_FJ >= first_F[:, None]
    count_F = seen_FJ.sum(axis=1)
    centre_FC = (out_FJC * seen_FJ[..., None]).sum(axis=1) / np.maximum(count_F, 1, dtype=np.float32)[:, None]
    from_past_FJC = out_FJC[np.maximum(last_FJ, 0), np.arange(out_FJC.shape[1])]
    guess_FJC = np.where(known_FJ[..., None], from_past_FJC, centre_FC[:, None])
    fill_FJ = ~seen_FJ & (known_FJ | (count_F > 0)[:, None])
    return np.where(fill_FJ[..., None], guess_FJC, out_FJC)
