"""The multi-task network as what a run trains: batches, stages, measures of every exit.

Shape suffixes: B windows, N frames, R targets, S 25 slots, I input joints, J native joints, K classes, C coordinates.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from baselines.build import NetworkShape, read_facts, unmirror
from baselines.learner import Learner
from baselines.lifter import relative_to_root
from baselines.multitask.config import MultitaskConfig
from baselines.multitask.losses import multitask_loss
from baselines.multitask.network import Exit, MultitaskNet
from ups_model.data.batching.batch import Batch
from ups_model.data.batching.batches import Feed, Source
from ups_model.data.format.clip_data import ClipData
from ups_model.evaluation.measure import measure_poses, mirror_inputs
from ups_model.evaluation.outcomes import Outcomes, class_outcomes
from ups_model.model.inputs import Inputs
from ups_model.model.layers import seed_for
from ups_model.skeletons import ROOT_SLOT, Skeleton
from ups_model.training.checkpoint import load_weights
from ups_model.training.run_state import Metrics

MAX_CAMERAS = 64
"""Of a clip; a number for a view is clip * MAX_CAMERAS + camera."""


def shape_of(config: MultitaskConfig, clips: ClipData) -> NetworkShape:
    """What of a clip set fixes the network's inputs and outputs. ValueError for clips without classes."""
    if not clips.info.classes or int(clips.label.min()) < 0:
        raise ValueError(f"multitask needs labelled clips, {clips.name!r} has clips without a class; use another set")
    slots, frames = clips.skeleton.slots_present, config.data.pe.frames
    return NetworkShape(slots, clips.skeleton.joints, 2, 1, frames, tuple(clips.info.classes))


