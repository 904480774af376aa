"""A study's results as pandas frames, for a notebook: the report's own numbers in long form."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.planning.plan_file import PlanFile
from orchestrator.project import ITEM
from orchestrator.report.build import build
from orchestrator.report.claims import Outcomes, OutcomesOf
from orchestrator.report.clip_results import ANSWERS, CLASS_ROWS, POSE_ROWS, by_source, item_metrics, ratio_ends
from orchestrator.report.model import Report
from orchestrator.report.render import cells_csv, claims_csv
from orchestrator.report.sources import open_study
from orchestrator.storage.ledger import Ledger

if TYPE_CHECKING:  # It takes half a second to import, and a report needs none of it.
    from pandas import DataFrame

OUTCOME_COLUMNS = (
    "arm", "stage", "seed", "task", "source", "clip", "camera", "subject", "ratio", "label", "predicted", "rank",
    "margin", "frames", "error_mm", "p_error_mm", "metric", "value", "key",
)  # fmt: skip

WHOLE_NUMBERS = ("seed", "clip", "camera", "subject", "label", "predicted", "rank", "frames")
"""Columns that stay whole where other tasks have no value of them."""


@dataclass(frozen=True)
class Frames:
    """A study's results; each frame is made when it is first asked for."""

    report: Report
    _outcomes: OutcomesOf

    @cached_property
    def cells(self) -> "DataFrame":
        """A line a table's cell: the columns of cells.csv."""
        return _frame(cells_csv(self.report))

    @cached_property
    def runs(self) -> "DataFrame":
        """A line a cell and seed: table, row, arm, training, baseline, column (the metric), title, unit, seed, state,
        value (NaN without one), health, and the published value."""
        from pandas import DataFrame

        return DataFrame(
            [
                {
                    "table": table.name,
                    "row": row.label,
                    "arm": cell.arm,
                    "training": row.training,
                    "baseline": row.baseline,
                    "column": cell.column.metric,
                    "title": cell.column.title,
                    "unit": cell.column.unit,
                    "seed": seed,
                    "state": state,
                    "value": cell.values.get(seed, float("nan")),
                    "health": cell.health.get(seed, "not judged"),
                    "published": float("nan") if cell.published is None else cell.published,
                }
                for table in self.report.tables
                for row in table.rows
                for cell in row.cells
                for seed, state in cell.states.items()
            ]
        )

    @cached_property
    def claims(self) -> "DataFrame":
        """A line a claim: the columns of claims.csv."""
        return _frame(claims_csv(self.report))

    @cached_property
    def curves(self) -> "DataFrame":
        """A line a point of a learning curve on validation subjects: arm, stage, task, seed, step (its parent's steps
        included), metric, value, trivial (the trivial answer's value), state (the run's health)."""
        from pandas import DataFrame

        columns = ("arm", "stage", "task", "seed", "step", "metric", "value", "trivial", "state")
        lines = (
            vars(curve) | {"step": curve.first_step + step, "value": value}
            for curve in self.report.curves
            for step, value in curve.points
        )
        return DataFrame([{name: line[name] for name in columns} for line in lines])

    @cached_property
    def outcomes(self) -> "DataFrame":
        """A line a test clip of each run (its camera, in pose estimation; its observation ratio, in early prediction):
        OUTCOME_COLUMNS. rank is that of the true class, 0 is right; errors are means over the line's frames, in mm."""
        return outcome_frame(self.report.plan, self._outcomes)


def load(study: str | None = None, *, storage: str = "runs/ablations", tracking_uri: str | None = None) -> Frames:
    """A study's results from its storage, or from MLflow.

    Args:
        study: name of a study, or of its plan; None where there is one.
        storage: a folder or s3://BUCKET/PREFIX.
        tracking_uri: of MLflow, in place of a storage.

    Raises:
        ValueError: no such study or several plans of it, or not one record.
        OSError: the storage doesn't answer.
    """
    opened = open_study(study, None if tracking_uri else Ledger.open(storage, create=False), tracking_uri)
    return Frames(build(opened.plan, opened.records, opened.outcomes), opened.outcomes)


def outcome_frame(plan: PlanFile, outcomes: OutcomesOf) -> "DataFrame":
    """Results by test clip of all runs that have any, in the order of their keys."""
    import pandas

    parts = [
        pandas.DataFrame(columns).assign(arm=unit.arm, stage=unit.stage, seed=unit.seed, key=key)
        for key, unit in sorted(plan.units.items())
        for columns in _columns(outcomes(key) or {})
    ]
    frame = pandas.concat(parts, ignore_index=True) if parts else pandas.DataFrame()
    return frame.reindex(columns=list(OUTCOME_COLUMNS)).astype(dict.fromkeys(WHOLE_NUMBERS, "Int64"))


def _columns(arrays: Outcomes) -> list[dict[str, Any]]:
    """Of each task and source, and of each observation ratio of it, the columns of its lines."""
    return [
        {"task": task, "source": source, **columns}
        for (task, source), named in sorted(by_source(arrays).items())
        for columns in (_items(named) or (_poses(named) if "frames" in named else _classes(named)))
    ]


def _items(named: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    return [
        {"subject": named["subject"], "metric": metric, "value": named[f"{ITEM}{metric}"]}
        for metric in item_metrics(named)
    ]


def _poses(named: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    same = {name: named[name] for name in (*POSE_ROWS, "label") if name in named}
    means = {name: named[name.replace("_mm", "_sum_mm")] / named["frames"] for name in ("error_mm", "p_error_mm")}
    return [same | means]


def _classes(named: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    same = {name: named[name] for name in CLASS_ROWS}
    return [
        same | {name: named[f"{name}{end}"] for name in ANSWERS} | {"ratio": float(end[1:] or 1)}
        for end in ratio_ends(named)
    ]


def _frame(text: str) -> "DataFrame":
    import pandas

    return pandas.read_csv(io.StringIO(text))
