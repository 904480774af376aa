"""Joints that a detector missed: stored at confidence 0, usually at the origin, which is no place for a joint.

Shape suffixes: F frames of all tracks end to end, J native joints, C coordinates, T tracks.
"""

import numpy as np

LEAST_SCORE = 6e-8
"""What is less is 0 in float16, as clip sets keep it, which means not seen."""


def fill_undetected(
    positions_FJC: np.ndarray, confidence_FJ: np.ndarray, track_start: np.ndarray | None = None
) -> np.ndarray:
    """Put each joint of confidence 0 where its track last saw it; before that, at the mean of the frame's seen joints.

    Nothing is taken from later frames, so that an early part of a clip tells nothing of the rest. A frame in which no
    joint was ever seen stays as it is.

    Args:
        positions_FJC: any unit.
        confidence_FJ: 0 where not seen.
        track_start: [T] first frame of each track, ascending from 0; None for a single track.

    Returns:
        float32 [F, J, C].
    """
    seen_FJ = np.asarray(confidence_FJ) > 0
    out_FJC = np.array(positions_FJC, dtype=np.float32)
    if seen_FJ.all():
        return out_FJC
    frames_F = np.arange(len(out_FJC))
    first_F = np.zeros_like(frames_F)
    if track_start is not None:
        first_F[track_start] = track_start
        first_F = np.maximum.accumulate(first_F)
    last_FJ = np.maximum.accumulate(np.where(seen_FJ, frames_F[:, None], -1), axis=0)
    had_FJ = last_FJ >= first_F[:, None]
    count_F = seen_FJ.sum(axis=1)
    centre_FC = (out_FJC * seen_FJ[..., None]).sum(axis=1) / np.maximum(count_F, 1, dtype=np.float32)[:, None]
    from_past_FJC = out_FJC[np.maximum(last_FJ, 0), np.arange(out_FJC.shape[1])]
    guess_FJC = np.where(had_FJ[..., None], from_past_FJC, centre_FC[:, None])
    fill_FJ = ~seen_FJ & (had_FJ | (count_F > 0)[:, None])
    return np.where(fill_FJ[..., None], guess_FJC, out_FJC)
