"""From a plan and its units' records to tables of cells: pure, and independent of the order of mappings, which a plan
from storage has sorted."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from orchestrator.planning.plan import UnitSize, kind_name
from orchestrator.planning.plan_file import FORMAT, PlanFile, PlannedColumn, PlannedRow, PlannedTable
from orchestrator.record import finished_of
from orchestrator.report.claims import OutcomesOf, judge
from orchestrator.report.clip_results import confusions, example_poses
from orchestrator.report.model import (
    DIFFERING,
    PROVENANCE,
    UNKNOWN,
    Cell,
    ClaimResult,
    Cost,
    Curve,
    Failure,
    Origin,
    Progress,
    Records,
    Report,
    Route,
    RowOfCells,
    RunSettings,
    Source,
    State,
    TableOfCells,
)
from orchestrator.report.statistics import is_percentage, paired, proportion_se
from orchestrator.tracking.schema import leaves
from search_spaces.study import Reference
from ups_model.config import set_of
from ups_model.evaluation.health import TaskHealth, read_health, states_together

_SHARES = ("top", "free_top", "ended")
"""How metrics begin that are the share of test clips with some property."""


def build(
    plan: PlanFile,
    records: Records,
    outcomes: OutcomesOf = lambda key: None,
    price_per_hour: float | None = None,
) -> Report:
    """The report of a plan.

    Args:
        records: of the plan's units, by key; None or absent where a unit has none.
        outcomes: for claims about new subjects and for figures.
        price_per_hour: of a GPU, or of a slot without GPUs.

    Raises:
        ValueError: the plan has another format than this code writes.
    """
    if plan.format != FORMAT:
        raise ValueError(
            f"the plan has format {plan.format!r}, this code reads {FORMAT}; run the study's ablate command "
            "again with this version"
        )
    return replace(_Builder(plan, records).report(outcomes), price_per_hour=price_per_hour)


def _marked(table: TableOfCells, claims: Sequence[ClaimResult]) -> TableOfCells:
    """The table with the cells marked that a decided claim is about."""
    decided = {
        (label, result.column.metric, result.column.title)
        for result in claims
        for label, other in ((result.claim.arm, result.claim.baseline), (result.claim.baseline, result.claim.arm))
        if result.claim.table == table.name
        and other == table.baseline
        and result.verdict in ("supported", "contradicted")
    }
    rows = (
        replace(
            row,
            cells=tuple(replace(c, decided=(row.label, c.column.metric, c.column.title) in decided) for c in row.cells),
        )
        for row in table.rows
    )
    return replace(table, rows=tuple(rows))


class _Builder:
    """What the parts of a report have in common: the units and their records."""

    def __init__(self, plan: PlanFile, records: Records) -> None:
        self.plan, self.units = plan, plan.units
        self.records = {key: record for key, record in records.items() if record is not None and key in self.units}
        self.finished = finished_of(self.records)

    def report(self, outcomes: OutcomesOf) -> Report:
        sources = self.plan.sources
        tables = tuple(self._table(table) for table in self.plan.tables)
        claims = judge(self.plan, tables, self.records, outcomes)
        return Report(
            plan=self.plan,
            sources={task: self._sources(sources[task]) for task in self.plan.titles if task in sources},
            tables=tuple(_marked(table, claims) for table in tables),
            routes=tuple(self._routes()),
            failures=tuple(self._failures()),
            progress=self._progress(),
            claims=claims,
            curves=tuple(self._curves()),
            confusions=tuple(confusions(self.plan, self.records, outcomes)),
            poses=example_poses(self.plan, self.records, outcomes),
            settings=self._settings(),
        )

    def _settings(self) -> RunSettings:
        kinds: dict[str, dict[str, str]] = {}
        for key in filter(self.finished.__contains__, self._ordered):
            unit, config = self.units[key], dict(leaves(self.finished[key].about.get("config", {})))
            name = kind_name(unit.arm, unit.stage, unit.task)
            kinds.setdefault(name, {field: json.dumps(config[field]) for field in config if field != "seed"})
        first, *others = [*kinds.values()] or [{}]
        shared = [item for item in first.items() if all(item in other.items() for other in others)]
        return RunSettings(
            tuple(shared),
            tuple(
                (name, tuple(item for item in fields.items() if item not in shared)) for name, fields in kinds.items()
            ),
        )

    def _sources(self, names: Iterable[str]) -> tuple[Source, ...]:
        """Sources as a configuration writes them: a clip set, or one under a protocol of its own."""
        return tuple(Source(name=name, **vars(self.plan.data[set_of(name)])) for name in names)

    def _state(self, key: str) -> State:
        """Of a unit, whatever it measured."""
        parent = self.units[key].parent
        if key in self.finished:
            return "finished"
        if parent and self._state(parent) in ("failed", "parent failed"):
            return "parent failed"
        return "failed" if key in self.records else "not run"

    @cached_property
    def _health_of(self) -> dict[tuple[str, str], TaskHealth]:
        """Health of each finished unit in each task that it was judged in."""
        return {
            (key, task): health
            for key, record in self.finished.items()
            for task, health in read_health(record.health, record.metrics).items()
        }

    @cached_property
    def _states(self) -> dict[tuple[str, str], str]:
        """State of health of the same; those of one arm are judged together."""
        runs_of_arm: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for key, task in self._health_of:
            unit = self.units[key]
            runs_of_arm.setdefault((unit.arm, unit.stage, unit.task, task), []).append((key, task))
        return {
            place: state
            for places in runs_of_arm.values()
            for place, state in zip(places, states_together([self._health_of[one] for one in places]), strict=True)
        }

    @cached_property
    def _ordered(self) -> tuple[str, ...]:
        """Keys of all units, parents first, as the tables come to need them."""
        keys = [key for table in self.plan.tables for row in table.rows for key in self._with_parents(table, row)]
        return (*dict.fromkeys(keys), *sorted(self.units.keys() - set(keys)))

    def _with_parents(self, table: PlannedTable, row: PlannedRow) -> Iterable[str]:
        """Keys of a row's units, each after its parents: by task in the paper's order, then as the columns come."""
        order = list(self.plan.titles)
        columns = sorted(table.columns, key=lambda column: order.index(column.task))
        for group in dict.fromkeys(column.group for column in columns):
            for key in row.units[group]:
                yield from self.plan.chain(key)

    def _table(self, table: PlannedTable) -> TableOfCells:
        baseline = next(row for row in table.rows if row.label == table.baseline)
        return TableOfCells(
            name=table.name,
            title=table.title,
            varies=table.varies,
            baseline=table.baseline,
            columns=table.columns,
            rows=tuple(self._row(row, baseline, table.columns) for row in table.rows),
            references=tuple(Reference(line.label, _published(line, table.columns)) for line in table.references),
            notes=table.notes,
            sources=tuple(self._sources(column.sources) for column in table.columns),
            titles={
                task: title for task, title in self.plan.tasks if any(column.task == task for column in table.columns)
            },
            origins={name: self._origins(table, name) for name in (*PROVENANCE, *DIFFERING)},
        )

    def _row(self, row: PlannedRow, baseline: PlannedRow, columns: tuple[PlannedColumn, ...]) -> RowOfCells:
        is_baseline = row.label == baseline.label
        published, reference = _published(row, columns), _published(baseline, columns)
        cells = []
        for column, ours, theirs in zip(columns, published, reference, strict=True):
            states, values = self._values(row, column)
            baseline_states, baseline_values = self._values(baseline, column)
            cells.append(
                Cell(
                    column=column,
                    states=states,
                    values=values,
                    sampling_error=self._sampling_error(row, column, values),
                    samples=row.samples[column.group],
                    baseline_samples=baseline.samples[column.group],
                    published=ours,
                    # Rounded, because 40.8 - 40.9 is not -0.1 in binary and 0 must be 0.
                    published_difference=None
                    if is_baseline or ours is None or theirs is None
                    else round(ours - theirs, 6),
                    difference=None if is_baseline else paired(values, baseline_values),
                    health=self._health(row, column),
                    baseline_health={} if is_baseline else self._health(baseline, column),
                    baseline_states={} if is_baseline else baseline_states,
                    arm=row.arms[column.group],
                )
            )
        measured = [self.records.get(key) for column in columns for key in row.units[column.group]]
        parameters = {record.about["parameters"] for record in measured if record and "parameters" in record.about}
        cost = self._cost(row, columns)
        return RowOfCells(row.label, is_baseline, row.training, tuple(cells), tuple(sorted(parameters)), cost)

    def _cost(self, row: PlannedRow, columns: tuple[PlannedColumn, ...]) -> Cost:
        sizes = {column.group: self.units[row.units[column.group][0]].size for column in columns}
        counted = {group: size for group, size in sizes.items() if size is not None}
        by_seed: dict[int, dict[str, None]] = {}
        for column in columns:
            for key in row.units[column.group]:
                by_seed.setdefault(self.units[key].seed, {}).update(dict.fromkeys(self.plan.chain(key)))
        # Trained here, in a time that is known.
        timed = {key for key, record in self.finished.items() if record.about.get("train_seconds", 0) > 0}
        whole = [keys for keys in by_seed.values() if keys.keys() <= timed]
        # Seeds differ in nothing that counts.
        sizes_of_seed = [self.units[key].size for key in next(iter(by_seed.values()), {})]
        operations = [size.operations for size in sizes_of_seed if size is not None]
        return Cost(
            active_parameters=tuple(
                sorted({self._active(row.units[group][0], size) for group, size in counted.items()})
            ),
            flops={column.group: counted[column.group].flops[column.task] for column in columns if counted},
            operations=math.fsum(operations) if len(operations) == len(sizes_of_seed) else None,
            seconds=self._mean_cost(whole, lambda about: about["train_seconds"]),
            slot_seconds=self._mean_cost(whole, lambda about: about["train_seconds"] * (about.get("gpus") or 1)),
            joules=self._mean_cost(whole, lambda about: about.get("energy_joules")),
        )

    def _active(self, key: str, size: UnitSize) -> int:
        """Active parameters of a unit's model: the plan's, less what the plan had too many in all, since text features
        may turn out narrower."""
        record = self.records.get(key)
        trained = record.about.get("parameters") if record and size.parameters else None
        return size.active_parameters + (int(trained) - size.parameters if trained else 0)

    def _mean_cost(
        self, seeds: Sequence[Iterable[str]], cost: Callable[[Mapping[str, Any]], float | None]
    ) -> float | None:
        """Mean over seeds of the sum over their units; None where a unit has none."""
        costs = [[cost(self.records[key].about) for key in keys] for keys in seeds]
        numbers = [[one for one in of_seed if one is not None] for of_seed in costs]
        return math.fsum(map(math.fsum, numbers)) / len(seeds) if seeds and numbers == costs else None

    def _by_seed(self, row: PlannedRow, column: PlannedColumn) -> dict[int, str]:
        """Keys of the units that a cell is measured on."""
        return dict(sorted((self.units[key].seed, key) for key in row.units[column.group]))

    def _values(self, row: PlannedRow, column: PlannedColumn) -> tuple[dict[int, State], dict[int, float]]:
        """State and value of each seed."""
        states: dict[int, State] = {}
        values = {}
        for seed, key in self._by_seed(row, column).items():
            state = self._state(key)
            if state == "finished":
                value = self.finished[key].metrics.get(f"test/{column.metric}")
                if value is None:
                    state = "not measured"
                elif not math.isfinite(value):
                    state = "not finite"
                else:
                    values[seed] = float(value)
            states[seed] = state
        return states, values

    def _health(self, row: PlannedRow, column: PlannedColumn) -> dict[int, str]:
        """State of health of each seed's run in the column's task; none of what no training changes."""
        if column.metric.endswith("/floor_mm"):
            return {}
        return {
            seed: self._states[key, column.task]
            for seed, key in self._by_seed(row, column).items()
            if (key, column.task) in self._states
        }

    def _sampling_error(self, row: PlannedRow, column: PlannedColumn, values: Mapping[int, float]) -> float | None:
        keys = self._by_seed(row, column)
        errors = [_sampling_error(self.records[keys[seed]].metrics, column, value) for seed, value in values.items()]
        numbers = [error for error in errors if error is not None]
        return math.fsum(numbers) / len(numbers) if numbers and numbers == errors else None

    def _origins(self, table: PlannedTable, entry: str) -> tuple[Origin, ...]:
        units: dict[tuple[str, str], set[str]] = {}
        rows: dict[tuple[str, str], dict[str, None]] = {}
        for row in table.rows:
            for key in self._with_parents(table, row):
                if (record := self.finished.get(key)) is not None:
                    of_record = DIFFERING.get(entry, lambda one: str(one.about.get(entry) or UNKNOWN))
                    value = of_record(record)
                    project = record.project if entry == "training code" else ""
                    units.setdefault((value, project), set()).add(key)
                    rows.setdefault((value, project), {})[row.label] = None
        return tuple(Origin(one[0], len(units[one]), tuple(rows[one]), one[1]) for one in sorted(units))

    def _routes(self) -> Iterable[Route]:
        for key in self._ordered:
            unit, record = self.units[key], self.records.get(key)
            if unit.stage == "joint" and record is not None and record.routes:
                blocks = {task: tuple(record.routes[task]) for task in self.plan.titles if task in record.routes}
                taken = 1 + max(block for path in blocks.values() for block in path)
                model = record.about.get("config", {}).get("model", {})
                yield Route(unit.arm, unit.seed, blocks, max(taken, model.get("blocks_per_layer", 0)))

    def _curves(self) -> Iterable[Curve]:
        for key in filter(self.finished.__contains__, self._ordered):
            unit = self.units[key]
            for task in self.plan.titles:
                if (key, task) in self._health_of:
                    health = self._health_of[key, task]
                    yield Curve(
                        arm=unit.arm,
                        stage=unit.stage,
                        task=task,
                        seed=unit.seed,
                        first_step=self._last_step(unit.parent),
                        metric=health.metric,
                        trivial=health.trivial,
                        points=health.curve,
                        state=self._states[key, task],
                    )

    def _last_step(self, key: str) -> int:
        """Of a unit and its parents, as far as their curves say; 0 of none."""
        if not key or key not in self.records:
            return 0
        curves = [health["curve"] for health in self.records[key].health.values()]
        return self._last_step(self.units[key].parent) + max((int(curve[-1][0]) for curve in curves), default=0)

    def _failures(self) -> Iterable[Failure]:
        for key in self._ordered:
            if self._state(key) == "failed":
                lines = self.records[key].error.strip().splitlines()
                yield Failure(self.units[key].name, key, lines[-1].strip() if lines else "no error was recorded")

    def _progress(self) -> Progress:
        states = {key: self._state(key) for key in self._ordered}
        counts = Counter(states.values())
        # Each finished run that stands in a cell with each task that it is measured for, once.
        measured = {
            (key, column.task)
            for table in self.plan.tables
            for row in table.rows
            for column in table.columns
            for key in row.units[column.group]
            if key in self.finished
        }
        return Progress(
            units=len(states),
            finished=len(self.finished),
            failed=counts["failed"],
            parent_failed=counts["parent failed"],
            not_run=counts["not run"],
            train_seconds=math.fsum(record.about.get("train_seconds", 0) for record in self.records.values()),
            untimed=sum("train_seconds" not in record.about for record in self.finished.values()),
            borrowed=sum(one.about.get("trained_by", key) not in self.units for key, one in self.finished.items()),
            health=Counter(self._states.get(run, "not judged") for run in measured),
        )


def _published(line: PlannedRow | Reference, columns: tuple[PlannedColumn, ...]) -> tuple[float | None, ...]:
    """The published value of each column; a row without any has an empty list."""
    return line.published or (None,) * len(columns)


def _sampling_error(metrics: Mapping[str, float], column: PlannedColumn, value: float) -> float | None:
    """Of one run: from the number of test clips for accuracies, else as the run itself measured it."""
    group, measure = column.metric.rsplit("/", 1)
    clips = metrics.get(f"test/{group}/clips")
    # A value that no accuracy can have is shown as it is; its error can't be computed.
    if column.unit == "%" and measure.startswith(_SHARES) and clips and clips >= 1 and is_percentage(value):
        return proportion_se(value, clips)
    if clips == 1:
        return None  # One clip tells nothing of the spread of clips.
    error = metrics.get(f"test/{column.metric}_se")
    return float(error) if error is not None and math.isfinite(error) else None
