"""The thread that keeps a mirror up with the ledger: what is due, in which order, and what if it can't be written."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from orchestrator.planning.plan import Unit
from orchestrator.record import Record
from orchestrator.storage.ledger import RECORD, Ledger
from orchestrator.tracking import schema
from orchestrator.tracking.schema import Point, Tracked

logger = logging.getLogger(__name__)

PERIOD, PAUSE, LONGEST_WAIT, GRACE = 2.0, 0.2, 60.0, 60.0
"""Seconds: between looks at progress files; after a pass, so that notes gather; between tries of a store that is away,
at most; before a run without a process counts as left behind (another driver may be about to start the unit)."""
CHUNK = 25
"""Runs created in one go, while other drivers wait."""
PLAN_FILE = "plan.json"
LASTING = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE")
"""Error codes of MLflow that another try of the same doesn't mend."""

Outcome = Literal["running", "finished", "failed", "stopped"]
STATES = get_args(Outcome)
ENDED = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


@dataclass
class Run:
    """What is known of a run in the store."""

    id: str
    status: str
    tags: dict[str, str]
    params: set[str]
    metrics: dict[str, float]
    files: str = ""
    """Address of its artifacts."""
    alone: bool = False
    """Made by this process, so that it has no points that its tags don't tell of."""


class Store(Protocol):
    """Runs of one experiment. Every call may raise, and may be repeated."""

    units: dict[str, Run]
    plans: dict[str, Run]

    def ensure_plan(self, name: str, tags: Mapping[str, str]) -> Run: ...
    def ensure_units(self, wanted: Mapping[str, tuple[Mapping[str, str], int]]) -> None: ...
    def write(
        self,
        run: Run,
        rows: Iterable[list[Point]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None: ...
    def drop_tag(self, run: Run, name: str) -> None: ...
    def steps(self, run: Run, name: str) -> set[int]: ...
    def set_status(self, run: Run, status: str, ended: int | None = None) -> None: ...
    def put(self, run: Run, name: str, text: str) -> None: ...
    def holds(self, run: Run, name: str, text: str) -> bool: ...
    def put_folder(self, run: Run, folder: Path, name: str) -> None: ...


class OutOfTime(Exception):
    """The time given to `close` is over."""


class LedgerMirror:
    """Brings a store up to date with the ledger, in a thread that nothing waits for and that no error leaves."""

    def __init__(
        self, ledger: Ledger, plan: Tracked, content: Mapping[str, Any], open_store: Callable[[], Store], where: str
    ) -> None:
        """
        Args:
            content: of the plan, as `orchestrator.planning.plan_file.PlanFile.to_plain` makes it.
            open_store: called in the thread, again until it succeeds.
            where: the store's address, for people.
        """
        self.ledger, self.plan, self.content, self.where = ledger, plan, content, where
        self._plan_text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
        self._plan_tags = schema.plan_tags(plan, content) | {schema.PLAN_DIGEST: schema.digest_of(self._plan_text)}
        self._study_tag = schema.study_tag(plan)
        self._open_store = open_store
        self._store: Store | None = None
        self._noted: dict[str, str] = {}
        self._due = dict.fromkeys(plan.units)
        """Keys to look at, in this order."""
        self._suspects: dict[str, float] = {}
        """Runs that say RUNNING without a word of this driver, and when they were first seen."""
        self._seen: dict[str, str] = {}
        """What the ledger says of the progress of each running unit, another text for another progress."""
        self._settled: set[str] = set()
        self._records: dict[str, Record] = {}
        self._records_changed = True
        self._faults: set[str] = set()
        self._away = False
        self._lock, self._wake = threading.Lock(), threading.Event()
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
        """A unit has come to be "running", "finished", "failed" or "stopped". Returns at once.

        Any other state ("waiting", "elsewhere") says that this driver isn't at it any more: the ledger tells the rest.
        """
        with self._lock:
            if state in STATES:
                self._noted[key] = state
            else:
                self._noted.pop(key, None)
            self._due[key] = None
            self._settled.discard(key)
        self._wake.set()

    def close(self, outcome: Outcome, report: Path | None, timeout: float) -> int:
        """Bring everything up to date once more, with the report, within `timeout` seconds.

        Args:
            outcome: of the study.
            report: folder of the report, if there is one.

        Returns:
            How many units are not mirrored, or not wholly. The next run of the study does it.
        """
        self._deadline = time.monotonic() + timeout
        self._closing = (outcome, report)
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        with self._lock:
            open_keys = [key for key in self.plan.units if key not in self._settled]
        return sum(key in self._noted or self.ledger.record(self.plan.units[key]) is not None for key in open_keys)

    def _run(self) -> None:
        wait = PERIOD
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
                self._away, wait = False, PERIOD
            except OutOfTime:
                return
            except Exception as error:  # Of whatever kind: the study must not end because its mirror does.
                if not self._away:
                    logger.warning("runs are not mirrored to %s now (%s); training goes on", self.where, _line(error))
                    logger.debug("runs are not mirrored", exc_info=True)
                if _is_lasting(error) and self._store is not None:
                    self._store.plans.pop(self.plan.name, None)  # Somebody may have deleted it.
                gained = len(self._settled) > before
                wait = PERIOD if gained or not self._away else min(LONGEST_WAIT, 2 * wait)
                self._away = True
            if closing is not None:
                return
            self._rest(wait)

    def _rest(self, seconds: float) -> None:
        """Until there is something to do or, where the store is away, until it is time to try again."""
        until = time.monotonic() + seconds
        while self._closing is None and (left := until - time.monotonic()) > 0:
            if self._wake.wait(left):
                if not self._away:
                    time.sleep(0 if self._closing else PAUSE)
                    return
                self._wake.clear()

    def _pass(self, last: bool) -> None:
        """Do all that is due. Raises where the store is away; what is left stays due."""
        if self._store is None:
            self._store = self._open_store()
        store = self._store
        parent = self._parent(store)
        self._find_due(last)
        while keys := self._first_due():
            self._ensure_runs(store, parent, keys)
            for key in keys:
                self._in_time()
                with self._lock:
                    del self._due[key]  # Before the look: a note that comes meanwhile makes it due again.
                try:
                    self._unit(store, self.plan.units[key], last)
                except Exception as error:
                    self._put_back(store, key, error)
                    if not _is_lasting(error):
                        raise
        self._totals(store, parent)

    def _in_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise OutOfTime

    def _first_due(self) -> list[str]:
        with self._lock:
            return list(self._due)[:CHUNK]

    def _put_back(self, store: Store, key: str, error: Exception) -> None:
        """What couldn't be written is due again, after all others; what can't be written at all waits for a note."""
        lasting = _is_lasting(error)
        # Look for it again: somebody may have deleted or changed it, or the call has had its effect and only the answer
        # was lost.
        store.units.pop(key, None)
        with self._lock:
            if not lasting or key not in self._faults:
                self._due[key] = None
            else:
                logger.warning("%s is not mirrored (%s)", self.plan.units[key].name, _line(error))
            if lasting:
                self._faults.add(key)

    def _find_due(self, last: bool) -> None:
        """Units with new progress, runs left behind for long enough, and at the end all that isn't done."""
        with self._lock:
            running = [key for key, state in self._noted.items() if state == "running"]
        changed = [key for key in running if self._progress_changed(self.plan.units[key])]
        now = time.monotonic()
        left_behind = [key for key, since in self._suspects.items() if last or now - since > GRACE]
        with self._lock:
            self._due.update(dict.fromkeys([*changed, *left_behind]))
            if last:
                self._faults.clear()
                self._due.update(dict.fromkeys(key for key in self.plan.units if key not in self._settled))

    def _progress_changed(self, unit: Unit) -> bool:
        try:
            now = self.ledger.progress_tag(unit)
        except OSError:
            return False
        changed = bool(now) and self._seen.get(unit.key) != now
        self._seen[unit.key] = now
        return changed

    def _parent(self, store: Store) -> Run:
        tags = {name: value for name, value in self._plan_tags.items() if name != schema.PLAN_DIGEST}
        parent = store.ensure_plan(self.plan.name, tags)
        same = parent.tags.get(schema.PLAN_DIGEST) == self._plan_tags[schema.PLAN_DIGEST]
        if not same or not store.holds(parent, PLAN_FILE, self._plan_text):
            store.put(parent, PLAN_FILE, self._plan_text)
            store.write(parent, tags=self._plan_tags)
        if self._closing is None:
            store.set_status(parent, "RUNNING")
        return parent

    def _ensure_runs(self, store: Store, parent: Run, keys: list[str]) -> None:
        wanted = {}
        for key in keys:
            unit = self.plan.units[key]
            if key in store.units:
                continue
            record = self.ledger.record(unit)
            if record is not None or key in self._noted:
                rows = self.ledger.progress(unit)
                began = record.about.get("started") if record else None
                began = began or (rows[0].get("time") if rows else None) or time.time()
                tags = schema.unit_tags(self.plan, unit) | {schema.PARENT_RUN: parent.id}
                wanted[key] = (tags, int(1000 * began))
        if wanted:
            store.ensure_units(wanted)

    def _unit(self, store: Store, unit: Unit, last: bool) -> None:
        """Make a unit's run say what the ledger says."""
        with self._lock:
            noted = self._noted.get(unit.key)
        if last and noted == "running" and not self.ledger.claimed(unit):
            noted = "stopped"  # The driver leaves, and nobody else has it.
        record = self.ledger.record(unit)
        if record is not None and (noted != "running" or record.status == "finished"):
            self._records_changed |= self._records.get(unit.key) != record
            self._records[unit.key] = record
        run = store.units.get(unit.key)
        if run is None:
            return
        if noted is None and run.status == "RUNNING" and not self._is_left_behind(unit, record, last):
            return
        if noted == "running":
            rows, synced = self._new_rows(store, run, unit)
            store.write(run, rows, schema.unit_params(unit), self._study_tag | synced)
            store.set_status(run, "RUNNING")
        else:
            self._ended(store, run, unit, noted, record)
            # Who notes a failure may write its record later, at the latest before `close`.
            awaited = noted == "failed" and record is None
            with self._lock:
                if last or (self._noted.get(unit.key) == noted and not awaited):
                    self._settled.add(unit.key)
                    self._faults.discard(unit.key)

    def _is_left_behind(self, unit: Unit, record: Record | None, last: bool) -> bool:
        """Whether a run that says RUNNING has no process: its driver was killed."""
        since = self._suspects.setdefault(unit.key, time.monotonic())
        finished = record is not None and record.status == "finished"
        if self.ledger.claimed(unit):
            self._suspects[unit.key] = time.monotonic()
            return False
        if finished or last or time.monotonic() - since > GRACE:
            del self._suspects[unit.key]
            return True
        return False

    def _ended(self, store: Store, run: Run, unit: Unit, noted: str | None, record: Record | None) -> None:
        text = record.to_json() if record else ""
        told = run.tags.get(schema.MIRRORED) == schema.digest_of(text)
        whole = record is None or (told and store.holds(run, RECORD, text))
        if record is not None and record.status == "finished":
            status = ENDED["finished"]
        elif noted is None and record is None:
            status = run.status if run.status in ENDED.values() else ENDED["stopped"]
        elif noted == "finished":
            raise ValueError("noted as finished, but it has no record")
        elif noted is not None:
            status = ENDED[noted]
        else:
            # A failed unit that was tried again, and stopped, keeps that.
            status = run.status if whole and run.status in ENDED.values() else ENDED["failed"]
        if whole and run.status == status and noted is None:
            store.write(run, tags=self._study_tag)
            return
        rows, synced = self._new_rows(store, run, unit)
        tags, ended = self._study_tag | synced, None
        if record is not None and not whole:
            ended = int(1000 * (record.about.get("ended") or self._written(unit)))
            rows.append(schema.record_points(record, ended))
            tags |= schema.record_tags(record)
        store.write(run, rows, schema.unit_params(unit), tags)
        if status == ENDED["finished"]:
            store.drop_tag(run, schema.ERROR)
        store.set_status(run, status, ended)
        if record is not None and not whole:
            store.put(run, RECORD, text)
            store.write(run, tags={schema.MIRRORED: schema.digest_of(text)})

    def _written(self, unit: Unit) -> float:
        """When a record came to be on storage."""
        return time.time() - (self.ledger.written(unit) or 0.0)

    def _new_rows(self, store: Store, run: Run, unit: Unit) -> tuple[list[list[Point]], dict[str, str]]:
        """Progress that the run doesn't have, and the tag that says how far it is with it."""
        before = schema.parse_synced(run.tags.get(schema.SYNCED, ""))
        rows, after = schema.new_rows(self.ledger.progress(unit), before)
        if rows and not run.alone:
            # A process that was killed may have written points and not the tag; since then the unit may have gone on
            # from an earlier checkpoint and have them again, with the same values at another time.
            names = {point.name for row in rows for point in row} & set(run.metrics)
            there = {name: store.steps(run, name) for name in sorted(names)}
            rows = [[point for point in row if point.step not in there.get(point.name, ())] for row in rows]
            run.alone = True
        return rows, {schema.SYNCED: schema.format_synced(after)} if after else {}

    def _totals(self, store: Store, parent: Run) -> None:
        """What the study's run says of all its units."""
        if not self._records_changed:
            return
        values = schema.arm_values(self.plan, self._records) | schema.unit_counts(self.plan, self._records)
        now = int(1000 * time.time())
        points = [Point(name, value, 0, now) for name, value in values.items() if parent.metrics.get(name) != value]
        store.write(parent, [[point] for point in points])
        self._records_changed = False

    def _finish(self, store: Store, outcome: Outcome, report: Path | None) -> None:
        self._in_time()
        parent = self._parent(store)
        store.set_status(parent, ENDED[outcome])
        if report is not None and report.is_dir():
            store.put_folder(parent, report, "report")


def _is_lasting(error: Exception) -> bool:
    """Whether another try of the same would fail again: the store answers, or it isn't about the store at all."""
    if isinstance(error, OSError):
        return False
    return getattr(error, "error_code", "") in LASTING or isinstance(error, ValueError | TypeError | LookupError)


def _line(error: Exception) -> str:
    """An error in one line, for people."""
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
