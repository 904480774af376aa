"""From the search command's values to what it needs; every fault of them is reported here, before anything starts."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.planning.resolve import base_settings, errors_at
from orchestrator.project import Data, Objectives, Project, Settings, load_project
from orchestrator.search.plan import Dimensions, Params, SearchPlan, active, dotted, field_of, run_of
from search_spaces import find_space
from search_spaces.space import COSTS, FLOPS, Choice, EarlyStopping, Range, Space
from ups_model.cli import assignments
from ups_model.wording import count

MAX_COMBINATIONS = 256
"""Combinations of ends that are built to see whether they are configurations; of more, each dimension alone."""
LEARNING = ("tpe", "gp", "cmaes", "nsga2")
"""Samplers that learn from results."""
CONDITIONAL = ("tpe", "random", "qmc", "grid")
"""Samplers that take conditions well; the others learn only from what all trials have, and draw the rest at random."""
UNCOMPARABLE = {
    "seed": "is not a choice: raise the space's seeds instead",
    "freeze_routes": "needs a parent, which a trial doesn't have",
    "model.text_model": "changes the vocabulary that all trials share",
    "data.validation_subjects": "changes the subjects that trials are judged by",
    "data.split_seed": "changes the subjects that trials are judged by",
    "optim.cycle": "changes the tasks that trials are judged by",
    "optim.evaluate_every": "changes how many checkpoints a trial may choose from",
}


@dataclass(frozen=True)
class SearchInputs:
    """What a search trains, on which clip sets."""

    plan: SearchPlan
    trials: int
    dimensions: Dimensions
    start: Params | None
    """The base configuration as a trial; None where it lies outside the space."""
    objectives: Objectives
    sets: Mapping[str, Data]
    paths: Mapping[str, Path]
    changes: Mapping[str, str]

    def seconds_of_a_unit(self, slots: int) -> float:
        """A guess from the operations of the base configuration; those measured take its place."""
        from orchestrator.planning.estimate import estimate

        units = {unit.key: unit for unit in self.plan.units_of(self.plan.start)[:1]}
        (seconds,) = estimate(units, self.sets, {}, slots).seconds.values()
        return seconds


def read_search(
    name: str,
    preset_name: str,
    data: Sequence[str],
    sets: Sequence[str],
    seeds: int | None,
    trials: int | None,
    warm: bool = False,
    stopping: str | None = None,
) -> SearchInputs:
    """Prepare a search.

    Args:
        name: of a space, a file's path, or module:name.
        preset_name: tiny, small or paper.
        data: NAME=PATH texts.
        sets: FIELD=VALUE texts.
        seeds: repetitions of each trial; None takes the space's own number.
        trials: None takes the space's own number.
        warm: learn from finished units of earlier searches and studies, too.
        stopping: a rule of early stopping, or "none"; None takes the space's own.

    Raises:
        ValueError: an unknown space or field, a dimension out of a field's range or one that makes trials
            incomparable, no validation subjects, an objective that isn't measured, an unusable clip set.
    """
    space = with_stopping(find_space(name), stopping)
    for flag, value in (("--seeds", seeds), ("--trials", trials)):
        if value is not None and value < 1:
            raise ValueError(f"{flag} must be at least 1, got {value}")
    if warm and space.sampler not in LEARNING:
        raise ValueError(
            f"--warm-start needs a sampler that learns, {', '.join(LEARNING)}, and the space {space.name!r} has "
            f"{space.sampler!r}; leave it out"
        )
    changes = assignments(sets, "--set", "FIELD=VALUE")
    with errors_at(f"space {space.name!r}"):
        project = load_project(space.project)
    base = base_settings(project, preset_name, space.base, changes)
    dimensions = check_dimensions(space, base, [base.field_path(name) for name in changes])
    paths = project.locate(data, project.sets(base))
    opened = project.open(paths)
    project.check(base, opened)
    objectives = project.objectives(base, opened)
    check_objective(space, objectives)
    with errors_at(f"space {space.name!r}"):
        check_costs(space, project, base, opened)
    inputs = project.inputs_identity(base)
    with errors_at(f"space {space.name!r}"):
        plan = SearchPlan(
            space, preset_name, base, seeds or space.seeds, project.facts(opened), inputs, sets=opened, warm=warm
        )
    start = start_in(plan, dimensions)
    return SearchInputs(plan, trials or space.trials, dimensions, start, objectives, opened, paths, changes)


def with_stopping(space: Space, rule: str | None) -> Space:
    """The space with another rule of early stopping; None changes nothing."""
    if rule is None:
        return space
    early = None if rule == "none" else dataclasses.replace(space.early_stopping or EarlyStopping(), rule=rule)  # type: ignore[arg-type]  # The command's choices
    return dataclasses.replace(space, early_stopping=early)


def check_dimensions(space: Space, base: Settings, changed: Sequence[str]) -> dict[str, Range | Choice]:
    """Dimensions by dotted field name, ranges of whole numbers with whole ends.

    Args:
        changed: fields that the user has set.

    Raises:
        ValueError: see `read_search`.
    """
    project, dimensions = load_project(space.project), {}
    for name, where in space.dimensions.items():
        with errors_at(f"space {space.name!r}, dimension {name!r}"):
            path = base.field_path(name)
            if path in dimensions:
                raise ValueError(f"{path} is searched twice; keep one")
            if path in changed:
                raise ValueError(f"{path} is searched and set; leave out --set {name}")
            (where,) = dotted(base, {name: where}).values()
            dimensions[path] = _as_field(path, where, field_of(base, path))
            _check_condition(space, path, dimensions, base)
            if space.sampler == "grid" and not _is_countable(dimensions[path]):
                raise ValueError("sampler grid needs a step, got a range without one; give it, or a Choice")
            if space.sampler == "cmaes" and isinstance(where, Choice):
                raise ValueError("sampler cmaes learns ranges alone, got a Choice; give a Range, or use tpe")
            for value in where.ends:
                _check_comparable(path, project, base, base.with_fields({path: value}))
    combinations = itertools.product(*(where.ends for where in dimensions.values()))
    for values in itertools.islice(combinations, MAX_COMBINATIONS):
        try:
            base.with_fields(active(dict(zip(dimensions, values, strict=True)), dimensions))
        except ValueError as error:
            raise ValueError(f"space {space.name!r}: {error}; narrow its dimensions") from error
    return dimensions


def _check_condition(space: Space, path: str, dimensions: Dimensions, base: Settings) -> None:
    """ValueError for a condition on what is no earlier choice, or on values that it doesn't have."""
    when = dimensions[path].when or {}
    if when and space.sampler not in CONDITIONAL:
        raise ValueError(
            f"sampler {space.sampler} does not learn fields that only some trials have; use one of "
            f"{', '.join(CONDITIONAL)}"
        )
    later = dotted(base, space.dimensions)
    for parent, values in when.items():
        if parent not in dimensions or parent == path:
            why = "comes later or is the dimension itself" if parent in later else "is not searched"
            raise ValueError(f"when={{{parent!r}: ...}} needs an earlier dimension, and {parent} {why}")
        where = dimensions[parent]
        if not isinstance(where, Choice):
            raise ValueError(f"when={{{parent!r}: ...}} needs a Choice, and {parent} is a Range")
        if unknown := [value for value in values if value not in where.values]:
            raise ValueError(f"when={{{parent!r}: {unknown[0]!r}}} never holds: {parent} is one of {where.values}")


