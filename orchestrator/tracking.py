"""MLflow mirrors the ledger: parent run = study, child run = unit. The only file that imports mlflow.

The ledger is the truth. A thread of the driver looks at what the driver notes and at the units' progress files and
brings MLflow up to date; what it can't write it writes later, at the latest when the study is run again. Training never
waits on it and never dies of it. All of it may be written twice without a trace: runs are found by key, points carry
the time at which they were measured, and a tag of each run says how far it is.
"""

import json
import logging
import os
import shlex
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import SplitResult, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from filelock import FileLock

from orchestrator import mirrored
from orchestrator.ledger import RECORD, Ledger, Record
from orchestrator.mirror import PLAN_FILE, LedgerMirror, Run
from orchestrator.mirrored import Point
from orchestrator.plan import Plan
from orchestrator.storage.workspace import scratch_base

logger = logging.getLogger(__name__)

EXPERIMENT = "UPS ablations"
LOCK, DATABASE, ARTIFACTS = ".mlflow.lock", "mlflow.db", "mlartifacts"
LOCK_SECONDS = 30
POINTS_PER_BATCH, ENTRIES_PER_BATCH = 800, 100
"""MLflow takes 1000 entries a batch, of which 100 may be parameters and 100 tags."""
FEW = 5
"""So many runs are looked for one by one; for more of them all runs are listed."""
SQL = ("postgresql", "mysql", "mssql")

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


def default_uri(ledger: Ledger) -> str:
    """The store that lies beside the records. ValueError where they are on an object store, which holds no database."""
    if ledger.root is None:
        raise ValueError(
            f"--storage {ledger.address} has no place for MLflow's database; give --tracking-uri http://HOST:5000 or "
            "sqlite:////FOLDER/mlflow.db"
        )
    return f"sqlite:///{ledger.root.absolute() / DATABASE}"


