"""What is kept of a plan beside its records, on storage and in MLflow: all that the report needs."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from types import UnionType
from typing import Any, Self, get_args, get_origin

from orchestrator.planning.plan import Line, Plan, UnitSize
from orchestrator.planning.tuning import PlannedTuning
from orchestrator.project import DataFacts, Project, load_project
from search_spaces.study import UPS, Claim, FineTuning, Reference, Table, tuned_label
from ups_model.config.schema import canonical, hints_of

FORMAT = 1


@dataclass(frozen=True)
class PlannedUnit:
    """A unit, without its configuration."""

    name: str
    stage: str
    task: str
    seed: int
    arm: str
    parent: str
    folder: str
    size: UnitSize | None = None
    """None in plans of earlier versions."""


@dataclass(frozen=True)
class PlannedColumn:
    """A column, and the sources of the clips that it is measured on."""

    metric: str
    title: str
    unit: str
    higher_is_better: bool
    changes: Mapping[str, Any]
    task: str
    group: str
    """`Column.group`: the task, and what the column changes."""
    sources: tuple[str, ...]


@dataclass(frozen=True)
class PlannedRow:
    """A row; mappings are by group of columns."""

    label: str
    arms: Mapping[str, str]
    training: str
    published: tuple[float | None, ...]
    units: Mapping[str, tuple[str, ...]]
    """Keys of the units that are measured, one a seed."""
    samples: Mapping[str, int]
    """Samples of the group's task that the measured weights have seen, their parents' included."""


@dataclass(frozen=True)
class PlannedTable:
    name: str
    title: str
    varies: str
    baseline: str
    columns: tuple[PlannedColumn, ...]
    notes: tuple[str, ...]
    references: tuple[Reference, ...]
    rows: tuple[PlannedRow, ...]


@dataclass(frozen=True)
class PlanFile:
    """A plan as it is kept; each file names its format."""

    name: str
    study: str
    question: str
    expectation: str
    preset: str
    changes: Mapping[str, str]
    """The user's own fields (`--set`)."""
    overridden: tuple[str, ...]
    """Fields that the study sets and the user has set otherwise: its headings, notes and published values are of its
    own setting."""
    command: str
    """That made it, without paths of the machine."""
    seeds: int
    fine_tuning: FineTuning
    data: Mapping[str, DataFacts]
    sources: Mapping[str, tuple[str, ...]]
    """Of each task, in the base configuration."""
    chosen_by: str
    tables: tuple[PlannedTable, ...]
    units: Mapping[str, PlannedUnit]
    """By key."""
    claims: tuple[Claim, ...] = ()
    study_base: Mapping[str, Any] = field(default_factory=dict)
    """Fields that the study sets in all rows, by dotted names; empty in plans of earlier versions."""
    looks: tuple[tuple[int, ...], ...] = ()
    """Seeds with which runs of a claim were complete before, other ones than now, so that it could be looked at; in the
    order of the looks."""
    ended_before: int = 0
    """Runs that its claims rest on and that had ended when they were first declared."""
    planned_looks: tuple[int, ...] = ()
    """Numbers of seeds after which it was to be looked at (`--seeds auto`); empty for a fixed number."""
    tasks: tuple[tuple[str, str], ...] = ()
    """Id and title of each task of its projects, in the order of reports."""
    format: int = FORMAT
    origin: str = ""
    """As `origin.origin_of`; empty in plans of earlier versions."""
    published_on: tuple[tuple[str, str, str], ...] = ()
    """Of tasks with published values: the task, what data these are on, and a pattern of the names of the same sets."""
    tuning: PlannedTuning | None = None
    """What was chosen for the tuned rows; None for a study without."""

    @classmethod
    def of(
        cls, plan: Plan, command: str, changes: Mapping[str, str], sizes: Mapping[str, UnitSize] | None = None
    ) -> Self:
        """Of a plan; see the fields for the arguments. `sizes` are by unit key."""
        study, base, sizes = plan.study, plan.base, sizes or {}
        set_by_study = {base.field_path(name): value for name, value in study.base.items()}
        return cls(
            name=plan.name,
            study=study.name,
            question=study.question,
            expectation=study.expectation,
            preset=plan.preset,
            changes=dict(changes),
            overridden=tuple(
                sorted(name for name, value in set_by_study.items() if base.with_fields({name: value}) != base)
            ),
            command=command,
            seeds=plan.seeds,
            fine_tuning=study.fine_tuning,
            data=plan.data,
            sources=dict(plan.project.sources(base)),
            chosen_by=plan.project.chosen_by(base),
            tables=tuple(_table(plan, table, lines) for table, lines in plan.tables),
            units={
                key: PlannedUnit(
                    unit.name, unit.stage, unit.task, unit.seed, unit.arm, unit.parent, unit.folder, sizes.get(key)
                )
                for key, unit in plan.units.items()
            },
            claims=study.claims,
            study_base=canonical(set_by_study),
            published_on=_published_on(plan.project),
            tasks=_tasks(dict.fromkeys((study.project, *(arm.project for arm in plan.arms)))),
            tuning=plan.tuning,
        )

    def claim_units(self, claim: Claim) -> tuple[dict[int, str], dict[int, str]]:
        """Keys by seed of the units that a claim's arm and its baseline are measured on."""
        table = next(table for table in self.tables if table.name == claim.table)
        group = next(column.group for column in table.columns if claim.names(column.metric, column.title))
        rows = {row.label: row.units[group] for row in table.rows}
        arm, baseline = ({self.units[key].seed: key for key in rows[label]} for label in (claim.arm, claim.baseline))
        return arm, baseline

    def chain(self, key: str) -> list[str]:
        """A unit's key after those of the units that it starts from."""
        keys = []
        while key:
            keys.append(key)
            key = self.units[key].parent
        return keys[::-1]

    @property
    def titles(self) -> dict[str, str]:
        """Of each task, in the order of reports."""
        return dict(self.tasks)

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        """Of the repetitions, in the order in which they were asked for."""
        rows = (row for table in self.tables for row in table.rows)
        keys = next((keys for row in rows for keys in row.units.values()), ())
        return tuple(self.units[key].seed for key in keys)

    def to_json(self) -> str:
        """One text for equal plans; `from_json` is its inverse."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False)

    def to_plain(self) -> dict[str, Any]:
        """JSON data."""
        plain: dict[str, Any] = json.loads(self.to_json())
        return plain

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises ValueError where the text is not a plan. Another format is read if it has these fields."""
        try:
            return cls._from_plain(json.loads(text))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a plan ({error})") from error

    @classmethod
    def _from_plain(cls, plain: Mapping[str, Any]) -> Self:
        def column(one: Mapping[str, Any]) -> dict[str, Any]:
            # Plans of earlier versions have no groups: all columns of a task were measured on one training.
            sources = one.get("sources") or plain["sources"][one["task"]]
            return {"changes": {}, "group": one["task"], **one, "sources": sources}

        tables = [{**table, "columns": list(map(column, table["columns"]))} for table in plain["tables"]]
        # Earlier versions had their number alone.
        looks = [range(look) if isinstance(look, int) else look for look in plain.get("looks", ())]
        made: Self = from_json_data(cls, {"format": None, **plain, "tables": tables, "looks": looks})
        # Earlier versions trained UPS alone.
        if "tasks" not in plain:
            made = replace(made, tasks=_tasks([UPS]))
        if "published_on" not in plain:
            made = replace(made, published_on=_published_on(load_project(UPS)))
        made._check()
        return made

    def _check(self) -> None:
        """ValueError for references to what isn't there, whatever wrote the file."""
        for table in self.tables:
            labels = [row.label for row in table.rows]
            if table.baseline not in labels:
                raise ValueError(f"not a plan (table {table.name!r} has no row {table.baseline!r})")
            for row in table.rows:
                keys = [key for column in table.columns for key in row.units[column.group]]
                if lacking := [key for key in keys if key not in self.units]:
                    raise ValueError(f"not a plan (row {row.label!r} names the unit {lacking[0]!r}, which isn't there)")
        for key in self.units:
            chain: list[str] = []
            while key:
                if key not in self.units or key in chain:
                    raise ValueError(f"not a plan (the parents of a unit lead to {key!r})")
                chain.append(key)
                key = self.units[key].parent
        for claim in self.claims:
            tables = [table for table in self.tables if table.name == claim.table]
            rows = {row.label for table in tables for row in table.rows}
            columns = [one for table in tables for one in table.columns if claim.names(one.metric, one.title)]
            if not columns or not {claim.arm, claim.baseline} <= rows:
                raise ValueError(f"not a plan (the claim {claim.text!r} is about what no table has)")


