"""From a study to the settings of each of its cells, and the checks of these settings. No plan yet."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.project import Data, Project, Settings, load_project
from search_spaces.study import Column, Row, Study, Table

S = TypeVar("S", bound=Settings)
MEASURED_ON = ("data.validation_subjects", "data.validation_folds", "data.split_seed")
MEASURED_BY: Mapping[str, tuple[str, ...]] = {
    "pe": ("data.pe.evaluate_stride", "data.pe.evaluate_targets", "evaluation.flip"),
    "eap": ("evaluation.ratios",),
}
"""Fields that say on which clips a task is trained and measured, and how, where a project has them."""


@dataclass(frozen=True)
class ResolvedRow:
    """A row and its settings, with seed 0."""

    row: Row
    configs: Mapping[str, Settings]
    """By group of columns (`Column.group`): the study's base, the column's fields over it, the row's over both."""
    where: str
    """Study, table and row, for messages."""
    project: str
    """Address of what trains it."""
    training: str
    """As its project names it."""
    base: Settings
    """That its changes are to."""
    chosen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By group of columns: fields whose values a search has chosen, which `configs` have; empty for a study's own
    row."""


@dataclass(frozen=True)
class ResolvedTable:
    """A table with the settings of its columns and rows."""

    table: Table
    columns: Mapping[str, Settings]
    """By group of columns: the study's base with the column's fields."""
    rows: tuple[ResolvedRow, ...]


@dataclass(frozen=True)
class ResolvedStudy:
    """A study with the settings of each cell."""

    study: Study
    preset: str
    base: Settings
    """The preset with the study's fields and the user's over them, seed 0."""
    tables: tuple[ResolvedTable, ...]

    @property
    def project(self) -> Project:
        """The study's own."""
        return load_project(self.study.project)

    @property
    def projects(self) -> dict[str, Project]:
        """By address; the study's own first."""
        rows = (row.project for table in self.tables for row in table.rows)
        return {address: load_project(address) for address in dict.fromkeys((self.study.project, *rows))}

    @property
    def settings(self) -> list[tuple[str, Settings]]:
        """The base, what columns make of it that are measured on other clips, and the bases of rows of other projects,
        each with the address of its project."""
        own = [self.base, *(config for table in self.tables for config in table.columns.values())]
        others = (
            (row.project, config)
            for table in self.tables
            for row in table.rows
            if row.project != self.study.project
            for config in row.configs.values()
        )
        return list(dict.fromkeys([*((self.study.project, config) for config in own), *others]))

    def sets(self, address: str) -> dict[str, None]:
        """Names of the data sets that a project reads."""
        configs = [config for owner, config in self.settings if owner == address]
        return {name: None for config in configs for name in load_project(address).sets(config)}


def resolve(study: Study, preset_name: str, changes: Mapping[str, Any]) -> ResolvedStudy:
    """The settings of each cell.

    Args:
        preset_name: tiny, small or paper.
        changes: the user's own fields; they override the study's base, and a row overrides both. In rows of another
            project they hold as far as it has such fields.

    Raises:
        ValueError: no such project, an unknown field, or a value out of its range; names study, table and row or
            column.
    """
    project = load_project(study.project)
    base = base_settings(project, preset_name, study.base, changes).with_fields({"seed": 0})
    tables = []
    for table in study.tables:
        where = f"study {study.name!r}, table {table.name!r}"
        columns, rows = {}, []
        for column in table.columns:
            with errors_at(f"{where}, column {column.title!r}"):
                _check_column(column, project, base)
                columns[column.group] = with_layers(base, column.changes)
        for row in table.rows:
            with errors_at(at := f"{where}, row {row.label!r}"):
                if "seed" in row.changes:
                    raise ValueError("seed is no setting of a row: every row has all seeds of the study (seeds=...)")
                address = row.project or study.project
                trainer = load_project(address)
                own = base if address == study.project else _with_known(trainer.base(preset_name), changes)
                configs = {column.group: with_layers(own, column.changes, row.changes) for column in table.columns}
                training = row.training or trainer.trainings[0]
                if training not in trainer.trainings:
                    raise ValueError(f"training must be one of {', '.join(trainer.trainings)}, got {training!r}")
            rows.append(ResolvedRow(row, configs, at, address, training, own))
        _check_measured_alike(table, rows)
        tables.append(ResolvedTable(table, columns, tuple(rows)))
    resolved = ResolvedStudy(study, preset_name, base, tuple(tables))
    names: dict[str, str] = {}
    for address, trainer in resolved.projects.items():
        if names.setdefault(trainer.name, address) != address:
            raise ValueError(
                f"study {study.name!r}: {names[trainer.name]} and {address} are both called {trainer.name!r}; give "
                "each project a name of its own"
            )
    return resolved


