"""From a plan's content and its units' records to tables of cells. Pure: nothing else goes in, no words come out.

Content that came from storage has its keys sorted, content of a driver has them in the plan's order: nothing here
follows the order of a mapping.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from orchestrator.planning.plan_file import FORMAT, PlanFile
from orchestrator.report.model import (
    CODE,
    PROVENANCE,
    UNKNOWN,
    Cell,
    Failure,
    Origin,
    Progress,
    Records,
    ReferenceRow,
    Report,
    Route,
    RowOfCells,
    Source,
    State,
    TableOfCells,
)
from orchestrator.report.statistics import paired, proportion_se
from search_spaces.study import Column
from ups_model.config import TASK_NAMES, set_of
from ups_model.evaluation.health import TaskHealth

_SHARES = ("top", "free_top", "ended")
"""How metrics begin that are the share of test clips with some property."""


def build(plan: PlanFile, records: Records) -> Report:
    """The report of a plan.

    Args:
        records: of the plan's units, by key; None or absent where a unit has none.

    Raises:
        ValueError: the plan has another format than this code writes.
    """
    if plan.format != FORMAT:
        raise ValueError(
            f"the plan has format {plan.format!r}, this code reads {FORMAT}; run the study's ablate command "
            "again with this version"
        )
    return _Builder(plan.to_plain(), records).report()


class _Builder:
    """What the parts of a report have in common: the units and their records."""

    def __init__(self, content: Mapping[str, Any], records: Records) -> None:
        self.content = content
        self.units: Mapping[str, Mapping[str, Any]] = content["units"]
        self.records = {key: record for key, record in records.items() if record is not None and key in self.units}

    def report(self) -> Report:
        content = self.content
        tables = tuple(self._table(table) for table in content["tables"])
        return Report(
            **{name: content[name] for name in ("name", "study", "question", "expectation", "preset", "command")},
            changes=tuple(sorted(content["changes"].items())),
            overridden=tuple(content.get("overridden", ())),
            seeds=content["seeds"],
            fine_tuning=content["fine_tuning"],
            chosen_by=content["chosen_by"],
            sources={task: self._named(content["sources"][task]) for task in TASK_NAMES if task in content["sources"]},
            tables=tables,
            routes=tuple(self._routes()),
            failures=tuple(self._failures()),
            progress=self._progress(),
        )

    def _named(self, names: Iterable[str]) -> tuple[Source, ...]:
        """Sources as a configuration writes them: a clip set, or one under a protocol of its own."""
        facts = self.content["data"]
        return tuple(Source(name=name, **facts[set_of(name)]) for name in names)

    def _sources(self, column: Mapping[str, Any]) -> tuple[Source, ...]:
        return self._named(column.get("sources") or self.content["sources"][column["task"]])

    def _state(self, key: str) -> State:
        """Of a unit, whatever it measured."""
        record, parent = self.records.get(key), self.units[key]["parent"]
        if record is not None and record.status == "finished":
            return "finished"
        if parent and self._state(parent) in ("failed", "parent failed"):
            return "parent failed"
        return "not run" if record is None else "failed"

    @cached_property
    def _ordered(self) -> tuple[str, ...]:
        """Keys of all units, parents first, as the tables come to need them."""
        keys: dict[str, None] = {}
        for table in self.content["tables"]:
            for row in table["rows"]:
                for group in _groups(table):
                    keys.update(dict.fromkeys(self._with_parents(row["units"][group])))
        return (*keys, *sorted(self.units.keys() - keys.keys()))

    def _with_parents(self, keys: Iterable[str]) -> list[str]:
        found: list[str] = []
        for key in keys:
            chain = []
            while key:
                chain.append(key)
                key = self.units[key]["parent"]
            found += reversed(chain)
        return found

    def _table(self, table: Mapping[str, Any]) -> TableOfCells:
        columns = tuple(
            Column(
                **{name: column[name] for name in ("metric", "title", "unit", "higher_is_better")},
                changes=column.get("changes", {}),
            )
            for column in table["columns"]
        )
        baseline = next(row for row in table["rows"] if row["label"] == table["baseline"])
        return TableOfCells(
            name=table["name"],
            title=table["title"],
            varies=table["varies"],
            baseline=table["baseline"],
            columns=columns,
            rows=tuple(self._row(row, baseline, columns) for row in table["rows"]),
            references=tuple(
                ReferenceRow(line["label"], _published(line, len(columns))) for line in table["references"]
            ),
            notes=tuple(table["notes"]),
            sources=tuple(self._sources(column) for column in table["columns"]),
            origins={name: self._origins(table, name) for name in (*PROVENANCE, *CODE)},
        )

    def _row(self, row: Mapping[str, Any], baseline: Mapping[str, Any], columns: tuple[Column, ...]) -> RowOfCells:
        is_baseline = row["label"] == baseline["label"]
        published, reference = _published(row, len(columns)), _published(baseline, len(columns))
        cells = []
        for column, ours, theirs in zip(columns, published, reference, strict=True):
            states, values = self._values(row, column)
            cells.append(
                Cell(
                    column=column,
                    states=states,
                    values=values,
                    sampling_error=self._sampling_error(row, column, values),
                    samples=row["samples"][column.group],
                    baseline_samples=baseline["samples"][column.group],
                    published=ours,
                    # Rounded, because 40.8 - 40.9 is not -0.1 in binary and 0 must be 0.
                    published_difference=None
                    if is_baseline or ours is None or theirs is None
                    else round(ours - theirs, 6),
                    difference=None if is_baseline else paired(values, self._values(baseline, column)[1]),
                    health=self._health(row, column),
                    baseline_health={} if is_baseline else self._health(baseline, column),
                )
            )
        measured = [self.records.get(key) for column in columns for key in row["units"][column.group]]
        parameters = {record.about["parameters"] for record in measured if record and "parameters" in record.about}
        return RowOfCells(row["label"], is_baseline, row["training"], tuple(cells), tuple(sorted(parameters)))

    def _values(self, row: Mapping[str, Any], column: Column) -> tuple[dict[int, State], dict[int, float]]:
        """State and value of each seed."""
        states: dict[int, State] = {}
        values = {}
        for key in sorted(row["units"][column.group], key=lambda key: self.units[key]["seed"]):
            seed, state = self.units[key]["seed"], self._state(key)
            if state == "finished":
                value = self.records[key].metrics.get(f"test/{column.metric}")
                if value is None:
                    state = "not measured"
                elif not math.isfinite(value):
                    state = "not finite"
                else:
                    values[seed] = float(value)
            states[seed] = state
        return states, values

    def _health(self, row: Mapping[str, Any], column: Column) -> dict[int, str]:
        """State of health of each seed's run in the column's task."""
        found: dict[int, str] = {}
        for key in sorted(row["units"][column.group], key=lambda key: self.units[key]["seed"]):
            record = self.records.get(key)
            if record is not None and record.status == "finished" and column.task in record.health:
                found[self.units[key]["seed"]] = TaskHealth.from_plain(record.health[column.task]).state
        return found

    def _sampling_error(self, row: Mapping[str, Any], column: Column, values: Mapping[int, float]) -> float | None:
        errors = [
            _sampling_error(self.records[key].metrics, column, values[self.units[key]["seed"]])
            for key in row["units"][column.group]
            if self.units[key]["seed"] in values
        ]
        known = [error for error in errors if error is not None]
        return math.fsum(known) / len(known) if known and len(known) == len(errors) else None

    def _origins(self, table: Mapping[str, Any], entry: str) -> tuple[Origin, ...]:
        units: dict[str, set[str]] = {}
        rows: dict[str, list[str]] = {}
        for row in table["rows"]:
            for group in _groups(table):
                for key in self._with_parents(row["units"][group]):
                    if self._state(key) == "finished":
                        record = self.records[key]
                        value = CODE[entry](record) if entry in CODE else str(record.about.get(entry) or UNKNOWN)
                        units.setdefault(value, set()).add(key)
                        if row["label"] not in rows.setdefault(value, []):
                            rows[value].append(row["label"])
        return tuple(Origin(value, len(units[value]), tuple(rows[value])) for value in sorted(units))

    def _routes(self) -> Iterable[Route]:
        for key in self._ordered:
            unit, record = self.units[key], self.records.get(key)
            if unit["stage"] == "joint" and record is not None and record.routes:
                blocks = {task: tuple(record.routes[task]) for task in TASK_NAMES if task in record.routes}
                yield Route(unit["arm"], unit["seed"], blocks)

    def _failures(self) -> Iterable[Failure]:
        for key in self._ordered:
            if self._state(key) == "failed":
                lines = self.records[key].error.strip().splitlines()
                yield Failure(self.units[key]["name"], key, lines[-1].strip() if lines else "no error was recorded")

    def _progress(self) -> Progress:
        states = [self._state(key) for key in self._ordered]
        timed = [
            record.about["train_seconds"]
            for key in self._ordered
            if (record := self.records.get(key)) is not None and "train_seconds" in record.about
        ]
        finished = [key for key in self._ordered if self._state(key) == "finished"]
        return Progress(
            units=len(states),
            finished=len(finished),
            failed=states.count("failed"),
            parent_failed=states.count("parent failed"),
            not_run=states.count("not run"),
            train_seconds=math.fsum(timed),
            untimed=sum("train_seconds" not in self.records[key].about for key in finished),
            borrowed=sum(self.records[key].about.get("trained_by", key) not in self.units for key in finished),
            health=Counter(self._states_of_health()),
        )

    def _states_of_health(self) -> Iterable[str]:
        """Of each finished run that stands in a cell and each task that it is measured for, once."""
        measured = {
            (key, column["task"])
            for table in self.content["tables"]
            for row in table["rows"]
            for column in table["columns"]
            for key in row["units"][column.get("group", column["task"])]
            if self._state(key) == "finished"
        }
        for key, task in measured:
            health = self.records[key].health
            yield TaskHealth.from_plain(health[task]).state if task in health else "not judged"


def _groups(table: Mapping[str, Any]) -> list[str]:
    """Groups of a table's columns: of each task, in the paper's order, as the columns come."""
    columns = sorted(table["columns"], key=lambda column: TASK_NAMES.index(column["task"]))
    return list(dict.fromkeys(column.get("group", column["task"]) for column in columns))


def _published(line: Mapping[str, Any], columns: int) -> tuple[float | None, ...]:
    """The published value of each column; a row without any has an empty list."""
    return tuple(line["published"]) or (None,) * columns


def _sampling_error(metrics: Mapping[str, float], column: Column, value: float) -> float | None:
    """Of one run: from the number of test clips for accuracies, else as the run itself measured it."""
    group, measure = column.metric.rsplit("/", 1)
    clips = metrics.get(f"test/{group}/clips")
    if column.unit == "%" and measure.startswith(_SHARES) and clips:
        return proportion_se(value, clips)
    error = metrics.get(f"test/{column.metric}_se")
    return float(error) if error is not None and math.isfinite(error) else None
