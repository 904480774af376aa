"""Which unit goes where next, and what its end means: for it, for its node, for the study. No Ray."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.planning.plan import Unit
from orchestrator.scheduling.node_health import Nodes
from orchestrator.scheduling.retry import RETRIES, Failure, History, decide
from orchestrator.scheduling.task_graph import State, TaskGraph

logger = logging.getLogger(__name__)

FOLDER_POLL_SECONDS, OBJECT_STORE_POLL_SECONDS = 2.0, 10.0
"""Between looks at units that other processes hold: in a folder, and on an object store, where each is requests."""
NODE_DEATH_TIMEOUT_SECONDS = 15.0
"""After a process died, so long until its node counts as healthy: the death of a node is noticed later than that of its
processes."""
NO_NODE_WARNING_SECONDS = 60.0
"""Between warnings that no machine has room for the units that wait."""
SHUTDOWN_GRACE_SECONDS = 5.0
"""After a study was asked to stop and the last unit that ran has ended, until what waits for room is given up. A unit
that has just begun may not have said so yet."""
STORAGE_TIMEOUT_SECONDS, STORAGE_PROBE_SECONDS = 1800.0, 10.0
"""How long units wait for a storage that doesn't answer the driver either, before their failures are counted; and
between looks at it."""
SPACE_POLL_SECONDS = 30.0
"""After a try that met a full disk, so long until units are tried again; as long as for a storage at most."""
MAX_REFUSING_NODES = 3
"""A cluster that makes new nodes would make them for ever: after so many in a row that can't be used, units fail, and
what they fail by is counted as theirs."""


@dataclass
class Hooks:
    """What the driver tells others; each must return at once and never raise."""

    changed: Callable[[str, State], None]
    """A unit's key and its new state."""
    tick: Callable[[], None]
    """A few times a second."""


@dataclass(frozen=True)
class Assignment:
    """A unit to run now."""

    unit: Unit
    gpus: float
    """Share of a GPU, or GPUs."""
    too_small: tuple[float, ...]
    """Shares in which it ran out of memory before."""
    avoid: tuple[str, ...]
    """Nodes that it must not run on, sorted."""


@dataclass(frozen=True)
class Broken:
    """A try that left no outcome."""

    error: str
    node: str
    """Where it ran; empty if it never began."""
    kind: Literal["raised", "unreachable", "full", "died", "machine"]
    """It raised; it raised an OSError, so that the storage may be at fault; a disk was full; its process ended, for
    whatever reason; its node or the way to it is gone."""


