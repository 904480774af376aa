"""What is kept of a plan beside its records: all that the report needs, as JSON data, on storage and in MLflow."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from orchestrator.planning.plan import Plan, with_layers
from search_spaces.study import Column
from ups_model.config import canonical

FORMAT = 1


def plan_content(plan: Plan, command: str, changes: Mapping[str, str]) -> dict[str, Any]:
    """JSON data.

    Args:
        plan: the plan.
        command: the command line that made it, without paths of the machine.
        changes: the user's own fields (`--set`).
    """
    study = plan.study
    return {
        "format": FORMAT,
        "name": plan.name,
        "study": study.name,
        "question": study.question,
        "expectation": study.expectation,
        "preset": plan.preset,
        "changes": dict(changes),
        "overridden": overridden(plan),
        "command": command,
        "seeds": plan.seeds,
        "fine_tuning": asdict(study.fine_tuning),
        "data": {name: asdict(facts) for name, facts in plan.data.items()},
        "sources": {task: list(getattr(plan.base.data, task).sources) for task in plan.base.optim.tasks},
        "chosen_by": plan.base.chosen_by,
        "tables": [
            {
                "name": table.name,
                "title": table.title,
                "varies": table.varies,
                "baseline": table.baseline,
                "columns": [_column(plan, column) for column in table.columns],
                "notes": list(table.notes),
                "references": [{"label": line.label, "published": list(line.published)} for line in table.references],
                "rows": [
                    {
                        "label": line.row.label,
                        "arms": {group: arm.name for group, arm in line.arms.items()},
                        "training": line.row.training,
                        "published": list(line.row.published),
                        # By group of columns: a task, or a task and what the column changes.
                        "units": {group: list(keys) for group, keys in line.units.items()},
                        # Samples of a task that the measured weights have seen, their parents' included.
                        "samples": {
                            column.group: plan.samples(line.units[column.group][0], column.task)
                            for column in table.columns
                        },
                    }
                    for line in lines
                ],
            }
            for table, lines in plan.tables
        ],
        "units": {
            unit.key: {
                "name": unit.name,
                "stage": unit.stage,
                "task": unit.task,
                "seed": unit.seed,
                "arm": unit.arm,
                "parent": unit.parent,
                "folder": unit.folder,
            }
            for unit in plan.units.values()
        },
    }


def overridden(plan: Plan) -> list[str]:
    """Fields that the study sets and the user has set otherwise: its headings, notes and published values are of its
    own setting."""
    theirs = {plan.base.field_path(name): value for name, value in plan.study.base.items()}
    return sorted(name for name, value in theirs.items() if plan.base.with_fields({name: value}) != plan.base)


def _column(plan: Plan, column: Column) -> dict[str, Any]:
    sources = getattr(with_layers(plan.base, column.changes).data, column.task).sources
    plain = {name: getattr(column, name) for name in ("metric", "title", "unit", "higher_is_better")}
    return plain | {
        "changes": canonical(column.changes),
        "task": column.task,
        "group": column.group,
        "sources": list(sources),
    }
