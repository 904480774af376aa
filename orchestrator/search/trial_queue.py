"""The trials of a search: when the next one is suggested, which units each has, what each is worth. No Ray.

What has no value yet when the driver dies is taken up again with the same parameters.
"""

import logging
import statistics
from collections.abc import Callable, Iterable, Mapping

from optuna.trial import FrozenTrial, TrialState

from orchestrator.planning.plan import Unit
from orchestrator.scheduling.task_graph import SETTLED, State, TaskGraph
from orchestrator.search.journal import Journal, aim_of, number_of
from orchestrator.search.plan import SearchPlan
from orchestrator.search.rungs import END, Rungs, Standing
from orchestrator.search.trials import is_feasible, ranked, short, spread
from orchestrator.storage.ledger import Ledger
from orchestrator.storage.source_check import SourceCheck

logger = logging.getLogger(__name__)

HIGHLIGHTS = 3
"""Trials that a display shows."""


class TrialQueue(TaskGraph):
    """Releases the units of trials in their order, and asks for a new trial when there is room for one."""

    def __init__(
        self,
        plan: SearchPlan,
        ledger: Ledger,
        journal: Journal,
        trials: int,
        check: SourceCheck | None = None,
        promoted: Iterable[int] = (),
    ) -> None:
        """Take up what was left: complete trials are done, running and failed ones are tried again.

        Args:
            journal: the trials so far.
            trials: how many there are to be in all.
            check: compares records with the present code; None takes them as they are.
            promoted: numbers of trials that train on to their end, wherever they stopped.
        """
        self.search, self.journal, self.wanted, self._label = plan, journal, trials, plan.named
        self.joined: Callable[[Unit, bool], None] = lambda unit, done: None
        """Told of each unit that a new trial brings, and whether it was trained before."""
        self.reason: dict[int, str] = {}
        """Why a trial has failed, in this process or as the records of its units say."""
        self.unit_seconds = 0.0
        """Expected time of a unit, before there is one."""
        self.fault = ""
        """Why the search stopped by itself."""
        self._trials_of: dict[str, list[int]] = {}
        """Numbers of trials by key of their units."""
        self._at_rung: dict[tuple[str, int], float] = {}
        """Values of units that have paused, by key and step."""
        self._taken = len(journal.trials)
        """Trials whose units are on the graph."""
        self._seen: list[FrozenTrial] = []
        """The journal's trials as they were last taken up."""
        super().__init__(plan.units, ledger, check=check)
        for number, trial in enumerate(journal.trials):
            if trial.state is TrialState.FAIL and self._units(trial):
                journal.again(number)
            self._take(number)
        for number in promoted:
            self.promote(number, END)

    def next(self) -> Unit | None:
        while True:
            unit = super().next()
            if unit is not None or self.stopping:
                return unit
            if self._promotable() is not None:
                self._written(self._promote_best)
            elif self._has_room:
                self._suggest()
            else:
                return None

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
        return len(self.trials) < self.wanted and not self.journal.exhausted

    @property
    def complete(self) -> bool:
        """Nothing is left to suggest, to release or to wait for."""
        self._catch_up()
        return (self.stopping or not (self._has_room or self._promotable() is not None)) and super().complete

    @property
    def _rungs(self) -> Rungs:
        assert self.search.rungs is not None
        return self.search.rungs

    def _promotable(self) -> int | None:
        """The trial that has earned to train on."""
        if self.search.rungs is None:
            return None
        counts = self.counts()
        is_last = not (self._has_room or any(counts[state] for state in set(State) - set(SETTLED)))
        return self.search.rungs.promotable([self._standing(trial) for trial in self.trials], is_last)

    def _standing(self, trial: FrozenTrial) -> Standing:
        sign = 1.0 if self.search.study.direction == "maximize" else -1.0
        values = {step: sign * value for step, value in trial.intermediate_values.items()}
        aim = END if trial.state is TrialState.COMPLETE else aim_of(trial)
        return Standing(aim, values, trial.state is TrialState.FAIL)

    def _promote_best(self) -> None:
        with self.journal.transaction():
            self.join()
            if (number := self._promotable()) is not None:
                self.promote(number, self._rungs.next(aim_of(self.trials[number])))

    def promote(self, number: int, aim: int) -> None:
        """Train a trial on to another rung."""
        trial = self.trials[number]
        if trial.state is TrialState.COMPLETE or aim_of(trial) == aim:
            logger.info("trial %d %s", number, "is complete" if trial.state is TrialState.COMPLETE else "trains there")
            return
        is_over = trial.state.is_finished()
        if self._written(self.journal.again if is_over else self.journal.aim, number, aim):
            goal = f"step {aim}" if aim else "its end"
            logger.info("trial %d trains on to %s; %s", number, goal, self._label(trial.params))
            self._take(number)

    def settle(self) -> None:
        """At the end of a search: trials that wait at a rung stay there."""
        if not self.stopping and not self.fault and self.complete:
            for number, trial in enumerate(self.trials):
                if self._standing(trial).waits and not trial.state.is_finished():
                    self._written(self.journal.end, number, TrialState.PRUNED)

    @property
    def total(self) -> int:
        """Trials that there are to be, or can be."""
        return len(self.trials) if self.journal.exhausted else max(self.wanted, len(self.trials))

    @property
    def whole(self) -> bool:
        """All trials that there are to be, or can be, have a value or were stopped early."""
        over = (TrialState.COMPLETE, TrialState.PRUNED)
        return not self._has_room and all(trial.state in over for trial in self.trials)

    def finished(self, key: str) -> None:
        was_ours = self.state[key] is State.RUNNING
        super().finished(key)
        step, metric = self.rung.pop(key, (END, ""))
        if was_ours and step != END:
            logger.warning(
                "%s was not measured at step %d, so it could not be stopped there: its training has to log %s",
                self.units[key].name, step, metric,
            )  # fmt: skip
        self._settle(key)

    def failed(self, key: str, error: str) -> None:
        super().failed(key, error)
        self._settle(key)

    def paused(self, key: str, value: float) -> None:
        step, _ = self.rung[key]
        self._at_rung[key, step] = value
        super().paused(key, value)
        self._settle(key)

    def again(self, key: str) -> None:
        super().again(key)
        for number in self._trials_of.get(key, []):
            if self.trials[number].state is TrialState.FAIL and self._written(self.journal.again, number):
                self.reason.pop(number, None)

    def join(self) -> None:
        """Take up what other processes that run this search have suggested and judged since the last look. Their units
        count as theirs until `look_elsewhere` finds that nobody holds them. OSError where the journal can't be read."""
        self.journal.read()
        self._catch_up()

    def _catch_up(self) -> None:
        """Take up what the journal has since it was last read, whoever read it."""
        self._seen, seen = self.journal.trials, self._seen
        while self._taken < len(self.trials):
            logger.info("trial %d, of another process: %s", self._taken, self._label(self.trials[self._taken].params))
            self._taken += 1
            self._take(self._taken - 1, theirs=True)
        for number, trial in enumerate(self.trials if self.search.rungs and seen is not self._seen else ()):
            if not trial.state.is_finished():
                self._follow(number)

    def _follow(self, number: int) -> None:
        """Take up what another process has done at a rung: its units have come there, or train on."""
        standing = self._standing(self.trials[number])
        for unit in self._units(self.trials[number]):
            state, (step, _) = self.state[unit.key], self.rung.get(unit.key, (END, ""))
            if state is State.ELSEWHERE and standing.waits:
                self._set(unit.key, State.PAUSED)
            elif state is State.PAUSED and step != standing.aim:
                self._set_rung(unit.key, standing.aim)
                self.busy(unit.key)

    def look_elsewhere(self) -> list[str]:
        try:
            self.join()
        except OSError as error:
            logger.warning("the trials can't be read (%s); another look follows", error)
        for number, trial in enumerate(self.trials):
            if trial.state is TrialState.FAIL:
                self._give_up(number)
        return super().look_elsewhere()

    def _give_up(self, number: int) -> None:
        """What another process has tried and failed at is not tried again by this one."""
        for unit in self._units(self.trials[number]):
            if self.state.get(unit.key) is State.ELSEWHERE and self.ledger.is_free(unit):
                record = self.ledger.record(unit)
                if record is None or record.status == "failed":
                    lines = record.error.strip().splitlines() if record else []
                    self.failed(unit.key, lines[-1] if lines else "it failed in another process")
                    self.reason.setdefault(number, f"{unit.name}: {self.error[unit.key]}")

    def highlights(self) -> list[str]:
        """The best trials so far, by what the journal has of them."""
        aims = self.search.study.aims
        complete = [trial for trial in self.trials if trial.values is not None]
        feasible = [trial for trial in ranked(complete, *(aim.direction for aim in aims)) if is_feasible(trial)]
        lines = [f"trials: {len(complete)} of {self.total} complete" + (", best first:" if feasible else "")]
        for trial in feasible[:HIGHLIGHTS]:
            values = ", ".join(f"{aim.metric} {short(value)}" for aim, value in zip(aims, trial.values, strict=True))
            lines.append(f"  {number_of(trial)}: {values}  {self._label(trial.params)}")
        return lines

    def time_left(self, seconds: Mapping[str, float], slots: int) -> float:
        """As of a graph; trials that are still to be suggested take as long as the others."""
        each = statistics.median(seconds.values()) if seconds else self.unit_seconds
        units = self.search.seeds * max(0, self.wanted - len(self.trials)) if self._has_room else 0
        share = self.search.rungs.share if self.search.rungs else 1.0
        return super().time_left(seconds, slots) + units * each * share / max(slots, 1)

    def values(self, trial: FrozenTrial, metric: str) -> list[float]:
        """An objective or constraint of each of a trial's units that has it in its record, by seed."""
        return [values[metric] for values in self._measured(trial) if metric in values]

    def _measured(self, trial: FrozenTrial) -> list[dict[str, float]]:
        records = ((unit, self.ledger.finished(unit)) for unit in self._units(trial))
        return [self.search.measured(unit, record) for unit, record in records if record is not None]

    def _units(self, trial: FrozenTrial) -> list[Unit]:
        try:
            return self.search.units_of(trial.params)
        except ValueError as error:
            self.reason[number_of(trial)] = str(error)
            return []

    def _suggest(self) -> None:
        """A new trial; or those that other processes have suggested meanwhile."""
        if self._written(self._begin) and self._taken < len(self.trials):
            self._taken += 1
            self._take(self._taken - 1)

    def _begin(self) -> None:
        with self.journal.transaction():
            self.join()
            if not self._has_room:
                return
            params = self.journal.suggest()
            assert params is not None, "a space with room has another configuration"
            aim = END if self.search.rungs is None else self.search.rungs.first(len(self.trials))
            logger.info("trial %d: %s", self.journal.begin(params, aim), self._label(params))
            if self.journal.exhausted:
                logger.info("the space has no more configurations than these %d", len(self.trials))

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

    def _take(self, number: int, theirs: bool = False) -> None:
        """Put a trial's units on the graph; if all are finished, score the trial immediately. `theirs`: another process
        has suggested it, and is about to train it."""
        is_complete, units = self.trials[number].state is TrialState.COMPLETE, self._units(self.trials[number])
        if is_complete and any(self.ledger.finished(unit) is None for unit in units):
            return  # Its value stands, though somebody has removed the records.
        if self._must_begin_anew(number, units):
            self._written(self.journal.restart, number, self._rungs.first(number))
        standing = self._standing(self.trials[number])
        for unit in units:
            self._set_rung(unit.key, standing.aim)
            if unit.key not in self.units:
                self.add(unit)
                self.search.units = self.units
                self.joined(unit, self.state[unit.key] is State.FINISHED)
            elif self.state[unit.key] is State.PAUSED and not standing.waits:
                super().again(unit.key)
            if standing.waits and self.state[unit.key] is State.WAITING:
                self._set(unit.key, State.PAUSED)
            if theirs and self.state[unit.key] is State.WAITING:
                self.busy(unit.key)
            numbers = self._trials_of.setdefault(unit.key, [])
            numbers += [number] if number not in numbers else []
        # Units of other code are trained or measured again, and the trial is worth what comes out.
        if is_complete and any(self.state[unit.key] is not State.FINISHED for unit in units):
            self._written(self.journal.again, number)
        self._judge(number)

    def _must_begin_anew(self, number: int, units: list[Unit]) -> bool:
        """Whether other code has shown what a trial has shown at rungs, and it is to be trained again."""
        if self._check is None or self._check.policy != "retrain" or not self.trials[number].intermediate_values:
            return False
        return self._check.standing(units).is_mixed

    def _set_rung(self, key: str, aim: int) -> None:
        if aim == END:
            self.rung.pop(key, None)
        else:
            self.rung[key] = aim, self.search.study.objective

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
        idle = {State.FINISHED, State.PAUSED, State.WAITING}
        if aim_of(trial) != END and {State.FINISHED} < set(states) <= idle:
            self.promote(number, END)  # Another search has finished a unit, which has no value at the rung.
            return
        if any(state not in SETTLED or state is State.STOPPED for state in states):
            return
        good = (State.FINISHED, State.PAUSED)
        ill = [unit for unit, state in zip(units, states, strict=True) if state not in good]
        bad = next((unit for unit in ill if not self._is_done(unit)), None)  # Another process may have had better luck.
        if bad is None and State.PAUSED in states:
            self._come_to_rung(number, units)
            return
        space, measured = self.search.study, self._measured(trial)
        missing = next((name for name in space.metrics if any(name not in values for values in measured)), None)
        if bad is not None:
            self.reason[number] = f"{bad.name}: {self.error[bad.key]}"
        elif units and (missing or len(measured) < len(units)):
            self.reason[number] = f"{missing or space.metrics[0]} is not in the record of each of its units"
        elif units:
            by_seed = {name: [values[name] for values in measured] for name in space.metrics}
            means = {name: statistics.fmean(values) for name, values in by_seed.items()}
            excess = {str(limit): limit.excess(means[limit.metric]) for limit in space.limits}
            if self._written(self.journal.complete, number, [means[aim.metric] for aim in space.aims], excess):
                results = ", ".join(f"{name} {spread(values)}" for name, values in by_seed.items())
                broken = "".join(f"; not {name}" for name, over in excess.items() if over > 0)
                logger.info("trial %d: %s; %s%s", number, results, self._label(trial.params), broken)
            return
        if self._written(self.journal.end, number, TrialState.FAIL):
            logger.error("trial %d FAILED: %s", number, self.reason[number])

    def _come_to_rung(self, number: int, units: list[Unit]) -> None:
        """Keep a trial's value at its rung, when all its units have one there."""
        aim = aim_of(trial := self.trials[number])
        values = [self._at_rung[unit.key, aim] for unit in units if (unit.key, aim) in self._at_rung]
        if aim in trial.intermediate_values or len(values) < len(units):
            return
        if self._written(self.journal.report, number, aim, statistics.fmean(values)):
            logger.info("trial %d at step %d: %s; %s", number, aim, spread(values), self._label(trial.params))
