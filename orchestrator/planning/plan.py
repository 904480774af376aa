"""From a study to the fewest training units that fill its tables. Pure and deterministic; no Ray, no torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from orchestrator.planning.resolve import ResolvedRow, ResolvedStudy, errors_at
from orchestrator.planning.tuning import PlannedTuning
from orchestrator.project import DataFacts, Project, Settings, Stage, load_project
from search_spaces.study import UPS, Column, Row, Study, Table
from ups_model.config.schema import digest


@dataclass(frozen=True)
class UnitSize:
    """How much a unit computes, counted from its configuration."""

    active_parameters: int
    """Those that one sample passes through: of a routed layer, one block's."""
    flops: Mapping[str, float]
    """Multiplications and additions of a forward pass, per sample of each trained task."""
    operations: float
    """Multiplications and additions of its training, forward and backward."""
    parameters: int = 0
    """All of them; 0 in plans of earlier versions."""


def kind_name(arm: str, stage: str, task: str) -> str:
    """Of the units of an arm that differ in the seed alone, for people."""
    return f"{arm} · {stage} {task}".rstrip()


@dataclass(frozen=True)
class Unit:
    """One training run, the node of the plan."""

    key: str
    """Names everything that can change the result (`Project.key`)."""
    stage: str
    task: str
    """The task trained alone; empty for joint training."""
    config: Settings
    parent: str
    """Key of the unit whose weights this one starts from; empty for none."""
    arm: str
    """Name of the first arm that asked for it, for people."""
    training_key: str = ""
    """Equal for units that have the same weights and are measured in different ways (`Project.training_key`); empty
    where that isn't known."""
    project: str = UPS
    """Address of what trains it."""
    trunk: tuple[str, int] = ("", 0)
    """As `Project.trunk` says."""

    @property
    def trainer(self) -> Project:
        """What trains it."""
        return load_project(self.project)

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def slug(self) -> str:
        """What a person sees of the unit's folder; a function of what the key holds, so that one key has one folder."""
        return "-".join(filter(None, (self.stage, self.task, f"seed{self.seed}")))

    @property
    def folder(self) -> str:
        """Name of its folder in the ledger."""
        return f"{self.slug}-{self.key}"

    @property
    def name(self) -> str:
        """For progress and for MLflow, e.g. "encoder_layers=1 · finetune pe · seed 0"."""
        return f"{kind_name(self.arm, self.stage, self.task)} · seed {self.seed}"

    @property
    def kind(self) -> str:
        """Equal for units that differ in the seed alone: they take equal times, and equal memory."""
        return "-".join((self.stage, self.task, self.config.with_fields({"seed": 0}).fingerprint()))

    @property
    def samples(self) -> Mapping[str, int]:
        """Training samples of each task in this run, its parents' not counted."""
        return self.trainer.samples(self.config)

    def to_plain(self) -> dict[str, Any]:
        """JSON data; `from_plain` is its inverse."""
        return {**vars(self), "config": self.config.canonical()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Unit":
        config = load_project(plain["project"]).read(plain["config"])
        return cls(**{**plain, "config": config, "trunk": tuple(plain["trunk"])})


@dataclass(frozen=True)
class Arm:
    """One full configuration, i.e. what a row means."""

    name: str
    """What sets it apart from the base, e.g. "encoder_layers=1"; "base" for the base itself."""
    config: Settings
    """With seed 0."""
    training: str
    """As its project names it."""
    project: str = UPS
    """Address of what trains it."""


@dataclass(frozen=True)
class Line:
    """A row of a table and the units that fill it."""

    row: Row
    arms: Mapping[str, Arm]
    """By group of columns (`Column.group`)."""
    units: Mapping[str, tuple[str, ...]]
    """Of each group of columns, the key of the unit that is measured, one a seed."""


def chain_seconds(units: Iterable[Unit], seconds: Mapping[str, float]) -> dict[str, float]:
    """By key, the time of each unit and of the longest chain of the others that starts from it.

    Args:
        units: parents before children.
        seconds: of each unit, by key.
    """
    chains: dict[str, float] = {}
    longest_child: dict[str, float] = {}
    for unit in reversed(list(units)):
        chains[unit.key] = seconds[unit.key] + longest_child.get(unit.key, 0.0)
        longest_child[unit.parent] = max(longest_child.get(unit.parent, 0.0), chains[unit.key])
    return chains


@dataclass(frozen=True)
class Plan:
    """What has to be trained, and which cell each training fills."""

    study: Study
    preset: str
    data: Mapping[str, DataFacts]
    seed_numbers: tuple[int, ...]
    """In the order in which they were asked for."""
    arms: tuple[Arm, ...]
    tables: tuple[tuple[Table, tuple[Line, ...]], ...]
    units: Mapping[str, Unit]
    """By key, parents before children."""
    base: Settings
    tuning: PlannedTuning | None = None
    """What was chosen for the tuned rows; None where there are none (yet)."""

    @property
    def project(self) -> Project:
        """The study's own."""
        return load_project(self.study.project)

    @property
    def name(self) -> str:
        """Names the study on storage and in MLflow. Rows, tables and seeds may be added without changing it; another
        base configuration, other data, claims or tuning make another name."""
        data = {name: facts.fingerprint for name, facts in self.data.items()}
        # Claims are part of what was fixed before the run; a study without any keeps its name.
        claims = [[asdict(claim) for claim in self.study.claims]] if self.study.claims else []
        tuning = [asdict(self.study.tuning)] if self.study.tuning else []
        return f"{self.study.name}-{self.preset}-{digest([self.base.canonical(), data, *claims, *tuning])[:8]}"

    @property
    def seeds(self) -> int:
        """Repetitions of every row."""
        return len(self.seed_numbers)

    @property
    def rows(self) -> int:
        return sum(len(lines) for _, lines in self.tables)

    @property
    def unshared_units(self) -> int:
        """How many trainings there would be if each row trained its own."""
        return sum(
            len({key for keys in line.units.values() for key in self.with_parents(keys)})
            for _, lines in self.tables
            for line in lines
        )

    def measured(self) -> set[str]:
        """Keys of units whose test figures stand in a cell. Of others, such as joint training before fine-tuning, the
        test split is left alone."""
        return {key for _, lines in self.tables for line in lines for keys in line.units.values() for key in keys}

    def with_parents(self, keys: Sequence[str]) -> list[str]:
        """These units and all units that they start from, parents first."""
        keys_with_parents: dict[str, None] = {}
        for key in keys:
            chain = []
            while key:
                chain.append(key)
                key = self.units[key].parent
            keys_with_parents.update(dict.fromkeys(reversed(chain)))
        return list(keys_with_parents)

    def samples(self, key: str, task: str) -> int:
        """Training samples of a task that a unit's weights have seen, its parents' included."""
        return sum(self.units[step].samples.get(task, 0) for step in self.with_parents([key]))


def make_plan(
    resolved: ResolvedStudy,
    seeds: int | Sequence[int],
    data: Mapping[str, DataFacts],
    inputs_identity: str | None = None,
) -> Plan:
    """Rows -> arms -> units, equal ones once.

    Args:
        seeds: of every row's repetitions; a number N is seeds 0 to N - 1.
        data: the data sets by name.
        inputs_identity: of what runs read beside data sets; None asks their project.

    Raises:
        ValueError: no seeds, or one that is negative or there twice; a column whose task isn't trained, or too few
            steps to divide among stages. Names the study, the table and the row.
    """
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not numbers:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    if not 0 <= min(numbers) <= max(numbers) < 2**32 or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds must be from 0 to 2**32 - 1, each there once, got {', '.join(map(str, numbers))}")
    planner = _Planner(resolved, numbers, {name: facts.fingerprint for name, facts in data.items()}, inputs_identity)
    tables = []
    for table in resolved.tables:
        lines = []
        for row in table.rows:
            with errors_at(row.where):
                lines.append(planner.line(table.table, row))
        tables.append((table.table, tuple(lines)))
    arms = tuple(planner.arms.values())
    return Plan(resolved.study, resolved.preset, dict(data), numbers, arms, tuple(tables), planner.units, resolved.base)


def _arm_name(project: Project, is_own: bool, base: Settings, column: Column, row: Row) -> str:
    """What sets an arm apart from the base; `is_own` is whether the project is the study's."""
    changes = {base.field_path(name): (name, value) for name, value in {**column.changes, **row.changes}.items()}
    different = [
        f"{name.removesuffix('.sources')}={','.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in changes.values()
        if _differs(base, name, value)
    ]
    training = [row.training] * (row.training not in ("", project.trainings[0]))
    return ", ".join([project.name] * (not is_own) + different + training) or "base"


def _differs(base: Settings, name: str, value: Any) -> bool:
    try:
        return base.with_fields({name: value}) != base
    except ValueError:  # Alone it makes no configuration, only with other changes of its row.
        return True


class _Planner:
    """Collects arms and units; equal ones are one."""

    def __init__(
        self, resolved: ResolvedStudy, seeds: tuple[int, ...], data: Mapping[str, str], inputs: str | None
    ) -> None:
        """`data` is the fingerprint of each data set."""
        self.arms: dict[str, Arm] = {}
        self.units: dict[str, Unit] = {}
        self._study, self._fine_tuning = resolved.study, resolved.study.fine_tuning
        self._seeds, self._data = seeds, data
        bases = {resolved.study.project: resolved.base}
        bases |= {row.project: row.base for table in resolved.tables for row in table.rows}
        self._inputs = {
            address: project.inputs_identity(bases[address]) if inputs is None else inputs
            for address, project in resolved.projects.items()
        }

    def line(self, table: Table, resolved: ResolvedRow) -> Line:
        """The arms and units of a row."""
        row, project = resolved.row, load_project(resolved.project)
        arms: dict[str, Arm] = {}
        units: dict[str, tuple[str, ...]] = {}
        for column in table.columns:
            if column.group in arms:
                continue
            config = resolved.configs[column.group]
            identity = digest([resolved.project, config.canonical(), resolved.training])
            if identity not in self.arms:
                is_own = resolved.project == self._study.project
                changed = replace(row, changes={**row.changes, **resolved.chosen.get(column.group, {})})
                name = _arm_name(project, is_own, resolved.base, column, changed)
                self.arms[identity] = Arm(name, config, resolved.training, resolved.project)
            arm = arms[column.group] = self.arms[identity]
            units[column.group] = tuple(self._measured(arm, column.task, seed).key for seed in self._seeds)
        return Line(row, arms, units)

    def _measured(self, arm: Arm, task: str, seed: int) -> Unit:
        """The unit of a seed on which a task is measured."""
        settings = arm.config.with_fields({"seed": seed})
        project = load_project(arm.project)
        parent: Unit | None = None
        for stage in project.stages(settings, arm.training, task, self._fine_tuning):
            parent = self._add(project, stage, parent, arm)
        if parent is None:
            raise ValueError(f"{project.name} has no training run for {arm.training!r} and {task}")
        return parent

    def _add(self, project: Project, stage: Stage, parent: Unit | None, arm: Arm) -> Unit:
        settings, inputs = stage.settings, self._inputs[arm.project]
        data = {name: self._data[name] for name in project.sets(settings)}
        before, trained_before = (parent.key, parent.training_key) if parent else ("", "")
        key = project.key(settings, data, inputs, before)
        if key not in self.units:
            training = project.training_key(settings, data, inputs, trained_before)
            trunk = project.trunk(settings, data, inputs, before)
            self.units[key] = Unit(
                key, stage.name, stage.task, settings, before, arm.name, training, arm.project, trunk
            )
        return self.units[key]