def from_json_data(hint: Any, value: Any) -> Any:
    """A value of dataclasses, tuples and mappings, from what `asdict` and JSON have made of it."""
    arguments, origin = get_args(hint), get_origin(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        hints = hints_of(hint)
        return hint(**{name: from_json_data(hints[name], one) for name, one in value.items()})
    if origin is UnionType and value is not None:
        return from_json_data(arguments[0], value)
    if origin is tuple:
        items = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(from_json_data(item, one) for item, one in zip(items, value, strict=True))
    if origin is Mapping:
        return {name: from_json_data(arguments[1], one) for name, one in value.items()}
    return value


def without_tuned(plan: PlanFile) -> PlanFile:
    """A plan as it was before anything was chosen: the rows of the study alone."""
    tables = []
    for table in plan.tables:
        tuned = {tuned_label(row.label) for row in table.rows} if plan.tuning is not None else set()
        tables.append(replace(table, rows=tuple(row for row in table.rows if row.label not in tuned)))
    return replace(plan, tables=tuple(tables), tuning=None)


def _tasks(projects: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Of projects, by their addresses."""
    titles = {task: title for address in projects for task, title in load_project(address).tasks.items()}
    return tuple(titles.items())


def _published_on(project: Project) -> tuple[tuple[str, str, str], ...]:
    return tuple((task, title, pattern) for task, (title, pattern) in project.published_on.items())


def _table(plan: Plan, table: Table, lines: tuple[Line, ...]) -> PlannedTable:
    rows = tuple(
        PlannedRow(
            line.row.label,
            {group: arm.name for group, arm in line.arms.items()},
            next(iter(line.arms.values())).training,
            line.row.published,
            line.units,
            {column.group: plan.samples(line.units[column.group][0], column.task) for column in table.columns},
        )
        for line in lines
    )
    columns = tuple(
        PlannedColumn(
            column.metric,
            column.title,
            column.unit,
            column.higher_is_better,
            canonical(column.changes),
            column.task,
            column.group,
            # All rows of a table are measured on the clips of its columns.
            plan.project.sources(plan.base.with_fields(column.changes))[column.task],
        )
        for column in table.columns
    )
    return PlannedTable(
        table.name, table.title, table.varies, table.baseline, columns, table.notes, table.references, rows
    )