def _is_countable(where: Range | Choice) -> bool:
    return isinstance(where, Choice) or where.step is not None or isinstance(where.low, int)


def _as_field(path: str, where: Range | Choice, value: object) -> Range | Choice:
    if isinstance(where, Choice):
        return where
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{path} is no number, so it has no range; give a Choice")
    numbers = (where.low, where.high, where.step or 0)
    if isinstance(value, float):
        return dataclasses.replace(
            where, low=float(where.low), high=float(where.high), step=None if where.step is None else float(where.step)
        )
    if any(number != int(number) for number in numbers):
        raise ValueError(f"{path} must be a whole number, got a range of {where.low} to {where.high} by {where.step}")
    return dataclasses.replace(where, low=int(where.low), high=int(where.high))


def _check_comparable(path: str, project: Project, base: Settings, changed: Settings) -> None:
    leaf = path.rsplit(".", 1)[-1]
    if path in UNCOMPARABLE:
        raise ValueError(f"{path} {UNCOMPARABLE[path]}")
    if path.startswith("evaluation.") or leaf in ("evaluate_targets", "evaluate_stride"):
        raise ValueError(f"{path} changes how trials are measured, not what they learn; use --set")
    if leaf in ("sources", "detections") or project.sources(changed) != project.sources(base):
        raise ValueError(f"{path} changes the data that trials are judged by; use --set")
    if project.samples(changed) != project.samples(base) or project.steps(changed) != project.steps(base):
        raise ValueError(
            f"{path} changes how many samples a trial trains on, so that trials would have unequal budgets; use --set"
        )


