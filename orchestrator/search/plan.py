"""What a search trains: the units of each trial, which are units like any other, in the ledger under their keys."""

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from statistics import fmean
from typing import Any

from orchestrator.planning.plan import Line, Unit
from orchestrator.project import Data, DataFacts, Project, Settings, Sizes, Stage, load_project
from orchestrator.record import Record, is_number
from orchestrator.search.rungs import Rungs
from search_spaces.space import FLOPS, PARAMETERS, TRAIN_SECONDS, Choice, Range, Space
from search_spaces.study import UPS, FineTuning, Table
from ups_model.config.schema import digest

Params = Mapping[str, Any]
"""Searched fields by dotted name."""
Dimensions = Mapping[str, Range | Choice]
"""By dotted field name; those that `check_dimensions` returns have whole ends where the field is a whole number."""


class SearchPlan:
    """What a search trains: the units of the trials so far."""

    def __init__(
        self,
        space: Space,
        preset: str,
        base: Settings,
        seeds: int,
        data: Mapping[str, DataFacts],
        inputs: str,
        sets: Mapping[str, Data] | None = None,
        warm: bool = False,
        arm: str = "",
    ) -> None:
        """
        Args:
            base: the configuration with the space's and the user's changes; searched fields as the preset has them.
            seeds: repetitions of each trial.
            data: the clip sets by name.
            inputs: `Project.inputs_identity`.
            sets: the opened clip sets, by which operations are counted where they are an objective.
            warm: suggestions learn from finished units of earlier searches and studies, too.
            arm: of a study, whose values are searched, for people.
        """
        self.study = space
        self.project: Project = load_project(space.project)
        self.preset, self.base, self.seeds, self.data = preset, base.with_fields({"seed": 0}), seeds, data
        self.inputs, self.warm, self.arm = inputs, warm, arm
        self.dimensions = dotted(base, space.dimensions)
        """By dotted field name, as the space has them."""
        self._sets, self._sizes = sets or {}, dict[str, Sizes | None]()
        self.units: Mapping[str, Unit] = {}
        self.tables: tuple[tuple[Table, tuple[Line, ...]], ...] = ()
        """None: the report's tables are of studies. With `study`, what a mirror asks of a plan."""
        early = space.early_stopping
        self.rungs = Rungs(early, self.project.steps(base)) if early else None

    @property
    def name(self) -> str:
        """Names the search on storage and in MLflow. More trials leave it as it is; whatever changes what a trial is
        worth, or which ones are suggested, makes another."""
        space = self.study
        dimensions = [[name, where.plain()] for name, where in self.dimensions.items()]
        facts = {name: fact.fingerprint for name, fact in self.data.items()}
        what: list[Any] = [self.base.canonical(), facts, self.inputs, dimensions, space.objective, space.direction]
        what += [self.seeds, space.first_seed, space.sampler_seed]
        what += [other for other, usual in ((space.project, UPS), (space.sampler, "tpe")) if other != usual]
        what += [vars(one) for one in (*space.objectives, *space.constraints)]
        what += ["warm start"] * self.warm
        what += [vars(space.early_stopping)] if space.early_stopping else []
        return f"{space.name}-{self.preset}-{digest(what)[:8]}"

    @property
    def start(self) -> Params:
        """The searched fields as the base configuration has them, of those that count."""
        return active({name: field_of(self.base, name) for name in self.dimensions}, self.dimensions)

    def named(self, params: Params) -> str:
        """A trial, for a line: of a study's arm its name first."""
        return ", ".join(filter(None, (self.arm, named(params))))

    def units_of(self, params: Params) -> list[Unit]:
        """The units of a trial, one a seed.

        Raises:
            ValueError: a combination that makes no configuration.
        """
        return [self.unit_of(params, seed) for seed in self.own_seeds]

    @property
    def own_seeds(self) -> range:
        """Of each trial."""
        return range(self.study.first_seed, self.study.first_seed + self.seeds)

    def unit_of(self, params: Params, seed: int) -> Unit:
        """The unit of a trial with a seed. ValueError as of `units_of`."""
        _, stage = run_of(self.project, self.base.with_fields(params), self.study.judged_on)
        different = [f"{name.rsplit('.', 1)[-1]}={value}" for name, value in params.items()]
        facts = {name: self.data[name].fingerprint for name in self.project.sets(stage.settings)}
        seeded = stage.settings.with_fields({"seed": seed})
        key = self.project.key(seeded, facts, self.inputs, "")
        same_weights = self.project.training_key(seeded, facts, self.inputs, "")
        arm = ", ".join(filter(None, (self.arm, *different)))
        trunk = self.project.trunk(seeded, facts, self.inputs, "")
        return Unit(key, stage.name, stage.task, seeded, "", arm, same_weights, self.study.project, trunk)

    def measured(self, unit: Unit, record: Record) -> dict[str, float]:
        """The values of the space's objectives and constraints that a finished unit has, costs included."""
        values: dict[str, Any] = {}
        for metric in self.study.metrics:
            if metric == TRAIN_SECONDS:
                values[metric] = record.about.get("train_seconds")
            elif metric == PARAMETERS:
                values[metric] = record.about.get("parameters")
                if values[metric] is None and (sizes := self._sizes_of(unit.config)) is not None:
                    values[metric] = sizes.parameters
            elif metric == FLOPS:
                sizes = self._sizes_of(unit.config)
                values[metric] = fmean(sizes.flops.values()) if sizes is not None and sizes.flops else None
            else:
                values[metric] = record.metrics.get(metric)
        return {metric: float(value) for metric, value in values.items() if is_number(value)}

    def _sizes_of(self, settings: Settings) -> Sizes | None:
        of = settings.with_fields({"seed": 0})
        if (name := of.fingerprint()) not in self._sizes:
            self._sizes[name] = self.project.sizes(of, self._sets)
        return self._sizes[name]


