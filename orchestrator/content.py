"""What is kept of a plan beside its records: all that the report needs, as JSON data, on storage and in MLflow."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from orchestrator.plan import Plan

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
        "command": command,
        "seeds": plan.seeds,
        "fine_tuning": asdict(study.fine_tuning),
        "data": {name: asdict(facts) for name, facts in plan.data.items()},
        "sources": {task: list(getattr(plan.base.data, task).sources) for task in plan.base.optim.tasks},
        "chosen_by": "validation subjects" if plan.base.data.validation_subjects else "last step",
        "tables": [
            {
                "name": table.name,
                "title": table.title,
                "varies": table.varies,
                "baseline": table.baseline,
                "columns": [asdict(column) | {"task": column.task} for column in table.columns],
                "notes": list(table.notes),
                "references": [{"label": line.label, "published": list(line.published)} for line in table.references],
                "rows": [
                    {
                        "label": line.row.label,
                        "arm": line.arm.name,
                        "training": line.row.training,
                        "published": list(line.row.published),
                        "units": {task: list(keys) for task, keys in line.units.items()},
                        # Samples of a task that the measured weights have seen, their parents' included.
                        "samples": {task: plan.samples(keys[0], task) for task, keys in line.units.items()},
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
