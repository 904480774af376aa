"""Training loss: mean negative log-likelihood of the target sequence (Eq. 3), and our two optional refinements.

Shape suffixes: B target sequences, K target steps, V vocabulary, Q bins, J native joints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ups_model.config import OptimConfig
from ups_model.data.batching.batches import Batch
from ups_model.model.ups import UPS
from ups_model.tasks import POSE_AXES, TASKS


def target_tokens(model: UPS, batch: Batch) -> Tensor:
    """[B, K] token ids of the target sequences: a class or 3J coordinate bins, then the end-of-task token."""
    task = TASKS[batch.inputs.task]
    if task.kind == "class":
        first_BK = batch.label_B[:, None] + model.vocabulary.class_ids(batch.source).start  # type: ignore[index]  # class batches have it
    else:
        bins_BJ3 = model.quantiser.encode(batch.pose_BRJ3.flatten(0, 1))  # type: ignore[union-attr]  # pose batches have both
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
    first, bins = model.vocabulary.coordinate_ids(0).start, model.config.n_bins
    partition_BK = logits_BKV.logsumexp(dim=-1)
    # Step t of joint j has logits of all three axes' bins; the diagonal keeps those of its own axis.
    coordinate_BJAV = logits_BKV[:, :-1, first : first + POSE_AXES * bins].unflatten(1, (-1, POSE_AXES))
    own_BJQA = coordinate_BJAV.unflatten(-1, (POSE_AXES, bins)).diagonal(dim1=2, dim2=3)
    centres = [
        model.quantiser.centres(axis, device=true_BJ3.device)  # type: ignore[union-attr]  # a model of poses has it
        for axis in range(POSE_AXES)
    ]
    centres_QA = torch.stack(centres, dim=1)
    if optim.bin_sigma:
        nearest_BJA = true_BJ3.maximum(centres_QA[0]).minimum(centres_QA[-1])
        sigma_A = optim.bin_sigma * (centres_QA[1] - centres_QA[0])
        distance_BJQA = (centres_QA - nearest_BJA[:, :, None]) / sigma_A
        soft_BJQA = F.softmax(-0.5 * distance_BJQA.square(), dim=2)
        said_BJA = (soft_BJQA * own_BJQA).sum(dim=2)
    else:
        bins_BJA = model.quantiser.encode(true_BJ3)  # type: ignore[union-attr]  # a model of poses has it
        said_BJA = own_BJQA.gather(2, bins_BJA[:, :, None])[:, :, 0]
    end_B = logits_BKV[:, -1].gather(1, target_BK[:, -1:])
    loss = (partition_BK.sum() - said_BJA.sum() - end_B.sum()) / partition_BK.numel()
    if optim.expectation_weight:
        expected_BJA = (F.softmax(own_BJQA, dim=2) * centres_QA).sum(dim=2)
        distance_BJ = (expected_BJA - true_BJ3).square().sum(dim=-1).add(1e-8).sqrt()
        loss = loss + optim.expectation_weight * distance_BJ.mean()
    return loss
