"""What a search trains: the units of each trial, which are units like any other, in the ledger under their keys."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from orchestrator.planning.plan import Line, Unit
from orchestrator.project import DataFacts
from search_spaces.space import Space
from search_spaces.study import Table
from ups_model.config import Config
from ups_model.config.identity import run_key, training_key
from ups_model.config.schema import digest

Params = Mapping[str, Any]
"""Searched fields by dotted name."""


class SearchPlan:
    """What a search trains: the units of the trials so far."""

    def __init__(
        self, space: Space, preset: str, base: Config, seeds: int, data: Mapping[str, DataFacts], text_identity: str
    ) -> None:
        """
        Args:
            base: the configuration with the space's and the user's changes; searched fields as the preset has them.
            seeds: repetitions of each trial.
            data: the clip sets by name.
            text_identity: of the vocabulary's language model.
        """
        self.study = space
        self.preset, self.base, self.seeds, self.data = preset, base.replace(seed=0), seeds, data
        self.text = text_identity
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
        what = [self.base.canonical(), facts, self.text, dimensions, space.objective, space.direction]
        return f"{space.name}-{self.preset}-{digest([*what, self.seeds, space.first_seed, space.sampler_seed])[:8]}"

    @property
    def start(self) -> Params:
        """The searched fields as the base configuration has them."""
        return {name: field_of(self.base, name) for name in map(self.base.field_path, self.study.dimensions)}

    def units_of(self, params: Params) -> list[Unit]:
        """The units of a trial, one a seed.

        Raises:
            ValueError: a combination that makes no configuration.
        """
        config = self.base.with_fields(params)
        different = [f"{name.rsplit('.', 1)[-1]}={value}" for name, value in params.items()]
        tasks = config.optim.tasks
        # As a study's planner names them, for one key must have one folder.
        stage = "joint" if len(tasks) > 1 else "separate"
        task = "" if len(tasks) > 1 else tasks[0]
        facts = {name: fact.fingerprint for name, fact in self.data.items()}
        units = []
        for seed in range(self.study.first_seed, self.study.first_seed + self.seeds):
            seeded = config.replace(seed=seed)
            key = run_key(seeded, facts, self.text)
            training = training_key(seeded, facts, self.text)
            units.append(Unit(key, stage, task, seeded, "", ", ".join(different), training))
        return units


def named(params: Params) -> str:
    """For a line: short names and values."""
    return ", ".join(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in params.items())


def field_of(config: Config, path: str) -> Any:
    """The value of a field by its dotted name."""
    value: Any = config
    for part in path.split("."):
        value = getattr(value, part)
    return value
