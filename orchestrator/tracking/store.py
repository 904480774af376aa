"""What the sync writes to: runs of a store, such as MLflow."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from orchestrator.tracking.schema import DataInput, Point


@dataclass
class Run:
    """A run of the store, as it was last read or written."""

    id: str
    status: str
    tags: dict[str, str]
    params: set[str]
    metrics: dict[str, float]
    files: str = ""
    """Address of its artifacts."""
    started: int = 0
    """When, in milliseconds."""
    inputs: set[DataInput] = field(default_factory=set)
    alone: bool = False
    """Made by this process, so that its tags name all of its points."""


class Store(Protocol):
    """Runs of one experiment. Every call may raise, and may be repeated."""

    experiment: str
    units: dict[str, Run]
    plans: dict[str, Run]
    arms: dict[str, Run]

    def tag_experiment(self, name: str, value: str) -> None: ...
    def ensure_plan(self, name: str, tags: Mapping[str, str]) -> Run: ...
    def ensure_units(self, wanted: Mapping[str, tuple[Mapping[str, str], int]]) -> None: ...
    def ensure_arms(self, wanted: Mapping[str, tuple[Mapping[str, str], int]]) -> None: ...
    def write(
        self,
        run: Run,
        rows: Iterable[list[Point]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None: ...
    def add_inputs(self, run: Run, inputs: Iterable[DataInput]) -> None: ...
    def drop_tag(self, run: Run, name: str) -> None: ...
    def steps(self, run: Run, name: str) -> set[int]: ...
    def set_status(self, run: Run, status: str, ended: int | None = None) -> None: ...
    def put(self, run: Run, name: str, content: str | bytes) -> None: ...
    def holds(self, run: Run, name: str, text: str) -> bool: ...
    def put_folder(self, run: Run, folder: Path, name: str) -> None: ...


def changed_values(run: Run, values: Mapping[str, float]) -> list[list[Point]]:
    """Points of metrics that a run doesn't have, or that have changed, a row each."""
    now = int(1000 * time.time())
    return [[Point(name, value, 0, now)] for name, value in values.items() if run.metrics.get(name) != value]