class Dispatcher:
    """Between the task graph and what runs units."""

    def __init__(
        self,
        graph: TaskGraph,
        hooks: Hooks,
        gpus_of: Callable[[Unit], float] = lambda unit: 0.0,
        usable_nodes: Callable[[], Collection[str]] = lambda: (),
        growing: bool = False,
        stop: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        storage_fault: Callable[[], str] | None = None,
    ) -> None:
        """
        Args:
            gpus_of: what a unit gets where nothing has gone wrong.
            usable_nodes: ids of the nodes that live now and have room for a unit when they are empty.
            growing: the cluster makes new nodes by itself.
            stop: ends the study, as Ctrl-C does: units save checkpoints.
            clock: seconds.
            storage_fault: why the driver can't use the storage, empty where it can; by default it tries.
        """
        self.graph, self.nodes = graph, Nodes()
        self._hooks, self._gpus_of, self._usable, self._growing = hooks, gpus_of, usable_nodes, growing
        self._stop, self._clock = stop, clock
        self._storage_fault = storage_fault or graph.ledger.fault
        self._away_since: float | None = None
        self._full_since: float | None = None
        self._held_until = clock()
        """Nothing is released before, for want of space."""
        self._storage_looked = -STORAGE_PROBE_SECONDS
        self._looked = clock()
        self._seen_nodes = clock()
        self._period = OBJECT_STORE_POLL_SECONDS if graph.ledger.root is None else FOLDER_POLL_SECONDS
        self._in_doubt: dict[str, tuple[float, Broken]] = {}
        self._gpus: dict[str, float] = {}
        """GPUs of each unit that was released."""
        self._begun: set[str] = set()
        """Units that run; what was released may have to wait for a free slot."""
        self._quiet: float | None = None
        """Since when nothing has run in a study that was asked to stop."""
        self.has_begun = False
        """Whether any unit has."""
        self._history: defaultdict[str, History] = defaultdict(History)
        self._useless = 0
        """Nodes that refused or failed everything since a unit last finished."""

    @property
    def complete(self) -> bool:
        """Nothing is left to run."""
        return self.graph.complete

    @property
    def at_rest(self) -> bool:
        """The study was asked to stop and nothing runs any more; what still waits for room need not get it, and on a
        cluster without a node never would."""
        return self._quiet is not None and self._clock() - self._quiet >= SHUTDOWN_GRACE_SECONDS

    def abandon(self) -> None:
        """Released units that never found room are stopped."""
        for key, state in list(self.graph.state.items()):
            if state is State.RUNNING:
                self.graph.stopped(key)
                self._hooks.changed(key, State.STOPPED)

    def next(self) -> Assignment | None:
        """The unit to run as soon as there is room, which is released from here on; None where none is ready."""
        self.tick()
        if self._clock() < self._held_until:
            return None
        unit = self.graph.next()
        if unit is None:
            return None
        too_small = self._history[unit.key].too_small
        gpus = max(1.0, self._gpus_of(unit)) if too_small else self._gpus_of(unit)
        self._gpus[unit.key] = gpus
        return Assignment(unit, gpus, too_small, self._avoided(unit.key))

    def began(self, key: str) -> None:
        """A released unit has found room."""
        if self.graph.state[key] is State.RUNNING and key not in self._begun:
            self._begun.add(key)
            self.has_begun = True
            self._hooks.changed(key, State.RUNNING)

    def ended(self, key: str, result: Mapping[str, Any]) -> None:
        """A try ended by itself, with an outcome (`run_unit.Outcome`), and with "node" and "notice"."""
        graph, status, node = self.graph, result.get("status"), str(result.get("node", ""))
        error = str(result.get("error") or f"it ended with status {status!r}")
        notice = str(result.get("notice") or "")
        self.began(key)  # News of it may come after that of its end.
        self._begun.discard(key)
        if notice and node:
            self.nodes.avoid(node, notice)
        if status in ("finished", "paused"):
            if status == "finished":
                graph.finished(key)
            else:
                graph.paused(key, float(result["value"]))
            self.nodes.worked(node)
            self._useless = 0
            self._full_since = self._away_since = None  # It has written to the storage.
        elif status == "stopped":
            self._stopped(key, notice, node)
        elif status == "busy":
            graph.busy(key)
        elif status == "parent_unreadable":
            graph.parent_unreadable(key, error)
        elif status == "out_of_memory":
            gpus, can_shrink = self._gpus.get(key, 1.0), not result.get("sure", True)
            self._failed(key, Failure("out_of_memory", error, node, gpus, can_shrink))
        elif status == "refused":
            self._refused(key, node, error)
        else:
            others = self._others({node} | self.failed_on(key))
            self._failed(
                key, Failure("certain" if result.get("sure", True) else "uncertain", error, node, has_other_node=others)
            )
        self._hooks.changed(key, graph.state[key])

    def broke(self, key: str, broken: Broken) -> None:
        """A try ended without an outcome."""
        self._begun.discard(key)
        if broken.kind == "died" and broken.node:
            self._in_doubt[key] = self._clock() + NODE_DEATH_TIMEOUT_SECONDS, broken
        else:
            self._judge(key, broken)

    def tick(self) -> None:
        """Now and then: decide what was in doubt, ask about units that others hold, and let the display move."""
        now = self._clock()
        if self._away_since is not None:
            self._storage_is_away()  # Another outage later is waited for anew.
        if self._in_doubt:
            alive = self._usable()
            for key, (until, broken) in list(self._in_doubt.items()):
                gone = broken.node not in alive
                if gone or now >= until:
                    del self._in_doubt[key]
                    self._judge(key, Broken(broken.error, broken.node, "machine" if gone else "raised"))
        if now - self._seen_nodes > NO_NODE_WARNING_SECONDS:
            self._seen_nodes = now
            released = self.graph.counts()[State.RUNNING]
            if released and not self._begun and not self._growing and not self._usable():
                logger.warning("no machine that lives has room for a unit; %d wait for one to come back", released)
        if not self.graph.stopping or self._begun or self._in_doubt:
            self._quiet = None
        elif self._quiet is None:
            self._quiet = now
        if now - self._looked > self._period:
            self._looked = now
            for key in self.graph.look_elsewhere():
                self._hooks.changed(key, State.FINISHED)
        self._hooks.tick()

    def _judge(self, key: str, broken: Broken) -> None:
        node, error = broken.node, broken.error
        if not node and broken.kind == "died":
            self._failed(key, Failure("unstarted", error))
        elif broken.kind == "machine":
            logger.warning("%s goes on elsewhere: its machine is gone (%s)", self.graph.units[key].name, error)
            self._failed(key, Failure("lost", error))
        elif (broken.kind == "full" and self._may_get_space(error)) or (
            broken.kind == "unreachable" and self._storage_is_away()
        ):
            self._failed(key, Failure("lost", error))
        else:
            self._failed(key, Failure("counted", error, node))
            # On a cluster that makes new nodes there is always another. What fails on so many in a row is to blame
            # itself, or it would be forgiven on new machines for ever.
            blamed = self._growing and self._useless >= MAX_REFUSING_NODES
            if node and self.nodes.failed(node, key) and not blamed and self._others({node}):
                self._give_up(node, f"{error}, and everything else that ran there failed too")
        self._hooks.changed(key, self.graph.state[key])

    def _failed(self, key: str, failure: Failure) -> None:
        """Try the unit again, or not."""
        before = self._history[key]
        history, error = decide(failure, before)
        self._history[key] = history
        name, tries = self.graph.units[key].name, len(history.failed_on)
        if error:
            self.graph.failed(key, error)
            return
        if history.too_small != before.too_small:
            way = "gets a whole one" if failure.gpus < 1 else "computes smaller parts of its batches"
            logger.warning("%s does not fit into %g of a GPU; it %s", name, failure.gpus, way)
        elif history.failed_on != before.failed_on:
            logger.warning("%s: try %d of %d failed (%s)", name, tries, RETRIES + 1, failure.error)
        self.graph.again(key)

    def failed_on(self, key: str) -> set[str]:
        """Nodes on which tries of a unit have failed, which its next try had better not take."""
        return self._history[key].failed_nodes

    def request_stop(self, reason: str) -> None:
        """End the study as Ctrl-C does: units save checkpoints, and nothing more is released."""
        logger.warning("%s", reason)
        self.graph.stopping = True
        self._stop()

    def _storage_is_away(self) -> bool:
        """Whether the storage is at fault, and neither a unit nor a node."""
        now = self._clock()
        if self._away_since is None or now - self._storage_looked >= STORAGE_PROBE_SECONDS:
            fault = self._storage_fault()
            self._storage_looked = self._clock()
            if not fault:
                self._away_since = None
                return False
            if self._away_since is None:
                self._away_since = now
                logger.warning(
                    "units wait for the storage, %.0f minutes at most: %s", STORAGE_TIMEOUT_SECONDS / 60, fault
                )
        return now - self._away_since < STORAGE_TIMEOUT_SECONDS

    def _may_get_space(self, error: str) -> bool:
        """Whether units wait for space; from here on nothing is released for a while."""
        now = self._clock()
        if self._full_since is None:
            self._full_since = now
            logger.warning(
                "units wait for space on the disk, %.0f minutes at most; free some, and they go on: %s",
                STORAGE_TIMEOUT_SECONDS / 60,
                error,
            )
        if now - self._full_since >= STORAGE_TIMEOUT_SECONDS:
            return False
        self._held_until = now + SPACE_POLL_SECONDS
        return True

    def _give_up(self, node: str, why: str) -> None:
        """Use a node no more; what it did to units is forgiven."""
        self._useless += node not in self.nodes.avoided
        for key in self.nodes.avoid(node, why):
            before = self.graph.state[key]
            self._history[key] = self._history[key].without(node)
            if before is State.FAILED:
                self.graph.again(key)
            if self.graph.state[key] is not before:
                self._hooks.changed(key, self.graph.state[key])

    def _stopped(self, key: str, notice: str, node: str) -> None:
        if notice and not self.graph.stopping and not self._others({node}):
            self.request_stop(f"this machine is about to go ({notice}), and there is no other: the study stops")
        if self.graph.stopping:
            self.graph.stopped(key)
        else:
            self.graph.again(key)  # Its machine is about to go, or it lost the driver for a moment.

    def _refused(self, key: str, node: str, why: str) -> None:
        new = self._useless + (node not in self.nodes.avoided)
        others = self._others({node}, growing=self._growing and new < MAX_REFUSING_NODES)
        if others:
            self._give_up(node, why)
        self._failed(key, Failure("refused", why, node, has_other_node=others))

    def _others(self, without: Collection[str], growing: bool | None = None) -> bool:
        """Whether there is, or may come to be, another node than these and those that are avoided."""
        may_come = self._growing if growing is None else growing
        return may_come or bool(set(self._usable()) - set(without) - self.nodes.avoided.keys())

    def _avoided(self, key: str) -> tuple[str, ...]:
        avoided, failed_on = set(self.nodes.avoided), self.failed_on(key)
        if not avoided and not failed_on:
            return ()
        alive = set(self._usable())
        # A unit's own failures keep it from a node only as long as there is another that lives.
        if alive - avoided - failed_on:
            avoided |= failed_on
        elif not alive - avoided and not self._growing:
            return ()  # Rather a doubtful node than none; one that refuses says so again, and the unit fails.
        return tuple(sorted(avoided & alive))
