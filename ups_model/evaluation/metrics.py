"""Metrics as pure functions; the unit is in the name. Tensors or anything torch.as_tensor takes.

Computed in float64 and returned as float64 scalars, or with reduction="none" as one value per sample, so that a caller
can average per action or per subject. Poses are in millimetres; nothing here moves the root to 0, the caller does.

Legend: B poses (one or more leading dimensions), N frames in order, J joints, 3 coordinates, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from ups_model.model.vocabulary import NonFiniteValues

Reduction = Literal["mean", "none"]


def mpjpe_mm(pred_BJ3: Any, target_BJ3: Any, reduction: Reduction = "mean") -> torch.Tensor:
    """Mean per-joint position error in mm (Human3.6M protocol 1): mean over joints of ||pred - target||.

    Returns:
        Scalar mean over poses, or [B] with reduction="none".

    Raises:
        ValueError: shapes differ or are not [..., J, 3]; a value is not finite; no pose.
    """
    pred_BJ3, target_BJ3 = _poses(pred_BJ3, target_BJ3)
    return _reduce(_joint_error_B(pred_BJ3, target_BJ3), reduction)


def p_mpjpe_mm(pred_BJ3: Any, target_BJ3: Any, reduction: Reduction = "mean") -> torch.Tensor:
    """MPJPE in mm after the best similarity transform of each pose (Human3.6M protocol 2).

    Each predicted pose is scaled, rotated (never reflected) and shifted to least squared distance from its target
    (Umeyama 1991; Kabsch's sign rule keeps the determinant at +1). A prediction with all joints in one point has no
    scale or rotation: it is moved to the target's centre.

    Returns and raises: as `mpjpe_mm`.
    """
    pred_BJ3, target_BJ3 = _poses(pred_BJ3, target_BJ3)
    pred_centre_B13, target_centre_B13 = pred_BJ3.mean(-2, keepdim=True), target_BJ3.mean(-2, keepdim=True)
    centred_BJ3 = pred_BJ3 - pred_centre_B13
    u_B33, singular_B3, vh_B33 = torch.linalg.svd(centred_BJ3.mT @ (target_BJ3 - target_centre_B13))
    sign_B3 = torch.ones_like(singular_B3)
    sign_B3[..., 2] = torch.linalg.det(u_B33 @ vh_B33).sign()
    rotation_B33 = (u_B33 * sign_B3.unsqueeze(-2)) @ vh_B33
    scale_B = _ratio((singular_B3 * sign_B3).sum(-1), centred_BJ3.square().sum((-2, -1)))
    aligned_BJ3 = scale_B[..., None, None] * (centred_BJ3 @ rotation_B33) + target_centre_B13
    return _reduce(_joint_error_B(aligned_BJ3, target_BJ3), reduction)


def n_mpjpe_mm(pred_BJ3: Any, target_BJ3: Any, reduction: Reduction = "mean") -> torch.Tensor:
    """MPJPE in mm after the best scale of each pose about the origin (Rhodin et al., CVPR 2018).

    The scale is <pred, target> / <pred, pred> of the pose, 0 for a prediction that is 0 throughout. Put the root at 0
    first.

    Returns and raises: as `mpjpe_mm`.
    """
    pred_BJ3, target_BJ3 = _poses(pred_BJ3, target_BJ3)
    scale_B = _ratio((pred_BJ3 * target_BJ3).sum((-2, -1)), pred_BJ3.square().sum((-2, -1)))
    return _reduce(_joint_error_B(scale_B[..., None, None] * pred_BJ3, target_BJ3), reduction)


def mpjve_mm(
    pred_NJ3: Any, target_NJ3: Any, lengths: Sequence[int] | None = None, reduction: Reduction = "mean"
) -> torch.Tensor:
    """Mean per-joint velocity error in mm per frame (Pavllo et al., CVPR 2019): MPJPE of differences between frames.

    Args:
        pred_NJ3, target_NJ3: frames in order, of one sequence or of several end to end.
        lengths: frames of each sequence, in order, summing to N; no velocity crosses from one to the next. None: one
            sequence.

    Returns:
        Scalar mean over all pairs of neighbouring frames, or one value per pair with reduction="none".

    Raises:
        ValueError: as `mpjpe_mm`; lengths that do not sum to N; no sequence of two frames.
    """
    pred_NJ3, target_NJ3 = _poses(pred_NJ3, target_NJ3)
    n_frames = len(target_NJ3)
    if target_NJ3.ndim != 3:
        raise ValueError(
            f"velocity needs frames [N, J, 3], got shape {tuple(target_NJ3.shape)}; flatten and give lengths"
        )
    if lengths is None:
        lengths = [n_frames]
    lengths = [int(length) for length in lengths]
    if min(lengths, default=0) < 1 or sum(lengths) != n_frames:
        raise ValueError(
            f"lengths must be positive and sum to the {n_frames} frames, got {len(lengths)} that sum to {sum(lengths)}"
        )
    error_N = _joint_error_B(pred_NJ3.diff(dim=0), target_NJ3.diff(dim=0))
    last = torch.tensor(lengths, device=error_N.device).cumsum(0)[:-1] - 1
    within_N = torch.ones(n_frames - 1, dtype=torch.bool, device=error_N.device)
    within_N[last] = False
    if not within_N.any():
        raise ValueError(f"velocity needs a sequence of at least 2 frames, got {len(lengths)} sequences of 1")
    return _reduce(error_N[within_N], reduction)


def topk_accuracy(logits_BK: Any, label_B: Any, k: int, reduction: Reduction = "mean") -> torch.Tensor:
    """Share (0 to 1) of samples whose label is among the k highest logits.

    Of equal logits the lower class goes first, so a model that says nothing earns no accuracy by ties.

    Returns:
        Scalar mean, or [B] of 0 and 1 with reduction="none".

    Raises:
        ValueError: shapes are not [B, K] and [B]; a logit is not finite; a label outside 0..K-1; k outside 1..K; no
            sample.
    """
    logits_BK, label_B = torch.as_tensor(logits_BK), torch.as_tensor(label_B)
    if logits_BK.ndim != 2 or label_B.shape != logits_BK.shape[:1] or logits_BK.numel() == 0:
        raise ValueError(
            f"logits must be [B, K] and labels [B], got shapes {tuple(logits_BK.shape)} and {tuple(label_B.shape)}"
        )
    if label_B.dtype.is_floating_point or label_B.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {label_B.dtype}; cast class indices to int64")
    n_classes = logits_BK.shape[1]
    if not 1 <= k <= n_classes:
        raise ValueError(f"k must lie in 1..{n_classes}, the number of classes, got k={k}")
    _check_finite("logits", logits_BK)
    label_B = label_B.to(logits_BK.device).long()
    if label_B.min() < 0 or label_B.max() >= n_classes:
        raise ValueError(f"labels must lie in 0..{n_classes - 1}, got {int(label_B.min())}..{int(label_B.max())}")
    own_B1 = logits_BK.gather(1, label_B[:, None])
    earlier_BK = torch.arange(n_classes, device=logits_BK.device) < label_B[:, None]
    rank_B = ((logits_BK > own_B1) | ((logits_BK == own_B1) & earlier_BK)).sum(1)
    return _reduce((rank_B < k).double(), reduction)


def per_action_mean(values: Any, actions: Sequence[str]) -> tuple[dict[str, float], float]:
    """Mean of each action, and the unweighted mean of those, as Human3.6M tables average their 15 actions.

    Names are compared whole: a prefix test would let "Sitting" swallow "SittingDown". Merge an action's repeats
    ("Walking 1") before the call.

    Args:
        values: one number per sample, [B].
        actions: the action of each sample, B names.

    Returns:
        (mean by action in order of first appearance, mean over actions).

    Raises:
        ValueError: lengths differ; a value is not finite; no sample.
    """
    values_B = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if values_B.ndim != 1 or len(values_B) != len(actions) or len(actions) == 0:
        raise ValueError(
            f"values must be one per action name, got shape {tuple(values_B.shape)} and {len(actions)} names"
        )
    _check_finite("values", values_B)
    index_of: dict[str, int] = {}
    index_B = torch.tensor([index_of.setdefault(str(action), len(index_of)) for action in actions])
    mean_A = torch.bincount(index_B, weights=values_B) / torch.bincount(index_B)
    return dict(zip(index_of, mean_A.tolist(), strict=True)), mean_A.mean().item()


def _poses(pred: Any, target: Any) -> tuple[torch.Tensor, torch.Tensor]:
    pred, target = torch.as_tensor(pred), torch.as_tensor(target)
    if pred.shape != target.shape or pred.ndim < 3 or pred.shape[-1] != 3 or pred.numel() == 0:
        raise ValueError(
            f"poses must be two equal shapes [..., J, 3] with at least one pose, "
            f"got {tuple(pred.shape)} and {tuple(target.shape)}; add a batch dimension to a single pose"
        )
    _check_finite("predicted poses", pred)
    _check_finite("target poses", target)
    return pred.double(), target.double().to(pred.device)


def _check_finite(what: str, x: torch.Tensor) -> None:
    if not x.isfinite().all():
        bad = int((~x.isfinite()).sum())
        raise NonFiniteValues(
            f"{what} must be finite, got {bad} of {x.numel()} that are not; leave out what is missing"
        )


def _joint_error_B(pred_BJ3: torch.Tensor, target_BJ3: torch.Tensor) -> torch.Tensor:
    return (pred_BJ3 - target_BJ3).norm(dim=-1).mean(-1)  # type: ignore[no-any-return]  # Tensor.norm has no types


def _ratio(numerator_B: torch.Tensor, denominator_B: torch.Tensor) -> torch.Tensor:
    """Quotient, 0 where the denominator is 0."""
    zero_B = denominator_B == 0
    return torch.where(zero_B, 0.0, numerator_B / denominator_B.masked_fill(zero_B, 1.0))


def _reduce(value_B: torch.Tensor, reduction: Reduction) -> torch.Tensor:
    if reduction == "mean":
        return value_B.mean()
    if reduction == "none":
        return value_B
    raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
