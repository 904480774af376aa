"""From command-line values to what the planner needs; every fault is found here, before anything starts."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.planning.plan import DataFacts, Plan, make_plan, setting, with_layers
from search_spaces import find_study
from search_spaces.study import Column, Study
from ups_model.cli import assignments, data_paths
from ups_model.config import TASK_NAMES, Config, TaskName, set_of
from ups_model.config.identity import configured_sets
from ups_model.config.presets import preset
from ups_model.data.batching.configured import split_sets
from ups_model.data.batching.suitability import check_suitable
from ups_model.data.format.clip_set import ClipSet
from ups_model.data.prepare.catalog import SOURCES
from ups_model.evaluation.metric_names import metric_names
from ups_model.model.text_features import text_identity


@dataclass(frozen=True)
class Inputs:
    """A plan, and the clip sets that it trains on."""

    plan: Plan
    sets: Mapping[str, ClipSet]
    paths: Mapping[str, Path]
    changes: Mapping[str, str]


def read_inputs(study: str, preset_name: str, data: Sequence[str], sets: Sequence[str], seeds: int | None) -> Inputs:
    """Plan a study.

    Args:
        study: a name, a file's path, or module:name.
        preset_name: tiny, small or paper.
        data: NAME=PATH texts.
        sets: FIELD=VALUE texts.
        seeds: repetitions; None takes the study's own number.

    Raises:
        ValueError: an unknown study or field, a row out of range, a clip set that isn't there or can't serve its task,
            a clip that is trained on in one task and evaluated in another.
    """
    found = find_study(study)
    changes = assignments(sets, "--set", "FIELD=VALUE")
    base = preset(preset_name)
    if seeds is not None and seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {seeds}")
    configured = with_layers(base, found.base, changes)
    settings = column_settings(found, configured)
    paths = data_paths(data, list(dict.fromkeys(name for one in settings for name in configured_sets(one))))
    opened = open_sets(paths)
    for one in settings:
        check_data(one, opened)
    check_rows(found, configured, opened)
    facts = facts_of(opened)
    text = text_identity(configured.model.text_model)
    plan = make_plan(found, preset_name, base, changes, found.seeds if seeds is None else seeds, facts, text)
    return Inputs(plan, opened, paths, changes)


def column_settings(study: Study, base: Config) -> list[Config]:
    """The base, and what columns make of it that are measured on other clips.

    Raises:
        ValueError: a column's field is out of range; names study, table and column.
    """
    found = [base]
    for table in study.tables:
        for column in table.columns:
            try:
                config = with_layers(base, column.changes)
            except ValueError as error:
                raise ValueError(
                    f"study {study.name!r}, table {table.name!r}, column {column.title!r}: {error}"
                ) from error
            if config not in found:
                found.append(config)
    return found


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


def facts_of(opened: Mapping[str, ClipSet]) -> dict[str, DataFacts]:
    """What a plan says of each clip set."""
    found = {}
    for name, clips in opened.items():
        counts = SOURCES[name].published.values() if name in SOURCES else ()
        published = next((train + test for train, test in counts), None)
        info = clips.info
        found[name] = DataFacts(clips.fingerprint, info.synthetic, info.description, len(clips), published)
    return found


def check_data(config: Config, opened: Mapping[str, ClipSet]) -> None:
    """ValueError where a clip set can't serve its task, or a clip is both trained on and evaluated."""
    for task in config.optim.tasks:
        data = getattr(config.data, task)
        for source in data.sources:
            check_suitable(task, data, opened[set_of(source)])
    for fold in range(config.data.validation_folds):
        split_sets(config.replace(seed=fold), opened)


def check_rows(study: Study, base: Config, opened: Mapping[str, ClipSet]) -> None:
    """ValueError for a row that trains on other clip sets than the base, or in a way they can't serve, or that never
    measures one of its table's columns; names study, table and row."""
    for table in study.tables:
        for row in table.rows:
            checked: list[Config] = []
            for column in table.columns:
                of_column = with_layers(base, column.changes)
                try:
                    config = setting(base, column, row)
                except ValueError:
                    continue  # The planner refuses it, and says more than could be said here.
                try:
                    for task in TASK_NAMES:
                        ours, theirs = (getattr(one.data, task).sources for one in (of_column, config))
                        if ours != theirs:
                            # A table's caption names the clip sets of its columns.
                            raise ValueError(
                                f"rows of one table must have the same clip sets, got {', '.join(theirs) or 'none'} "
                                f"for {task} beside {', '.join(ours) or 'none'}; make a study of each"
                            )
                    if config.data != of_column.data and config not in checked:
                        check_data(config, opened)
                        checked.append(config)
                    check_measured(column, config, opened)
                except ValueError as error:
                    raise ValueError(
                        f"study {study.name!r}, table {table.name!r}, row {row.label!r}: {error}"
                    ) from error


def check_measured(column: Column, config: Config, opened: Mapping[str, ClipSet]) -> None:
    """ValueError for a metric that the configuration doesn't measure; near names are listed."""
    if column.task not in config.optim.tasks:
        return  # The planner refuses it, and says more.
    names = measured_names(config, column.task, opened)
    few = len(opened[set_of(getattr(config.data, column.task).sources[0])].info.classes) < 5
    if few and column.metric.startswith(f"{column.task}/top5"):
        return  # With so few classes it says nothing; the table has "not measured" there, and all else.
    if column.metric not in names:
        near = difflib.get_close_matches(column.metric, names, n=3, cutoff=0.5) or names
        raise ValueError(
            f"column {column.metric!r} is not measured on {getattr(config.data, column.task).sources[0]} with "
            f"evaluation.ratios={','.join(f'{ratio:g}' for ratio in config.evaluation.ratios)}; near: {', '.join(near)}"
        )


def measured_names(config: Config, task: TaskName, opened: Mapping[str, ClipSet]) -> list[str]:
    """All metrics of a task that a unit of this configuration leaves."""
    data = getattr(config.data, task)
    return metric_names(task, data, config.evaluation, opened[set_of(data.sources[0])].info.classes)


def wanted_metrics(plan: Plan, opened: Mapping[str, ClipSet]) -> dict[str, tuple[str, ...]]:
    """Metrics that the plan's tables have columns of and that a unit can have, by the unit's key."""
    found: dict[str, dict[str, None]] = {}
    names: dict[tuple[str, TaskName], list[str]] = {}
    for table, lines in plan.tables:
        for line in lines:
            for column in table.columns:
                for key in line.units[column.group]:
                    unit = plan.units[key]
                    kind = unit.kind, column.task
                    if kind not in names:
                        names[kind] = measured_names(unit.config, column.task, opened)
                    if column.metric in names[kind]:
                        found.setdefault(key, {})[column.metric] = None
    return {key: tuple(metrics) for key, metrics in found.items()}
