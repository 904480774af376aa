"""Brings the runs of a store, such as MLflow, up to date with the ledger, one unit at a time."""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from orchestrator.planning.plan import Unit
from orchestrator.record import Record
from orchestrator.storage.ledger import RECORD, Ledger
from orchestrator.tracking import schema
from orchestrator.tracking.schema import Point, Tracked
from ups_model.evaluation.metric_names import OUTCOMES

logger = logging.getLogger(__name__)

NO_PROCESS_SECONDS = 60.0
"""Until a run that says RUNNING without a process counts as left behind: another driver may be starting the unit."""
PLAN_FILE = "plan.json"

Outcome = Literal["running", "finished", "failed", "stopped"]
STATES = get_args(Outcome)
STATUS_OF = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


@dataclass
class Run:
    """A run of the store, as it was last read or written."""

    id: str
    status: str
    tags: dict[str, str]
    params: set[str]
    metrics: dict[str, float]
    files: str = ""
    """Address of its artifacts."""
    alone: bool = False
    """Made by this process, so that its tags name all of its points."""


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
    def put(self, run: Run, name: str, content: str | bytes) -> None: ...
    def holds(self, run: Run, name: str, text: str) -> bool: ...
    def put_folder(self, run: Run, folder: Path, name: str) -> None: ...