class MultitaskModel(nn.Module):
    """The network between batches and answers: takes the joints present out of the common slots."""

    slot_I: Tensor

    def __init__(self, config: MultitaskConfig, shape: NetworkShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.actions = config.training.tasks != "pose"
        """Whether classes are scored."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(config.seed, "initialise", "multitask"))
            self.network = MultitaskNet(len(shape.slots), shape.joints, len(shape.classes), config.network)
        self.register_buffer("slot_I", torch.tensor(shape.slots), persistent=False)

    def forward(self, inputs: Inputs, exits: int = 0) -> list[Exit]:
        """What each exit says, up to exit number `exits` (0 = the last)."""
        screen_BNI2 = inputs.pose_BPNSC[:, 0][:, :, self.slot_I, :2]
        if self.config.network.centred:
            screen_BNI2 = relative_to_root(screen_BNI2, self.shape.slots.index(ROOT_SLOT))
        predicted: list[Exit] = self.network(screen_BNI2, exits, self.actions)
        return predicted

    def metres(self, pose_BNJ3: Tensor) -> Tensor:
        """Root-relative poses in camera axes of coordinates in [0, 1]."""
        return (pose_BNJ3 - 0.5) * self.config.network.range_m


def load_multitask(checkpoint: Path, device: torch.device) -> tuple[MultitaskModel, dict[str, Any]]:
    """The network of a checkpoint folder of chosen weights, and the checkpoint's state. Needs no data.

    Raises:
        ValueError: not a checkpoint of chosen weights, a corrupted one, or one of another recipe.
    """
    tensors, state, shape = read_facts(checkpoint)
    model = MultitaskModel(MultitaskConfig.from_canonical(state["baseline"]), shape)
    load_weights(model, tensors["model"], checkpoint)
    return model.to(device), state


@dataclass(frozen=True)
class ReadAnswers:
    """Poses that were predicted before, in the order of the batches, for `ups_model.evaluation.measure`."""

    pose_BJ3: Iterator[Tensor]
    """Of each batch."""

    def poses(self, batch: Batch, skeleton: Skeleton) -> tuple[Tensor, dict[str, Tensor]]:
        return next(self.pose_BJ3), {}

    def classes(self, batch: Batch, dataset: str) -> tuple[Tensor, dict[str, Tensor]]:
        raise AssertionError("classes are measured by clip")

    def coordinates(self, true_BJ3: Tensor) -> dict[str, float]:
        return {}


class Multitask(Learner):
    """Poses and actions of one clip set."""

    system = name = "multitask"

    def __init__(self, config: MultitaskConfig, source: Source) -> None:
        self.config, self.source = config, source
        self.feed = Feed("pe", config.data.pe, [source], config.seed)
        self.shape = shape_of(config, source.clips)
        self.model: MultitaskModel = MultitaskModel(config, self.shape).to(source.device)
        self.phase = config.phase(0)
        self.measure_mean_pose()
        names = {"pe": "pe/mpjpe_mm", "action": "action/top1"}
        self.headlines = tuple(names[task] for task in config.trained_steps())

    def prepare(self, step: int) -> None:
        config, network = self.config, self.model.network
        self.phase = config.phase(step)
        self.model.actions = self.phase != "pose"
        fixed = self.phase == "action" and config.training.tasks == "both"
        for module in network.pose_modules:
            module.requires_grad_(not fixed)
            module.train(not fixed)  # Running statistics are weights of the poses too.
        if step == config.decouple_step:
            network.decouple()

    def loss(self, answer: list[Exit], batch: Batch) -> Tensor:
        target_BR, label_B = batch.inputs.target_frame_BR, batch.label_B
        assert batch.pose_BRJ3 is not None and target_BR is not None and label_B is not None, "windows have them"
        true_BRJ3 = batch.pose_BRJ3 / self.config.network.range_m + 0.5
        training, smoothing = self.config.training, self.config.optim.label_smoothing
        return multitask_loss(answer, true_BRJ3, target_BR, label_B, self.phase, training, smoothing)

    @torch.no_grad()
    def measure(self, part: str, outcomes: Outcomes | None, max_clips: int) -> Metrics:
        """As `ups_model.evaluation.measure.measure` has them: "pe/..." and "action/top1", "action/window_top1" of the
        last exit; "pe/mpjpe_mm@exit2", "action/top1@exit2" and the like of each.

        `action/top1` is of clips: each camera's view of one is a clip, its class that of the highest mean probability
        over its windows (the paper's multi-clip); `action/window_top1` of single windows. `max_clips` is about the
        number of predicted frames.
        """
        trained, layers = self.config.trained_steps(), self.config.network.layers
        self.model.actions = "action" in trained
        poses: list[list[Tensor]] = []
        scores: list[list[Tensor]] = []
        label_B, view_B = [], []
        for batch in self.feed.evaluate(part, max_clips=max_clips):
            pose_EXJ3, logits_EBK = self._answer(batch)
            poses.append(pose_EXJ3)
            scores.append(logits_EBK)
            label_B.append(batch.label_B)
            view_B.append(batch.clip_B * MAX_CAMERAS + batch.camera_B)  # type: ignore[operator]  # windows have it
        metrics: Metrics = {}
        for number in range(1, layers + 1):
            values: Metrics = {}
            said: Outcomes = {}
            if "pe" in trained:
                answers = ReadAnswers(iter([pose_EXJ3[number - 1] for pose_EXJ3 in poses]))
                kept: Outcomes | None = {} if number == layers else None
                values |= _named("pe/", measure_poses(answers, self.feed, part, kept, max_clips))
                said |= _named(f"pe/{self.source.name}/", kept or {})
            if "action" in trained:
                logits_BK = torch.cat([logits_EBK[number - 1] for logits_EBK in scores])
                clips = clip_scores(logits_BK, torch.cat(label_B), torch.cat(view_B))  # type: ignore[arg-type]
                values |= _named("action/", clips.metrics)
                said |= _named(f"action/{self.source.name}/", clips.outcomes(self.source.clips.subject))
            for name in OF_EXITS:
                # Standard errors under the names that reports look for.
                ends = [end for end in ("", "_se") if f"{name}{end}" in values]
                metrics |= {f"{name}@exit{number}{end}": values[f"{name}{end}"] for end in ends}
        if outcomes is not None:
            outcomes |= said
        return metrics | values

    def _answer(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """By exit: poses of the targets [B * R, J, 3] in metres, class scores [B, K]; of a mirror image too where
        `evaluation.flip` says so."""
        poses, scores = self._exits(batch.inputs)
        if self.config.evaluation.flip:
            mirrored, others = self._exits(mirror_inputs(batch.inputs))
            skeleton = self.source.skeleton
            poses = [(one + unmirror(other, skeleton)) / 2 for one, other in zip(poses, mirrored, strict=True)]
            scores = [(one + other) / 2 for one, other in zip(scores, others, strict=True)]
        return poses, scores

    def _exits(self, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
        target_BR = inputs.target_frame_BR
        assert target_BR is not None, "windows have targets"
        row_B1 = torch.arange(len(target_BR), device=target_BR.device)[:, None]
        exits = self.model(inputs)
        poses = [self.model.metres(one.pose_BNJ3[row_B1, target_BR]).flatten(0, 1) for one in exits]
        return poses, [one.logits_BK for one in exits if one.logits_BK is not None]

    def score(self, metrics: Metrics) -> float:
        gains = []
        if "pe/mpjpe_mm" in metrics:
            gains.append(100 * (1 - metrics["pe/mpjpe_mm"] / self.mean_pose_mm))
        if "action/top1" in metrics:
            gains.append(metrics["action/top1"])
        return sum(gains) / len(gains)

    def trivial(self) -> dict[str, float]:
        labels = np.asarray(self.source.clips.label[self.source.rows("validation")])
        values = {
            "pe/mpjpe_mm": self.validation_mean_pose_mm,
            "action/top1": 100 * float(np.bincount(labels).max()) / len(labels),
        }
        return {name: values[name] for name in self.headlines}

    def flops(self) -> int:
        """Of a window, for what is trained."""
        of_window = window_flops(self.model)
        return sum(of_window.values()) if "action" in self.config.trained_steps() else of_window["pe"]


OF_EXITS = ("pe/mpjpe_mm", "pe/p_mpjpe_mm", "action/top1", "action/window_top1")
"""What is kept of every exit."""

T = TypeVar("T")


def _named(place: str, values: Mapping[str, T]) -> dict[str, T]:
    return {f"{place}{name}": value for name, value in values.items()}


@dataclass(frozen=True)
class ClipScores:
    """Classes of the views of clips."""

    logits_VK: Tensor
    """Logarithms of mean probabilities over a view's windows."""
    label_V: Tensor
    clip_V: Tensor
    window_top1: float

    @property
    def metrics(self) -> Metrics:
        """Accuracies in percent, and counts."""
        right_V = self.logits_VK.argmax(dim=1) == self.label_V
        return {
            "top1": 100 * float(right_V.double().mean()),
            "window_top1": self.window_top1,
            "clips": float(len(right_V)),
        }

    def outcomes(self, subject: np.ndarray) -> Outcomes:
        """As `ups_model.evaluation.outcomes` has them of class tasks; a row for each view."""
        clip = self.clip_V.cpu().numpy()
        return class_outcomes(self.logits_VK, self.label_V) | {
            "clip": clip.astype(np.int32),
            "label": self.label_V.cpu().numpy().astype(np.int16),
            "subject": np.asarray(subject)[clip].astype(np.int32),
        }


def clip_scores(logits_BK: Tensor, label_B: Tensor, view_B: Tensor) -> ClipScores:
    """Of windows, the classes of the clips that they are of.

    Args:
        view_B: clip * MAX_CAMERAS + camera.
    """
    views_V, place_B = view_B.unique(return_inverse=True)
    size = (len(views_V), logits_BK.shape[1])
    sum_VK = torch.zeros(size, dtype=torch.float64, device=logits_BK.device)
    sum_VK.index_add_(0, place_B, logits_BK.double().softmax(dim=1))
    label_V = torch.zeros(len(views_V), dtype=label_B.dtype, device=label_B.device).scatter_(0, place_B, label_B)
    mean_VK = sum_VK / place_B.bincount()[:, None]
    right_B = logits_BK.argmax(dim=1) == label_B
    return ClipScores(mean_VK.log(), label_V, views_V // MAX_CAMERAS, 100 * float(right_B.double().mean()))


def window_flops(model: MultitaskModel, exits: int = 0) -> dict[str, int]:
    """Operations for a window's poses, "pe", and for its class beside them, "action", as torch counts those of
    matrix products and convolutions.

    Args:
        exits: leave after so many layers; 0 = the last.
    """
    from torch.utils.flop_counter import FlopCounterMode

    screen_BNI2 = torch.zeros(1, model.shape.frames, len(model.shape.slots), 2, device=model.slot_I.device)
    training, counts = model.training, []
    model.eval()
    for actions in (False, True):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.network(screen_BNI2, exits, actions)
        counts.append(int(counter.get_total_flops()))
    model.train(training)
    return {"pe": counts[0], "action": counts[1] - counts[0]}
