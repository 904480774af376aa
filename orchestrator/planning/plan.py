"""From a study to the fewest training units that fill its tables. Pure and deterministic; no Ray, no torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from orchestrator.planning.resolve import ResolvedRow, ResolvedStudy, errors_at
from search_spaces.study import Column, FineTuning, Row, Study, Table, Training
from ups_model.config import Config, TaskName
from ups_model.config.identity import configured_sets, run_key, training_key
from ups_model.config.schema import digest

Stage = Literal["joint", "separate", "finetune"]


@dataclass(frozen=True)
class DataFacts:
    """What a plan says of one clip set."""

    fingerprint: str
    synthetic: bool
    description: str
    clips: int
    published_clips: int | None = None
    """As its authors, or those who published figures on it, counted them; None where nobody did."""
    classes: tuple[str, ...] = ()
    """Names of its classes by number; empty in plans of earlier versions."""


@dataclass(frozen=True)
class UnitSize:
    """How much a unit computes, counted from its configuration."""

    active_parameters: int
    """Those that one sample passes through: of a routed layer, one block's."""
    flops: Mapping[TaskName, float]
    """Multiplications and additions of a forward pass, per sample of each trained task."""
    operations: float
    """Multiplications and additions of its training, forward and backward."""


@dataclass(frozen=True)
class Unit:
    """One training run, the node of the plan."""

    key: str
    """Names everything that can change the result (`ups_model.config.identity.run_key`)."""
    stage: Stage
    task: TaskName | Literal[""]
    """The task trained alone; empty for joint training."""
    config: Config
    parent: str
    """Key of the unit whose weights this one starts from; empty for none."""
    arm: str
    """Name of the first arm that asked for it, for people."""
    training_key: str = ""
    """Equal for units that have the same weights and are measured in different ways
    (`ups_model.config.identity.training_key`); empty where that isn't known."""

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
        return " · ".join((self.arm, " ".join(filter(None, (self.stage, self.task))), f"seed {self.seed}"))

    @property
    def kind(self) -> str:
        """Equal for units that differ in the seed alone: they take equal times, and equal memory."""
        return "-".join((self.stage, self.task, self.config.replace(seed=0).fingerprint()))

    @property
    def samples(self) -> dict[TaskName, int]:
        """Training samples of each task in this run, its parents' not counted."""
        optim = self.config.optim
        turns = optim.turns_before(optim.steps)
        return {task: count * getattr(self.config.data, task).batch_size for task, count in turns.items()}

    def to_plain(self) -> dict[str, Any]:
        """JSON data; `from_plain` is its inverse."""
        return {**vars(self), "config": self.config.canonical()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Unit":
        return cls(**{**plain, "config": Config.from_canonical(plain["config"])})


@dataclass(frozen=True)
class Arm:
    """One full configuration, i.e. what a row means."""

    name: str
    """What sets it apart from the base, e.g. "encoder_layers=1"; "base" for the base itself."""
    config: Config
    """With seed 0."""
    training: Training


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
    base: Config

    @property
    def name(self) -> str:
        """Names the study on storage and in MLflow. Rows, tables and seeds may be added without changing it; another
        base configuration, other data or other claims make another name."""
        data = {name: facts.fingerprint for name, facts in self.data.items()}
        # Claims are part of what was fixed before the run; a study without any keeps its name.
        claims = [[asdict(claim) for claim in self.study.claims]] if self.study.claims else []
        return f"{self.study.name}-{self.preset}-{digest([self.base.canonical(), data, *claims])[:8]}"

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

    def children(self, key: str) -> list[str]:
        """Units that start from this one."""
        return [unit.key for unit in self.units.values() if unit.parent == key]

    def samples(self, key: str, task: TaskName) -> int:
        """Training samples of a task that a unit's weights have seen, its parents' included."""
        return sum(self.units[step].samples.get(task, 0) for step in self.with_parents([key]))


def make_plan(
    resolved: ResolvedStudy, seeds: int | Sequence[int], data: Mapping[str, DataFacts], text_identity: str
) -> Plan:
    """Rows -> arms -> units, equal ones once.

    Args:
        seeds: of every row's repetitions; a number N is seeds 0 to N - 1.
        data: the clip sets by name.
        text_identity: of the vocabulary's language model.

    Raises:
        ValueError: no seeds, or one that is negative or there twice; a column whose task isn't trained, or too few
            steps to divide among stages. Names the study, the table and the row.
    """
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not numbers:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    if not 0 <= min(numbers) <= max(numbers) < 2**32 or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds must be from 0 to 2**32 - 1, each there once, got {', '.join(map(str, numbers))}")
    planner = _Planner(resolved, numbers, {name: facts.fingerprint for name, facts in data.items()}, text_identity)
    tables = []
    for table in resolved.tables:
        lines = []
        for row in table.rows:
            with errors_at(row.where):
                lines.append(planner.line(table.table, row))
        tables.append((table.table, tuple(lines)))
    arms = tuple(planner.arms.values())
    return Plan(resolved.study, resolved.preset, dict(data), numbers, arms, tuple(tables), planner.units, resolved.base)


def _arm_name(base: Config, column: Column, row: Row) -> str:
    """What sets an arm apart from the base."""
    changes = {base.field_path(name): (name, value) for name, value in {**column.changes, **row.changes}.items()}
    different = [
        f"{name.removesuffix('.sources')}={','.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in changes.values()
        if base.with_fields({name: value}) != base
    ]
    return ", ".join(different + [row.training] * (row.training != "fine-tuned")) or "base"


class _Planner:
    """Collects arms and units; equal ones are one."""

    def __init__(self, resolved: ResolvedStudy, seeds: tuple[int, ...], data: Mapping[str, str], text: str) -> None:
        """`data` is the fingerprint of each clip set."""
        self.arms: dict[str, Arm] = {}
        self.units: dict[str, Unit] = {}
        self._base, self._fine_tuning = resolved.base, resolved.study.fine_tuning
        self._seeds, self._data, self._text = seeds, data, text

    def line(self, table: Table, resolved: ResolvedRow) -> Line:
        """The arms and units of a row."""
        row = resolved.row
        arms: dict[str, Arm] = {}
        units: dict[str, tuple[str, ...]] = {}
        for column in table.columns:
            if column.group in arms:
                continue
            config = resolved.configs[column.group]
            identity = digest([config.canonical(), row.training])
            if identity not in self.arms:
                self.arms[identity] = Arm(_arm_name(self._base, column, row), config, row.training)
            arm = arms[column.group] = self.arms[identity]
            units[column.group] = self._measured_units(arm, column.task)
        return Line(row, arms, units)

    def _measured_units(self, arm: Arm, task: TaskName) -> tuple[str, ...]:
        """Keys of the units on which the task is measured, one a seed."""
        if task not in arm.config.optim.cycle:
            raise ValueError(
                f"a column measures {task}, which is not trained: name its clip set in data.{task}.sources "
                f"and the task in optim.cycle, or leave the column out; trained are {', '.join(arm.config.optim.tasks)}"
            )
        return tuple(self._measured(arm, task, arm.config.replace(seed=seed)).key for seed in self._seeds)

    def _measured(self, arm: Arm, task: TaskName, config: Config) -> Unit:
        if arm.training == "joint":
            return self._add("joint", "", config, "", arm)
        if arm.training == "separate":
            return self._add("separate", task, alone(config, task), "", arm)
        joint, tuned = two_stages(config, self._fine_tuning)
        parent = self._add("joint", "", joint, "", arm)
        return self._add("finetune", task, tuned[task], parent.key, arm)

    def _add(self, stage: Stage, task: TaskName | Literal[""], config: Config, parent: str, arm: Arm) -> Unit:
        data = {name: self._data[name] for name in configured_sets(config)}
        key = run_key(config, data, self._text, parent)
        if key not in self.units:
            before = self.units[parent].training_key if parent else ""
            training = training_key(config, data, self._text, before)
            self.units[key] = Unit(key, stage, task, config, parent, arm.name, training)
        return self.units[key]


def alone(config: Config, task: TaskName) -> Config:
    """One task from scratch, with as many iterations of it as joint training has."""
    return _one_task(config, task, config.optim.turns_before(config.optim.steps)[task])


def two_stages(config: Config, fine_tuning: FineTuning) -> tuple[Config, dict[TaskName, Config]]:
    """Joint training, and for each task the fine-tuning that follows; together as many iterations as `config` has.

    Raises:
        ValueError: too few steps for both stages.
    """
    optim = config.optim
    cycle = len(optim.cycle)
    steps = round(optim.steps * (1 - fine_tuning.share) / cycle) * cycle
    total, joint = optim.turns_before(optim.steps), optim.turns_before(steps)
    if steps < cycle or any(total[task] == joint[task] for task in optim.tasks):
        raise ValueError(
            f"steps must be enough for joint training and fine-tuning of every task, got {optim.steps} for a cycle of "
            f"{cycle} with a fine-tuning share of {fine_tuning.share}; try {2 * cycle * round(1 / fine_tuning.share)}"
        )
    tuned = {}
    for task in optim.tasks:
        one = _one_task(config, task, total[task] - joint[task])
        one = one.replace(optim=one.optim.replace(learning_rate=optim.learning_rate * fine_tuning.rate))
        tuned[task] = one.replace(freeze_routes=True)
    return config.replace(optim=optim.replace(steps=steps)), tuned


def _one_task(config: Config, task: TaskName, steps: int) -> Config:
    optim = config.optim
    every = optim.evaluate_every
    if every:  # As many samples of the task between validations as in joint training.
        every = max(1, every * optim.cycle.count(task) // len(optim.cycle))
    return config.replace(optim=optim.replace(cycle=(task,), update="iteration", steps=steps, evaluate_every=every))
