"""What a unit leaves when it ends. Imports nothing else of the orchestrator."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from search_spaces.study import UPS
from ups_model.evaluation.health import check_health

NUMBERS = ("started", "ended", "train_seconds", "chosen_step", "energy_joules", "parameters", "gpus")
"""Entries of `Record.about` that are finite numbers wherever they are there."""

MAX_METRIC = 1e100
"""No measure comes near it, and sums of squares stay finite."""
MAX_BLOCKS = 10_000
"""Of a layer; no model has as many."""


@dataclass(frozen=True)
class Record:
    """What a unit leaves."""

    key: str
    status: Literal["finished", "failed"]
    metrics: Mapping[str, float] = field(default_factory=dict)
    """As `ups_model.training.result.Result` has them: "test/...", "validation/..."."""
    routes: Mapping[str, list[int]] = field(default_factory=dict)
    """The block that each task takes in each encoder layer."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Configuration, data, parameters, times, device, versions, commit."""
    checkpoint: str = ""
    """Folder of the chosen weights, relative to the unit's."""
    error: str = ""
    """Of a failed unit: what it raised, with the traceback."""
    health: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By task, as `health.TaskHealth.to_plain` has it; empty where nothing was held out to judge by."""
    outcomes: str = ""
    """SHA-256 of the unit's `outcomes.npz`; empty where the test split was not measured."""

    @property
    def project(self) -> str:
        """Address of what trained the unit."""
        return str(self.about.get("project", UPS))

    @property
    def tested(self) -> bool:
        """Whether the test split has been measured; a search leaves it alone."""
        return any(name.startswith("test/") for name in self.metrics)

    def has_outcomes(self, content: bytes) -> bool:
        """Whether an `outcomes.npz` is the one that the record has the digest of."""
        return hashlib.sha256(content).hexdigest() == self.outcomes

    def to_json(self) -> str:
        """One text for equal records."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, key: str | None = None) -> Self:
        """Raises ValueError where the text is not a record, or not that of the unit `key`."""
        try:
            record = cls(**json.loads(text))
        except (TypeError, RecursionError) as error:
            raise ValueError(f"not a record ({error})") from error
        record._check()
        if key not in (None, record.key):
            raise ValueError(f"it is the record of another unit, {record.key}")
        return record

    def _check(self) -> None:
        """ValueError for what no unit leaves, whatever wrote it."""
        if self.status not in ("finished", "failed"):
            raise ValueError(f"not a record (status {self.status!r})")
        objects = (self.metrics, self.routes, self.about, self.health)
        texts = (self.key, self.checkpoint, self.error, self.outcomes)
        if not all(isinstance(one, dict) for one in objects) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                "each of metrics, routes, about and health must be an object, each of key, checkpoint, error and "
                "outcomes a text"
            )
        if not all(is_number(value) and abs(value) < MAX_METRIC for value in self.metrics.values()):
            raise ValueError("metrics must be finite numbers by name")
        if not isinstance(self.about.get("trained_by", ""), str):
            raise ValueError(f"about.trained_by must be the key of a unit, got {self.about['trained_by']!r}")
        self._check_routes()
        for name in NUMBERS:
            if not is_number(self.about.get(name, 0)):
                raise ValueError(f"about.{name} must be a number, got {self.about[name]!r}")
        for task, health in self.health.items():
            try:
                check_health(health)
            except ValueError as error:
                raise ValueError(f"health of {task}: {error}") from error

    def _check_routes(self) -> None:
        """ValueError for routes that no model has."""
        lengths = {len(route) if isinstance(route, list) else 0 for route in self.routes.values()}
        blocks = [block for route in self.routes.values() if isinstance(route, list) for block in route]
        if (
            0 in lengths
            or len(lengths) > 1
            or not all(type(block) is int and 0 <= block < MAX_BLOCKS for block in blocks)
        ):
            raise ValueError("routes must have a block of each layer for each task, each layer the same for all")
        if unknown := sorted(task for task in self.routes if not task.isidentifier()):
            raise ValueError(f"routes must be of tasks, got {unknown[0]!r}")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def encodable(text: str) -> str:
    """A text that UTF-8 can hold: a half character, as names of files may have, is written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def finished_of(records: Mapping[str, Record | None]) -> dict[str, Record]:
    """The finished ones."""
    return {key: record for key, record in records.items() if record is not None and record.status == "finished"}
