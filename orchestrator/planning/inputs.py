"""From command-line values to a plan; every fault of them is reported here, before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.planning.plan import Plan, make_plan
from orchestrator.planning.resolve import ResolvedStudy, check_study, errors_at, open_data, resolve
from orchestrator.planning.tuning import PlannedTuning, expanded
from orchestrator.project import Data, DataFacts, load_project
from search_spaces import find_study
from ups_model.cli import assignments

MAX_SEEDS = 1000
"""Repetitions of a row."""


@dataclass(frozen=True)
class Inputs:
    """A plan, and the data sets that it trains on."""

    plan: Plan
    sets: Mapping[str, Data]
    paths: Mapping[str, Path]
    changes: Mapping[str, str]
    resolved: ResolvedStudy
    """Without tuned rows."""

    def tuned(self, tuning: PlannedTuning) -> "Inputs":
        """The same with the rows that have the chosen values."""
        resolved = expanded(self.resolved, tuning.arms)
        plan = make_plan(resolved, self.plan.seed_numbers, self.plan.data)
        return replace(self, plan=replace(plan, tuning=tuning))


def read_inputs(
    name: str, preset_name: str, data: Sequence[str], sets: Sequence[str], seeds: int | Sequence[int] | None
) -> Inputs:
    """Plan a study.

    Args:
        name: of the study, a file's path, or module:name.
        preset_name: tiny, small or paper.
        data: NAME=PATH texts.
        sets: FIELD=VALUE texts.
        seeds: repetitions, or their seeds; None takes the study's own number.

    Raises:
        ValueError: an unknown study or field, a row out of range, a clip set that isn't there or can't serve its task,
            a clip that is trained on in one task and evaluated in another.
    """
    study = find_study(name)
    changes = assignments(sets, "--set", "FIELD=VALUE")
    if isinstance(seeds, int) and seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {seeds}")
    if isinstance(seeds, int) and seeds > MAX_SEEDS:
        raise ValueError(f"--seeds must be at most {MAX_SEEDS}, got {seeds}")
    if seeds is not None and not seeds:
        raise ValueError("--seeds must name at least one seed, as in 0,3,7")
    resolved = resolve(study, preset_name, changes)
    paths, opened = open_data(resolved, list(data))
    check_study(resolved, opened)
    facts: dict[str, DataFacts] = {}
    for address, project in reversed(resolved.projects.items()):
        names = resolved.sets(address)
        facts |= project.facts({name: one for name, one in opened.items() if name in names})
    plan = make_plan(resolved, study.seeds if seeds is None else seeds, {name: facts[name] for name in opened})
    if study.tuning is not None:
        with errors_at(f"study {study.name!r}"):
            study.tuning.check_fresh(plan.seed_numbers)
    return Inputs(plan, opened, paths, changes, resolved)


def wanted_metrics(inputs: Inputs) -> dict[str, tuple[str, ...]]:
    """By unit key, the metrics that the tables have columns of and that the unit can have."""
    plan = inputs.plan
    wanted: dict[str, dict[str, None]] = {}
    for table, lines in plan.tables:
        for line in lines:
            for column in table.columns:
                arm = line.arms[column.group]
                if column.metric in load_project(arm.project).metrics(arm.config, column.task, inputs.sets):
                    for key in line.units[column.group]:
                        wanted.setdefault(key, {})[column.metric] = None
    return {key: tuple(metrics) for key, metrics in wanted.items()}
