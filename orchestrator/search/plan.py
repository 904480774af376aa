"""What a search trains: the units of each trial, which are units like any other, in the ledger under their keys."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from orchestrator.planning.plan import Line, Unit
from orchestrator.project import DataFacts, Project, Settings, Stage, load_project
from search_spaces.space import Space
from search_spaces.study import UPS, FineTuning, Table
from ups_model.config.schema import digest

Params = Mapping[str, Any]
"""Searched fields by dotted name."""


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
        arm: str = "",
    ) -> None:
        """
        Args:
            base: the configuration with the space's and the user's changes; searched fields as the preset has them.
            seeds: repetitions of each trial.
            data: the clip sets by name.
            inputs: `Project.inputs_identity`.
            arm: of a study, whose values are searched, for people.
        """
        self.study = space
        self.project: Project = load_project(space.project)
        self.preset, self.base, self.seeds, self.data = preset, base.with_fields({"seed": 0}), seeds, data
        self.inputs, self.arm = inputs, arm
        self.units: Mapping[str, Unit] = {}
        self.tables: tuple[tuple[Table, tuple[Line, ...]], ...] = ()
        """None: the report's tables are of studies. With `study`, what a mirror asks of a plan."""

    @property
    def name(self) -> str:
        """Names the search on storage and in MLflow. More trials leave it as it is; whatever changes what a trial is
        worth, or which ones are suggested, makes another."""
        space = self.study
        dimensions = [[self.base.field_path(name), asdict(where)] for name, where in space.dimensions.items()]
        facts = {name: fact.fingerprint for name, fact in self.data.items()}
        what: list[Any] = [self.base.canonical(), facts, self.inputs, dimensions, space.objective, space.direction]
        what += [self.seeds, space.first_seed, space.sampler_seed]
        what += [other for other, usual in ((space.project, UPS), (space.sampler, "tpe")) if other != usual]
        return f"{space.name}-{self.preset}-{digest(what)[:8]}"

    @property
    def start(self) -> Params:
        """The searched fields as the base configuration has them."""
        return {name: field_of(self.base, name) for name in map(self.base.field_path, self.study.dimensions)}

    def units_of(self, params: Params) -> list[Unit]:
        """The units of a trial, one a seed.

        Raises:
            ValueError: a combination that makes no configuration.
        """
        _, stage = run_of(self.project, self.base.with_fields(params), self.study.objective)
        different = [f"{name.rsplit('.', 1)[-1]}={value}" for name, value in params.items()]
        facts = {name: fact.fingerprint for name, fact in self.data.items()}
        units = []
        for seed in range(self.study.first_seed, self.study.first_seed + self.seeds):
            seeded = stage.settings.with_fields({"seed": seed})
            key = self.project.key(seeded, facts, self.inputs, "")
            same_weights = self.project.training_key(seeded, facts, self.inputs, "")
            arm = ", ".join(filter(None, (self.arm, *different)))
            units.append(Unit(key, stage.name, stage.task, seeded, "", arm, same_weights, self.study.project))
        return units


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
    value: Any = getattr(settings, "values", settings)  # Those of `simple_project` wrap the user's own.
    for part in path.split("."):
        value = getattr(value, part)
    return value
