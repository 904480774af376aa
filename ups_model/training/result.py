"""What a run leaves and what it starts from: results, chosen weights, parents."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ups_model.atomic import write_atomic
from ups_model.config import Config, set_of
from ups_model.config.identity import configured_sources
from ups_model.model.ups import UPS
from ups_model.model.vocabulary import Quantiser
from ups_model.tasks import TASK_INDEX
from ups_model.training.build import Parts, data_identity
from ups_model.training.checkpoint import load_checkpoint, load_weights, save_checkpoint
from ups_model.training.run_state import RunState


@dataclass(frozen=True)
class Result:
    """What a run leaves, also written to `result.json`."""

    status: Literal["finished", "stopped"]
    key: str
    step: int
    metrics: dict[str, float]
    """`test/...` and, where subjects are held out, `validation/...` of the chosen checkpoint."""
    routes: dict[str, list[int]]
    """The block that each task takes in each encoder layer (Figure 4)."""
    checkpoint: str
    """Folder of the chosen weights."""
    about: dict[str, Any]
    """Configuration, data fingerprints, parameters, times: what a table's caption needs."""
    health: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By task, as `ups_model.evaluation.health.TaskHealth.to_plain` has it; empty where no subjects are held out."""
    outcomes: str = ""
    """SHA-256 of `outcomes.npz`, the per-clip results of the test split; empty where that was not measured."""

    @property
    def tested(self) -> bool:
        """Whether the test split has been measured."""
        return any(name.startswith("test/") for name in self.metrics)


def write_result(out: Path, result: Result) -> None:
    """`result.json`, whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "result.json", json.dumps(vars(result), indent=1, allow_nan=False).encode("utf-8"))


def save_weights(folder: Path, step: int, model: UPS, parts: Parts, key: str, metrics: dict[str, float]) -> Path:
    """Write a checkpoint from which `build.load_model` makes the model, without data or language model."""
    state = {
        "key": key,
        "config": parts.config.canonical(),
        **vocabulary_state(model),
        "max_frames": model.max_frames,
        "pose_joints": model.pose_joints,
        "pose_slots": list(model.pose_slots),
        "routes": model.routes(),
        "metrics": metrics,
        "origins": origins(parts),
        "data": data_identity(parts.sets),
    }
    return save_checkpoint(folder, step, {"model": model.state_dict()}, state)


def data_facts(parts: Parts) -> dict[str, Any]:
    """A record's entries on configuration and data. Of tasks that this run doesn't train, it only has the classes."""
    trained = {source for task in parts.config.optim.tasks for source in getattr(parts.config.data, task).sources}
    used = [clips for source, (clips, _) in parts.sets.items() if source in trained]
    return {
        "config": parts.config.canonical(),
        "data": data_identity(parts.sets),
        "synthetic": sorted({clips.name for clips in used if clips.info.synthetic}),
        "mean_pose_mm": parts.mean_pose_mm,
    }


def run_facts(state: RunState) -> dict[str, Any]:
    """A record's entries on the model and what it was trained on."""
    return {
        "parameters": sum(parameter.numel() for parameter in state.evaluated.parameters()),
        # In the order in which they came, e.g. "fp16 then bf16" of a run that was moved to another kind of GPU.
        "device": " then ".join(dict.fromkeys(name for name, _ in state.made_on)),
        "precision": " then ".join(dict.fromkeys(name for _, name in state.made_on)),
        "torch": torch.__version__,
    } | ({"taken_over_steps": state.taken_over} if state.taken_over else {})


def origins(parts: Parts) -> dict[str, str]:
    """Origin of each source: sources of one origin may share clips."""
    return {source: clips.origin for source, (clips, _) in parts.sets.items()}


def vocabulary_state(model: UPS) -> dict[str, Any]:
    """Classes and coordinate range, as a checkpoint's state holds them."""
    quantiser = model.quantiser
    return {
        "classes": [[name, list(classes)] for name, classes in model.vocabulary.classes],
        "quantiser": None if quantiser is None else [list(quantiser.low), list(quantiser.high)],
    }


