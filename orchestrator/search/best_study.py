"""The study that measures the best trial of a search against its base, on the test split and with fresh seeds."""

import shlex
from typing import Any

import yaml

from orchestrator.search.plan import Params
from orchestrator.search.resolve_space import SearchInputs
from orchestrator.ups.project import UPS
from ups_model.config.schema import canonical
from ups_model.evaluation.metric_names import headline_metric

STUDY_FILE = "best.yaml"
STUDY_SEEDS = 5
"""Repetitions of each of its rows."""


def is_base(inputs: SearchInputs, best: Params) -> bool:
    """Whether the best trial is the base itself, so that there is nothing to compare."""
    return dict(best) == dict(inputs.plan.start)


def study_text(inputs: SearchInputs, best: Params) -> str:
    """A study file of two rows, `base` and `best`."""
    plan, space = inputs.plan, inputs.plan.study
    tasks = plan.base.optim.tasks
    base = {plan.base.field_path(name): value for name, value in space.base.items()}
    base.pop("data.validation_subjects", None)  # Held out to judge trials; a study trains as its preset says.
    base |= {plan.base.field_path(name): value for name, value in inputs.changes.items()}
    training = "joint" if len(tasks) > 1 else "separate"
    rows: list[dict[str, Any]] = [
        {"label": "base", "training": training},
        {"label": "best", "changes": dict(best), "training": training},
    ]
    table = {
        "name": "best",
        "title": f"The best trial of the search {space.name}",
        "varies": "Trial",
        "columns": [_column(headline_metric(task), UPS.tasks[task]) for task in tasks],
        "rows": rows,
        "baseline": "base",
    }
    study = {
        "name": f"{space.name}_best",
        "question": f"Is the best trial of the search {space.name} better than its base?",
        "expectation": "Less than the search says, which chose it by its values.",
        "base": canonical(base),
        "seeds": STUDY_SEEDS,
        "tables": [table],
    }
    return yaml.safe_dump(study, sort_keys=False, allow_unicode=True)


def _column(metric: str, title: str) -> dict[str, Any]:
    is_error = metric.endswith("_mm")
    return {"metric": metric, "title": title, "unit": "mm" if is_error else "%", "higher_is_better": not is_error}


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
