"""The trials of several searches in one task graph, so that all slots have work. No Ray."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from orchestrator.planning.plan import Unit
from orchestrator.scheduling.task_graph import State, TaskGraph
from orchestrator.search.trial_queue import TrialQueue
from orchestrator.storage.ledger import Ledger
from orchestrator.storage.source_check import SourceCheck


class TuningGraph(TaskGraph):
    """Each queue decides about its own trials; the graph has the state of every unit. A unit that trials of several
    searches have runs once, and each of them is told."""

    def __init__(self, queues: Sequence[TrialQueue], ledger: Ledger, check: SourceCheck | None = None) -> None:
        """`queues` are on this ledger, with the same check."""
        self.queues = tuple(queues)
        self._longest = 0.0
        """Seconds of a unit, as far as `time_left` has heard."""
        self.joined: Callable[[TrialQueue, Unit, bool], None] = lambda queue, unit, done: None
        """As `TrialQueue.joined`, with the queue; of a unit that several have, once."""
        super().__init__({key: unit for queue in self.queues for key, unit in queue.units.items()}, ledger, check=check)
        for queue in self.queues:
            queue.joined = partial(self._join, queue)

    def _join(self, queue: TrialQueue, unit: Unit, done: bool) -> None:
        if unit.key not in self.units:
            self.add(unit)
            self.joined(queue, unit, self.state[unit.key] is State.FINISHED)

    def _offer(self, key: str) -> None:
        """Nothing: queues release units."""

    def _with(self, key: str) -> Iterator[TrialQueue]:
        return (queue for queue in self.queues if key in queue.units)

    @property
    def stopping(self) -> bool:
        """Asked to stop, or the trials of a search can't be written."""
        return self._stopping or any(queue.fault for queue in self.queues)

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self._stopping = value
        for queue in self.queues:
            queue.stopping = value

    def next(self) -> Unit | None:
        """Of the search that has the fewest units running and, among these, the fewest trials."""
        for queue in sorted(self.queues, key=lambda one: (one.counts()[State.RUNNING], len(one.trials))):
            while not self.stopping and (unit := queue.next()) is not None:
                key, state = unit.key, self.state[unit.key]
                if state is State.FINISHED:  # By a trial of another search.
                    queue.finished(key)
                elif state is State.FAILED:
                    queue.failed(key, self.error[key])
                elif state is not State.WAITING:
                    pass  # It runs for a trial of another search, and both are told how it ends.
                elif self._twin_runs(key):
                    queue.again(key)
                    break
                else:
                    self._set(key, State.RUNNING)
                    return unit
        return None

    def finished(self, key: str) -> None:
        super().finished(key)
        for queue in self._with(key):
            queue.finished(key)

    def failed(self, key: str, error: str) -> None:
        super().failed(key, error)
        for queue in self._with(key):
            queue.failed(key, error)

    def again(self, key: str) -> None:
        super().again(key)
        for queue in self._with(key):
            queue.again(key)

    def stopped(self, key: str) -> None:
        super().stopped(key)
        for queue in self._with(key):
            queue.stopped(key)

    def busy(self, key: str) -> None:
        super().busy(key)
        for queue in self._with(key):
            queue.busy(key)

    @property
    def complete(self) -> bool:
        """Nothing is left to suggest, to release or to wait for."""
        return super().complete and (self.stopping or all(queue.complete for queue in self.queues))

    @property
    def projects(self) -> list[str]:
        return list(dict.fromkeys(project for queue in self.queues for project in queue.projects))

    @property
    def whole(self) -> bool:
        """All trials of all searches have a value."""
        return all(queue.whole for queue in self.queues)

    def time_left(self, seconds: Mapping[str, float], slots: int) -> float:
        """As of a graph; trials that are still to be suggested take as long as the others."""
        # Of those that run, only what is left of it.
        each = self._longest = max([self._longest, *seconds.values()])
        units = sum(queue.search.seeds * (queue.total - len(queue.trials)) for queue in self.queues)
        return super().time_left(seconds, slots) + units * each / max(slots, 1)
