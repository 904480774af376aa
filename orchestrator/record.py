"""What a unit leaves when it ends. Beneath all other rooms of the orchestrator."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self


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
    def tested(self) -> bool:
        """Whether the test split has been measured; a search leaves it alone."""
        return any(name.startswith("test/") for name in self.metrics)

    def to_json(self) -> str:
        """One text for equal records."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError where the text is not a record."""
        try:
            record = cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"not a record ({error})") from error
        if record.status not in ("finished", "failed"):
            raise ValueError(f"not a record (status {record.status!r})")
        return record


def finished_of(records: Mapping[str, Record | None]) -> dict[str, Record]:
    """The finished ones."""
    return {key: record for key, record in records.items() if record is not None and record.status == "finished"}
