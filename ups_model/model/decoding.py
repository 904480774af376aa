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

from ups_model.model.decoder import DecoderCache, Memory
from ups_model.model.ups import UPS, Inputs
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
    cache = model.new_cache(memory)
    vocabulary_VW = model.vocabulary_VW()
    none = torch.empty(len(memory.offset_BM), 0, dtype=torch.int64, device=memory.offset_BM.device)
    logits_BV = _next_logits(model, inputs.task, none, cache, vocabulary_VW)
    ids = model.vocabulary.class_ids(dataset)
    class_BK = logits_BV[:, ids.start : ids.stop]
    best_B1 = class_BK.argmax(dim=1, keepdim=True) + ids.start
    end_BV = _next_logits(model, inputs.task, best_B1, cache, vocabulary_VW)
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
    task = "pe"
    steps = POSE_AXES * model.pose_joints
    axes = [model.vocabulary.coordinate_ids(axis) for axis in range(POSE_AXES)]
    centres_3Q = [
        model.quantiser.centres(axis, device=vocabulary_VW.device)  # type: ignore[union-attr]  # a model of poses has it
        for axis in range(POSE_AXES)
    ]
    batch = len(memory.offset_BM)
    tokens_BK = torch.zeros(batch, steps, dtype=torch.int64, device=vocabulary_VW.device)
    values_BK = torch.zeros(batch, steps, device=vocabulary_VW.device)
    admitted_BK = torch.zeros(batch, steps, dtype=torch.bool, device=vocabulary_VW.device)
    cache = model.new_cache(memory)
    if decoding == "parallel":
        masked = torch.ones(batch, steps - 1, dtype=torch.bool, device=vocabulary_VW.device)
        prefix = model.embed_prefix(task, tokens_BK[:, :-1], masked, vocabulary_VW)
        all_logits_BKV = model.logits(model.decoder(prefix, cache), vocabulary_VW)
    for step in range(steps):
        ids, centres_Q = axes[step % POSE_AXES], centres_3Q[step % POSE_AXES]
        if decoding == "parallel":
            logits_BV = all_logits_BKV[:, step]
        elif cached:
            logits_BV = _next_logits(model, task, tokens_BK[:, :step], cache, vocabulary_VW)
        else:
            prefix = model.embed_prefix(task, tokens_BK[:, :step], None, vocabulary_VW)
            logits_BV = model.logits(model.decoder(prefix, model.new_cache(memory))[:, -1:], vocabulary_VW)[:, 0]
        axis_BQ = logits_BV[:, ids.start : ids.stop].float()
        if coordinates == "expectation":
            values_BK[:, step] = F.softmax(axis_BQ, dim=1) @ centres_Q
            tokens_BK[:, step] = (
                model.quantiser.encode(values_BK[:, step], step % POSE_AXES) + ids.start  # type: ignore[union-attr]
            )
        else:
            best_B = axis_BQ.argmax(dim=1)
            values_BK[:, step] = centres_Q[best_B]
            tokens_BK[:, step] = best_B + ids.start
        free_B = logits_BV.argmax(dim=1)
        admitted_BK[:, step] = (free_B >= ids.start) & (free_B < ids.stop)
    starts_K = torch.tensor([axes[step % POSE_AXES].start for step in range(steps)], device=tokens_BK.device)
    return PoseAnswer(
        values_BK.unflatten(1, (model.pose_joints, POSE_AXES)), tokens_BK - starts_K, admitted_BK.float().mean(dim=1)
    )


def _next_logits(model: UPS, task: str, given_BK: Tensor, cache: DecoderCache, vocabulary_VW: Tensor) -> Tensor:
    """[B, V] logits of the step after `given_BK`, of which the cache holds all but the last token."""
    step = given_BK.shape[1]
    inputs_BKW = model.embed_prefix(task, given_BK[:, -1:], None, vocabulary_VW)[:, -1:]
    return model.logits(model.decoder(inputs_BKW, cache, first=step, keep=True), vocabulary_VW)[:, 0]
