"""From a configuration and prepared clip sets to the parts of a run: splits, feeds, vocabulary, quantiser, model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ups_model.config import Config, TaskData, TaskName
from ups_model.config.identity import configured_tasks
from ups_model.data.batching.batches import Feed, build_feeds
from ups_model.data.batching.configured import open_sets
from ups_model.data.format.clip_set import ClipSet, Split
from ups_model.model.text_features import text_features
from ups_model.model.ups import UPS, whiten
from ups_model.model.vocabulary import Quantiser, Vocabulary
from ups_model.tasks import TASKS
from ups_model.training.checkpoint import load_checkpoint, load_weights


@dataclass
class Parts:
    """Everything that a run is made of."""

    config: Config
    sets: dict[str, tuple[ClipSet, Split]]
    """By source, as the configuration writes them."""
    feeds: dict[TaskName, Feed]
    model: UPS
    device: torch.device
    mean_pose_mm: float
    """MPJPE of the mean training pose on the training poses; 0 where no poses are trained."""
    validation_mean_pose_mm: float
    """The same on the validation poses; 0 where there are none."""


def data_identity(sets: Mapping[str, tuple[ClipSet, Split]]) -> dict[str, str]:
    """Content fingerprint of each clip set; independent of its path."""
    return dict(sorted((clips.name, clips.fingerprint) for clips, _ in sets.values()))


def build_vocabulary(config: Config, sets: Mapping[str, tuple[ClipSet, Split]]) -> Vocabulary:
    """Classes of each class task's clip sets, in the paper's order of tasks, and the coordinate bins."""
    classes = {
        clips.name: tuple(clips.info.classes)
        for task in configured_tasks(config)
        if TASKS[task].kind == "class"
        for clips, _ in (sets[source] for source in getattr(config.data, task).sources)
    }
    return Vocabulary(tuple(classes.items()), config.model.n_bins)


def training_poses(feed: Feed) -> Tensor:
    """[poses, J, 3] root-relative training poses in all cameras, metres."""
    return torch.cat([pose for source in feed.sources for pose in feed.poses(source)])


def mean_pose_error_mm(feed: Feed, training_BJ3: Tensor, part: str = "train") -> float:
    """MPJPE, in millimetres, of the mean training pose on the poses of `part`: the trivial baseline.

    Args:
        training_BJ3: of `training_poses`.
        part: "train", or another part of the first source.
    """
    pose_BJ3 = training_BJ3 if part == "train" else torch.cat(list(feed.poses(feed.sources[0], part)))
    return 1000 * float((pose_BJ3 - training_BJ3.mean(dim=0)).norm(dim=-1).mean())


def build(
    config: Config, paths: Mapping[str, Path], device: torch.device, cache: Path, model: UPS | None = None
) -> Parts:
    """All parts of a run on `device`, with `model` or a freshly initialised one; text features come from `cache`."""
    sets = open_sets(config, paths)
    feeds = build_feeds(config, sets, device)
    mean_pose_mm = validation_mean_pose_mm = 0.0
    if "pe" in feeds:
        feed, poses_BJ3 = feeds["pe"], training_poses(feeds["pe"])
        mean_pose_mm = mean_pose_error_mm(feed, poses_BJ3)
        if len(feed.sources[0].rows("validation")):
            validation_mean_pose_mm = mean_pose_error_mm(feed, poses_BJ3, "validation")
    if model is None:
        vocabulary = build_vocabulary(config, sets)
        quantiser = Quantiser.fit(poses_BJ3.flatten(0, 1), config.model.n_bins) if "pe" in feeds else None
        pose_sets = config.data.pe.sources
        text_VE = text_features(vocabulary.prompts, config.model.text_model, cache)
        model = UPS(
            config.model,
            vocabulary,
            quantiser,
            whiten(text_VE) if config.model.vocabulary_whitening else text_VE,
            max_frames=max(task.frames for task in _configured(config)),
            pose_joints=len(sets[pose_sets[0]][0].skeleton.joint_names) if pose_sets else 17,
            seed=config.seed,
            pose_slots=sets[pose_sets[0]][0].skeleton.native_slot if pose_sets else (),
        )
        for feed in feeds.values():
            model.set_input_statistics(feed.statistics_batch().inputs)
    return Parts(config, sets, feeds, model.to(device), device, mean_pose_mm, validation_mean_pose_mm)


def load_model(checkpoint: Path, device: torch.device) -> tuple[UPS, Config, dict[str, Any]]:
    """The model of a checkpoint folder of weights, its configuration and the checkpoint's state.

    Needs neither data nor language model: vocabulary, text features and coordinate range are in the checkpoint.

    Raises:
        ValueError: not a checkpoint of weights, a corrupted one, or one of another recipe.
    """
    tensors, state = load_checkpoint(checkpoint)
    missing = [name for name in ("config", "classes", "quantiser", "max_frames", "pose_slots") if name not in state]
    if missing:
        raise ValueError(
            f"{checkpoint}: not a checkpoint of chosen weights (no {missing[0]}); give one from the folder best/"
        )
    config = Config.from_canonical(state["config"])
    classes = tuple((name, tuple(names)) for name, names in state["classes"])
    quantiser = None
    if state["quantiser"]:
        low, high = state["quantiser"]
        quantiser = Quantiser(tuple(low), tuple(high), config.model.n_bins)
    model = UPS(
        config.model,
        Vocabulary(classes, config.model.n_bins),
        quantiser,
        tensors["model"]["text_VE"],
        state["max_frames"],
        state["pose_joints"],
        pose_slots=state["pose_slots"],
    )
    load_weights(model, tensors["model"], checkpoint)
    model.encoder.exit_layer = config.evaluation.exit_layer
    return model.to(device), config, state


def _configured(config: Config) -> list[TaskData]:
    return [getattr(config.data, task) for task in configured_tasks(config)]
