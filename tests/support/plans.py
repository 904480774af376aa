"""Small plans, ledgers and records that the orchestrator's tests share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.planning.plan import Plan, Unit, make_plan
from orchestrator.planning.resolve import resolve
from orchestrator.project import DataFacts, load_project
from orchestrator.record import Record
from orchestrator.scheduling.task_graph import TaskGraph
from orchestrator.storage.ledger import Ledger
from search_spaces.columns import ABLATION
from search_spaces.study import Row, Study, Table
from ups_model.source import source_identity

DATA = {
    name: DataFacts(f"{index:064x}", True, f"synthetic: {name}", 100)
    for index, name in enumerate(("synthetic_h36m17", "synthetic_openpose18", "synthetic_ntu25"))
}
TEXT = "a language model"


def small_study(**changes: Any) -> Study:
    """One table with a baseline and another row; 8 units a seed."""
    table = Table(
        "depth",
        "Depth",
        "Layers",
        ABLATION,
        (Row("1", {"encoder_layers": 1}), Row("2", {"encoder_layers": 2})),
        baseline="2",
    )
    return Study(**({"name": "small", "question": "?", "expectation": "!", "tables": (table,)} | changes))


def plan_of(study: Study, seeds: int = 1, changes: Mapping[str, Any] | None = None, name: str = "tiny") -> Plan:
    """A plan on invented data."""
    resolved = resolve(study, name, changes or {})
    used = {source for project, config in resolved.settings for source in load_project(project).sets(config)}
    others = {one: DataFacts(f"of {one}", False, f"invented: {one}", 100) for one in sorted(used - DATA.keys())}
    return make_plan(resolved, seeds, {**DATA, **others}, TEXT)


def children_of(plan: Plan, key: str) -> list[str]:
    """Keys of the units that start from a unit."""
    return [unit.key for unit in plan.units.values() if unit.parent == key]


def finish(ledger: Ledger, unit: Unit, **metrics: float) -> Record:
    """Leave a finished record, with weights that are there but hold nothing."""
    values = {f"test/{name}": value for name, value in {"score": 0.0, **metrics}.items()}
    about = {"source": source_identity(), "device": "cpu", "precision": "fp32", "torch": "2.13.0"}
    record = Record(unit.key, "finished", values, about=about, checkpoint="best/step-1")
    folder = ledger.folder(unit) / "best" / "step-1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text("{}")
    ledger.write(unit, record)
    return record


def new_ledger(folder: Path) -> Ledger:
    """An empty one."""
    return Ledger.open(str(folder / "storage"))


def graph_of(plan, ledger, seconds=None, check=None):
    """The task graph of a study's plan."""
    return TaskGraph(plan.units, ledger, seconds, plan.measured(), check)
