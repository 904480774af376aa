"""The searches of a study's tuning, one an arm: which there are, and what their trials say."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.planning.inputs import Inputs
from orchestrator.planning.plan import Arm, Line, Unit
from orchestrator.planning.resolve import errors_at
from orchestrator.planning.tuning import PlannedTuning, TunedArm
from orchestrator.project import Objectives, Settings
from orchestrator.record import Record, finished_of
from orchestrator.search.plan import Params, SearchPlan
from orchestrator.search.resolve_space import SearchInputs, check_dimensions, check_objective, start_in
from orchestrator.storage.ledger import Ledger
from search_spaces.space import SCORE, Choice, Range
from search_spaces.study import Column, Tuning
from ups_model.wording import count

if TYPE_CHECKING:  # Optuna takes a second to import, which --plan and refusals need not wait for.
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class ArmSearch:
    """A search, and what of the study it is for."""

    inputs: SearchInputs
    arm: Arm
    """As the study has it; the first of several that begin with the same run."""
    rows: tuple[tuple[str, str, str], ...]
    """As `TunedArm.rows`."""
    task: str

    @property
    def name(self) -> str:
        """On storage."""
        return self.inputs.plan.name


def read_tuning(inputs: Inputs, tuning: Tuning) -> tuple[ArmSearch, ...]:
    """One search for each arm of a study, in the order of its tables; arms that begin with the same run have one.

    An arm's first run is what a trial trains: joint training of "fine-tuned", the task's own of "separate".

    Raises:
        ValueError: a row sets a field that is searched, or has none of it; as `check_dimensions`; an objective that an
            arm doesn't measure; no validation subjects. Names study, table and row.
    """
    searches: dict[str, ArmSearch] = {}
    for table, lines in inputs.plan.tables:
        for line in lines:
            with errors_at(f"study {inputs.plan.study.name!r}, table {table.name!r}, row {line.row.label!r}"):
                for group in line.arms:
                    column = next(column for column in table.columns if column.group == group)
                    _check_untouched(line, column, tuning)
                    one = _search(inputs, tuning, line, column)
                    kept = searches.get(one.name, one)
                    searches[one.name] = replace(kept, rows=(*kept.rows, (table.name, line.row.label, group)))
    return tuple(searches.values())


def _check_untouched(line: Line, column: Column, tuning: Tuning) -> None:
    """ValueError where a row or its column sets what is searched: the search would undo it."""
    config = line.arms[column.group].config
    searched = {config.field_path(name): name for name in tuning.dimensions}
    for what, changes in (("the row", line.row.changes), (f"column {column.title!r}", column.changes)):
        for name in changes:
            if (path := config.field_path(name)) in searched:
                raise ValueError(
                    f"{what} sets {path}, and tuning searches it: the search would undo what the table varies; take "
                    f"{searched[path]!r} out of tuning's dimensions, or make a study without tuning of this table"
                )


def _search(inputs: Inputs, tuning: Tuning, line: Line, column: Column) -> ArmSearch:
    plan, arm = inputs.plan, line.arms[column.group]
    first = plan.units[plan.with_parents(line.units[column.group][:1])[0]]
    project, settings = first.trainer, first.config.with_fields({"seed": 0})
    objectives = project.objectives(settings, inputs.sets)
    objective = tuning.objective or _objective(objectives, first, column)
    chosen = objectives.by_name.get(objective)
    direction = "minimize" if chosen is not None and not chosen.higher_is_better else "maximize"
    space = tuning.space(plan.study.name, objective, direction, first.project)  # type: ignore[arg-type]
    if first.task and objective.count("/") > 1 and objective.split("/")[1] != first.task:
        raise ValueError(
            f"its first run trains {first.task} alone and measures no {objective}; leave out tuning's objective, for "
            "the headline metric of each task"
        )
    check_objective(space, objectives)
    changed = []
    for name in inputs.changes:
        with suppress(ValueError):  # A field that rows of another project have.
            changed.append(settings.field_path(name))
    dimensions = check_dimensions(space, settings, changed)
    facts = {name: plan.data[name] for name in project.sets(settings)}
    identity = project.inputs_identity(_base_of(inputs, first.project))
    search = SearchPlan(space, plan.preset, settings, tuning.seeds, facts, identity, arm=arm.name)
    start = start_in(search, dimensions)
    read = SearchInputs(search, tuning.trials, dimensions, start, objectives, inputs.sets, inputs.paths, inputs.changes)
    return ArmSearch(read, arm, (), first.task)


def _objective(objectives: Objectives, first: Unit, column: Column) -> str:
    """The score where several tasks are trained jointly, else the metric that stands for the task."""
    if not first.task and SCORE in objectives.by_name:
        return SCORE
    of_task = f"validation/{first.task or column.task}/"
    return next((name for name in objectives.by_name if name.startswith(of_task)), SCORE)


def _base_of(inputs: Inputs, project: str) -> Settings:
    """Of the rows of a project, as the planner takes their inputs' identity from."""
    rows = (row for table in inputs.resolved.tables for row in table.rows)
    return next((row.base for row in rows if row.project == project), inputs.resolved.base)


