"""The study that measures the best trials of a search against its base, on the test split and with fresh seeds."""

import shlex
from collections.abc import Mapping, Sequence
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


def study_text(inputs: SearchInputs, best: Mapping[str, Params]) -> str:
    """A study file of the row `base` and those of the best trials, by label."""
    plan, space = inputs.plan, inputs.plan.study
    base = {plan.base.field_path(name): value for name, value in space.base.items()}
    base.pop("data.validation_subjects", None)  # Held out to judge trials; a study trains as its preset says.
    base |= {plan.base.field_path(name): value for name, value in inputs.changes.items()}
    training, stage = run_of(plan.project, plan.base, space.judged_on)
    rows: list[dict[str, Any]] = [
        {"label": "base", "training": training},
        *({"label": label, "changes": dict(params), "training": training} for label, params in best.items()),
    ]
    what = f"best trial of the search {space.name}" if not space.objectives else f"Pareto front of {space.name}"
    table = {
        "name": "best",
        "title": f"The {what}",
        "varies": "Trial",
        "columns": _columns(inputs, (stage.task,) if stage.task else tuple(plan.project.sources(plan.base))),
        "rows": rows,
        "baseline": "base",
    }
    study = {
        "name": f"{space.name}_best",
        "question": f"Is the {what} better than its base?",
        "expectation": f"Less than the search says, which chose {'them' if len(best) > 1 else 'it'} by its values.",
        "project": space.project,
        "base": canonical(base),
        "seeds": STUDY_SEEDS,
        "tables": [table],
    }
    return yaml.safe_dump(study, sort_keys=False, allow_unicode=True)


def _columns(inputs: SearchInputs, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """The metric that stands for each task, and those of several objectives."""
    by_name, columns = inputs.objectives.by_name, []
    names = [next(name for name in by_name if name.startswith(f"validation/{task}/")) for task in tasks]
    several = [aim.metric for aim in inputs.plan.study.objectives if aim.metric.split("/")[1] in tasks]
    for name in dict.fromkeys([*names, *several]):
        metric, task = by_name[name], name.split("/")[1]
        columns.append(
            {
                "metric": name.removeprefix("validation/"),
                "title": inputs.plan.project.tasks[task] + ("" if name in names else f": {name.split('/', 2)[2]}"),
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
