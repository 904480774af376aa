"""The trials of a search: which units each has, when the next one is asked for, what each is worth. No Ray, no Optuna.

    <storage>/searches/<name>/journal.log     the trials, as Optuna keeps them
    <storage>/searches/<name>/                search.md, trials.csv

A trial's units are units like any other, in the ledger under their keys: one that a study or another search has trained
is not trained again. What has no value yet when the driver dies is taken up again with the same parameters.
"""

import logging
import statistics
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from orchestrator.planning.plan import DataFacts, Line, Stage, Unit
from orchestrator.scheduling.task_graph import SETTLED, Agenda, State
from orchestrator.storage.ledger import Ledger
from orchestrator.storage.source_check import SourceCheck
from search_spaces.space import Space
from search_spaces.study import Table
from ups_model.config import Config, TaskName
from ups_model.config.identity import run_key, training_key
from ups_model.config.schema import digest

logger = logging.getLogger(__name__)

Params = Mapping[str, bool | int | float | str]
"""Searched fields by dotted name."""
TrialState = Literal["running", "complete", "failed"]


@dataclass
class Trial:
    """One configuration of a search."""

    number: int
    params: Params
    state: TrialState = "running"
    value: float | None = None
    """Of a complete trial: the mean over its seeds."""


class Book(Protocol):
    """Where trials are kept; what it has been told is there after any crash."""

    trials: list[Trial]

    def suggest(self) -> Params | None:
        """Parameters of the next trial, None where the space has no more; changes nothing."""

    def begin(self, params: Params) -> Trial:
        """Keep a new trial as running."""

    def again(self, trial: Trial) -> None:
        """Keep a trial that has ended as running."""

    def complete(self, trial: Trial, value: float) -> None:
        """Keep its value."""

    def fail(self, trial: Trial) -> None:
        """Keep that it has none."""


