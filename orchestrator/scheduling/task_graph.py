"""What to run next: the state of every unit of a plan, and the order in which they are released. No Ray."""

import heapq
import logging
from collections import Counter
from collections.abc import Collection, Mapping
from enum import StrEnum

from orchestrator.planning.plan import Unit, chain_seconds
from orchestrator.storage.ledger import Ledger
from orchestrator.storage.source_check import SourceCheck

logger = logging.getLogger(__name__)


class State(StrEnum):
    """Of a unit."""

    WAITING = "waiting"
    """For its parent, or for a free slot."""
    RUNNING = "running"
    """Released to Ray by this driver."""
    ELSEWHERE = "elsewhere"
    """Another driver on this storage runs it."""
    FINISHED = "finished"
    FAILED = "failed"
    BLOCKED = "blocked"
    """A unit that it starts from has failed."""
    STOPPED = "stopped"
    """Asked to stop; goes on from its checkpoint when the study is run again."""
    PAUSED = "paused"
    """At its rung, with a checkpoint, until it is let go on."""


SETTLED = (State.FINISHED, State.FAILED, State.BLOCKED, State.STOPPED, State.PAUSED)
MAX_REPAIRS = 1


class TaskGraph:
    """Units by state. Those with the longest way to the end of their chain go first."""

    def __init__(
        self,
        units: Mapping[str, Unit],
        ledger: Ledger,
        seconds: Mapping[str, float] | None = None,
        tested: Collection[str] = (),
        check: SourceCheck | None = None,
    ) -> None:
        """Read the ledger: finished units are done, failed ones are tried again.

        Args:
            units: by key, parents before children.
            seconds: expected time of each unit; their steps if None.
            tested: keys of units that are done only when their test split has been measured.
            check: compares records with the present code; None takes them as they are.
        """
        self._check = check
        self.measured_only: set[str] = set()
        """Finished units that are measured again from their weights: they need no parent."""
        self.units, self.ledger, self.tested = units, ledger, frozenset(tested)
        costs = seconds or {key: float(unit.trainer.steps(unit.config)) for key, unit in self.units.items()}
        self._children: dict[str, list[str]] = {key: [] for key in self.units}
        for unit in self.units.values():
            if unit.parent:
                self._children[unit.parent].append(unit.key)
        self._way = chain_seconds(units.values(), costs)
        self._order = {key: place for place, key in enumerate(self.units)}
        self._ready: list[tuple[float, int, str]] = []
        """Heap of units that may run: longest way first, then the plan's order. Entries may be out of date."""
        self.state: dict[str, State] = {}
        self._counts: Counter[State] = Counter()
        self.error: dict[str, str] = {}
        self.done_before: set[str] = set()
        self._repairs: Counter[str] = Counter()
        self.remade: set[str] = set()
        """Finished units whose weights are gone or damaged, and needed."""
        self.stopping = False
        self._same_training: dict[str, list[str]] = {}
        """Keys of units by training key."""
        self.rung: dict[str, tuple[int, str]] = {}
        """Step at which a unit pauses, and the metric that is looked at there; others are trained to their end."""
        for unit in self.units.values():
            self._enter(unit)
        for key in self.units:
            self._remake_lost_weights(key)
        for key in self.units:
            self._offer(key)

    def add(self, unit: Unit) -> None:
        """One more unit, which starts from no other."""
        self.units = {**self.units, unit.key: unit}  # Another thread may be going through the old ones.
        self._children[unit.key], self._way[unit.key], self._order[unit.key] = [], 0.0, len(self._order)
        self._enter(unit)
        self._offer(unit.key)

    def _enter(self, unit: Unit) -> None:
        self._same_training.setdefault(unit.training_key, []).append(unit.key)
        done = self._is_done(unit)
        self._set(unit.key, State.FINISHED if done else State.WAITING)
        if done:
            self.done_before.add(unit.key)
        elif (
            self._check is not None
            and (record := self.ledger.finished(unit)) is not None
            and self._check.is_to_measure(unit, record)
        ):
            self.measured_only.add(unit.key)

    def _is_done(self, unit: Unit) -> bool:
        record = self.ledger.finished(unit)
        if record is None or (unit.key in self.tested and not record.tested):
            return False
        return self._check is None or self._check.is_current(unit, record)

    def _set(self, key: str, state: State) -> None:
        if key in self.state:
            self._counts[self.state[key]] -= 1
        self.state[key] = state
        self._counts[state] += 1

    def _may_run(self, key: str) -> bool:
        parent = self.units[key].parent
        is_free = not parent or self.state[parent] is State.FINISHED or key in self.measured_only
        return self.state[key] is State.WAITING and is_free

    def _offer(self, key: str) -> None:
        if self._may_run(key):
            heapq.heappush(self._ready, (-self._way[key], self._order[key], key))

    def _remake_lost_weights(self, key: str) -> None:
        """A finished unit runs again if its weights are gone and somebody needs them."""
        unit = self.units[key]
        if self.state[key] is not State.FINISHED or not any(
            self.state[child] is not State.FINISHED and child not in self.measured_only for child in self._children[key]
        ):
            return
        record = self.ledger.finished(unit)
        if record is not None and not self.ledger.has_weights(unit, record):
            logger.warning("%s is finished but its weights are not on the storage; making them again", unit.name)
            self._set(key, State.WAITING)
            self.done_before.discard(key)
            self.remade.add(key)

    def next(self) -> Unit | None:
        """The unit to run now, which counts as running from here on; None where none is ready.

        Of units with the same training one runs at a time: the others take its weights when it has finished.
        """
        held = []
        try:
            while self._ready and not self.stopping:
                entry = heapq.heappop(self._ready)
                key = entry[-1]
                if not self._may_run(key):
                    continue
                if self._twin_runs(key):
                    held.append(entry)
                    continue
                self._set(key, State.RUNNING)
                return self.units[key]
            return None
        finally:
            for entry in held:
                heapq.heappush(self._ready, entry)

    def _twin_runs(self, key: str) -> bool:
        training = self.units[key].training_key
        others = self._same_training.get(training, ()) if training else ()
        return any(self.state[other] is State.RUNNING for other in others if other != key)

    def finished(self, key: str) -> None:
        """A record is on storage."""
        self._set(key, State.FINISHED)
        self.error.pop(key, None)
        for child in self._children[key]:
            self._offer(child)

    def failed(self, key: str, error: str) -> None:
        """For good: what starts from it can't run in this call; all else goes on."""
        self._set(key, State.FAILED)
        self.error[key] = error
        for child in self._children[key]:
            self._block(child, self.units[key].name)

    def again(self, key: str) -> None:
        """It waits for another try, and so does what is blocked by it."""
        self._set(key, State.WAITING)
        self.error.pop(key, None)
        self._offer(key)
        for child in self._children[key]:
            if self.state[child] is State.BLOCKED:
                self.again(child)

    def _block(self, key: str, by: str) -> None:
        if key in self.measured_only:
            return  # It needs no parent.
        if self.state[key] in (State.WAITING, State.STOPPED):
            self._set(key, State.BLOCKED)
            self.error[key] = f"needs {by}, which failed"
        for child in self._children[key]:
            self._block(child, by)

    def paused(self, key: str, value: float) -> None:
        """It has come to its rung.

        Args:
            value: of the rung's metric.
        """
        self._set(key, State.PAUSED)

    def stopped(self, key: str) -> None:
        """It was asked to stop and has saved a checkpoint."""
        self._set(key, State.STOPPED)

    def busy(self, key: str) -> None:
        """Another process holds it."""
        self._set(key, State.ELSEWHERE)

    def parent_unreadable(self, key: str, error: str) -> None:
        """The weights it starts from are damaged: the parent makes them again, once, and it waits for that."""
        parent = self.units[key].parent
        self.measured_only.discard(key)  # Its weights could not be read: it has to be trained.
        if self.state[parent] is not State.FINISHED:  # Another child has said so before; the repair is under way.
            self.again(key)
        elif self._repairs[parent] >= MAX_REPAIRS:
            self.failed(key, error)
        else:
            logger.warning("%s; %s makes them again", error, self.units[parent].name)
            self._repairs[parent] += 1
            self.remade.add(parent)
            self.again(key)
            self.again(parent)

    def look_elsewhere(self) -> list[str]:
        """Ask the ledger about units that other processes hold: those done are finished, those let go are waiting.

        Returns the keys that have finished.
        """
        held = [key for key, state in self.state.items() if state is State.ELSEWHERE]

        def ask(key: str) -> tuple[bool, bool]:
            is_done = self._is_done(self.units[key])
            return is_done, is_done or self.ledger.is_free(self.units[key])

        done = []
        for key, (is_done, is_free) in zip(held, self.ledger.storage.each(ask, held), strict=True):
            if is_done:
                self.finished(key)
                done.append(key)
            elif is_free:
                self.again(key)
        return done

    @property
    def complete(self) -> bool:
        """Nothing is left to release or to wait for."""
        if self.stopping:
            return not self._counts[State.RUNNING]
        return sum(self._counts[state] for state in SETTLED) == len(self.units)

    @property
    def projects(self) -> list[str]:
        """Addresses of what trains its units, those that are still to come included."""
        return list(dict.fromkeys(unit.project for unit in self.units.values()))

    def unfinished(self) -> list[str]:
        """Keys of units that are still to be done."""
        return [key for key, state in self.state.items() if state is not State.FINISHED]

    def counts(self) -> Counter[State]:
        """Units by state."""
        return +self._counts

    def highlights(self) -> list[str]:
        """Lines on the best so far, for a display; none of a study, whose report says it."""
        return []

    def time_left(self, seconds: Mapping[str, float], slots: int) -> float:
        """Seconds until all that isn't settled is done, at best: the work shared by `slots`, or the longest chain."""
        open_units = [unit for key, unit in self.units.items() if self.state[key] not in SETTLED]
        longest = max(chain_seconds(open_units, seconds).values(), default=0.0)
        return max(sum(seconds[unit.key] for unit in open_units) / max(slots, 1), longest)
