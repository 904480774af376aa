"""Training loss: mean negative log-likelihood of the target sequence (Eq. 3), and our two optional refinements.

Shape suffixes: B target sequences, K target steps, V vocabulary, Q bins, J native joints.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ups_model.config import OptimConfig
from ups_model.data.batching.batches import Batch
from ups_model.model.chunks import chunks
from ups_model.model.ups import UPS
from ups_model.tasks import POSE_AXES, TASKS


def target_tokens(model: UPS, batch: Batch) -> Tensor:
    """[B, K] token ids of the target sequences: a class or 3J coordinate bins, then the end-of-task token."""
    task = TASKS[batch.inputs.task]
    if task.kind == "class":
        first_BK = batch.label_B[:, None] + model.vocabulary.class_ids(batch.source).start  # type: ignore[index]  # class batches have it
    else:
        assert model.quantiser is not None and batch.pose_BRJ3 is not None, "pose batches have both"
        pose_BJ3 = batch.pose_BRJ3.flatten(0, 1)
        bins_BJ3 = (model.quantiser.bins_of if batch.inputs.checked else model.quantiser.encode)(pose_BJ3)
        axis_3 = torch.arange(POSE_AXES, device=bins_BJ3.device)
        first_BK = (bins_BJ3 + model.vocabulary.coordinate_ids(0).start + model.config.n_bins * axis_3).flatten(1)
    end_B1 = torch.full_like(first_BK[:, :1], model.vocabulary.eot_id(task.eot))
    return torch.cat([first_BK, end_B1], dim=1)


def sequence_loss(model: UPS, batch: Batch, logits_BKV: Tensor, target_BK: Tensor, optim: OptimConfig) -> Tensor:
    """Scalar loss of one batch.

    `label_smoothing` spreads mass over the classes of the clip's data set; `bin_sigma` replaces the one-hot bin by a
    normal density over neighbouring bins (bins are ordered, classes are not); `expectation_weight` adds the distance in
    metres between expected and true joint, so that the likelihood's tails do not pull the expectation away.
    """
    logits_BKV = logits_BKV.float()
    if TASKS[batch.inputs.task].kind == "class":
        log_BKV = F.log_softmax(logits_BKV, dim=-1)
        nll_BK = -log_BKV.gather(2, target_BK[..., None])[..., 0]
        if optim.label_smoothing:
            ids = model.vocabulary.class_ids(batch.source)
            spread_B = -log_BKV[:, 0, ids.start : ids.stop].mean(dim=1)
            first_B = (1 - optim.label_smoothing) * nll_BK[:, 0] + optim.label_smoothing * spread_B
            return torch.stack([first_B, nll_BK[:, 1]], dim=1).mean()
        return nll_BK.mean()
    if not optim.bin_sigma and not optim.expectation_weight:
        return F.cross_entropy(logits_BKV.flatten(0, 1), target_BK.flatten())
    return _pose_loss(model, batch.pose_BRJ3.flatten(0, 1), logits_BKV, target_BK, optim)  # type: ignore[union-attr]  # pose batches have it


def _pose_loss(model: UPS, true_BJ3: Tensor, logits_BKV: Tensor, target_BK: Tensor, optim: OptimConfig) -> Tensor:
    quantiser, bins = model.quantiser, model.config.n_bins
    assert quantiser is not None, "a model of poses has it"
    device, dtype = logits_BKV.device, logits_BKV.dtype
    centres_AQ = torch.stack([quantiser.centres(axis, device, dtype) for axis in range(POSE_AXES)])
    first = model.vocabulary.coordinate_ids(0).start
    assert centres_AQ.shape == (POSE_AXES, bins)
    terms = PoseTerms(
        centres_AQ, first, model.vocabulary.eot_id("PE"), optim.bin_sigma, optim.expectation_weight, len(logits_BKV)
    )
    bin_BK = None if optim.bin_sigma else target_BK - first
    return PoseLoss.apply(logits_BKV, true_BJ3, bin_BK, terms)  # type: ignore[no-untyped-call]  # torch's


@dataclass(frozen=True)
class PoseTerms:
    """What the loss of a pose sequence depends on besides logits and targets."""

    centres_AQ: Tensor
    first: int
    """Token id of the first bin."""
    end: int
    """Token id that closes the sequence."""
    bin_sigma: float
    expectation_weight: float
    sequences: int
    """Over which the loss is a mean."""


class PoseLoss(torch.autograd.Function):
    """Mean negative log-likelihood of coordinate bins and the closing token, plus the weighted error of the expected
    joint; the gradient is worked out along with the value, few sequences at a time, while they are in the cache."""

    @staticmethod
    def forward(ctx: Any, logits_BKV: Tensor, true_BJ3: Tensor, bin_BK: Tensor | None, terms: PoseTerms) -> Tensor:
        """`bin_BK`: the tokens' ids from that of the first bin on, None for normal densities around the true joint."""
        gradient_BKV = torch.empty_like(logits_BKV)
        losses = [
            _pose_loss_part(
                logits_BKV[own], true_BJ3[own], None if bin_BK is None else bin_BK[own], terms, gradient_BKV[own]
            )
            for own in chunks(logits_BKV)
        ]
        ctx.gradient_BKV = gradient_BKV
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient_BKV, ctx.gradient_BKV = ctx.gradient_BKV, None
        return gradient_BKV.mul_(gradient), None, None, None


