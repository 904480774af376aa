"""Brings the runs of a store, such as MLflow, up to date with the ledger, one unit at a time."""

import json
import logging
import time
from collections.abc import Mapping
from typing import Any, Literal, get_args

from orchestrator.planning.plan import Unit
from orchestrator.record import Record
from orchestrator.storage.ledger import RECORD, Ledger
from orchestrator.tracking import pages, schema
from orchestrator.tracking.arm_sync import ArmSync
from orchestrator.tracking.mlflow_store import MlflowStore, Run, changed_values
from orchestrator.tracking.schema import Point, Tracked
from ups_model.evaluation.metric_names import OUTCOMES

logger = logging.getLogger(__name__)

NO_PROCESS_SECONDS = 60.0
"""Until a run that says RUNNING without a process counts as left behind: another driver may be starting the unit."""
PLAN_FILE = "plan.json"

Outcome = Literal["running", "finished", "failed", "stopped"]
STATES = get_args(Outcome)
STATUS_OF = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


class LedgerSync:
    """Makes the runs of a store say what the ledger says. Every call may raise, and may be repeated."""

    def __init__(self, ledger: Ledger, plan: Tracked, content: Mapping[str, Any]) -> None:
        """`content` is the plan's, as `PlanFile.to_plain` or `search_content` makes it."""
        self.ledger, self.plan = ledger, plan
        self.arms = ArmSync(plan, content)
        self._content = content
        self._plan_text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
        self._plan_tags = schema.plan_tags(plan, content)
        self._study_tag = schema.study_tag(plan)
        self._maker_tags = schema.maker_tags(content)
        self._suspects: dict[str, float] = {}
        """Runs that say RUNNING without a process of this driver, and since when."""
        self._records: dict[str, Record] = {}
        self._records_changed = True

    def plan_run(self, store: MlflowStore, running: bool) -> Run:
        """The study's run, with the plan; `running`: it says RUNNING from here on."""
        run = store.ensure_plan(self.plan.name, self._plan_tags | self._maker_tags)
        note = pages.study_note(self.plan, self._content, store.experiment, run.id)
        # The description is written when it changes: what people make of it in MLflow stays until then.
        digest = schema.digest_of(self._plan_text + note)
        if run.tags.get(schema.PLAN_DIGEST) != digest or not store.holds(run, PLAN_FILE, self._plan_text):
            store.put(run, PLAN_FILE, self._plan_text)
            tags = self._plan_tags | {schema.NOTE: note, schema.PLAN_DIGEST: digest} | self._maker_of(run)
            store.write(run, tags=tags)
        if running:
            store.set_status(run, "RUNNING")
        return run

    def ensure_runs(self, store: MlflowStore, parent: Run, states: Mapping[str, Outcome | None]) -> None:
        """Create the runs of units that have begun and have none, and of their arms; `states` is by key, None where
        this driver has not run the unit."""
        begun = {}
        for key, state in states.items():
            unit = self.plan.units[key]
            if key in store.units:
                begun[key] = store.units[key].started
                continue
            record = self.ledger.record(unit)
            if record is not None or state is not None:
                rows = self.ledger.progress(unit)
                began = record.about.get("started") if record else None
                began = began or (rows[0].get("time") if rows else None) or time.time()
                begun[key] = int(1000 * began)
        self.arms.ensure_runs(store, parent, begun, self._maker_tags)
        units = [self.plan.units[key] for key in begun if key not in store.units]
        if units:
            store.ensure_units(
                {
                    unit.key: (
                        schema.unit_tags(self.plan, unit) | self.arms.place(store, unit) | self._maker_tags,
                        begun[unit.key],
                    )
                    for unit in units
                }
            )

    def _maker_of(self, run: Run) -> dict[str, str]:
        """Who has made a run, where it doesn't say so."""
        return {name: value for name, value in self._maker_tags.items() if name not in run.tags}

    def sync(self, store: MlflowStore, unit: Unit, state: Outcome | None, last: bool) -> bool:
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
            store.write(run, rows, schema.unit_params(unit), self._tags(store, run, unit) | synced)
            store.add_inputs(run, schema.data_inputs(self.plan, unit, None))
            store.set_status(run, "RUNNING")
            return False
        self._sync_ended(store, run, unit, state, record)
        # The record of a failure may be written after its state is reported, at the latest before the driver ends.
        return last or not (state == "failed" and record is None)

    def _tags(self, store: MlflowStore, run: Run, unit: Unit) -> dict[str, str]:
        """Tags of a unit's run that don't depend on its record."""
        return self._study_tag | self._maker_of(run) | self.arms.place(store, unit, run)

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

    def _sync_ended(
        self, store: MlflowStore, run: Run, unit: Unit, state: Outcome | None, record: Record | None
    ) -> None:
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
        tags = self._tags(store, run, unit)
        if record is not None:
            tags |= schema.record_tags(record)
        if whole and run.status == status and state is None:
            # What a run of an earlier version doesn't have, or what has been imported since.
            tags |= self._put_outcomes(store, run, unit, record)
            store.write(run, tags=tags)
            store.add_inputs(run, schema.data_inputs(self.plan, unit, record))
            return
        rows, synced = self._new_rows(store, run, unit)
        ended = None
        if record is not None and not whole:
            ended = int(1000 * (record.about.get("ended") or time.time() - (self.ledger.written(unit) or 0.0)))
            rows.append(schema.record_points(record, ended))
        store.write(run, rows, schema.unit_params(unit), tags | synced)
        store.add_inputs(run, schema.data_inputs(self.plan, unit, record))
        if status == STATUS_OF["finished"]:
            store.drop_tag(run, schema.ERROR)
        store.set_status(run, status, ended)
        if record is not None and not whole:
            run.tags.pop(schema.OUTCOMES_DIGEST, None)  # The artifacts may be gone, as in a storage that was copied.
            uploaded = self._put_outcomes(store, run, unit, record)
            store.put(run, RECORD, text)
            store.write(run, tags=uploaded | {schema.MIRRORED: schema.digest_of(text)})

    def _put_outcomes(self, store: MlflowStore, run: Run, unit: Unit, record: Record | None) -> dict[str, str]:
        """Upload the outcomes.npz of a record, if the run doesn't have it; the tag that then says so."""
        if record is None or record.outcomes in ("", run.tags.get(schema.OUTCOMES_DIGEST)):
            return {}
        outcomes = self.ledger.outcomes(unit)
        if outcomes is None or not record.has_outcomes(outcomes):
            return {}
        store.put(run, OUTCOMES, outcomes)
        return {schema.OUTCOMES_DIGEST: record.outcomes}

    def _new_rows(self, store: MlflowStore, run: Run, unit: Unit) -> tuple[list[list[Point]], dict[str, str]]:
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

    def forget(self, store: MlflowStore) -> None:
        """Look the runs of the study and its arms up again, or make them, at the next call."""
        store.plans.pop(self.plan.name, None)
        self.arms.forget(store)
        self._records_changed = True

    def sync_totals(self, store: MlflowStore, parent: Run, last: bool) -> None:
        """Bring the runs of the arms up to date, and in the study's run how many units are done."""
        self.arms.sync(store, parent, self._records, self._records_changed, last)
        if self._records_changed:
            store.write(parent, changed_values(parent, schema.unit_counts(self.plan, self._records)))
        self._records_changed = False
