"""Re-measure existing weights without training, after a change of how runs are measured."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ups_model.config import Config
from ups_model.device import flush_denormal_numbers, pick_device
from ups_model.evaluation.measure import measure, measure_test, score
from ups_model.training.build import build, load_model
from ups_model.training.options import RunOptions
from ups_model.training.result import Result, check_same_data, data_facts, save_weights, write_result
from ups_model.training.run_folder import keep_steps

logger = logging.getLogger(__name__)


@flush_denormal_numbers()  # As in training, whose metrics must come out again.
def measure_weights(
    config: Config,
    paths: Mapping[str, Path],
    options: RunOptions,
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
            measured, hashed = measure_test(model, parts.feeds, config.evaluation, options.out)
        else:
            measured = measure(model, parts.feeds, part, config.evaluation)
        metrics |= {f"{part}/{name}": value for name, value in measured.items()}
        metrics[f"{part}/score"] = score(measured, config.optim.tasks, parts.mean_pose_mm)
    validation = {name: value for name, value in metrics.items() if name.startswith("validation/")}
    best = options.out / "best"
    checkpoint = best / weights.name
    if state["key"] != key or weights.resolve() != checkpoint.resolve():
        checkpoint = save_weights(best, step, model, parts, key, validation)
        keep_steps(best, {step})
    about = {**trained, **data_facts(parts)}
    result = Result(
        "finished", key, config.optim.steps, metrics, model.routes(), str(checkpoint), about, dict(health), hashed
    )
    write_result(options.out, result)
    return result
