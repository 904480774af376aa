"""Measures of a model on a validation or test split: one function a kind of task, plain numbers out.

Keys are `task/metric`, and `task/source/metric` where a task has several sources; the plain key is the first one's.

Shape suffixes: B clips, R target frames, J native joints.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ups_model.config import EvalConfig, TaskName
from ups_model.data.batching.augment import mirror_slots
from ups_model.data.batching.batches import Batch, Feed
from ups_model.evaluation.metric_names import OUTCOMES, headline_metric
from ups_model.evaluation.metrics import mpjpe_mm, mpjve_mm, n_mpjpe_mm, p_mpjpe_mm, per_action_mean, topk_accuracy
from ups_model.evaluation.outcomes import Outcomes, class_outcomes, pose_examples, pose_outcomes, save_outcomes
from ups_model.model.decoding import classify, estimate_poses
from ups_model.model.inputs import Inputs
from ups_model.model.ups import UPS
from ups_model.skeletons import Skeleton
from ups_model.tasks import TASKS

logger = logging.getLogger(__name__)

MM = 1000.0
"""Millimetres in a metre: poses are metres inside the model, millimetres in every metric."""


class Answers(Protocol):
    """A model's answers to batches, whatever it is made of, with diagnostics of its own by metric name."""

    def classes(self, batch: Batch, dataset: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores [B, K] of the classes of `dataset`, and shares of clips: a value in [0, 1] of each clip."""

    def poses(self, batch: Batch, skeleton: Skeleton) -> tuple[Tensor, dict[str, Tensor]]:
        """Root-relative poses [B * R, J, 3] in metres, and shares of poses: a value in [0, 1] of each pose."""

    def coordinates(self, true_BJ3: Tensor) -> dict[str, float]:
        """Metrics of how well true poses, in metres, can be expressed."""


@dataclass(frozen=True)
class UPSAnswers:
    """Answers of UPS.

    `free_top1` counts a clip only if the right class is also the best token of the whole vocabulary, unconstrained by
    the grammar; `ended` is the share of clips after whose class the best token is the task's end; `in_grammar` the
    share of coordinates whose best token is a bin of the right axis.
    """

    model: UPS
    config: EvalConfig

    def classes(self, batch: Batch, dataset: str) -> tuple[Tensor, dict[str, Tensor]]:
        answer = classify(self.model, batch.inputs, dataset)
        free_B = answer.free_token_B - self.model.vocabulary.class_ids(dataset).start == batch.label_B
        return answer.logits_BK, {"free_top1": free_B, "ended": answer.ended_B}  # type: ignore[dict-item]  # a tensor

    def poses(self, batch: Batch, skeleton: Skeleton) -> tuple[Tensor, dict[str, Tensor]]:
        pose_BJ3, in_grammar_B = predict_poses(self.model, batch, skeleton, self.config)
        return pose_BJ3, {"in_grammar": in_grammar_B}

    def coordinates(self, true_BJ3: Tensor) -> dict[str, float]:
        quantiser = self.model.quantiser
        assert quantiser is not None, "it has answered"
        return {
            "clip_rate": 100 * quantiser.clip_rate(true_BJ3),
            "floor_mm": quantiser.floor_mm(true_BJ3, mm_per_unit=MM),
        }


def measure(
    model: UPS,
    feeds: Mapping[TaskName, Feed],
    part: str,
    config: EvalConfig,
    outcomes: Outcomes | None = None,
    max_clips: int = 0,
) -> dict[str, float]:
    """All metrics of all tasks in `feeds` on "validation" or "test"; the model is left in the mode it was in.

    Args:
        outcomes: takes the per-clip results, by `task/source/what` (`ups_model.evaluation.outcomes`).
        max_clips: measure on at most about that many evenly spaced clips (pose estimation: frames) of each task; 0 is
            all.
    """
    training, exit_layer = model.training, model.encoder.exit_layer
    model.eval()
    model.encoder.exit_layer = config.exit_layer
    try:
        return measure_answers(UPSAnswers(model, config), feeds, part, config.ratios, outcomes, max_clips)
    finally:
        model.encoder.exit_layer = exit_layer
        model.train(training)


def measure_answers(
    answers: Answers,
    feeds: Mapping[TaskName, Feed],
    part: str,
    ratios: tuple[float, ...],
    outcomes: Outcomes | None = None,
    max_clips: int = 0,
) -> dict[str, float]:
    """As `measure`, of any model; `ratios` are the observed shares in early prediction."""
    metrics: dict[str, float] = {}
    for task, feed in feeds.items():
        for index, source in enumerate(feed.sources):
            alone = feed.only(source)
            said: Outcomes = {}
            if TASKS[task].kind == "pose":
                values = measure_poses(answers, alone, part, said, max_clips)
            else:
                values = measure_classes(answers, alone, part, ratios, said, max_clips)
            if outcomes is not None:
                outcomes |= {f"{task}/{source.name}/{name}": value for name, value in said.items()}
            if len(feed.sources) > 1:
                metrics |= {f"{task}/{source.name}/{name}": value for name, value in values.items()}
            if index == 0:
                metrics |= {f"{task}/{name}": value for name, value in values.items()}
    return metrics


def measure_test(
    model: UPS, feeds: Mapping[TaskName, Feed], config: EvalConfig, folder: Path
) -> tuple[dict[str, float], str]:
    """All metrics on the test split, whose outcomes are written to `folder`; also the SHA-256 of that file."""
    outcomes: Outcomes = {}
    metrics = measure(model, feeds, "test", config, outcomes)
    return metrics, save_outcomes(folder / OUTCOMES, outcomes)


def measure_classes(
    answers: Answers,
    feed: Feed,
    part: str,
    ratios: tuple[float, ...],
    outcomes: Outcomes | None = None,
    max_clips: int = 0,
) -> dict[str, float]:
    """Top-1 and top-5 accuracy and the model's own shares, in percent; early prediction: at each observed ratio."""
    source = feed.sources[0]
    metrics = {}
    for ratio in ratios if feed.task == "eap" else (1.0,):
        logits, labels, clips = [], [], []
        shares: dict[str, list[Tensor]] = {}
        for batch in feed.evaluate(part, ratio, max_clips=max_clips):
            clips.append(batch.clip_B)
            logits_BK, own = answers.classes(batch, source.clips.name)
            logits.append(logits_BK)
            labels.append(batch.label_B)
            for name, value_B in own.items():
                shares.setdefault(name, []).append(value_B)
        if not labels:
            raise ValueError(f"{part} split must have clips, got none in {source.name!r} for {feed.task}")
        logits_BK, label_B = torch.cat(logits), torch.cat(labels)  # type: ignore[arg-type]  # class batches have labels
        at = f"@{ratio:g}" if feed.task == "eap" else ""
        metrics[f"top1{at}"] = 100 * float(topk_accuracy(logits_BK, label_B, 1))
        if logits_BK.shape[1] >= 5:
            metrics[f"top5{at}"] = 100 * float(topk_accuracy(logits_BK, label_B, 5))
        metrics |= {f"{name}{at}": 100 * float(torch.cat(values).double().mean()) for name, values in shares.items()}
        metrics["clips"] = float(len(label_B))
        if outcomes is not None:
            clip = torch.cat(clips).cpu().numpy()
            outcomes |= class_outcomes(logits_BK, label_B, at)
            outcomes |= {"clip": clip.astype(np.int32), "label": label_B.cpu().numpy().astype(np.int16)}
            outcomes["subject"] = source.clips.subject[clip].astype(np.int32)
    if feed.task == "eap":
        metrics["top1"] = sum(metrics[f"top1@{ratio:g}"] for ratio in ratios) / len(ratios)
    return metrics


def measure_poses(
    answers: Answers, feed: Feed, part: str, outcomes: Outcomes | None = None, max_clips: int = 0
) -> dict[str, float]:
    """MPJPE, P-MPJPE, N-MPJPE in millimetres (mean over actions, over frames, of each action), MPJVE where every frame
    is predicted and a clip has two, and the model's own shares in percent.

    `mpjpe_mm` is the unweighted mean over actions where clips have classes, as on Human3.6M; `frames_mpjpe_mm` the mean
    over frames. The root is at 0 and counts as one of the joints.
    """
    source = feed.sources[0]
    predicted, truth, actions, sequence, joints = [], [], [], [], []
    shares: dict[str, list[Tensor]] = {}
    groups = source.clips.info.camera_groups
    cameras_apart = max(64, *(len(group) for group in groups)) if groups else 64
    for batch in feed.evaluate(part, max_clips=max_clips):
        pose_BJ3, own = answers.poses(batch, source.skeleton)
        kept_B = batch.frame_BR.flatten() >= 0  # type: ignore[union-attr]  # pose batches have it
        repeats = batch.frame_BR.shape[1]  # type: ignore[union-attr]  # pose batches have it
        predicted.append(pose_BJ3[kept_B])
        truth.append(batch.pose_BRJ3.flatten(0, 1)[kept_B])  # type: ignore[union-attr]  # pose batches have it
        for name, value_B in own.items():
            shares.setdefault(name, []).append(value_B[kept_B])
        if outcomes is not None:
            joints.append(screen_joints(batch.inputs, source.skeleton)[kept_B])
        actions.append(batch.label_B.repeat_interleave(repeats)[kept_B])  # type: ignore[union-attr]  # pose batches have it
        clip_camera_B = batch.clip_B * cameras_apart + batch.camera_B  # type: ignore[operator]  # pose batches have it
        sequence.append(
            torch.stack(
                [clip_camera_B.repeat_interleave(repeats), batch.frame_BR.flatten()],  # type: ignore[union-attr]
                dim=1,
            )[kept_B]
        )
    if not truth:
        raise ValueError(f"{part} split must have clips, got none in {source.name!r} for {feed.task}")
    pred_BJ3, true_BJ3 = MM * torch.cat(predicted).cpu(), MM * torch.cat(truth).cpu()
    label_B, sequence_B2 = torch.cat(actions).cpu(), torch.cat(sequence).cpu()
    names = source.clips.info.classes
    metrics, errors = {}, {}
    for name, metric in (("mpjpe_mm", mpjpe_mm), ("p_mpjpe_mm", p_mpjpe_mm), ("n_mpjpe_mm", n_mpjpe_mm)):
        error_B = errors[name] = metric(pred_BJ3, true_BJ3, reduction="none")
        metrics[f"frames_{name}"] = float(error_B.mean())
        metrics[name] = metrics[f"frames_{name}"]
        metrics[f"{name}_se"] = standard_error_over(error_B, sequence_B2[:, 0] // cameras_apart)
        if names and int(label_B.min()) >= 0:
            by_action, metrics[name] = per_action_mean(error_B, [names[label] for label in label_B.tolist()])
            metrics |= {f"{name}/{action}": value for action, value in by_action.items()}
            for action in by_action:
                own_B = label_B == names.index(action)
                clip_B = sequence_B2[own_B, 0] // cameras_apart
                metrics[f"{name}/{action}_se"] = standard_error_over(error_B[own_B], clip_B)
    if outcomes is not None:
        clip_B, camera_B = sequence_B2[:, 0] // cameras_apart, sequence_B2[:, 0] % cameras_apart
        subject, label = source.clips.subject, source.clips.label
        pair = errors["mpjpe_mm"], errors["p_mpjpe_mm"]
        outcomes |= pose_outcomes(*pair, clip_B, camera_B, sequence_B2[:, 1], subject, label)
        place_B3 = torch.stack([clip_B, camera_B, sequence_B2[:, 1]], dim=1)
        bones = [(joint, parent) for joint, parent in enumerate(source.skeleton.parents) if parent >= 0]
        outcomes |= pose_examples(errors["mpjpe_mm"], place_B3, torch.cat(joints).cpu(), pred_BJ3, true_BJ3, bones)
    if feed.data.evaluate_stride == 1 and not max_clips:
        parts = {"mpjve_mm_per_frame": torch.ones_like(label_B, dtype=torch.bool)}
        if names and int(label_B.min()) >= 0:
            parts |= {f"mpjve_mm_per_frame/{names[label]}": label_B == label for label in label_B.unique().tolist()}
        for name, own_B in parts.items():
            if len(sequence_B2[own_B, 0].unique()) < int(own_B.sum()):  # Else each clip has one frame.
                metrics[name] = velocity_error(pred_BJ3[own_B], true_BJ3[own_B], sequence_B2[own_B])
    metrics |= answers.coordinates(true_BJ3 / MM)
    metrics |= {name: 100 * float(torch.cat(values).mean()) for name, values in shares.items()}
    metrics["poses"] = float(len(true_BJ3))
    return metrics


def velocity_error(pred_BJ3: Tensor, true_BJ3: Tensor, sequence_B2: Tensor) -> float:
    """MPJVE of whole sequences in any order; `sequence_B2` is each frame's sequence and its number in it."""
    order = torch.argsort(sequence_B2[:, 0] * 10**7 + sequence_B2[:, 1])
    lengths = torch.unique_consecutive(sequence_B2[order, 0], return_counts=True)[1].tolist()
    return float(mpjve_mm(pred_BJ3[order], true_BJ3[order], lengths=lengths))


def trivial_values(feeds: Mapping[TaskName, Feed], mean_pose_mm: float) -> dict[str, float]:
    """Headline metrics of the trivial predictor on the validation split: the share of its most frequent class
    (percent), the error of the mean training pose (mm)."""
    metrics = {}
    for task, feed in feeds.items():
        source = feed.sources[0]
        if TASKS[task].kind == "pose":
            metrics[headline_metric(task)] = mean_pose_mm
        else:
            labels = np.asarray(source.clips.label[source.rows("validation")])
            metrics[headline_metric(task)] = 100 * float(np.bincount(labels).max()) / len(labels)
    return metrics


def standard_error_over(error_B: Tensor, clip_B: Tensor) -> float:
    """Standard error of the mean over clips, each clip one observation: frames of a clip, and its views, are alike.

    For one clip, where it can't be known, the error itself.
    """
    _, clip_B = torch.unique(clip_B, return_inverse=True)
    total = torch.zeros(int(clip_B.max()) + 1, dtype=torch.float64).index_add_(0, clip_B, error_B.double())
    means = total / torch.bincount(clip_B)
    return float(means.std(correction=1) / len(means) ** 0.5) if len(means) > 1 else float(means[0])


def predict_poses(model: UPS, batch: Batch, skeleton: Skeleton, config: EvalConfig) -> tuple[Tensor, Tensor]:
    """Poses of a batch's targets, root-relative metres [B * R, J, 3], and the share of tokens within the grammar
    [B * R]; with `config.flip` the mean of the answers to the windows and to their mirror images."""
    answer = estimate_poses(model, batch.inputs, config.coordinates, config.decoding)
    if not config.flip:
        return answer.pose_BJ3, answer.in_grammar_B
    mirrored = estimate_poses(model, mirror_inputs(batch.inputs), config.coordinates, config.decoding)
    flip = torch.tensor(skeleton.flip, device=answer.pose_BJ3.device)
    back_BJ3 = mirrored.pose_BJ3[:, flip] * torch.tensor([-1.0, 1.0, 1.0], device=flip.device)
    return (answer.pose_BJ3 + back_BJ3) / 2, (answer.in_grammar_B + mirrored.in_grammar_B) / 2


def screen_joints(inputs: Inputs, skeleton: Skeleton) -> Tensor:
    """[B * R, J, 2] joints of the target frames on the screen, as the model gets them; NaN where no slot holds the
    joint alone."""
    row_B1 = torch.arange(len(inputs.pose_BPNSC), device=inputs.pose_BPNSC.device)[:, None]
    screen_BRS2 = inputs.pose_BPNSC[row_B1, 0, inputs.target_frame_BR, :, :2]
    slot_J = torch.tensor(skeleton.native_slot, device=screen_BRS2.device)
    screen_BRJ2 = screen_BRS2[:, :, slot_J.clamp(min=0)].masked_fill(slot_J[:, None] < 0, torch.nan)
    return screen_BRJ2.flatten(0, 1)


def mirror_inputs(inputs: Inputs) -> Inputs:
    """The same windows seen in a mirror: x negated, left and right slots swapped."""
    return Inputs(**{**vars(inputs), "pose_BPNSC": mirror_slots(inputs.pose_BPNSC)})


def score(metrics: Mapping[str, float], tasks: tuple[TaskName, ...], mean_pose_mm: float) -> float:
    """One number to choose a checkpoint by, higher is better: the mean over tasks of the share solved, in percent.

    For class tasks that is top-1 accuracy (early prediction: its mean over ratios); for pose estimation the share of
    the mean training pose's error that is gone.
    """
    parts = []
    for task in tasks:
        if TASKS[task].kind == "class":
            parts.append(metrics[f"{task}/top1"])
        else:
            parts.append(100 * (1 - metrics[f"{task}/mpjpe_mm"] / mean_pose_mm))
    return sum(parts) / len(parts)