def dotted(base: Settings, dimensions: Mapping[str, Range | Choice]) -> dict[str, Range | Choice]:
    """Dimensions and their conditions by dotted field name. ValueError for an unknown name."""
    named_by_path: dict[str, Range | Choice] = {}
    for name, where in dimensions.items():
        when = {base.field_path(parent): values for parent, values in (where.when or {}).items()}
        named_by_path[base.field_path(name)] = replace(where, when=when)
    return named_by_path


def active(params: Params, dimensions: Dimensions) -> dict[str, Any]:
    """Those of the parameters that count: whose conditions hold."""
    kept: dict[str, Any] = {}
    for name, where in dimensions.items():
        conditions = (where.when or {}).items()
        if name in params and all(parent in kept and kept[parent] in values for parent, values in conditions):
            kept[name] = params[name]
    return kept


def run_of(project: Project, settings: Settings, objective: str) -> tuple[str, Stage]:
    """How a trial is trained, and its one run: all tasks together where the project can, else the objective's.

    Raises:
        ValueError: an objective over tasks that are trained apart, or of a task that isn't trained.
    """
    tasks = list(project.sources(settings))
    task = objective.split("/")[1] if objective.count("/") > 1 else ""
    training = project.trainings[0]
    if "joint" in project.trainings and (len(tasks) > 1 or "separate" not in project.trainings):
        training = "joint"
    elif "separate" in project.trainings:
        training = "separate"
        if not task and len(tasks) > 1:
            raise ValueError(
                f"objective {objective!r} is of all tasks, and {project.name} trains {', '.join(tasks)} apart: name "
                f"one of a task, e.g. 'validation/{tasks[0]}/...'"
            )
    (stage,) = project.stages(settings, training, task or tasks[0], FineTuning())
    return training, stage


def named(params: Params) -> str:
    """For a line: short names and values."""
    return ", ".join(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in params.items())


def field_of(settings: Settings, path: str) -> Any:
    """The value of a field by its dotted name."""
    # Settings of `simple_project` wrap the user's own.
    return attrgetter(path)(getattr(settings, "values", settings))
