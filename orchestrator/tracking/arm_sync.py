"""Keeps the runs of a study's arms, or a search's trials, up to date: above the runs of their units."""

from collections.abc import Mapping
from typing import Any

from orchestrator.planning.plan import Unit
from orchestrator.record import Record
from orchestrator.tracking import pages, schema
from orchestrator.tracking.arms import (
    TrackedArm,
    arm_health,
    arm_key,
    arm_params,
    arm_status,
    arm_values,
    arms_of,
    differing_options,
)
from orchestrator.tracking.mlflow_store import MlflowStore, Run, changed_values
from orchestrator.tracking.schema import Tracked


class ArmSync:
    """The arms of a plan. Every call may raise, and may be repeated."""

    def __init__(self, plan: Tracked, content: Mapping[str, Any]) -> None:
        """`content` is the plan's, as `PlanFile.to_plain` or `search_content` makes it."""
        self.plan, self._content = plan, content
        self.page = ""
        """Address of the page that shows them side by side, once there is one; relative to MLflow's server."""
        self._units: Mapping[str, Unit] | None = None
        self._arms: dict[str, TrackedArm] = {}
        self._options: list[str] = []
        """Of the configuration, in which the arms differ."""

    def arms(self) -> dict[str, TrackedArm]:
        """By name; those of a search become more."""
        units = self.plan.units
        if units is not self._units:
            self._arms, self._units = arms_of(self.plan), units
            self._options = differing_options(self._arms.values())
        return self._arms

    def ensure_runs(
        self, store: MlflowStore, parent: Run, begun: Mapping[str, int], more_tags: Mapping[str, str]
    ) -> None:
        """Create the runs of arms that have none.

        Args:
            parent: run of the study.
            begun: keys of units, and when they have begun, in milliseconds.
            more_tags: for each run.
        """
        wanted = {}
        for arm in self.arms().values():
            starts = [begun[key] for key in arm.keys & begun.keys()]
            if starts and arm.key not in store.arms:
                tags = {
                    schema.RUN_NAME: arm.label,
                    schema.NOTE: pages.arm_note(arm),
                    schema.ARM_RUN: arm.key,
                    schema.PARENT_RUN: parent.id,
                    schema.STUDY: self.plan.study.name,
                    "ups.arm": arm.name,
                    **more_tags,
                }
                wanted[arm.key] = ({name: value[: schema.TAG_LENGTH] for name, value in tags.items()}, min(starts))
        store.ensure_arms(wanted)

    def forget(self, store: MlflowStore) -> None:
        """Look the arms' runs up again, or make them, at the next call."""
        for arm in self.arms().values():
            store.arms.pop(arm.key, None)

    def place(self, store: MlflowStore, unit: Unit, run: Run | None = None) -> dict[str, str]:
        """Tags that put a unit's run below that of its arm; none where it lies below another study's, which alone moves
        it then. A run of an earlier version lies below a study's own run and moves to an arm of that study.

        Args:
            run: None for one that is to be made.
        """
        arm = store.arms.get(arm_key(self.plan, unit.arm))
        if arm is None or (run is not None and not self._is_ours(store, run)):
            return {}
        return {schema.PARENT_RUN: arm.id, schema.ARM_OF_UNIT: arm.tags[schema.ARM_RUN]}

    def _is_ours(self, store: MlflowStore, run: Run) -> bool:
        if mark := run.tags.get(schema.ARM_OF_UNIT):
            return self._is_own(mark)
        parent = run.tags.get(schema.PARENT_RUN)
        of_others = (other for name, other in store.plans.items() if name != self.plan.name)
        arms_of_others = (other for key, other in store.arms.items() if not self._is_own(key))
        return all(other.id != parent for others in (of_others, arms_of_others) for other in others)

    def _is_own(self, key: str) -> bool:
        return key.rpartition("/")[0] == self.plan.name

    def sync(self, store: MlflowStore, parent: Run, records: Mapping[str, Record], changed: bool, last: bool) -> None:
        """Make the arms' runs say what their units' runs and records say.

        Args:
            records: by key of the unit.
            changed: they are not as in the call before.
            last: the driver is about to end.
        """
        runs = {name: (arm, store.arms[arm.key]) for name, arm in self.arms().items() if arm.key in store.arms}
        for arm, run in runs.values():
            points = changed_values(run, arm_values(arm, records)) if changed else []
            front = self._content.get("front")
            marks = {} if front is None else {schema.FRONT: "yes" if arm.name in front else "no"}
            if changed and (health := arm_health(arm, records)):
                marks[schema.HEALTH] = health[: schema.TAG_LENGTH]
            store.write(run, points, arm_params(arm, self._options), {schema.PARENT_RUN: parent.id, **marks})
            states = [store.units[key].status if key in store.units else "" for key in arm.keys]
            ends = [records[key].about.get("ended", 0) for key in arm.keys & records.keys()]
            status = arm_status(states, run.status, last)
            store.set_status(run, status, int(1000 * max(ends, default=0)) or None)
        if runs and (changed or not self.page):
            metrics = {name for _, run in runs.values() for name in run.metrics if not name.endswith(("/sd", "/seeds"))}
            view = pages.arms_view(
                self.plan, self._content, self._options, metrics, schema.best_names(records.values())
            )
            store.tag_experiment(f"{pages.VIEW}{pages.view_name(self.plan)}", view)
            self.page = pages.arms_page(store.experiment, self.plan)
