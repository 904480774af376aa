"""The arms of a study, or trials of a search, as MLflow shows them: means over seeds, and what sets each arm apart.

Imports no MLflow.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.record import Record, finished_of
from orchestrator.tracking.schema import PARAM_LENGTH, Tracked, arm_label, best_names, clean, config_params, digest_of
from search_spaces.space import SCORE
from ups_model.evaluation.health import read_health, states_together
from ups_model.evaluation.metric_names import is_headline


@dataclass
class TrackedArm:
    """An arm of a study, or a trial of a search, and its units."""

    name: str
    key: str
    """Names its run in the store."""
    label: str
    """For MLflow's narrow column."""
    training: str
    config: Mapping[str, str]
    """By dotted names, without the seed."""
    rows: dict[str, None] = field(default_factory=dict)
    """Of the study's tables, which it fills, for people."""
    measured: dict[str, dict[str, None]] = field(default_factory=dict)
    """By task, the keys of the units on which it is measured, one a seed; of trials the score over all tasks, too."""
    own: set[str] = field(default_factory=set)
    """Keys of the units whose runs lie below the arm's."""
    columns: set[str] = field(default_factory=set)
    """Metrics in the study's tables."""

    @property
    def keys(self) -> set[str]:
        """Keys of all units that the arm rests on. Arms may share some, each of which lies below one arm."""
        return self.own.union(*self.measured.values())


def arm_key(plan: Tracked, arm: str) -> str:
    """Names an arm's run in the store."""
    return f"{plan.name}/{digest_of(arm)}"


def arms_of(plan: Tracked) -> dict[str, TrackedArm]:
    """A plan's arms by name, in the order of its tables."""
    arms: dict[str, TrackedArm] = {}
    for table, lines in plan.tables:
        for line in lines:
            for column in table.columns:
                planned, keys = line.arms[column.group], line.units[column.group]
                if planned.name not in arms:
                    config = config_params(planned.config)
                    arms[planned.name] = _arm(plan, planned.name, planned.training, config)
                arm = arms[planned.name]
                arm.rows[f"{table.title}: {line.row.label}"] = None
                arm.columns.add(column.metric)
                arm.measured.setdefault(column.task, {}).update(dict.fromkeys(keys))
    for unit in plan.units.values():
        if unit.arm not in arms:
            arms[unit.arm] = _arm(plan, unit.arm, unit.stage, config_params(unit.config))
        arms[unit.arm].own.add(unit.key)
        if not plan.tables:  # A search, in which every unit is measured, on all tasks.
            for task in (*unit.trainer.sources(unit.config), SCORE.rpartition("/")[2]):
                arms[unit.arm].measured.setdefault(task, {})[unit.key] = None
    return arms


def _arm(plan: Tracked, name: str, training: str, config: Mapping[str, str]) -> TrackedArm:
    without_seed = {option: value for option, value in config.items() if option != "seed"}
    return TrackedArm(name, arm_key(plan, name), arm_label(plan, name), training, without_seed)


def differing_options(arms: Iterable[TrackedArm]) -> list[str]:
    """Options of the configuration in which the arms differ."""
    configs = [arm.config for arm in arms]
    options = sorted({option for config in configs for option in config})
    return [option for option in options if len({config.get(option) for config in configs}) > 1]


def arm_params(arm: TrackedArm, options: Iterable[str]) -> dict[str, str]:
    """An arm's parameters: these options, its name, and how it trains."""
    differing = {option: arm.config[option] for option in options if option in arm.config}
    return differing | {"arm": arm.name[:PARAM_LENGTH], "training": arm.training}


def arm_values(arm: TrackedArm, records: Mapping[str, Record | None]) -> dict[str, float]:
    """Means over finished seeds under the names that units' runs have, with the standard deviation (from two seeds on)
    and the number of seeds: of headline metrics and those of the tables, each from the units that are measured for
    its task."""
    values: dict[str, float] = {}
    names = best_names(records.get(key) for key in arm.keys)
    for task, keys in arm.measured.items():
        finished = finished_of({key: records.get(key) for key in keys}).values()
        for name in sorted({name for record in finished for name in record.metrics}):
            metric = name.partition("/")[2]
            if metric.partition("/")[0] != task or not (metric in arm.columns or is_headline(metric)):
                continue
            by_seed = [float(record.metrics[name]) for record in finished if name in record.metrics]
            values[names[name]] = statistics.fmean(by_seed)
            values[clean(f"{names[name]}/seeds")] = float(len(by_seed))
            if len(by_seed) > 1:
                values[clean(f"{names[name]}/sd")] = statistics.stdev(by_seed)
    return values


def arm_health(arm: TrackedArm, records: Mapping[str, Record | None]) -> str:
    """How many of its finished runs are of each state, as the report judges them: "pe 2 converged, 1 collapsed; ...".
    Empty where none is judged."""
    texts = []
    for task, keys in arm.measured.items():
        finished = finished_of({key: records.get(key) for key in keys}).values()
        judged = [read_health(record.health, record.metrics) for record in finished]
        states = Counter(states_together([health[task] for health in judged if task in health]))
        if states:
            texts.append(f"{task} {', '.join(f'{number} {state}' for state, number in sorted(states.items()))}")
    return "; ".join(texts)


def arm_status(states: Iterable[str], current: str, last: bool) -> str:
    """Status of an arm's run.

    Args:
        states: status of the run of each of its units; empty for a unit without one.
        current: its status so far.
        last: no more is to come of units that run nowhere.
    """
    kinds = set(states)
    if "RUNNING" in kinds:
        return "RUNNING"
    if kinds == {"FINISHED"}:
        return "FINISHED"
    if not last and not kinds <= {"FINISHED", "FAILED"}:
        return current
    return "FAILED" if "FAILED" in kinds else "KILLED"