def start_from_parent(parts: Parts, parent: Path | None) -> str:
    """Take the weights, and if `freeze_routes` the routes, of a parent checkpoint; returns the parent's run key.

    Raises:
        ValueError: a parent that is no checkpoint of chosen weights, or is of another vocabulary, coordinate range or
            shape, or may have been trained on clips that this run evaluates; frozen routes without a parent.
    """
    model, config = parts.model, parts.config
    if parent is None:
        if config.freeze_routes:
            raise ValueError("freeze_routes needs a parent whose routes to keep; give --parent or set it to false")
        return ""
    tensors, state = load_checkpoint(parent)
    own = vocabulary_state(model)
    if not own.keys() <= state.keys():
        # Without them a parent of other classes or another coordinate range would pass, if its shapes agree.
        raise ValueError(f"{parent}: not a checkpoint of chosen weights; give one from the folder best/ of the parent")
    for name in ("classes", "quantiser"):
        if state[name] is not None and own[name] is not None and state[name] != own[name]:
            raise ValueError(f"{parent}: its {name} are not this run's; fine-tune on the clip sets of the parent")
    _check_parents_clips(parts, parent, state)
    weights = dict(tensors["model"])
    trained = [TASK_INDEX[task] for task in Config.from_canonical(state["config"]).optim.tasks]
    for name in ("input_mean_TC", "input_scale_TC"):  # Of tasks that the parent doesn't know, those of our clips stay.
        rows = getattr(model, name).cpu().clone()
        rows[trained] = weights[name][trained].to(rows)
        weights[name] = rows
    load_weights(model, weights, parent)
    if model.quantiser is None and state["quantiser"]:
        model.quantiser = Quantiser(  # type: ignore[call-arg]  # there are two: low and high
            *map(tuple, state["quantiser"]),  # type: ignore[arg-type]
            model.config.n_bins,
        )
    model.encoder.router.unfreeze()
    if config.freeze_routes:
        model.encoder.router.freeze()
    return state["key"]


def check_same_data(parts: Parts, checkpoint: Path, state: Mapping[str, Any]) -> None:
    """ValueError where a clip set is not the one that the checkpoint was trained on: test clips of a set that was
    prepared again from other files may have been training clips before."""
    trained_on = state.get("data", {})
    for name, fingerprint in data_identity(parts.sets).items():
        if (before := trained_on.get(name, fingerprint)) != fingerprint:
            raise ValueError(
                f"{checkpoint}: was trained on the clip set {name} of fingerprint {before[:16]}, the one given has "
                f"{fingerprint[:16]}: clips for testing may be among those trained on; give that set, or train again"
            )


def _check_parents_clips(parts: Parts, parent: Path, state: dict[str, Any]) -> None:
    """ValueError where another source of the parent, or another split, may have trained on clips evaluated here."""
    check_same_data(parts, parent, state)
    before = Config.from_canonical(state["config"])
    parent_origins = state.get("origins") or {source: set_of(source) for source in configured_sources(before)}
    for source, origin in origins(parts).items():
        shared = [other for other, theirs in parent_origins.items() if theirs == origin]
        if shared and source not in parent_origins:
            raise ValueError(
                f"{parent}: was trained on {', '.join(shared)}, clips of which may be evaluated as {source}; fine-tune "
                "on the parent's sources"
            )
    ours, theirs = parts.config.held_out, before.held_out
    if ours[0] and ours != theirs:
        raise ValueError(
            f"{parent}: held out other subjects for validation (validation_subjects={theirs[0]}, "
            f"split_seed={theirs[1]}, fold {theirs[2]} by its seed), ours would be judged on clips that it was trained "
            "on; take the same, or validation_subjects=0"
        )


def finished_result(out: Path, key: str) -> Result | None:
    """The result of a finished run of this key, so that its test split is not measured twice."""
    try:
        content = json.loads((out / "result.json").read_text("utf-8"))
        result = Result(**content)
    except (OSError, ValueError, TypeError):
        return None
    return result if result.key == key and result.status == "finished" else None
