"""MLflow mirrors the ledger: a run a study, below it a run an arm, below that a run a unit. Only this package imports
mlflow.

The ledger is the truth. A thread of the driver reads what the driver reports and the units' progress files, and brings
MLflow up to date; what it can't write now it writes later, at the latest when the study is run again. Training never
waits for it and never fails because of it. Writing twice leaves no trace: runs are found by key, points carry the time
at which they were measured, and a tag of each run says how far it goes.
"""

import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from orchestrator.storage.backends.workspace import scratch_base
from orchestrator.storage.ledger import Ledger
from orchestrator.tracking import schema
from orchestrator.tracking.client import PERMANENT_CODES, connect, forget_artifact_addresses, make_database
from orchestrator.tracking.location import (
    ARTIFACTS,
    LOCK,
    LOCK_SECONDS,
    check_database,
    local_file,
    own_storage,
    settle,
)
from orchestrator.tracking.schema import DataInput, Point
from orchestrator.tracking.uri import database_file

POINTS_PER_BATCH, ENTRIES_PER_BATCH = 800, 100
"""MLflow takes 1000 entries a batch, of which 100 may be parameters and 100 tags."""
MAX_SINGLE_LOOKUPS = 5
"""Up to so many runs are looked up one by one; for more, all runs are listed."""


KIND_TAG, RUNS_KIND = "mlflow.experimentKind", "custom_model_development"
"""The tag by which MLflow's page opens an experiment on its runs; without it, on traces."""


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
    started: int = 0
    """When, in milliseconds."""
    inputs: set[DataInput] = field(default_factory=set)
    alone: bool = False
    """Made by this process, so that its tags name all of its points."""