def outcome(
    searches: Sequence[ArmSearch], tuning: Tuning, trials: Mapping[str, Sequence["FrozenTrial"]], ledger: Ledger
) -> PlannedTuning:
    """What the searches have chosen.

    Args:
        trials: of each search by its name.

    Raises:
        ValueError: no trial of an arm has a value.
    """
    return PlannedTuning(
        dimensions={name: described(where) for name, where in tuning.dimensions.items()},
        trials=tuning.trials,
        seeds=tuning.seeds,
        first_seed=tuning.first_seed,
        sampler=tuning.sampler,
        judged_on=", ".join(dict.fromkeys(one.inputs.objectives.held_out for one in searches)),
        arms=tuple(_tuned(one, tuning, trials[one.name][: tuning.trials], ledger) for one in searches),
    )


def _tuned(search: ArmSearch, tuning: Tuning, trials: Sequence["FrozenTrial"], ledger: Ledger) -> TunedArm:
    from orchestrator.search.trials import ranked, units_of_trials

    plan, space = search.inputs.plan, search.inputs.plan.study
    best = ranked(trials, space.direction)[0] if trials else None
    if best is None or best.value is None:
        raise ValueError(
            f"tuning of arm {search.arm.name!r}: none of its {count(tuning.trials, 'trial')} has a value, so nothing "
            "can be chosen; see the log of its units, and narrow tuning's dimensions"
        )
    records = finished_of(ledger.read(units_of_trials(plan, trials)))
    start = search.inputs.start
    first = next((trial for trial in trials if trial.params == start), None)
    paths = {name: plan.base.field_path(name) for name in tuning.dimensions}
    objective = search.inputs.objectives.by_name[space.objective]
    return TunedArm(
        search=search.name,
        arm=search.arm.name,
        training=search.arm.training,
        task=search.task,
        rows=search.rows,
        objective=space.objective,
        unit=objective.unit,
        higher_is_better=objective.higher_is_better,
        start=None if start is None else {name: start[path] for name, path in paths.items() if path in start},
        chosen={name: best.params[path] for name, path in paths.items() if path in best.params},
        start_values=_values(plan, first.params, records) if first is not None and first.value is not None else (),
        best_values=_values(plan, best.params, records),
        complete=sum(trial.value is not None for trial in trials),
        failed=sum(trial.value is None for trial in trials),
        seconds=math.fsum(record.about.get("train_seconds", 0.0) for record in records.values()),
    )


def _values(plan: SearchPlan, params: Params, records: Mapping[str, Record]) -> tuple[float, ...]:
    """The objective of each of a trial's units that has it, by seed."""
    metrics = [records[unit.key].metrics for unit in plan.units_of(params) if unit.key in records]
    return tuple(float(each[plan.study.objective]) for each in metrics if plan.study.objective in each)


def described(where: Range | Choice) -> str:
    """A dimension in words."""
    if isinstance(where, Choice):
        return f"one of {', '.join(map(str, where.values))}"
    return f"{where.low:g} to {where.high:g}" + (", log" if where.log else f" by {where.step:g}" if where.step else "")


def budget_text(tuning: Tuning) -> str:
    """Of one arm."""
    dimensions = "; ".join(f"{name} {described(where)}" for name, where in tuning.dimensions.items())
    return f"{count(tuning.trials, 'trial')} x {count(tuning.seeds, 'seed')} over {dimensions} ({tuning.sampler})"
