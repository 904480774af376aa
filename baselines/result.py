"""What a run leaves."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ups_model.training.run_folder import STATE


@dataclass(frozen=True)
class BaselineResult:
    """What a run leaves, also written to `result.json`."""

    status: Literal["finished", "stopped"]
    key: str
    step: int
    metrics: dict[str, float]
    """`test/...` and, where subjects are held out, `validation/...` of the chosen weights, by UPS's names."""
    checkpoint: str
    """Folder of the chosen weights."""
    parameters: int
    active_parameters: int
    """Used in a prediction: all of them."""
    flops: int
    """Of one prediction (`prediction_flops`)."""
    train_seconds: float
    about: dict[str, Any]
    """Configuration, data fingerprints, device: what a table's caption needs."""
    health: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By task, as `ups_model.evaluation.health.TaskHealth.to_plain` has it; empty where no subjects are held out."""
    outcomes: str = ""
    """SHA-256 of `outcomes.npz`, the per-clip results of the test split; empty where that was not measured."""

    @property
    def tested(self) -> bool:
        """Whether the test split has been measured."""
        return any(name.startswith("test/") for name in self.metrics)


def finished_result(folder: Path, key: str, test: bool) -> BaselineResult | None:
    """The result of a finished run of this key whose weights are there, so that no test split is measured twice."""
    try:
        result = BaselineResult(**json.loads((folder / "result.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    weights = folder / "best" / Path(result.checkpoint).name / STATE
    whole = result.key == key and result.status == "finished" and weights.is_file()
    return result if whole and (result.tested or not test) else None
