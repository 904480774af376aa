"""Per-clip results of the test split: `outcomes.npz` beside a run's result, the input of all statistics.

Arrays are named `task/source/what`; rows are clips in the order of the fingerprinted clip set:

    clip, subject, label      [n] row in the clip set, its subject (-1 unknown), its true class
    predicted, rank           [n] int16: best class; rank of the true one, 0 = right (early prediction: `rank@0.2`)
    margin                    [n] float16: score of the true class less the best other one
    clip, camera, subject     [n] pose estimation: one row a clip and camera; `label` where all have a class
    error_sum_mm, frames      [n] float64 sum of the frames' MPJPE, and number of frames
    p_error_sum_mm            [n] float64 the same of P-MPJPE
    frame, frame_error        [frames] row by row: frame in the clip, its MPJPE as uint16 of 0.01 mm (655.35 at most),
                              where they take less than MAX_FRAME_BYTES
    example_clip, example_camera, example_frame
                              [3] where the poses of the smallest, the median and the largest MPJPE are; of equal ones
                              the first by clip, camera and frame, of an even number the lower median
    example_input             [3, J, 2] float32 joints on the screen as the model gets them (`normalise_screen`), y
                              downwards; NaN where no slot holds the joint alone
    example_pose_mm, example_truth_mm
                              [3, J, 3] float32 predicted and true pose, relative to the root, in camera axes (x right,
                              y down, z away)
    example_bones             [bones, 2] int16 joints at a bone's ends

Shape suffixes: B predicted poses, J native joints, M rows.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ups_model.atomic import write_atomic

MAX_FRAME_BYTES = 1_000_000
FRAME_UNIT_MM = 0.01

Outcomes = dict[str, np.ndarray]


def class_outcomes(logits_BK: Tensor, label_B: Tensor, at: str = "") -> Outcomes:
    """Predicted class, rank of the true one, margin; `at` is the suffix of an observation ratio."""
    true_B1 = logits_BK.gather(1, label_B[:, None])
    others_BK = logits_BK.scatter(1, label_B[:, None], -torch.inf)
    # Of equal scores the lower class counts as better, as in `topk_accuracy`.
    before_BK = torch.arange(logits_BK.shape[1], device=logits_BK.device) < label_B[:, None]
    rank_B = ((others_BK > true_B1) | ((others_BK == true_B1) & before_BK)).sum(dim=1)
    margin_B = true_B1[:, 0] - others_BK.amax(dim=1)
    return {
        f"predicted{at}": logits_BK.argmax(dim=1).cpu().numpy().astype(np.int16),
        f"rank{at}": rank_B.cpu().numpy().astype(np.int16),
        f"margin{at}": margin_B.clamp(-6e4, 6e4).cpu().numpy().astype(np.float16),
    }


def pose_outcomes(
    error_B: Tensor,
    p_error_B: Tensor,
    clip_B: Tensor,
    camera_B: Tensor,
    frame_B: Tensor,
    subject: np.ndarray,
    label: np.ndarray,
) -> Outcomes:
    """Sums and counts of each (clip, camera), and the error of each frame.

    Args:
        error_B: MPJPE of each predicted pose, mm.
        p_error_B: P-MPJPE of each, mm.
        clip_B: its clip's row in the clip set.
        camera_B: its camera.
        frame_B: its frame in the clip.
        subject: [clips of the set].
        label: [clips of the set] classes, -1 of none.
    """
    error, p_error, clip, camera, frame = (
        value.cpu().numpy() for value in (error_B, p_error_B, clip_B, camera_B, frame_B)
    )
    order = np.lexsort((frame, camera, clip))
    error, p_error, clip, camera, frame = (value[order] for value in (error, p_error, clip, camera, frame))
    pairs, first = np.unique(np.stack([clip, camera], axis=1), axis=0, return_index=True)
    arrays = {
        "clip": pairs[:, 0].astype(np.int32),
        "camera": pairs[:, 1].astype(np.int16),
        "subject": np.asarray(subject)[pairs[:, 0]].astype(np.int32),
        "error_sum_mm": np.add.reduceat(error.astype(np.float64), first),
        "p_error_sum_mm": np.add.reduceat(p_error.astype(np.float64), first),
        "frames": np.diff([*first, len(error)]).astype(np.int32),
    }
    if (label_M := np.asarray(label)[pairs[:, 0]]).min() >= 0:
        arrays["label"] = label_M.astype(np.int16)
    if 6 * len(error) <= MAX_FRAME_BYTES:
        arrays["frame"] = frame.astype(np.int32)
        arrays["frame_error"] = np.minimum(np.rint(error / FRAME_UNIT_MM), 65535).astype(np.uint16)
    return arrays


def pose_examples(
    error_B: Tensor,
    place_B3: Tensor,
    input_BJ2: Tensor,
    pose_BJ3: Tensor,
    truth_BJ3: Tensor,
    bones: Sequence[tuple[int, int]],
) -> Outcomes:
    """The poses of the smallest, the median and the largest error; nothing where no error is finite.

    Args:
        error_B: MPJPE of each predicted pose, mm.
        place_B3: its clip, camera and frame.
        input_BJ2: joints on the screen.
        pose_BJ3: mm.
        truth_BJ3: mm.
        bones: joints at their ends.
    """
    order_B = np.lexsort(place_B3.cpu().numpy().T[::-1])
    sorted_B = error_B.cpu().numpy()[order_B]
    finite = np.sort(sorted_B[np.isfinite(sorted_B)])
    if not len(finite):
        return {}
    middle = finite[(len(finite) - 1) // 2]
    chosen = [int(order_B[np.flatnonzero(sorted_B == value)[0]]) for value in (finite[0], middle, finite[-1])]
    clip, camera, frame = place_B3[chosen].cpu().numpy().T
    return {
        "example_clip": clip.astype(np.int32),
        "example_camera": camera.astype(np.int16),
        "example_frame": frame.astype(np.int32),
        "example_input": input_BJ2[chosen].cpu().numpy().astype(np.float32),
        "example_pose_mm": pose_BJ3[chosen].cpu().numpy().astype(np.float32),
        "example_truth_mm": truth_BJ3[chosen].cpu().numpy().astype(np.float32),
        "example_bones": np.array(bones, np.int16).reshape(-1, 2),
    }


def save_outcomes(file: Path, outcomes: Outcomes) -> str:
    """Write them as npz, whole or not at all.

    Returns:
        The SHA-256 of the file; the same for equal outcomes.
    """
    stream = io.BytesIO()
    named: dict[str, Any] = {name: outcomes[name] for name in sorted(outcomes)}
    np.savez_compressed(stream, **named)
    content = stream.getvalue()
    write_atomic(file, content)
    return hashlib.sha256(content).hexdigest()


def load_outcomes(file: Path) -> Outcomes:
    """The arrays of an `outcomes.npz`. ValueError where it can't be read."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        raise ValueError(f"{file}: not a file of outcomes ({error}); measure the weights again") from error