class SearchPlan:
    """What a search trains, known as far as trials have been asked for."""

    def __init__(
        self,
        space: Space,
        preset: str,
        base: Config,
        seeds: int,
        data: Mapping[str, DataFacts],
        text_identity: str,
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

    def measured(self) -> set[str]:
        """None: the test split is left alone."""
        return set()

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
        stage: Stage = "joint" if len(tasks) > 1 else "separate"
        task: TaskName | Literal[""] = "" if len(tasks) > 1 else tasks[0]
        facts = {name: fact.fingerprint for name, fact in self.data.items()}
        found = []
        for seed in range(self.study.first_seed, self.study.first_seed + self.seeds):
            seeded = config.replace(seed=seed)
            key = run_key(seeded, facts, self.text)
            training = training_key(seeded, facts, self.text)
            found.append(Unit(key, stage, task, seeded, "", ", ".join(different), training))
        return found


class SearchAgenda(Agenda):
    """Releases the units of trials in their order, and asks for a new trial when there is room for one."""

    def __init__(
        self,
        plan: SearchPlan,
        ledger: Ledger,
        book: Book,
        trials: int,
        joined: Callable[[Unit, bool], None] = lambda unit, done: None,
        check: SourceCheck | None = None,
    ) -> None:
        """Take up what was left: complete trials are done, running and failed ones are tried again.

        Args:
            book: the trials so far.
            trials: how many there are to be in all.
            joined: told of each unit that a new trial brings, and whether it was trained before.
            check: compares records with the present code; None takes them as they are.
        """
        self.search, self.book, self.wanted, self.joined = plan, book, trials, joined
        self.reason: dict[int, str] = {}
        """Why a trial has failed."""
        self.fault = ""
        """Why the search stopped by itself."""
        self._exhausted = False
        self._trials_of: dict[str, list[Trial]] = {}
        super().__init__(plan, ledger, test=False, check=check)
        for trial in book.trials:
            if trial.state == "failed" and self._units(trial):
                book.again(trial)
            self._take(trial)

    def next(self) -> Unit | None:
        while True:
            unit = super().next()
            if unit is not None or self.stopping or not self._room:
                return unit
            self._ask()

    @property
    def _room(self) -> bool:
        return len(self.book.trials) < self.wanted and not self._exhausted

    @property
    def complete(self) -> bool:
        """Nothing is left to ask for, to release or to wait for."""
        return (self.stopping or not self._room) and super().complete

    @property
    def total(self) -> int:
        """Trials that there are to be, or can be."""
        return len(self.book.trials) if self._exhausted else max(self.wanted, len(self.book.trials))

    @property
    def whole(self) -> bool:
        """All trials that there are to be, or can be, have a value."""
        return not self._room and all(trial.state == "complete" for trial in self.book.trials)

    def finished(self, key: str) -> None:
        super().finished(key)
        self._settle(key)

    def failed(self, key: str, error: str) -> None:
        super().failed(key, error)
        self._settle(key)

    def again(self, key: str) -> None:
        super().again(key)
        for trial in self._trials_of.get(key, []):
            if trial.state == "failed" and self._kept(partial(self.book.again, trial)):
                self.reason.pop(trial.number, None)

    def time_left(self, seconds: Mapping[str, float], slots: int) -> float:
        """As of an agenda, and the trials that haven't been asked for yet take as long as the others."""
        each = statistics.median(seconds.values()) if seconds else 0.0
        unasked = self.search.seeds * max(0, self.wanted - len(self.book.trials)) if self._room else 0
        return super().time_left(seconds, slots) + unasked * each / max(slots, 1)

    def values(self, trial: Trial) -> list[float]:
        """The objective of each of a trial's units that has it in its record, by seed."""
        found = (self.ledger.finished(unit) for unit in self._units(trial))
        metrics = [record.metrics.get(self.search.study.objective) for record in found if record is not None]
        return [value for value in metrics if value is not None]

    def _units(self, trial: Trial) -> list[Unit]:
        try:
            return self.search.units_of(trial.params)
        except ValueError as error:
            self.reason[trial.number] = str(error)
            return []

    def _ask(self) -> None:
        params = self.book.suggest()
        if params is None:
            self._exhausted = True
            logger.info("the space has no more configurations than these %d", len(self.book.trials))
            return
        if not self._kept(lambda: self.book.begin(params)):
            return
        trial = self.book.trials[-1]
        logger.info("trial %d: %s", trial.number, named(params))
        self._take(trial)

    def _kept(self, write: Callable[[], object]) -> bool:
        """Write to the book. Where that fails nothing new is begun: what runs comes to its end and is in the ledger,
        and the next call of the search finds it there."""
        try:
            write()
        except OSError as error:
            logger.error("the trials can't be written (%s); the search stops", error)
            self.fault, self.stopping = f"the trials can't be written ({error})", True
            return False
        return True

    def _take(self, trial: Trial) -> None:
        """Put a trial's units on the agenda; whoever has all of them trained already is worth something at once."""
        units = self._units(trial)
        if trial.state == "complete" and any(self.ledger.finished(unit) is None for unit in units):
            return  # Its value stands, though somebody has removed the records.
        for unit in units:
            if unit.key not in self.units:
                self.add(unit)
                self.search.units = self.units
                self.joined(unit, self.state[unit.key] is State.FINISHED)
            self._trials_of.setdefault(unit.key, []).append(trial)
        # Units of other code are trained or measured again, and the trial is worth what comes out.
        if trial.state == "complete" and any(self.state[unit.key] is not State.FINISHED for unit in units):
            self._kept(lambda: self.book.again(trial))
        if trial.state == "running":
            self._judge(trial, units)

    def _settle(self, key: str) -> None:
        for trial in self._trials_of.get(key, []):
            if trial.state == "running":
                self._judge(trial, self._units(trial))

    def _judge(self, trial: Trial, units: list[Unit]) -> None:
        """Give a trial its value when all its units have ended; one that failed leaves it without."""
        states = [self.state[unit.key] for unit in units]
        if any(state not in SETTLED or state is State.STOPPED for state in states):
            return
        objective = self.search.study.objective
        bad = next((unit for unit, state in zip(units, states, strict=True) if state is not State.FINISHED), None)
        values = self.values(trial)
        if bad is not None:
            self.reason[trial.number] = f"{bad.name}: {self.error[bad.key]}"
        elif units and len(values) < len(units):
            self.reason[trial.number] = f"{objective} is not in the record of each of its units"
        elif units:
            if self._kept(lambda: self.book.complete(trial, statistics.fmean(values))):
                logger.info("trial %d: %s %s; %s", trial.number, objective, spread(values), named(trial.params))
            return
        if self._kept(lambda: self.book.fail(trial)):
            logger.error("trial %d FAILED: %s", trial.number, self.reason[trial.number])


def units_of_trials(plan: SearchPlan, trials: Iterable[Trial]) -> list[Unit]:
    """Units of all trials whose parameters make a configuration, each once."""
    found: dict[str, Unit] = {}
    for trial in trials:
        with suppress(ValueError):
            found |= {unit.key: unit for unit in plan.units_of(trial.params)}
    return list(found.values())


def ranked(trials: list[Trial], direction: str) -> list[Trial]:
    """Best first; those without a value at the end, in their order."""
    sign = -1.0 if direction == "maximize" else 1.0
    return sorted(trials, key=lambda trial: (trial.value is None, sign * (trial.value or 0.0), trial.number))


def spread(values: list[float]) -> str:
    """Mean and standard deviation, and over how many."""
    if len(values) == 1:
        return f"{values[0]:.4g} (n = 1)"
    return f"{statistics.fmean(values):.4g} ± {statistics.stdev(values):.2g} (n = {len(values)})"


def named(params: Params) -> str:
    """For a line: short names and values."""
    return ", ".join(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in params.items())


def field_of(config: Config, path: str) -> Any:
    """The value of a field by its dotted name."""
    found: Any = config
    for part in path.split("."):
        found = getattr(found, part)
    return found


def cut_torn_line(file: Path) -> None:
    """Drop a line that a crash or a full disk cut short; what is added behind it would make the file unreadable."""
    if not file.exists():
        return
    with file.open("r+b") as stream:
        size = stream.seek(0, 2)
        kept = size
        while kept:
            stream.seek(max(0, kept - 65536))
            chunk = stream.read(kept - stream.tell())
            if (end := chunk.rfind(b"\n")) >= 0:
                kept -= len(chunk) - end - 1
                break
            kept -= len(chunk)
        if kept < size:
            logger.warning("%s: its last line is incomplete and is dropped", file)
            stream.truncate(kept)
