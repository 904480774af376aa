"""Re-measure existing weights without training, after a change of how runs are measured."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ups_model.config import Config
from ups_model.device import pick_device
from ups_model.evaluation.measure import measure, measure_test, score
from ups_model.training.build import build, data_identity, load_model
from ups_model.training.checkpoint import keep_steps
from ups_model.training.result import Result, check_same_data, save_weights, write_result

if TYPE_CHECKING:
    from ups_model.train import RunOptions

logger = logging.getLogger(__name__)


def measure_weights(
    config: Config,
    paths: Mapping[str, Path],
    options: "RunOptions",
    weights: Path,
    key: str,
    trained: Mapping[str, Any],
    health: Mapping[str, Any],
) -> Result:
    """Measure chosen weights as a run of this configuration would, and leave what such a run leaves: the weights below
    `best/` and `result.json`. No step is trained.

    Args:
        config: of the run that is to be measured. It may differ from that of the weights in how they are measured.
        paths: folder of each clip set.
        options: where and how; `options.test` also measures the test split.
        weights: checkpoint folder of chosen weights, those of this run or of another one.
        key: of the run.
        trained: `Result.about` of the run that trained the weights; stays, except for configuration and data.
        health: `Result.health` of that run; stays.

    Raises:
        ValueError: weights that can't be read, are of another model than the configuration's, or were trained on other
            clip sets than those given.
    """
    torch.set_flush_denormal(True)  # As in training, whose metrics must come out again.
    try:
        return _measure_weights(config, paths, options, weights, key, trained, health)
    finally:
        torch.set_flush_denormal(False)


def _measure_weights(
    config: Config,
    paths: Mapping[str, Path],
    options: "RunOptions",
    weights: Path,
    key: str,
    trained: Mapping[str, Any],
    health: Mapping[str, Any],
) -> Result:
    device = pick_device(options.device)
    model, before, state = load_model(weights, device)
    if before.model != config.model:
        raise ValueError(f"{weights}: weights of another model than this configuration's; train the run")
    parts = build(config, paths, device, options.cache / "text", model)
    check_same_data(parts, weights, state)
    step, hashed = int(state["step"]), ""
    metrics: dict[str, float] = {}
    logger.info("measuring the weights of step %d in %s, without training", step, weights)
    options.out.mkdir(parents=True, exist_ok=True)
    for part in ["validation"] * bool(config.data.validation_subjects) + ["test"] * options.test:
        if part == "test":
            found, hashed = measure_test(model, parts.feeds, config.evaluation, options.out)
        else:
            found = measure(model, parts.feeds, part, config.evaluation)
        metrics |= {f"{part}/{name}": value for name, value in found.items()}
        metrics[f"{part}/score"] = score(found, config.optim.tasks, parts.mean_pose_mm)
    validation = {name: value for name, value in metrics.items() if name.startswith("validation/")}
    best = options.out / "best"
    checkpoint = best / weights.name
    if state["key"] != key or weights.resolve() != checkpoint.resolve():
        checkpoint = save_weights(best, step, model, parts, key, validation)
        keep_steps(best, {step})
    about = {
        **trained,
        "config": config.canonical(),
        "data": data_identity(parts.sets),
        "synthetic": sorted({clips.name for clips, _ in parts.sets.values() if clips.info.synthetic}),
        "mean_pose_mm": parts.mean_pose_mm,
    }
    result = Result(
        "finished", key, config.optim.steps, metrics, model.routes(), str(checkpoint), about, dict(health), hashed
    )
    write_result(options.out, result)
    return result