def _check_measured_alike(table: Table, rows: Sequence[ResolvedRow]) -> None:
    """A study's base holds for its own project alone; rows of another are measured on the same clips and in the same
    way as the baseline row all the same, or say themselves that they are not.

    Raises:
        ValueError: names the field, both values and the way out.
    """
    baseline = next(row for row in rows if row.row.label == table.baseline)
    for row in rows:
        if row.project == baseline.project:
            continue
        own = {row.base.field_path(name) for name in row.row.changes}
        for column in (one for one in table.columns if one.task in load_project(row.project).tasks):
            configs = [one.configs[column.group].canonical() for one in (row, baseline)]
            for name in (*MEASURED_ON, *MEASURED_BY.get(column.task, ())):
                ours, theirs = (_value(config, name) for config in configs)
                if name not in own and None not in (ours, theirs) and ours != theirs:
                    raise ValueError(
                        f"{row.where}: is measured otherwise than the baseline row {table.baseline!r}: {name} is "
                        f"{ours}, there {theirs}; the study's base holds for {baseline.project} alone, so give the row "
                        f"{name}={theirs}, or say with {name}={ours} that it is meant"
                    )


def _value(canonical: Mapping[str, Any], path: str) -> Any:
    """Of a field by its whole path; None where the configuration has no such field."""
    value: Any = canonical
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _check_column(column: Column, project: Project, base: Settings) -> None:
    if column.task not in project.tasks:
        raise ValueError(f"metric must begin with a task ({', '.join(project.tasks)}), got {column.metric!r}")
    for name in column.changes:
        if not base.field_path(name).startswith("data."):
            raise ValueError(
                f"changes must be fields of the section data, got {name!r}; what is varied belongs into rows"
            )


def _with_known(base: Settings, changes: Mapping[str, Any]) -> Settings:
    """The base of a row's own project, with the user's changes to fields that it has."""
    known = {}
    for name, value in changes.items():
        with suppress(ValueError):
            known[base.field_path(name)] = value
    return base.with_fields(known)


def base_settings(project: Project, preset_name: str, own: Mapping[str, Any], changes: Mapping[str, Any]) -> Settings:
    """The preset with a study's or space's own fields, and over these the user's; an unknown one of the user's says
    that it is of --set."""
    preset = project.base(preset_name)
    with errors_at("--set"):
        for name in changes:
            preset.field_path(name)
    return with_layers(preset, own, changes)


def with_layers(base: S, *layers: Mapping[str, Any]) -> S:
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


def open_data(resolved: ResolvedStudy, given: list[str]) -> tuple[dict[str, Path], dict[str, Data]]:
    """Places of the study's data sets, and the sets.

    Args:
        given: NAME=PATH texts.

    Raises:
        ValueError: a set that isn't there or is another one, one of a name that nothing has, or two projects that
            understand one name differently.
    """
    names_of = {address: list(resolved.sets(address)) for address in resolved.projects}
    paths: dict[str, Path] = {}
    opened: dict[str, Data] = {}
    every = {name for names in names_of.values() for name in names}
    for address, project in resolved.projects.items():
        others = every - set(names_of[address])
        texts = [text for text in given if text.partition("=")[0] not in others]
        places = project.locate(texts, names_of[address])
        for name, data in project.open(places).items():
            if name in opened and opened[name].fingerprint != data.fingerprint:
                raise ValueError(f"data set {name!r} is another one to {project.name} than to the study's other rows")
            opened.setdefault(name, data)
        paths |= places
    return paths, opened


def check_study(resolved: ResolvedStudy, opened: Mapping[str, Data]) -> None:
    """Check all cells against the data sets.

    Raises:
        ValueError: a data set can't serve its task, a clip is both trained on and evaluated, a row has other data sets
            than its table's columns, or doesn't measure one of them.
    """
    for address, config in resolved.settings:
        if address == resolved.study.project:  # Those of other projects' rows come below, with their place.
            resolved.project.check(config, opened)
    for table in resolved.tables:
        for row in table.rows:
            project = load_project(row.project)
            with errors_at(row.where):
                for group, config in row.configs.items():
                    _check_same_sets(resolved.project, table.columns[group], project, config, group)
                    project.check(config, opened)
                for column in table.table.columns:
                    config = row.configs[column.group]
                    if column.task in project.sources(config):  # Else the planner refuses it, and says more.
                        project.check_metric(config, column.metric, opened)


def _check_same_sets(ours: Project, of_column: Settings, theirs: Project, config: Settings, group: str) -> None:
    """A table's caption names the data sets of its columns."""
    wanted, got = ours.sources(of_column), theirs.sources(config)
    # A run of another project may train fewer tasks; the one that is measured has to be on the same clips.
    tasks = wanted.keys() | got.keys() if ours is theirs else {group.partition("-")[0]}
    for task in [task for task in ours.tasks if task in tasks]:
        if task in got and task in wanted and got[task] != wanted[task]:
            raise ValueError(
                f"rows of one table must have the same clip sets, got {', '.join(got[task])} for {task} beside "
                f"{', '.join(wanted[task])}; make a study of each"
            )
