"""The trials of a search: when the next one is suggested, which units each has, what each is worth. No Ray.

What has no value yet when the driver dies is taken up again with the same parameters.
"""

import logging
import statistics
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from optuna.trial import FrozenTrial, TrialState

from orchestrator.planning.plan import Unit
from orchestrator.scheduling.task_graph import SETTLED, State, TaskGraph
from orchestrator.search.journal import Journal, number_of
from orchestrator.search.plan import SearchPlan, named
from orchestrator.storage.ledger import Ledger
from orchestrator.storage.source_check import SourceCheck

logger = logging.getLogger(__name__)


class TrialQueue(TaskGraph):
    """Releases the units of trials in their order, and asks for a new trial when there is room for one."""

    def __init__(
        self, plan: SearchPlan, ledger: Ledger, journal: Journal, trials: int, check: SourceCheck | None = None
    ) -> None:
        """Take up what was left: complete trials are done, running and failed ones are tried again.

        Args:
            journal: the trials so far.
            trials: how many there are to be in all.
            check: compares records with the present code; None takes them as they are.
        """
        self.search, self.journal, self.wanted = plan, journal, trials
        self.joined: Callable[[Unit, bool], None] = lambda unit, done: None
        """Told of each unit that a new trial brings, and whether it was trained before."""
        self.reason: dict[int, str] = {}
        """Why a trial has failed."""
        self.fault = ""
        """Why the search stopped by itself."""
        self._exhausted = False
        self._trials_of: dict[str, list[int]] = {}
        """Numbers of trials by key of their units."""
        super().__init__(plan.units, ledger, check=check)
        for number, trial in enumerate(journal.trials):
            if trial.state is TrialState.FAIL and self._units(trial):
                journal.again(number)
            self._take(number)

    def next(self) -> Unit | None:
        while True:
            unit = super().next()
            if unit is not None or self.stopping or not self._has_room:
                return unit
            self._suggest()

    @property
    def trials(self) -> list[FrozenTrial]:
        """All so far, by number."""
        return self.journal.trials

    @property
    def projects(self) -> list[str]:
        """There may be no trial yet."""
        return [self.search.study.project]

    @property
    def _has_room(self) -> bool:
        return len(self.trials) < self.wanted and not self._exhausted

    @property
    def complete(self) -> bool:
        """Nothing is left to suggest, to release or to wait for."""
        return (self.stopping or not self._has_room) and super().complete

    @property
    def total(self) -> int:
        """Trials that there are to be, or can be."""
        return len(self.trials) if self._exhausted else max(self.wanted, len(self.trials))

    @property
    def whole(self) -> bool:
        """All trials that there are to be, or can be, have a value."""
        return not self._has_room and all(trial.state is TrialState.COMPLETE for trial in self.trials)

    def finished(self, key: str) -> None:
        super().finished(key)
        self._settle(key)

    def failed(self, key: str, error: str) -> None:
        super().failed(key, error)
        self._settle(key)

    def again(self, key: str) -> None:
        super().again(key)
        for number in self._trials_of.get(key, []):
            if self.trials[number].state is TrialState.FAIL and self._written(self.journal.again, number):
                self.reason.pop(number, None)

    def time_left(self, seconds: Mapping[str, float], slots: int) -> float:
        """As of a graph; trials that are still to be suggested take as long as the others."""
        each = statistics.median(seconds.values()) if seconds else 0.0
        units = self.search.seeds * max(0, self.wanted - len(self.trials)) if self._has_room else 0
        return super().time_left(seconds, slots) + units * each / max(slots, 1)

    def values(self, trial: FrozenTrial) -> list[float]:
        """The objective of each of a trial's units that has it in its record, by seed."""
        records = (self.ledger.finished(unit) for unit in self._units(trial))
        metrics = [record.metrics.get(self.search.study.objective) for record in records if record is not None]
        return [value for value in metrics if value is not None]

    def _units(self, trial: FrozenTrial) -> list[Unit]:
        try:
            return self.search.units_of(trial.params)
        except ValueError as error:
            self.reason[number_of(trial)] = str(error)
            return []

    def _suggest(self) -> None:
        params = self.journal.suggest()
        if params is None:
            self._exhausted = True
            logger.info("the space has no more configurations than these %d", len(self.trials))
        elif self._written(self.journal.begin, params):
            number = len(self.trials) - 1
            logger.info("trial %d: %s", number, named(params))
            self._take(number)

    def _written(self, write: Callable[..., object], *values: object) -> bool:
        """Write to the journal. Where that fails nothing new is begun: what runs comes to its end and is in the ledger,
        and the next call of the search finds it there."""
        try:
            write(*values)
        except OSError as error:
            logger.error("the trials can't be written (%s); the search stops", error)
            self.fault, self.stopping = f"the trials can't be written ({error})", True
            return False
        return True

    def _take(self, number: int) -> None:
        """Put a trial's units on the graph; if all are finished, score the trial immediately."""
        is_complete, units = self.trials[number].state is TrialState.COMPLETE, self._units(self.trials[number])
        if is_complete and any(self.ledger.finished(unit) is None for unit in units):
            return  # Its value stands, though somebody has removed the records.
        for unit in units:
            if unit.key not in self.units:
                self.add(unit)
                self.search.units = self.units
                self.joined(unit, self.state[unit.key] is State.FINISHED)
            self._trials_of.setdefault(unit.key, []).append(number)
        # Units of other code are trained or measured again, and the trial is worth what comes out.
        if is_complete and any(self.state[unit.key] is not State.FINISHED for unit in units):
            self._written(self.journal.again, number)
        self._judge(number)

    def _settle(self, key: str) -> None:
        for number in self._trials_of.get(key, []):
            self._judge(number)

    def _judge(self, number: int) -> None:
        """Give a running trial its value when all its units have ended; one that failed leaves it without."""
        trial = self.trials[number]
        if trial.state.is_finished():
            return
        units = self._units(trial)
        states = [self.state[unit.key] for unit in units]
        if any(state not in SETTLED or state is State.STOPPED for state in states):
            return
        objective = self.search.study.objective
        bad = next((unit for unit, state in zip(units, states, strict=True) if state is not State.FINISHED), None)
        values = self.values(trial)
        if bad is not None:
            self.reason[number] = f"{bad.name}: {self.error[bad.key]}"
        elif units and len(values) < len(units):
            self.reason[number] = f"{objective} is not in the record of each of its units"
        elif units:
            if self._written(self.journal.complete, number, statistics.fmean(values)):
                logger.info("trial %d: %s %s; %s", number, objective, spread(values), named(trial.params))
            return
        if self._written(self.journal.fail, number):
            logger.error("trial %d FAILED: %s", number, self.reason[number])


def units_of_trials(plan: SearchPlan, trials: Iterable[FrozenTrial]) -> list[Unit]:
    """Units of all trials whose parameters make a configuration, each once."""
    units: dict[str, Unit] = {}
    for trial in trials:
        with suppress(ValueError):
            units |= {unit.key: unit for unit in plan.units_of(trial.params)}
    return list(units.values())


def ranked(trials: Iterable[FrozenTrial], direction: str) -> list[FrozenTrial]:
    """Best first; those without a value at the end, in their order."""
    sign = -1.0 if direction == "maximize" else 1.0
    return sorted(trials, key=lambda trial: (trial.value is None, sign * (trial.value or 0.0), number_of(trial)))


def spread(values: list[float]) -> str:
    """Mean and standard deviation, and over how many."""
    if len(values) == 1:
        return f"{values[0]:.4g} (n = 1)"
    return f"{statistics.fmean(values):.4g} ± {statistics.stdev(values):.2g} (n = {len(values)})"
