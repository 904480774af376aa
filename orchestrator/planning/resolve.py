"""From a study to the configuration of each of its cells, and the checks of these configurations. No plan yet."""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces.study import Column, Row, Study, Table
from ups_model.config import TASK_NAMES, Config, TaskName, set_of
from ups_model.config.presets import preset
from ups_model.data.batching.configured import split_sets
from ups_model.data.batching.suitability import check_suitable
from ups_model.data.format.clip_set import ClipSet
from ups_model.evaluation.metric_names import metric_names

MIN_CLASSES_FOR_TOP5 = 5


@dataclass(frozen=True)
class ResolvedRow:
    """A row and its configurations, with seed 0."""

    row: Row
    configs: Mapping[str, Config]
    """By group of columns (`Column.group`): the study's base, the column's fields over it, the row's over both."""
    where: str
    """Study, table and row, for messages."""


@dataclass(frozen=True)
class ResolvedTable:
    """A table with the configurations of its columns and rows."""

    table: Table
    columns: Mapping[str, Config]
    """By group of columns: the study's base with the column's fields."""
    rows: tuple[ResolvedRow, ...]


@dataclass(frozen=True)
class ResolvedStudy:
    """A study with the configuration of each cell."""

    study: Study
    preset: str
    base: Config
    """The preset with the study's fields and the user's over them, seed 0."""
    tables: tuple[ResolvedTable, ...]

    @property
    def settings(self) -> list[Config]:
        """The base, and what columns make of it that are measured on other clips."""
        return list(dict.fromkeys([self.base, *(config for table in self.tables for config in table.columns.values())]))


def resolve(study: Study, preset_name: str, changes: Mapping[str, Any]) -> ResolvedStudy:
    """The configuration of each cell.

    Args:
        preset_name: tiny, small or paper.
        changes: the user's own fields; they override the study's base, and a row overrides both.

    Raises:
        ValueError: an unknown field, or a value out of its range; names study, table and row or column.
    """
    base = with_layers(preset(preset_name), study.base, changes).replace(seed=0)
    tables = []
    for table in study.tables:
        where = f"study {study.name!r}, table {table.name!r}"
        columns, rows = {}, []
        for column in table.columns:
            with errors_at(f"{where}, column {column.title!r}"):
                columns[column.group] = with_layers(base, column.changes)
        for row in table.rows:
            with errors_at(at := f"{where}, row {row.label!r}"):
                configs = {column.group: with_layers(base, column.changes, row.changes) for column in table.columns}
            rows.append(ResolvedRow(row, configs, at))
        tables.append(ResolvedTable(table, columns, tuple(rows)))
    return ResolvedStudy(study, preset_name, base, tuple(tables))


def with_layers(base: Config, *layers: Mapping[str, Any]) -> Config:
    """`base` with the fields of each layer, later ones over earlier ones under whatever name: the user's "steps"
    replaces the study's "optim.steps"."""
    return base.with_fields({base.field_path(name): value for layer in layers for name, value in layer.items()})


@contextmanager
def errors_at(where: str) -> Iterator[None]:
    """A ValueError of the block says where."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def open_sets(paths: Mapping[str, Path]) -> dict[str, ClipSet]:
    """Open each clip set.

    Raises:
        ValueError: a folder holds no clip set, or one of another name.
    """
    opened = {}
    for name, path in paths.items():
        clips = ClipSet.open(path)
        if clips.name != name:
            raise ValueError(f"{path}: expected clip set {name!r}, got {clips.name!r}; check --data")
        opened[name] = clips
    return opened


def check_study(resolved: ResolvedStudy, opened: Mapping[str, ClipSet]) -> None:
    """Check all cells against the clip sets.

    Raises:
        ValueError: a clip set can't serve its task, a clip is both trained on and evaluated, a row has other clip sets
            than its table's columns, or doesn't measure one of them.
    """
    for config in resolved.settings:
        check_data(config, opened)
    for table in resolved.tables:
        for row in table.rows:
            with errors_at(row.where):
                for group, config in row.configs.items():
                    _check_same_sets(table.columns[group], config)
                    if config.data != table.columns[group].data:
                        check_data(config, opened)
                for column in table.table.columns:
                    check_measured(column, row.configs[column.group], opened)


def _check_same_sets(of_column: Config, config: Config) -> None:
    """A table's caption names the clip sets of its columns."""
    for task in TASK_NAMES:
        ours, theirs = (getattr(one.data, task).sources for one in (of_column, config))
        if ours != theirs:
            raise ValueError(
                f"rows of one table must have the same clip sets, got {', '.join(theirs) or 'none'} for {task} beside "
                f"{', '.join(ours) or 'none'}; make a study of each"
            )


def check_data(config: Config, opened: Mapping[str, ClipSet]) -> None:
    """ValueError where a clip set can't serve its task, or a clip is both trained on and evaluated."""
    for task in config.optim.tasks:
        data = getattr(config.data, task)
        for source in data.sources:
            check_suitable(task, data, opened[set_of(source)])
    for fold in range(config.data.validation_folds):
        split_sets(config.replace(seed=fold), opened)


def check_measured(column: Column, config: Config, opened: Mapping[str, ClipSet]) -> None:
    """ValueError for a metric that the configuration doesn't measure; near names are listed."""
    if column.task not in config.optim.tasks:
        return  # The planner refuses it, and says more.
    source = getattr(config.data, column.task).sources[0]
    has_top5 = len(opened[set_of(source)].info.classes) >= MIN_CLASSES_FOR_TOP5
    if not has_top5 and column.metric.startswith(f"{column.task}/top5"):
        return  # Of so few classes it says nothing: the table has "not measured" there, and all else.
    names = measured_names(config, column.task, opened)
    if column.metric not in names:
        near = difflib.get_close_matches(column.metric, names, n=3, cutoff=0.5) or names
        raise ValueError(
            f"column {column.metric!r} is not measured on {source} with "
            f"evaluation.ratios={','.join(f'{ratio:g}' for ratio in config.evaluation.ratios)}; near: {', '.join(near)}"
        )


def measured_names(config: Config, task: TaskName, opened: Mapping[str, ClipSet]) -> list[str]:
    """All metrics of a task that a unit of this configuration leaves."""
    data = getattr(config.data, task)
    return metric_names(task, data, config.evaluation, opened[set_of(data.sources[0])].info.classes)
