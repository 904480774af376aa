"""The study that measures the best trial of a search against its base, on the test split and with fresh seeds."""

import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from orchestrator.search.plan import Params, run_of
from orchestrator.search.resolve_space import SearchInputs
from ups_model.config.schema import canonical

STUDY_FILE = "best.yaml"
STUDY_SEEDS = 5
"""Repetitions of each of its rows."""


def is_base(inputs: SearchInputs, best: Params) -> bool:
    """Whether the best trial is the base itself, so that there is nothing to compare."""
    return dict(best) == dict(inputs.plan.start)


def study_text(inputs: SearchInputs, best: Params) -> str:
    """A study file of two rows, `base` and `best`."""
    plan, space = inputs.plan, inputs.plan.study
    base = {plan.base.field_path(name): value for name, value in space.base.items()}
    base.pop("data.validation_subjects", None)  # Held out to judge trials; a study trains as its preset says.
    base |= {plan.base.field_path(name): value for name, value in inputs.changes.items()}
    training, stage = run_of(plan.project, plan.base, space.objective)
    rows: list[dict[str, Any]] = [
        {"label": "base", "training": training},
        {"label": "best", "changes": dict(best), "training": training},
    ]
    table = {
        "name": "best",
        "title": f"The best trial of the search {space.name}",
        "varies": "Trial",
        "columns": _columns(inputs, (stage.task,) if stage.task else tuple(plan.project.sources(plan.base))),
        "rows": rows,
        "baseline": "base",
    }
    study = {
        "name": f"{space.name}_best",
        "question": f"Is the best trial of the search {space.name} better than its base?",
        "expectation": "Less than the search says, which chose it by its values.",
        "project": space.project,
        "base": canonical(base),
        "seeds": STUDY_SEEDS,
        "tables": [table],
    }
    return yaml.safe_dump(study, sort_keys=False, allow_unicode=True)


def _columns(inputs: SearchInputs, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """The metric that stands for each task."""
    columns = []
    for task in tasks:
        of_task = f"validation/{task}/"
        name, metric = next(item for item in inputs.objectives.by_name.items() if item[0].startswith(of_task))
        columns.append(
            {
                "metric": name.removeprefix("validation/"),
                "title": inputs.plan.project.tasks[task],
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
            }
        )
    return columns


def study_command(inputs: SearchInputs, file: str, storage: str = "", with_paths: bool = False) -> str:
    """The command that runs the study of a file.

    Args:
        storage: its `--storage`; empty for the default.
        with_paths: it has the paths of this machine, so that it runs as it is.
    """
    parts = ["python", "-m", "orchestrator.ablate", file, "--preset", inputs.plan.preset]
    for name, facts in inputs.plan.data.items():
        if with_paths:
            parts += ["--data", f"{name}={inputs.paths[name]}"]
        elif not (facts.synthetic and name.startswith("synthetic_")):
            parts += ["--data", f"{name}=PATH"]
    return shlex.join([*parts, *(["--storage", storage] if storage else [])])