class LedgerSync:
    """Makes the runs of a store say what the ledger says. Every call may raise, and may be repeated."""

    def __init__(self, ledger: Ledger, plan: Tracked, plan_text: str, plan_tags: Mapping[str, str]) -> None:
        self.ledger, self.plan = ledger, plan
        self._plan_text = plan_text
        self._plan_tags = dict(plan_tags)
        self._study_tag = schema.study_tag(plan)
        self._suspects: dict[str, float] = {}
        """Runs that say RUNNING without a process of this driver, and since when."""
        self._records: dict[str, Record] = {}
        self._records_changed = True

    def plan_run(self, store: Store, running: bool) -> Run:
        """The study's run, with the plan; `running`: it says RUNNING from here on."""
        run = store.ensure_plan(self.plan.name, self._plan_tags)
        digest = schema.digest_of(self._plan_text)
        if run.tags.get(schema.PLAN_DIGEST) != digest or not store.holds(run, PLAN_FILE, self._plan_text):
            store.put(run, PLAN_FILE, self._plan_text)
            store.write(run, tags=self._plan_tags | {schema.PLAN_DIGEST: digest})
        if running:
            store.set_status(run, "RUNNING")
        return run

    def ensure_runs(self, store: Store, parent: Run, states: Mapping[str, Outcome | None]) -> None:
        """Create the runs of units that have begun and have none; `states` is by key, None where this driver has not
        run the unit."""
        wanted = {}
        for key, state in states.items():
            unit = self.plan.units[key]
            if key in store.units:
                continue
            record = self.ledger.record(unit)
            if record is not None or state is not None:
                rows = self.ledger.progress(unit)
                began = record.about.get("started") if record else None
                began = began or (rows[0].get("time") if rows else None) or time.time()
                tags = schema.unit_tags(self.plan, unit) | {schema.PARENT_RUN: parent.id}
                wanted[key] = (tags, int(1000 * began))
        if wanted:
            store.ensure_units(wanted)

    def sync(self, store: Store, unit: Unit, state: Outcome | None, last: bool) -> bool:
        """Make a unit's run say what the ledger says.

        Args:
            state: of the unit in this driver; None where it has not run it, and the ledger alone tells.
            last: the driver is about to end.

        Returns:
            Whether nothing more is to come of the unit while its state stays.
        """
        if last and state == "running" and not self.ledger.claimed(unit):
            state = "stopped"  # The driver ends, and no other has the unit.
        record = self.ledger.record(unit)
        if record is not None and (state != "running" or record.status == "finished"):
            self._records_changed |= self._records.get(unit.key) != record
            self._records[unit.key] = record
        run = store.units.get(unit.key)
        if run is None:
            return False
        if state is None and run.status == "RUNNING" and not self._is_left_behind(unit, record, last):
            return False
        if state == "running":
            rows, synced = self._new_rows(store, run, unit)
            store.write(run, rows, schema.unit_params(unit), self._study_tag | synced)
            store.set_status(run, "RUNNING")
            return False
        self._sync_ended(store, run, unit, state, record)
        # The record of a failure may be written after its state is reported, at the latest before the driver ends.
        return last or not (state == "failed" and record is None)

    def left_behind(self, last: bool) -> list[str]:
        """Keys of units whose runs have said RUNNING without a process for long enough to look again."""
        now = time.monotonic()
        return [key for key, since in self._suspects.items() if last or now - since > NO_PROCESS_SECONDS]

    def _is_left_behind(self, unit: Unit, record: Record | None, last: bool) -> bool:
        """Whether a run that says RUNNING has no process: its driver was killed."""
        since = self._suspects.setdefault(unit.key, time.monotonic())
        finished = record is not None and record.status == "finished"
        if self.ledger.claimed(unit):
            self._suspects[unit.key] = time.monotonic()
            return False
        if finished or last or time.monotonic() - since > NO_PROCESS_SECONDS:
            del self._suspects[unit.key]
            return True
        return False

    def _sync_ended(self, store: Store, run: Run, unit: Unit, state: Outcome | None, record: Record | None) -> None:
        text = record.to_json() if record else ""
        mirrored = run.tags.get(schema.MIRRORED) == schema.digest_of(text)
        whole = record is None or (mirrored and store.holds(run, RECORD, text))
        if record is not None and record.status == "finished":
            status = STATUS_OF["finished"]
        elif state is None and record is None:
            status = run.status if run.status in STATUS_OF.values() else STATUS_OF["stopped"]
        elif state == "finished":
            raise ValueError("reported as finished, but it has no record")
        elif state is not None:
            status = STATUS_OF[state]
        else:
            # A failed unit that was tried again, and stopped, keeps that.
            status = run.status if whole and run.status in STATUS_OF.values() else STATUS_OF["failed"]
        if whole and run.status == status and state is None:
            store.write(run, tags=self._study_tag)
            return
        rows, synced = self._new_rows(store, run, unit)
        tags, ended = self._study_tag | synced, None
        if record is not None and not whole:
            ended = int(1000 * (record.about.get("ended") or self._written(unit)))
            rows.append(schema.record_points(record, ended))
            tags |= schema.record_tags(record)
        store.write(run, rows, schema.unit_params(unit), tags)
        if status == STATUS_OF["finished"]:
            store.drop_tag(run, schema.ERROR)
        store.set_status(run, status, ended)
        if record is not None and not whole:
            outcomes = self.ledger.outcomes(unit)
            if outcomes is not None and record.has_outcomes(outcomes):
                store.put(run, OUTCOMES, outcomes)
            store.put(run, RECORD, text)
            store.write(run, tags={schema.MIRRORED: schema.digest_of(text)})

    def _written(self, unit: Unit) -> float:
        """When a record came to be on storage."""
        return time.time() - (self.ledger.written(unit) or 0.0)

    def _new_rows(self, store: Store, run: Run, unit: Unit) -> tuple[list[list[Point]], dict[str, str]]:
        """Progress that the run doesn't have yet, and the tag that then says how far it goes."""
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

    def sync_totals(self, store: Store, parent: Run) -> None:
        """Metrics of the study's run: of its arms and of how many units are done."""
        if not self._records_changed:
            return
        values = schema.arm_values(self.plan, self._records) | schema.unit_counts(self.plan, self._records)
        now = int(1000 * time.time())
        points = [Point(name, value, 0, now) for name, value in values.items() if parent.metrics.get(name) != value]
        store.write(parent, [[point] for point in points])
        self._records_changed = False
