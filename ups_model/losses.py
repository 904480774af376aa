"""Training loss: mean negative log-likelihood of the target sequence (Eq. 3), and our two optional refinements.

Shape suffixes: B target sequences, K target steps, V vocabulary, Q bins, J native joints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ups_model.config import OptimConfig
from ups_model.data.batches import Batch
from ups_model.model import UPS
from ups_model.tasks import POSE_AXES, TASKS


def target_tokens(model: UPS, batch: Batch) -> Tensor:
    """[B, K] token ids of the target sequences: a class or 3J coordinate bins, then the end-of-task token."""
    task = TASKS[batch.inputs.task]
    if task.kind == "class":
        first_BK = batch.label_B[:, None] + model.vocabulary.class_ids(batch.source).start
    else:
        bins_BJ3 = model.quantiser.encode(batch.pose_BRJ3.flatten(0, 1))
        starts = [model.vocabulary.coordinate_ids(axis).start for axis in range(POSE_AXES)]
        first_BK = (bins_BJ3 + torch.tensor(starts, device=bins_BJ3.device)).flatten(1)
    end_B1 = torch.full_like(first_BK[:, :1], model.vocabulary.eot_id(task.eot))
    return torch.cat([first_BK, end_B1], dim=1)


def sequence_loss(model: UPS, batch: Batch, logits_BKV: Tensor, target_BK: Tensor, optim: OptimConfig) -> Tensor:
    """Scalar loss of one batch.

    `label_smoothing` spreads mass over the classes of the clip's data set; `bin_sigma` replaces the one-hot bin by a
    normal density over neighbouring bins (bins are ordered, classes are not); `expectation_weight` adds the distance in
    metres between expected and true joint, so that the likelihood's tails do not pull the expectation away.
    """
    log_BKV = F.log_softmax(logits_BKV.float(), dim=-1)
    nll_BK = -log_BKV.gather(2, target_BK[..., None])[..., 0]
    if TASKS[batch.inputs.task].kind == "class":
        if optim.label_smoothing:
            ids = model.vocabulary.class_ids(batch.source)
            spread_B = -log_BKV[:, 0, ids.start : ids.stop].mean(dim=1)
            first_B = (1 - optim.label_smoothing) * nll_BK[:, 0] + optim.label_smoothing * spread_B
            return torch.stack([first_B, nll_BK[:, 1]], dim=1).mean()
        return nll_BK.mean()
    if not optim.bin_sigma and not optim.expectation_weight:
        return nll_BK.mean()
    true_BJ3 = batch.pose_BRJ3.flatten(0, 1)
    total, expected = nll_BK[:, -1].sum(), []
    for axis in range(POSE_AXES):
        ids = model.vocabulary.coordinate_ids(axis)
        log_BJQ = log_BKV[:, axis:-1:POSE_AXES, ids.start : ids.stop]
        centres_Q = model.quantiser.centres(axis, device=log_BJQ.device)
        if optim.bin_sigma:
            sigma = optim.bin_sigma * (centres_Q[1] - centres_Q[0])
            nearest_BJ = true_BJ3[..., axis].clamp(centres_Q[0], centres_Q[-1])
            soft_BJQ = F.softmax(-0.5 * ((centres_Q - nearest_BJ[..., None]) / sigma) ** 2, dim=-1)
            total = total - (soft_BJQ * log_BJQ).sum()
        else:
            total = total + nll_BK[:, axis:-1:POSE_AXES].sum()
        if optim.expectation_weight:
            expected.append(F.softmax(log_BJQ, dim=-1) @ centres_Q)
    loss = total / nll_BK.numel()
    if optim.expectation_weight:
        distance_BJ = (torch.stack(expected, dim=-1) - true_BJ3).square().sum(dim=-1).add(1e-8).sqrt()
        loss = loss + optim.expectation_weight * distance_BJ.mean()
    return loss