class MlflowStore:
    """Runs of one experiment: find, create, write. Every call may raise; every call may be repeated."""

    def __init__(self, uri: str, experiment: str, ledger: Ledger) -> None:
        sqlite = urlsplit(uri).scheme.startswith("sqlite")
        # Two processes that both open a new database, or both look for a run and make it, would end with two or none.
        place = database_file(uri).parent if sqlite else ledger.root
        # Without a folder that all drivers share, those of one machine; with the others `_agree` is for.
        file = scratch_base() / f"{LOCK}-{schema.digest_of(uri)}" if place is None else place / LOCK
        self._lock, self._shared = FileLock(file), not sqlite
        self._storage = own_storage(uri)
        self._seen: set[tuple[str, str, str]] = set()
        """Runs, names and digests of files that were as they should be."""
        with self._lock.acquire(timeout=LOCK_SECONDS):
            if sqlite:
                check_database(database_file(uri))
                make_database(uri)
            if self._storage is not None:
                settle(self._storage)
            self.client = connect(uri)
            forget_artifact_addresses()
            existing = self.client.get_experiment_by_name(experiment)
            if existing is None:
                beside = ledger.root.absolute() if ledger.root is not None else database_file(uri).parent
                artifacts = (beside / ARTIFACTS).as_uri() if sqlite else None
                self._tags = {KIND_TAG: RUNS_KIND}
                self.experiment = self.client.create_experiment(experiment, artifacts, dict(self._tags))
            elif existing.lifecycle_stage != "active":
                raise ValueError(f"experiment {experiment!r} has been deleted in MLflow; restore it there")
            else:
                self.experiment, self._tags = existing.experiment_id, dict(existing.tags)
                if KIND_TAG not in self._tags:
                    self.tag_experiment(KIND_TAG, RUNS_KIND)
        self.units: dict[str, Run] = {}
        self.plans: dict[str, Run] = {}
        self.arms: dict[str, Run] = {}
        self._look()

    def _look(self, condition: str = "") -> None:
        """Learn of runs that aren't known yet."""
        runs = index(self.client, self.experiment, condition)
        for known, new in ((self.units, runs.units), (self.plans, runs.plans), (self.arms, runs.arms)):
            known.update({name: run for name, run in new.items() if name not in known})

    def tag_experiment(self, name: str, value: str) -> None:
        """A tag of the experiment."""
        if self._tags.get(name) != value:
            self.client.set_experiment_tag(self.experiment, name, value)
            self._tags[name] = value

    def ensure_plan(self, name: str, tags: Mapping[str, str]) -> Run:
        """The run of a study."""
        self._ensure(self.plans, {name: (tags, int(1000 * time.time()))}, schema.PLAN)
        return self.plans[name]

    def ensure_units(self, wanted: Mapping[str, tuple[Mapping[str, str], int]]) -> None:
        """Make runs for keys that have none; values are tags and the time of their start."""
        self._ensure(self.units, wanted, schema.KEY)

    def ensure_arms(self, wanted: Mapping[str, tuple[Mapping[str, str], int]]) -> None:
        """As `ensure_units`, of arms by `arms.arm_key`."""
        self._ensure(self.arms, wanted, schema.ARM_RUN)

    def _ensure(self, runs: dict[str, Run], wanted: Mapping[str, tuple[Mapping[str, str], int]], tag: str) -> None:
        missing = [key for key in wanted if key not in runs]
        if not missing:
            return
        with self._lock.acquire(timeout=LOCK_SECONDS):
            if len(missing) > MAX_SINGLE_LOOKUPS:
                self._look()
            made = []
            for key in missing:
                if len(missing) <= MAX_SINGLE_LOOKUPS:
                    self._look(f"tags.`{tag}` = '{key}'")
                if key not in runs:
                    runs[key] = self._create(*wanted[key])
                    made.append(key)
            self._agree(runs, made, tag)

    def _agree(self, runs: dict[str, Run], made: list[str], tag: str) -> None:
        """Drivers that share no lock may have made the same run at once: whoever sees two keeps the older. Who has lost
        one meets an error at the next writing, finds the other and fills it from the ledger."""
        if not self._shared or not made:
            return
        there: dict[str, Run] = {}
        condition = f"tags.`{tag}` = '{made[0]}'" if len(made) == 1 else ""
        for run in all_runs(self.client, self.experiment, condition):
            name = run.tags.get(tag, "")
            if name in made and there.setdefault(name, run) is not run:
                try:
                    self.client.delete_run(run.id)
                except Exception as error:  # The other driver may have been first to delete it.
                    if getattr(error, "error_code", "") not in PERMANENT_CODES:
                        raise
        runs.update({name: run for name, run in there.items() if run.id != runs[name].id})

    def _create(self, tags: Mapping[str, str], started: int) -> Run:
        run = self.client.create_run(
            self.experiment, start_time=started, tags=dict(tags), run_name=tags[schema.RUN_NAME]
        )
        info = run.info
        return Run(info.run_id, info.status, dict(tags), set(), {}, info.artifact_uri, started, alone=True)

    def write(
        self,
        run: Run,
        rows: Iterable[list[Point]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write what a run doesn't have yet; a row of points is never divided, and the tags go with the last rows."""
        from mlflow.entities import Metric, Param, RunTag

        new_params = [(name, value) for name, value in (params or {}).items() if name not in run.params]
        new_tags = [(name, value) for name, value in (tags or {}).items() if run.tags.get(name) != value]
        batches: list[list[Point]] = [[]]
        for row in rows:
            if len(batches[-1]) + len(row) > POINTS_PER_BATCH:
                batches.append([])
            batches[-1] += row
        while new_params or new_tags or batches:
            points = batches.pop(0) if batches else []
            some_params, new_params = new_params[:ENTRIES_PER_BATCH], new_params[ENTRIES_PER_BATCH:]
            # A tag that says how far the points go must not be there before them.
            some_tags, new_tags = (
                ([], new_tags) if batches else (new_tags[:ENTRIES_PER_BATCH], new_tags[ENTRIES_PER_BATCH:])
            )
            if not (points or some_params or some_tags):
                continue
            self.client.log_batch(
                run.id,
                [Metric(point.name, point.value, point.time_ms, point.step) for point in points],
                [Param(name, value) for name, value in some_params],
                [RunTag(name, value) for name, value in some_tags],
            )
            run.params.update(name for name, _ in some_params)
            run.tags.update(some_tags)
            run.metrics.update((point.name, point.value) for point in points)

    def add_inputs(self, run: Run, inputs: Iterable[DataInput]) -> None:
        """Clip sets that a run doesn't have yet."""
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        missing = [one for one in inputs if one not in run.inputs]
        if missing:
            # The address is the set's name: where it lies is each machine's own.
            datasets = [
                DatasetInput(
                    Dataset(one.name, one.digest, "local", json.dumps({"uri": one.name})),
                    [InputTag(MLFLOW_DATASET_CONTEXT, one.context)],
                )
                for one in missing
            ]
            self.client.log_inputs(run.id, datasets)
            run.inputs.update(missing)

    def drop_tag(self, run: Run, name: str) -> None:
        """Remove a tag."""
        if name in run.tags:
            self.client.delete_tag(run.id, name)
            del run.tags[name]

    def steps(self, run: Run, name: str) -> set[int]:
        """Steps at which a run has a metric."""
        return {metric.step for metric in self.client.get_metric_history(run.id, name)}

    def set_status(self, run: Run, status: str, ended: int | None = None) -> None:
        """RUNNING, or an end."""
        if run.status == status:
            return
        if status == "RUNNING":
            self.client.update_run(run.id, status=status)
        else:
            self.client.set_terminated(run.id, status=status, end_time=ended)
        run.status = status

    def put(self, run: Run, name: str, content: str | bytes) -> None:
        """A file of a run."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            file.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            self.client.log_artifact(run.id, str(file))

    def holds(self, run: Run, name: str, text: str) -> bool:
        """Whether a file of a run has this text, where the store lies in a storage, which may have been copied without
        all of it. A server is not asked: that would be to download the file."""
        seen, file = (run.id, name, schema.digest_of(text)), local_file(run.files, name)
        if self._storage is None or file is None or seen in self._seen:
            return True
        try:
            same = file.read_bytes() == text.encode("utf-8")
        except OSError:
            return False
        if same:
            self._seen.add(seen)
        return same

    def put_folder(self, run: Run, folder: Path, name: str) -> None:
        """All files of a folder."""
        self.client.log_artifacts(run.id, str(folder), name)


def changed_values(run: Run, values: Mapping[str, float]) -> list[list[Point]]:
    """Points of metrics that a run doesn't have, or that have changed, a row each."""
    now = int(1000 * time.time())
    return [[Point(name, value, 0, now)] for name, value in values.items() if run.metrics.get(name) != value]


def all_runs(client: Any, experiment: str, condition: str = "") -> Iterator[Run]:
    """An experiment's runs, the oldest first."""
    token = None
    while True:
        page = client.search_runs(
            [experiment],
            condition,
            max_results=200,
            page_token=token,
            order_by=["attributes.start_time ASC", "attributes.run_id"],
        )
        for run in page:
            yield Run(
                run.info.run_id,
                run.info.status,
                dict(run.data.tags),
                set(run.data.params),
                dict(run.data.metrics),
                run.info.artifact_uri,
                run.info.start_time,
                _inputs_of(run),
            )
        token = page.token
        if not token:
            return


def _inputs_of(run: Any) -> set[DataInput]:
    return {
        DataInput(one.dataset.name, one.dataset.digest, tag.value)
        for one in (run.inputs.dataset_inputs if run.inputs else ())
        for tag in one.tags
    }


@dataclass
class Runs:
    """An experiment's runs; the oldest where there are several of one unit, study or arm."""

    units: dict[str, Run] = field(default_factory=dict)
    """By the unit's key."""
    plans: dict[str, Run] = field(default_factory=dict)
    """By the plan's name."""
    arms: dict[str, Run] = field(default_factory=dict)
    """By `arms.arm_key`; none of studies that an earlier version mirrored."""


def index(client: Any, experiment: str, condition: str = "") -> Runs:
    """What an experiment's runs are of."""
    runs = Runs()
    kinds = ((schema.KEY, runs.units), (schema.PLAN, runs.plans), (schema.ARM_RUN, runs.arms))
    for run in all_runs(client, experiment, condition):
        for tag, of_kind in kinds:
            if tag in run.tags:
                of_kind.setdefault(run.tags[tag], run)
                break
    return runs
