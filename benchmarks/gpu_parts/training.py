"""Real training of preset `small` for the time that is left."""

import tempfile
from pathlib import Path
from typing import Any

from safetensors import safe_open
from synthetic_runs import use_random_text

from gpu_parts.part import Part
from gpu_parts.steps import joint_rate
from gpu_parts.table import Row
from ups_model.cli import data_paths
from ups_model.config.identity import configured_sets
from ups_model.config.presets import preset
from ups_model.model import text_features
from ups_model.training import run as training_run
from ups_model.training.progress import short_line
from ups_model.training.run import Run, RunOptions, train
from ups_model.training.run_state import Metrics


def training(part: Part) -> None:
    """Preset `small` on the open data for the time left; in small, preset `tiny` on synthetic clips."""
    name = "tiny" if part.quick else "small"
    config = part.config("tiny") if part.quick else preset("small")
    paths = data_paths(part.options.data, configured_sets(config))
    with tempfile.TemporaryDirectory(prefix="ups-benchmark-") as folder:
        options: dict[str, Any] = {}
        if part.quick:
            use_random_text()
        elif part.options.text:
            use_carried_text(part.options.text)
            (Path(folder) / "text").symlink_to(part.options.text.resolve())
            options["cache"] = Path(folder)
        run = Run(config, paths, RunOptions(Path(folder) / "pilot", part.name, **options), None, None)
        run.start_or_resume()
        rate, cycle = joint_rate(part, run), len(config.optim.cycle)
        most = 24 if part.quick else config.optim.steps
        # A third of the time left: measuring takes the rest, and a run that is cut off has no metrics.
        count = min(most, int(rate * part.left / 3))
        config = config.with_fields({"steps": max(cycle, count - count % cycle)})

        def show(step: int, metrics: Metrics) -> None:
            line = short_line({metric.removeprefix("curve/"): value for metric, value in metrics.items()})
            Row(f"{name}, step {step}", line, data=metrics).emit()

        options = RunOptions(Path(folder) / "run", part.name, log_every=max(1, config.optim.steps // 5), **options)
        result = train(config, paths, options, on_metrics=show, should_stop=lambda: part.left < 5)
    data = {"health": result.health, "about": result.about}
    unit = f"steps in {result.about['train_seconds']} s, {result.status}"
    Row(f"{name} trained", result.step, unit, data=data).emit()
    for metric, value in result.metrics.items():
        if metric.endswith(("/top1", "/mpjpe_mm", "/score")):
            Row(f"{name}, {metric}", value).emit()


def use_carried_text(folder: Path) -> None:
    """Take the language models' identities from the files in a folder of text features, so that none is needed."""

    def identity(model: str) -> str:
        for file in sorted(folder.glob("text-*.safetensors")):
            with safe_open(file, framework="pt") as stored:
                carried = (stored.metadata() or {}).get("identity", "")
            if carried.startswith(f"{model}@"):
                return carried
        raise ValueError(f"--text {folder}: no text features of {model!r} there; give the folder text of a cache")

    text_features.text_identity = training_run.text_identity = identity
