"""The thread that keeps a store up with the ledger: which units are due, and what if the store can't be written."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from orchestrator.planning.plan import Unit
from orchestrator.storage.ledger import Ledger
from orchestrator.tracking.client import EXPERIMENT, PERMANENT_CODES, one_line, quiet
from orchestrator.tracking.mlflow_store import MlflowStore
from orchestrator.tracking.schema import Tracked
from orchestrator.tracking.sync import STATES, STATUS_OF, LedgerSync, Outcome
from orchestrator.tracking.uri import shown

logger = logging.getLogger(__name__)

POLL_SECONDS, BATCH_SECONDS, MAX_RETRY_SECONDS = 2.0, 0.2, 60.0
"""Between looks at progress files; after a pass, so that reports gather; between attempts while the store is away."""
MAX_UNITS_PER_LOCK = 25
"""Runs created under one lock, while other drivers wait."""


class _OutOfTime(Exception):
    """The time-out of `close` is over."""


class LedgerMirror:
    """Brings a store up to date with the ledger, in a thread that nothing waits for and that no error leaves."""

    def __init__(
        self,
        ledger: Ledger,
        plan: Tracked,
        content: Mapping[str, Any],
        open_store: Callable[[], MlflowStore],
        where: str,
    ) -> None:
        """
        Args:
            content: of the plan, as `PlanFile.to_plain` makes it.
            open_store: called in the thread, again until it succeeds.
            where: the store's address, for people.
        """
        self.ledger, self.plan, self.where = ledger, plan, where
        self._sync = LedgerSync(ledger, plan, content)
        self._open_store = open_store
        self._store: MlflowStore | None = None
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._states: dict[str, Outcome] = {}
        """As the driver has reported them."""
        self._due = dict.fromkeys(plan.units)
        """Keys to synchronise, in this order."""
        self._settled: set[str] = set()
        self._refused: set[str] = set()
        """Keys that the store has refused once."""
        self._progress: dict[str, str] = {}
        """The ledger's tag of the progress of each running unit when it was last synchronised."""
        self._away = False
        self.fault = ""
        """Why the store can't be written, where waiting alone won't mend that; else empty."""
        self._closing: tuple[Outcome, Path | None] | None = None
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def start(self) -> None:
        """Begin; never raises."""
        try:
            self._thread.start()
        except RuntimeError as error:
            logger.warning("runs are not mirrored to %s (%s)", self.where, error)

    def note(self, key: str, state: str) -> None:
        """A unit is "running", "finished", "failed" or "stopped" from now on. Returns at once.

        Any other state ("waiting", "elsewhere") means that this driver no longer runs it: the ledger tells the rest.
        """
        with self._lock:
            if state in STATES:
                self._states[key] = cast(Outcome, state)
            else:
                self._states.pop(key, None)
            self._due[key] = None
            self._settled.discard(key)
        self._wake.set()

    def close(self, outcome: Outcome, report: Path | None, timeout: float) -> int:
        """Bring everything up to date once more, with the report, within `timeout` seconds.

        Args:
            outcome: of the study.
            report: folder of the report, if there is one.

        Returns:
            How many units are not mirrored completely; the next run of the study does it.
        """
        self._deadline = time.monotonic() + timeout
        self._closing = (outcome, report)
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        with self._lock:
            open_keys = [key for key in self.plan.units if key not in self._settled]
        return sum(key in self._states or self.ledger.record(self.plan.units[key]) is not None for key in open_keys)

    @property
    def arms_page(self) -> str:
        """Address, below the store's, of the page that shows the arms side by side; empty until there is one."""
        return self._sync.arms.page

    @quiet()
    def _run(self) -> None:
        wait = POLL_SECONDS
        while True:
            closing, before = self._closing, len(self._settled)
            self._wake.clear()
            try:
                try:
                    self._pass(last=closing is not None)
                finally:
                    if closing is not None and self._store is not None:
                        self._finish(self._store, *closing)
                if self._away:
                    logger.warning("%s is back; runs are mirrored again", self.where)
                self._away, wait = False, POLL_SECONDS
                if not self._refused:
                    self.fault = ""
            except _OutOfTime:
                return
            except Exception as error:  # Of any kind: the study must go on without its mirror.
                self.fault = one_line(error) if _is_permanent(error) else ""
                if not self._away:
                    logger.warning(
                        "runs are not mirrored to %s now (%s); training goes on", self.where, one_line(error)
                    )
                    logger.debug("runs are not mirrored", exc_info=True)
                if _is_permanent(error) and self._store is not None:
                    self._sync.forget(self._store)  # The study's run or an arm's may have been deleted.
                    with self._lock:
                        self._due.update(dict.fromkeys(self.plan.units))  # To lie below the new one.
                gained = len(self._settled) > before
                wait = POLL_SECONDS if gained or not self._away else min(MAX_RETRY_SECONDS, 2 * wait)
                self._away = True
            if closing is not None:
                return
            self._rest(wait)

    def _rest(self, seconds: float) -> None:
        """Wait until there is something to do or, while the store is away, until the next attempt."""
        until = time.monotonic() + seconds
        while self._closing is None and (left := until - time.monotonic()) > 0:
            if self._wake.wait(left):
                if not self._away:
                    time.sleep(0 if self._closing else BATCH_SECONDS)
                    return
                self._wake.clear()

    def _pass(self, last: bool) -> None:
        """Synchronise all that is due. Raises where the store is away; the rest stays due."""
        if self._store is None:
            self._store = self._open_store()
        store = self._store
        parent = self._sync.plan_run(store, running=self._closing is None)
        self._find_due(last)
        while states := self._first_due():
            self._sync.ensure_runs(store, parent, states)
            for key in states:
                self._check_deadline()
                with self._lock:
                    del self._due[key]  # Before the ledger is read: a report that comes meanwhile makes it due again.
                    state = self._states.get(key)
                try:
                    settled = self._sync.sync(store, self.plan.units[key], state, last)
                except Exception as error:
                    self._put_back(store, key, error)
                    if not _is_permanent(error):
                        raise
                else:
                    with self._lock:
                        if settled and (last or self._states.get(key) == state):
                            self._settled.add(key)
                            self._refused.discard(key)
        self._sync.sync_totals(store, parent, last)

    def _check_deadline(self) -> None:
        if time.monotonic() > self._deadline:
            raise _OutOfTime

    def _first_due(self) -> dict[str, Outcome | None]:
        """States by key, None for units that this driver has not run."""
        with self._lock:
            return {key: self._states.get(key) for key in list(self._due)[:MAX_UNITS_PER_LOCK]}

    def _put_back(self, store: MlflowStore, key: str, error: Exception) -> None:
        """Make a unit that couldn't be written due again, after all others; refused twice, at its next state."""
        permanent = _is_permanent(error)
        # Look the run up again: it may have been deleted or changed, or only the response to the call was lost.
        store.units.pop(key, None)
        with self._lock:
            if not permanent or key not in self._refused:
                self._due[key] = None
            else:
                self.fault = one_line(error)
                logger.warning("%s is not mirrored (%s)", self.plan.units[key].name, one_line(error))
            if permanent:
                self._refused.add(key)

    def _find_due(self, last: bool) -> None:
        """Units with new progress, runs without a process, and at the end all that aren't settled."""
        with self._lock:
            running = [key for key, state in self._states.items() if state == "running"]
        changed = [key for key in running if self._progress_changed(self.plan.units[key])]
        with self._lock:
            self._due.update(dict.fromkeys([*changed, *self._sync.left_behind(last)]))
            if last:
                self._refused.clear()
                self._due.update(dict.fromkeys(key for key in self.plan.units if key not in self._settled))

    def _progress_changed(self, unit: Unit) -> bool:
        try:
            tag = self.ledger.progress_tag(unit)
        except OSError:
            return False
        changed = bool(tag) and self._progress.get(unit.key) != tag
        self._progress[unit.key] = tag
        return changed

    def _finish(self, store: MlflowStore, outcome: Outcome, report: Path | None) -> None:
        self._check_deadline()
        run = self._sync.plan_run(store, running=False)
        store.set_status(run, STATUS_OF[outcome])
        if report is not None and report.is_dir():
            store.put_folder(run, report, "report")


class Mirror(LedgerMirror):
    """Keeps MLflow up with the ledger during a study: `start`, `note` what happens, `close`."""

    def __init__(self, ledger: Ledger, plan: Tracked, content: Mapping[str, Any], uri: str) -> None:
        super().__init__(ledger, plan, content, lambda: MlflowStore(uri, EXPERIMENT, ledger), shown(uri))


def _is_permanent(error: Exception) -> bool:
    """Whether a retry would fail again: the store has answered, or the error is not about the store at all."""
    if isinstance(error, OSError):
        return False
    return getattr(error, "error_code", "") in PERMANENT_CODES or isinstance(
        error, ValueError | TypeError | LookupError
    )
