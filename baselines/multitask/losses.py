"""What the exits are trained by.

Shape suffixes: B windows, N frames, R targets, J native joints, K classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.multitask.config import MultitaskTraining, Phase
from baselines.multitask.network import Exit


def elastic_net(pose_XJ3: Tensor, true_XJ3: Tensor) -> Tensor:
    """Mean over joints of the L1 norm plus the squared L2 norm of the error (Eq. 11), of coordinates in [0, 1]."""
    error_XJ3 = pose_XJ3 - true_XJ3
    return (error_XJ3.abs() + error_XJ3.square()).sum(dim=-1).mean()


def confidence_loss(confidence_XJ: Tensor, true_XJ3: Tensor) -> Tensor:
    """Binary cross-entropy of confidences with whether the true joint lies in the range (section 4.2.1)."""
    inside_XJ = ((true_XJ3 >= 0) & (true_XJ3 <= 1)).all(dim=-1).float()
    return F.binary_cross_entropy(confidence_XJ.clamp(1e-6, 1 - 1e-6), inside_XJ)


def multitask_loss(
    exits: Sequence[Exit],
    true_BRJ3: Tensor,
    target_BR: Tensor,
    label_B: Tensor,
    phase: Phase,
    config: MultitaskTraining,
    smoothing: float = 0.0,
) -> Tensor:
    """Sum over the supervised exits of the pose loss, and of the confidence and action losses by their weights.

    Args:
        true_BRJ3: coordinates in [0, 1] of the target frames.
        target_BR: those frames.
        phase: "pose" has no action loss, "action" that alone.
        smoothing: of labels.
    """
    row_B1 = torch.arange(len(target_BR), device=target_BR.device)[:, None]
    terms = []
    for one in exits if config.supervision == "all" else exits[-1:]:
        if phase != "action":
            terms.append(elastic_net(one.pose_BNJ3[row_B1, target_BR], true_BRJ3))
            if config.confidence_weight:
                confidence_BRJ = one.confidence_BNJ[row_B1, target_BR]
                terms.append(config.confidence_weight * confidence_loss(confidence_BRJ, true_BRJ3))
        if phase != "pose":
            assert one.logits_BK is not None, "actions were asked for"
            terms.append(config.action_weight * F.cross_entropy(one.logits_BK, label_B, label_smoothing=smoothing))
    return torch.stack(terms).sum()
