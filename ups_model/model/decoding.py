"""Answers of a trained model: greedy decoding under the task's grammar, with a key/value cache (paper section 3.5).

Step t of a pose may only emit a bin of axis t mod 3, and after 3J coordinates the end-of-task token is forced; a class
task emits a class of its data set, then its end-of-task token. The unconstrained answer is kept too.

Shape suffixes: B target sequences, K target steps, V vocabulary, Q bins, J native joints.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ups_model.model.decoder import Memory
from ups_model.model.inputs import Inputs
from ups_model.model.stepwise import StepwiseDecoder
from ups_model.model.ups import UPS
from ups_model.model.vocabulary import check_finite
from ups_model.tasks import POSE_AXES, TASKS


@dataclass(frozen=True)
class ClassAnswer:
    """Scores over one data set's classes, and the best tokens of the whole vocabulary."""

    logits_BK: Tensor
    """Scores of the data set's classes at the first step."""
    free_token_B: Tensor
    """Best token of the whole vocabulary at the first step."""
    ended_B: Tensor
    """True where, after the best class, the whole vocabulary's best token is the task's end."""


@dataclass(frozen=True)
class PoseAnswer:
    """Root-relative poses, and whether the best tokens of the whole vocabulary were within the grammar."""

    pose_BJ3: Tensor
    """Metres, camera axes."""
    bins_BK: Tensor
    """Bins fed back to the decoder, [B, 3J]."""
    in_grammar_B: Tensor
    """Share of steps at which the whole vocabulary's best token was one that the grammar admits."""


@torch.no_grad()
def classify(model: UPS, inputs: Inputs, dataset: str) -> ClassAnswer:
    """Class scores of clips over the classes of `dataset`.

    Raises:
        ValueError: clips of pose estimation, or a data set that the vocabulary does not hold.
    """
    if TASKS[inputs.task].kind != "class":
        raise ValueError(f"classify answers class tasks, got {inputs.task!r}; use estimate_poses")
    memory, _, _ = model.encode(inputs)
    vocabulary_VW = model.vocabulary_VW()
    decoder = StepwiseDecoder(model.decoder, memory, 2)
    logits_BV = model.logits(decoder(model.start_W(inputs.task)), vocabulary_VW)
    ids = model.vocabulary.class_ids(dataset)
    class_BK = logits_BV[:, ids.start : ids.stop]
    best_B = class_BK.argmax(dim=1) + ids.start
    end_BV = model.logits(decoder(vocabulary_VW[best_B]), vocabulary_VW)
    eot = model.vocabulary.eot_id(TASKS[inputs.task].eot)
    return ClassAnswer(class_BK.float(), logits_BV.argmax(dim=1), end_BV.argmax(dim=1) == eot)


@torch.no_grad()
def estimate_poses(
    model: UPS,
    inputs: Inputs,
    coordinates: Literal["expectation", "argmax"] = "expectation",
    decoding: Literal["autoregressive", "parallel"] = "autoregressive",
    cached: bool = True,
) -> PoseAnswer:
    """Poses of the target frames.

    Raises:
        ValueError: clips of a class task, or a model without coordinate bins fitted (it was never trained on poses).
    """
    if TASKS[inputs.task].kind != "pose":
        raise ValueError(f"estimate_poses answers pose estimation, got task {inputs.task!r}; use classify")
    if model.quantiser is None:
        raise ValueError("pose estimation needs a model trained on poses, this one has no coordinate range")
    memory, _, _ = model.encode(inputs)
    return decode_poses(model, memory, coordinates, decoding, cached)


@torch.no_grad()
def decode_poses(
    model: UPS,
    memory: Memory,
    coordinates: Literal["expectation", "argmax"] = "expectation",
    decoding: Literal["autoregressive", "parallel"] = "autoregressive",
    cached: bool = True,
) -> PoseAnswer:
    """Poses of the targets of encoded windows.

    A coordinate is the expectation over its axis' bins (soft-argmax) or the centre of the best bin; the bin that holds
    it is the decoder's next input. `cached=False` runs the whole prefix at each step, for comparison: the answer is the
    same.
    """
    vocabulary_VW = model.vocabulary_VW()
    steps = POSE_AXES * model.pose_joints
    batch, device = len(memory.offset_BM), vocabulary_VW.device
    axes = [_Axis(model, axis, coordinates, device) for axis in range(POSE_AXES)]
    tokens_BK = torch.zeros(batch, steps, dtype=torch.int64, device=device)
    values_BK = torch.zeros(batch, steps, device=device)
    admitted_BK = torch.zeros(batch, steps, dtype=torch.bool, device=device)
    all_logits_BKV, decoder = None, None
    if decoding == "parallel":
        masked = torch.ones(batch, steps - 1, dtype=torch.bool, device=device)
        prefix = model.embed_prefix("pe", tokens_BK[:, :-1], masked, vocabulary_VW)
        all_logits_BKV = model.logits(model.decoder(prefix, model.new_cache(memory)), vocabulary_VW)
    elif cached:
        decoder = StepwiseDecoder(model.decoder, memory, steps)
    for step in range(steps):
        if all_logits_BKV is not None:
            logits_BV = all_logits_BKV[:, step]
        elif decoder is not None:
            token_BW = vocabulary_VW[tokens_BK[:, step - 1]] if step else model.start_W("pe")
            logits_BV = model.logits(decoder(token_BW), vocabulary_VW)
        else:
            prefix = model.embed_prefix("pe", tokens_BK[:, :step], None, vocabulary_VW)
            logits_BV = model.logits(model.decoder(prefix, model.new_cache(memory))[:, -1:], vocabulary_VW)[:, 0]
        axis = axes[step % POSE_AXES]
        values_BK[:, step], tokens_BK[:, step], admitted_BK[:, step] = axis.answer(logits_BV)
    check_finite(values_BK)
    starts_K = torch.tensor([axes[step % POSE_AXES].ids.start for step in range(steps)], device=device)
    return PoseAnswer(
        values_BK.unflatten(1, (model.pose_joints, POSE_AXES)), tokens_BK - starts_K, admitted_BK.float().mean(dim=1)
    )


class _Axis:
    """The bins of an axis, and what logits say of a coordinate."""

    def __init__(self, model: UPS, axis: int, coordinates: str, device: torch.device) -> None:
        assert model.quantiser is not None, "a model of poses has it"
        self.axis, self.quantiser, self.expectation = axis, model.quantiser, coordinates == "expectation"
        self.ids = model.vocabulary.coordinate_ids(axis)
        self.centres_Q = model.quantiser.centres(axis, device=device)

    def answer(self, logits_BV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value [B], token [B] of its bin, and [B] whether the whole vocabulary's best token is a bin of this axis."""
        ids = self.ids
        axis_BQ = logits_BV[:, ids.start : ids.stop].float()
        if self.expectation:
            value_B = F.softmax(axis_BQ, dim=1) @ self.centres_Q
            bin_B = self.quantiser.bins_of(value_B, self.axis)
        else:
            bin_B = axis_BQ.argmax(dim=1)
            value_B = self.centres_Q[bin_B]
        return value_B, bin_B + ids.start, axis_BQ.amax(dim=1) >= logits_BV.amax(dim=1).float()