def check(uri: str) -> None:
    """Refuse an address that can't work; a server that doesn't answer now is only logged, for training goes on without.

    Raises:
        ValueError: malformed, or of a kind that isn't supported.
    """
    parts = _parts(uri)
    if parts.scheme == "sqlite":
        folder = _database(uri).parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ValueError(f"--tracking-uri {uri}: {folder} is no folder that can be written to; make it first")
    elif parts.scheme in ("http", "https"):
        address = urlunsplit(
            (parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/") + "/health", "", "")
        )
        try:
            urlopen(Request(address), timeout=3).close()
        except HTTPError as error:
            logger.warning("tracking server %s answers %s; runs go on, and are mirrored later", _shown(uri), error.code)
        except OSError as error:
            why = getattr(error, "reason", error)
            logger.warning("tracking server %s is away (%s); runs go on, and are mirrored later", _shown(uri), why)


def ui_command(uri: str) -> str:
    """What a person enters, or opens, to compare runs."""
    if _parts(uri).scheme in ("http", "https"):
        return _shown(uri)
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def _parts(uri: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"--tracking-uri {uri}: malformed ({error}); give e.g. http://HOST:5000") from error
    scheme = parts.scheme.split("+")[0]
    if scheme == "sqlite":
        if not uri.startswith("sqlite:///") or uri in ("sqlite:///", "sqlite:///:memory:"):
            raise ValueError(f"--tracking-uri {uri}: names no file; give sqlite:////FOLDER/mlflow.db")
    elif scheme in ("http", "https", *SQL):
        if not parts.hostname:
            raise ValueError(f"--tracking-uri {uri}: names no host; give e.g. {scheme}://HOST:PORT")
    else:
        raise ValueError(
            f"--tracking-uri {uri}: must be http(s)://, sqlite:///, {', '.join(f'{name}://' for name in SQL)}; "
            "MLflow keeps no runs in plain folders any more; give sqlite:////FOLDER/mlflow.db"
        )
    return parts._replace(scheme=scheme)


def _database(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").split("?")[0]).absolute()


def _shown(uri: str) -> str:
    """An address without a password."""
    parts = urlsplit(uri)
    if not parts.password:
        return uri
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{host}"))


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
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # Where mlflow was imported before, it has not read the setting.
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    return MlflowClient(tracking_uri=uri)


class Mirror(LedgerMirror):
    """Keeps MLflow up with the ledger during a study: `start`, `note` what happens, `close`."""

    def __init__(
        self, ledger: Ledger, plan: Plan, content: Mapping[str, Any], uri: str, experiment: str = EXPERIMENT
    ) -> None:
        super().__init__(ledger, plan, content, lambda: MlflowStore(uri, experiment, ledger), _shown(uri))

    def _run(self) -> None:
        with _quiet():
            super()._run()


class MlflowStore:
    """Runs of one experiment: find, create, write. Every call may raise; every call may be repeated."""

    def __init__(self, uri: str, experiment: str, ledger: Ledger) -> None:
        sqlite = urlsplit(uri).scheme.startswith("sqlite")
        # Two processes that both open a new database, or both look for a run and make it, would end with two or none.
        place = _database(uri).parent if sqlite else ledger.root
        # Without a folder that all drivers share, those of one machine: of others' runs the oldest is taken.
        file = scratch_base() / f"{LOCK}-{mirrored.digest_of(uri)}" if place is None else place / LOCK
        self._lock = FileLock(file)
        with self._lock.acquire(timeout=LOCK_SECONDS):
            self.client = _connect(uri)
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                beside = ledger.root.absolute() if ledger.root is not None else _database(uri).parent
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
                self._look(f"tags.`{mirrored.PLAN}` = '{name}'")
                if name not in self.plans:
                    self.plans[name] = self._create(tags, int(1000 * time.time()))
        return self.plans[name]

    def ensure_units(self, wanted: Mapping[str, tuple[Mapping[str, str], int]]) -> None:
        """Make runs for keys that have none; values are tags and the time of their start."""
        missing = [key for key in wanted if key not in self.units]
        if not missing:
            return
        with self._lock.acquire(timeout=LOCK_SECONDS):
            if len(missing) > FEW:
                self._look()
            for key in missing:
                if len(missing) <= FEW:
                    self._look(f"tags.`{mirrored.KEY}` = '{key}'")
                if key not in self.units:
                    self.units[key] = self._create(*wanted[key])

    def _create(self, tags: Mapping[str, str], started: int) -> Run:
        run = self.client.create_run(
            self.experiment, start_time=started, tags=dict(tags), run_name=tags[mirrored.RUN_NAME]
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

    def put_folder(self, run: Run, folder: Path, name: str) -> None:
        """All files of a folder."""
        self.client.log_artifacts(run.id, str(folder), name)


def index(client: Any, experiment: str, condition: str = "") -> tuple[dict[str, Run], dict[str, Run]]:
    """An experiment's runs of units by key, and of studies by name; the oldest where there are several."""
    units: dict[str, Run] = {}
    plans: dict[str, Run] = {}
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
            tags = dict(run.data.tags)
            found = Run(
                run.info.run_id,
                run.info.status,
                tags,
                set(run.data.params),
                dict(run.data.metrics),
                run.info.artifact_uri,
            )
            if mirrored.KEY in tags:
                units.setdefault(tags[mirrored.KEY], found)
            elif mirrored.PLAN in tags:
                plans.setdefault(tags[mirrored.PLAN], found)
        token = page.token
        if not token:
            return units, plans


def fetch(uri: str, study: str | None) -> list[tuple[dict[str, Any], dict[str, Record | None]]]:
    """Mirrored plans and the records of their units, read from MLflow alone.

    Args:
        uri: address of the store.
        study: name of a study, or of a plan of it; None for all.

    Returns:
        For each plan, by name: its content (`orchestrator.content.plan_content`), and by key the record of each unit,
        None for one that has left none or is not mirrored.

    Raises:
        ValueError: the store can't be read, or has no such study.
    """
    if _parts(uri).scheme == "sqlite" and not _database(uri).is_file():
        raise ValueError(f"--tracking-uri {uri}: there is no such file; run orchestrator.ablate first")
    with _quiet():
        try:
            return _fetch(_connect(uri), uri, study)
        except ValueError:
            raise
        except Exception as error:  # MLflow, its server, its database and its artifacts raise all kinds.
            why = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise ValueError(f"--tracking-uri {_shown(uri)}: can't be read ({why[:300]})") from error


def _fetch(client: Any, uri: str, study: str | None) -> list[tuple[dict[str, Any], dict[str, Record | None]]]:
    found, known = [], set()
    for experiment in client.search_experiments():
        units, plans = index(client, experiment.experiment_id)
        texts: dict[str, Record | None] = {}
        for name, run in sorted(plans.items()):
            if mirrored.SEARCH in run.tags:
                continue  # Its values chose; a report's are of studies.
            known |= {run.tags.get(mirrored.STUDY, name)}
            if mirrored.PLAN_DIGEST not in run.tags or study not in (None, name, run.tags.get(mirrored.STUDY)):
                continue
            content = json.loads(_artifact(uri, run, PLAN_FILE))
            for key in content["units"]:
                if key not in texts:
                    texts[key] = _record(uri, units.get(key))
            found.append((content, {key: texts[key] for key in content["units"]}))
    if not found:
        has = f"it has {', '.join(sorted(known))}" if known else "nothing has been mirrored there"
        raise ValueError(f"--tracking-uri {_shown(uri)}: no study {study or ''}".rstrip() + f"; {has}")
    return sorted(found, key=lambda pair: pair[0]["name"])


def _record(uri: str, run: Run | None) -> Record | None:
    if run is None or mirrored.MIRRORED not in run.tags:
        return None
    record = Record.from_json(_artifact(uri, run, RECORD))
    if record.key != run.tags[mirrored.KEY]:
        raise ValueError(f"run {run.id} has the record of another unit ({record.key})")
    return record


def _artifact(uri: str, run: Run, name: str) -> str:
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory() as folder:
        # By its address: the client's own method reads the whole run twice for each file.
        file = download_artifacts(artifact_uri=f"{run.files}/{name}", dst_path=folder, tracking_uri=uri)
        return Path(file).read_bytes().decode("utf-8")
