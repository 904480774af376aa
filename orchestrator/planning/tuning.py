"""What the searches of a study's tuning have chosen, and the study with the rows that have these values."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.planning.resolve import ResolvedRow, ResolvedStudy, ResolvedTable
from search_spaces.study import tuned_label

NOTE = (
    "Rows “…, tuned” have the values that their own search has chosen on validation subjects; the section “Equal "
    "tuning” has these, and compares tuned rows with each other."
)


@dataclass(frozen=True)
class TunedArm:
    """The search of one arm, and what it has chosen."""

    search: str
    """Name of the search on storage."""
    arm: str
    """Name of the arm as the study has it."""
    training: str
    task: str
    """The task that the run which is searched trains alone; empty for several jointly."""
    rows: tuple[tuple[str, str, str], ...]
    """Table, label and group of columns (`Column.group`) of what the arm fills."""
    objective: str
    unit: str
    higher_is_better: bool
    start: Mapping[str, Any] | None
    """Searched fields as the arm has them in the study, which was then the first trial; None where that lies outside
    of the space."""
    chosen: Mapping[str, Any]
    """Fields of the best trial, as the study names them."""
    start_values: tuple[float, ...]
    """The objective of the first trial, one a seed; empty where it isn't the arm itself, or has failed."""
    best_values: tuple[float, ...]
    complete: int
    """Trials with a value."""
    failed: int
    seconds: float
    """Training time of all its trials; those that other searches have too count in each."""

    @property
    def is_start(self) -> bool:
        """Whether no trial was better than the arm as the study has it."""
        return self.start is not None and dict(self.chosen) == dict(self.start)


@dataclass(frozen=True)
class PlannedTuning:
    """The searches of all arms, as a plan keeps them."""

    dimensions: Mapping[str, str]
    """Where each field was searched, in words."""
    trials: int
    """Of each arm, that there were to be."""
    seeds: int
    first_seed: int
    sampler: str
    judged_on: str
    """Validation data, in words."""
    arms: tuple[TunedArm, ...]


def expanded(resolved: ResolvedStudy, arms: Iterable[TunedArm]) -> ResolvedStudy:
    """The study with a tuned row below each of its own."""
    chosen = {row: arm.chosen for arm in arms for row in arm.rows}

    def tuned(table: ResolvedTable, line: ResolvedRow) -> ResolvedRow:
        values = {group: chosen[table.table.name, line.row.label, group] for group in line.configs}
        return replace(
            line,
            row=replace(line.row, label=tuned_label(line.row.label), published=()),
            configs={group: config.with_fields(values[group]) for group, config in line.configs.items()},
            chosen=values,
        )

    tables = []
    for table in resolved.tables:
        rows = tuple(one for line in table.rows for one in (line, tuned(table, line)))
        noted = replace(table.table, rows=tuple(line.row for line in rows), notes=(*table.table.notes, NOTE))
        tables.append(replace(table, table=noted, rows=rows))
    return replace(resolved, tables=tuple(tables))