def _pose_loss_part(
    logits_BKV: Tensor, true_BJ3: Tensor, bin_BK: Tensor | None, terms: PoseTerms, gradient_BKV: Tensor
) -> Tensor:
    """The share of some sequences in the loss of all; writes the gradient to `gradient_BKV`."""
    sequences, first, end = terms.sequences, terms.first, terms.end
    tokens, bins = sequences * logits_BKV.shape[1], terms.centres_AQ.shape[1]
    top_BK1 = logits_BKV.amax(dim=-1, keepdim=True)
    torch.sub(logits_BKV, top_BK1, out=gradient_BKV).exp_()
    total_BK1 = gradient_BKV.sum(dim=-1, keepdim=True)
    gradient_BKV.mul_(1 / (tokens * total_BK1))
    said = logits_BKV[:, -1, end].sum()
    gradient_BKV[:, -1, end] -= 1 / tokens
    expected, pieces = [], []
    for axis, centre_Q in enumerate(terms.centres_AQ):
        # Step t of joint j has logits of all three axes' bins; those of its own axis are meant.
        ids = slice(first + axis * bins, first + (axis + 1) * bins)
        own_BJQ = logits_BKV[:, axis:-1:POSE_AXES, ids]
        if bin_BK is None:
            nearest_BJ1 = true_BJ3[..., axis, None].maximum(centre_Q[0]).minimum(centre_Q[-1])
            distance_BJQ = (centre_Q - nearest_BJ1).div_(terms.bin_sigma * (centre_Q[1] - centre_Q[0]))
            soft_BJQ = F.softmax(distance_BJQ.square_().mul_(-0.5), dim=-1)
        else:
            bin_BJ1 = bin_BK[:, axis:-1:POSE_AXES, None] - axis * bins
            soft_BJQ = torch.zeros_like(own_BJQ).scatter_(2, bin_BJ1, 1.0)
        said = said + (soft_BJQ * own_BJQ).sum()
        gradient_BKV[:, axis:-1:POSE_AXES, ids].sub_(soft_BJQ, alpha=1 / tokens)
        if terms.expectation_weight:
            share_BJQ = F.softmax(own_BJQ, dim=-1)
            expected.append(share_BJQ @ centre_Q)
            pieces.append((ids, share_BJQ, centre_Q))
    loss = (top_BK1.sum() + total_BK1.log().sum() - said) / tokens
    if terms.expectation_weight:
        error_BJ3 = torch.stack(expected, dim=-1) - true_BJ3
        distance_BJ = error_BJ3.square().sum(dim=-1).add(1e-8).sqrt()
        scale = terms.expectation_weight / (sequences * distance_BJ.shape[1])
        loss = loss + scale * distance_BJ.sum()
        for axis, (ids, share_BJQ, centre_Q) in enumerate(pieces):
            slope_BJ1 = (scale * error_BJ3[..., axis] / distance_BJ)[..., None]
            share_BJQ.mul_((centre_Q - expected[axis][..., None]).mul_(slope_BJ1))
            gradient_BKV[:, axis:-1:POSE_AXES, ids].add_(share_BJQ)
    return loss
