"""MLflow mirrors the ledger: parent run = study, child run = unit. The only file that imports mlflow.

The ledger is the truth. A thread of the driver looks at what the driver notes and at the units' progress files and
brings MLflow up to date; what it can't write it writes later, at the latest when the study is run again. Training never
waits on it and never dies of it. All of it may be written twice without a trace: runs are found by key, points carry
the time at which they were measured, and a tag of each run says how far it is.
"""

import logging
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock

from orchestrator.planning.plan_file import PlanFile
from orchestrator.record import Record
from orchestrator.storage.backends.workspace import scratch_base
from orchestrator.storage.ledger import RECORD, Ledger
from orchestrator.tracking import schema
from orchestrator.tracking.location import ARTIFACTS, LOCK, LOCK_SECONDS, local_file, moved_from, own_storage, settle
from orchestrator.tracking.schema import Point, Tracked
from orchestrator.tracking.sync import LASTING, PLAN_FILE, LedgerMirror, Run
from orchestrator.tracking.uri import database_file, parts_of, shown, without_login
from orchestrator.tracking.uri import default_uri as default_uri
from orchestrator.tracking.uri import ui_command as ui_command

logger = logging.getLogger(__name__)

EXPERIMENT = "UPS ablations"
POINTS_PER_BATCH, ENTRIES_PER_BATCH = 800, 100
"""MLflow takes 1000 entries a batch, of which 100 may be parameters and 100 tags."""
LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
REFUSALS = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")
ANY = "/api/2.0/mlflow/experiments/search?max_results=1"
WRITER = "ups.mirror"
"""Tag of the experiment, by which we learn that we may write."""
FEW = 5
"""So many runs are looked for one by one; for more of them all runs are listed."""
_SETTINGS = {
    # MLflow's client would retry for about four minutes, each time for two; the mirror comes back to it by itself.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0.2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # What goes wrong is said once, here, and not by MLflow at each call with a traceback.
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def check(uri: str) -> None:
    """Refuse an address that can't work; a server that doesn't answer now is only logged, for training goes on without.

    Raises:
        ValueError: malformed, or of a kind that isn't supported; a server that answers refuses these credentials.
    """
    parts = parts_of(uri)
    if parts.scheme == "sqlite":
        folder = database_file(uri).parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ValueError(f"--tracking-uri {uri}: {folder} is no folder that can be written to; make it first")
    elif parts.scheme in ("http", "https"):
        try:
            # Probe without credentials first; plain HTTP, since importing MLflow takes a second.
            urlopen(Request(without_login(uri)[0].rstrip("/") + ANY), timeout=3).close()
        except HTTPError as error:
            if error.code in (401, 403):
                _check_login(uri)
            else:
                _warn(uri, f"answers {error.code}")
        except OSError as error:
            _warn(uri, f"is away ({getattr(error, 'reason', error)})")


def _check_login(uri: str) -> None:
    """ValueError where a server refuses to be read or written to by whom MLflow's client says we are."""
    with _quiet():
        try:
            client = _connect(uri)
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is not None:
                # Who may only read learns it here, and not from warnings during hours of training.
                client.set_experiment_tag(found.experiment_id, WRITER, "yes")
        except Exception as error:  # Whatever else it is, the mirror will meet and tell it.
            if getattr(error, "error_code", "") in REFUSALS:
                raise ValueError(_refused(uri, error)) from error
            _warn(uri, f"can't be read ({_first_line(error)})")


def _warn(uri: str, what: str) -> None:
    logger.warning("tracking server %s %s; runs go on, and are mirrored later", shown(uri), what)


def _refused(uri: str, error: Exception) -> str:
    given = ", ".join(name for name in LOGIN if os.environ.get(name)) or "none of them"
    return (
        f"--tracking-uri {shown(uri)}: refuses us ({_first_line(error)}); export {LOGIN[0]} and {LOGIN[1]} of a user "
        f"who may write there (set now: {given})"
    )


def _first_line(error: Exception) -> str:
    return (next(iter(str(error).splitlines()), "") or type(error).__name__)[:300]


class _Quiet(logging.Filter):
    """Drops what a library logs in this thread: the mirror says it itself, once."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self.thread


@contextmanager
def _quiet() -> Iterator[None]:
    quiet, noisy = _Quiet(), logging.getLogger("urllib3.connectionpool")
    noisy.addFilter(quiet)
    try:
        yield
    finally:
        noisy.removeFilter(quiet)


def _connect(uri: str) -> Any:
    """An MLflow client. Importing mlflow takes a second, the first call on a new database some more."""
    # Out of the address, which MLflow puts into the texts of its errors.
    uri, login = without_login(uri)
    os.environ.update(zip(LOGIN, login, strict=False))  # A user alone, and the password in the environment, will do.
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # Where mlflow was imported before, it has not read the setting.
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    return MlflowClient(tracking_uri=uri)


def _forget_places() -> None:
    """MLflow remembers for the whole process where the artifacts of a run are; runs of a copied storage have the ids of
    the original's. It has no public way to forget them."""
    from mlflow.tracking._tracking_service import utils

    getattr(utils, "_artifact_repos_cache", {}).clear()


class Mirror(LedgerMirror):
    """Keeps MLflow up with the ledger during a study: `start`, `note` what happens, `close`."""

    def __init__(
        self, ledger: Ledger, plan: Tracked, content: Mapping[str, Any], uri: str, experiment: str = EXPERIMENT
    ) -> None:
        super().__init__(ledger, plan, content, lambda: MlflowStore(uri, experiment, ledger), shown(uri))

    def _run(self) -> None:
        with _quiet():
            super()._run()


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
        """Runs, names and digests of files that were found as they should be."""
        with self._lock.acquire(timeout=LOCK_SECONDS):
            if self._storage is not None:
                settle(self._storage)
            self.client = _connect(uri)
            _forget_places()
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                beside = ledger.root.absolute() if ledger.root is not None else database_file(uri).parent
                artifacts = (beside / ARTIFACTS).as_uri() if sqlite else None
                self.experiment = self.client.create_experiment(experiment, artifact_location=artifacts)
            elif found.lifecycle_stage != "active":
                raise ValueError(f"experiment {experiment!r} has been deleted in MLflow; restore it there")
            else:
                self.experiment = found.experiment_id
        self.units: dict[str, Run] = {}
        self.plans: dict[str, Run] = {}
        self._look()

    def _look(self, condition: str = "") -> None:
        """Learn of runs that aren't known yet."""
        units, plans = index(self.client, self.experiment, condition)
        self.units = units | self.units
        self.plans = plans | self.plans

    def ensure_plan(self, name: str, tags: Mapping[str, str]) -> Run:
        """The run of a study."""
        if name not in self.plans:
            with self._lock.acquire(timeout=LOCK_SECONDS):
                self._look(f"tags.`{schema.PLAN}` = '{name}'")
                if name not in self.plans:
                    self.plans[name] = self._create(tags, int(1000 * time.time()))
                    self._agree(self.plans, [name], schema.PLAN)
        return self.plans[name]

    def ensure_units(self, wanted: Mapping[str, tuple[Mapping[str, str], int]]) -> None:
        """Make runs for keys that have none; values are tags and the time of their start."""
        missing = [key for key in wanted if key not in self.units]
        if not missing:
            return
        with self._lock.acquire(timeout=LOCK_SECONDS):
            if len(missing) > FEW:
                self._look()
            made = []
            for key in missing:
                if len(missing) <= FEW:
                    self._look(f"tags.`{schema.KEY}` = '{key}'")
                if key not in self.units:
                    self.units[key] = self._create(*wanted[key])
                    made.append(key)
            self._agree(self.units, made, schema.KEY)

    def _agree(self, known: dict[str, Run], made: list[str], tag: str) -> None:
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
                except Exception as error:
                    if getattr(error, "error_code", "") not in LASTING:  # Else the other driver was first to delete it.
                        raise
        known.update({name: run for name, run in there.items() if run.id != known[name].id})

    def _create(self, tags: Mapping[str, str], started: int) -> Run:
        run = self.client.create_run(
            self.experiment, start_time=started, tags=dict(tags), run_name=tags[schema.RUN_NAME]
        )
        return Run(run.info.run_id, run.info.status, dict(tags), set(), {}, run.info.artifact_uri, alone=True)

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

    def put(self, run: Run, name: str, text: str) -> None:
        """A file of a run."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            file.write_bytes(text.encode("utf-8"))
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
            )
        token = page.token
        if not token:
            return


def index(client: Any, experiment: str, condition: str = "") -> tuple[dict[str, Run], dict[str, Run]]:
    """An experiment's runs of units by key, and of studies by name; the oldest where there are several."""
    units: dict[str, Run] = {}
    plans: dict[str, Run] = {}
    for run in all_runs(client, experiment, condition):
        if schema.KEY in run.tags:
            units.setdefault(run.tags[schema.KEY], run)
        elif schema.PLAN in run.tags:
            plans.setdefault(run.tags[schema.PLAN], run)
    return units, plans


def fetch(uri: str, study: str | None) -> list[tuple[PlanFile, dict[str, Record | None]]]:
    """Mirrored plans and the records of their units, read from MLflow alone.

    Args:
        uri: address of the store.
        study: name of a study, or of a plan of it; None for all.

    Returns:
        Plans, sorted by name, and by key the record of each unit,
        None for one that has left none or is not mirrored.

    Raises:
        ValueError: the store can't be read, or has no such study.
    """
    if parts_of(uri).scheme == "sqlite" and not database_file(uri).is_file():
        raise ValueError(f"--tracking-uri {uri}: there is no such file; run orchestrator.ablate first")
    with _quiet():
        try:
            _settle(uri)
            return _fetch(_connect(uri), uri, study)
        except ValueError:
            raise
        except Exception as error:  # MLflow, its server, its database and its artifacts raise all kinds.
            if getattr(error, "error_code", "") in REFUSALS:
                raise ValueError(_refused(uri, error)) from error
            raise ValueError(f"--tracking-uri {shown(uri)}: can't be read ({_first_line(error)})") from error


def _settle(uri: str) -> None:
    """Put right the addresses of artifacts in a storage that has been copied or moved. ValueError where that fails."""
    storage = own_storage(uri)
    try:
        if storage is not None and moved_from(storage):
            with FileLock(storage / LOCK).acquire(timeout=LOCK_SECONDS):
                settle(storage)
    except (OSError, sqlite3.Error) as error:
        raise ValueError(
            f"--tracking-uri {uri}: this storage was copied or moved, and its mlflow.db can't be told so ({error}); "
            f"make it writable, or report from --storage {storage}"
        ) from error


def _fetch(client: Any, uri: str, study: str | None) -> list[tuple[PlanFile, dict[str, Record | None]]]:
    found, known = [], set()
    for experiment in client.search_experiments():
        units, plans = index(client, experiment.experiment_id)
        texts: dict[str, Record | None] = {}
        for name, run in sorted(plans.items()):
            if schema.SEARCH in run.tags:
                continue  # Its values chose; a report's are of studies.
            known |= {run.tags.get(schema.STUDY, name)}
            if schema.PLAN_DIGEST not in run.tags or study not in (None, name, run.tags.get(schema.STUDY)):
                continue
            plan = PlanFile.from_json(_artifact(uri, run, PLAN_FILE))
            for key in plan.units:
                if key not in texts:
                    texts[key] = _record(uri, units.get(key))
            found.append((plan, {key: texts[key] for key in plan.units}))
    if not found:
        has = f"it has {', '.join(sorted(known))}" if known else "nothing has been mirrored there"
        raise ValueError(f"--tracking-uri {shown(uri)}: no study {study or ''}".rstrip() + f"; {has}")
    return sorted(found, key=lambda pair: pair[0].name)


def _record(uri: str, run: Run | None) -> Record | None:
    if run is None or schema.MIRRORED not in run.tags:
        return None
    record = Record.from_json(_artifact(uri, run, RECORD))
    if record.key != run.tags[schema.KEY]:
        raise ValueError(f"run {run.id} has the record of another unit ({record.key})")
    return record


def _artifact(uri: str, run: Run, name: str) -> str:
    from mlflow.artifacts import download_artifacts

    file = local_file(run.files, name)
    if own_storage(uri) is not None and file is not None and not file.is_file():
        raise ValueError(
            f"--tracking-uri {uri}: {name} of run {run.id} is missing at {run.files}; run the study's ablate command "
            "again, which writes it from the records"
        )
    with tempfile.TemporaryDirectory() as folder:
        # By its address: the client's own method reads the whole run twice for each file.
        copy = download_artifacts(
            artifact_uri=f"{run.files}/{name}", dst_path=folder, tracking_uri=without_login(uri)[0]
        )
        return Path(copy).read_bytes().decode("utf-8")
