"""Invented studies and records that the report's tests share: rows are trained jointly, so a row x seed is one unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.planning.plan import Plan, make_plan
from orchestrator.planning.plan_file import PlanFile
from orchestrator.planning.resolve import resolve
from orchestrator.project import DataFacts
from orchestrator.record import Record
from search_spaces.columns import AR3D, MPJPE
from search_spaces.study import Column, Row, Study, Table
from ups_model.config.presets import preset

COMMAND = "python -m orchestrator.ablate invented --seeds 3"
ABOUT = {"parameters": 1_230_000, "device": "cpu", "precision": "fp32", "commit": 40 * "a", "torch": "2.13.0"}
ROWS = (
    Row("thin", {"encoder_layers": 1}, "joint", published=(88.0, 42.0)),
    Row("full", {"encoder_layers": 2}, "joint", published=(89.3, 40.8)),
)


def plan_of(
    rows: Sequence[Row] = ROWS,
    columns: Sequence[Column] = (AR3D, MPJPE),
    seeds: int = 3,
    baseline: str = "full",
    name: str = "tiny",
    changes: Mapping[str, Any] | None = None,
    **table: Any,
) -> Plan:
    """A study of one table; `changes` are the user's own."""
    made = Table("depth", "Depth", "Layers", tuple(columns), tuple(rows), baseline, **table)
    config = preset(name)
    sets = {source: None for task in ("pe", "ar2d", "eap", "ar3d") for source in getattr(config.data, task).sources}
    data = {
        source: DataFacts(f"{index}1234567{56 * '0'}", source.startswith("synthetic"), f"about {source}", 1907)
        for index, source in enumerate(sets)
    }
    study = Study("invented", "Why?", "So.", (made,))
    return make_plan(resolve(study, name, changes or {}), seeds, data, "text")


def plan_file_of(plan: Plan, changes: Mapping[str, str] | None = None) -> PlanFile:
    return PlanFile.of(plan, COMMAND, changes or {})


def keys_of(plan: Plan, label: str, task: str = "ar3d") -> tuple[str, ...]:
    """Keys of a row's measured units, one a seed."""
    return next(line.units[task] for _, lines in plan.tables for line in lines if line.row.label == label)


def finished(key: str, metrics: Mapping[str, float], about: Mapping[str, Any] = ABOUT, **more: Any) -> Record:
    return Record(key, "finished", {f"test/{name}": value for name, value in metrics.items()}, about=about, **more)


def records_of(
    plan: Plan, accuracies: Mapping[str, Sequence[float | None]], errors: Mapping[str, Sequence[float]] | None = None
) -> dict[str, Record]:
    """Finished records of rows with these values, one a seed; None leaves a seed without a record."""
    records = {}
    for label, values in accuracies.items():
        for seed, (key, value) in enumerate(zip(keys_of(plan, label), values, strict=False)):
            if value is not None:
                metrics = {"ar3d/top1": value, "ar3d/clips": 100.0, "pe/mpjpe_mm": 50.0, "pe/mpjpe_mm_se": 1.25}
                if errors is not None:
                    metrics["pe/mpjpe_mm"] = errors[label][seed]
                records[key] = finished(key, metrics)
    return records