def check_objective(space: Space, objectives: Objectives) -> None:
    """ValueError for an objective that no unit of the search will measure, or a direction that looks for the worst."""
    for metric in space.metrics:
        if metric not in objectives.by_name and metric not in COSTS:
            raise ValueError(
                f"space {space.name!r}: objective {metric!r} is not measured; measured are "
                f"{', '.join(objectives.by_name)}"
            )
    for aim in space.aims:
        if (objective := objectives.by_name.get(aim.metric)) is None:
            continue
        if aim.direction != (best := "maximize" if objective.higher_is_better else "minimize"):
            raise ValueError(f"space {space.name!r}: direction of {aim.metric} must be {best!r}, got {aim.direction!r}")


def check_costs(space: Space, project: Project, base: Settings, sets: Mapping[str, Data]) -> None:
    """ValueError for objectives of tasks that no unit of the search measures, or operations that nobody counts."""
    _, stage = run_of(project, base, space.judged_on)
    for metric in space.metrics:
        task = metric.split("/")[1]
        if stage.task and metric not in COSTS and task != stage.task:
            raise ValueError(
                f"objective {metric!r} is not of the task {stage.task}, and {project.name} trains tasks apart; keep "
                "those of one task"
            )
    if FLOPS in space.metrics and project.sizes(base, sets) is None:
        raise ValueError(
            f"{FLOPS} is not known: {project.name} does not count operations; give its project sizes, or take "
            "cost/parameters"
        )


def start_in(plan: SearchPlan, dimensions: Dimensions) -> Params | None:
    """The base configuration as a trial; None where it lies outside the space."""
    return plan.start if all(holds(dimensions[path], value) for path, value in plan.start.items()) else None


def holds(where: Range | Choice, value: Any) -> bool:
    """Whether a value lies in a dimension."""
    if isinstance(where, Choice):
        return value in where.values
    if isinstance(value, str) or not where.low <= value <= where.high:
        return False
    steps = (value - where.low) / where.step if where.step else 0.0
    return bool(abs(steps - round(steps)) < 1e-8)


def search_content(inputs: SearchInputs, command: str) -> dict[str, Any]:
    """What MLflow keeps of a search beside its units."""
    plan, space = inputs.plan, inputs.plan.study
    return {
        "kind": "search",
        "name": plan.name,
        "study": space.name,
        "question": space.question,
        "objective": space.judged_on,
        "direction": next(aim.direction for aim in space.aims if aim.metric == space.judged_on),
        "expectation": f"{aims_text(space)} over {count(plan.seeds, 'seed')} a trial",
        "preset": plan.preset,
        "changes": dict(inputs.changes),
        "command": command,
        "early_stopping": space.early_stopping and vars(space.early_stopping),
        "seeds": plan.seeds,
        "first_seed": space.first_seed,
        "dimensions": {name: where.plain() for name, where in inputs.dimensions.items()},
        "data": {name: vars(facts) for name, facts in plan.data.items()},
        "tables": [],
        "units": {},
    }


def aims_text(space: Space) -> str:
    """What a search looks for, in words."""
    text = " and ".join(f"{aim.direction} {aim.metric}" for aim in space.aims)
    return text + (f" with {', '.join(map(str, space.limits))}" if space.limits else "")
