"""Plans and records read back from MLflow alone, for reports."""

import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from orchestrator.planning.plan_file import PlanFile
from orchestrator.record import Record
from orchestrator.storage.ledger import RECORD
from orchestrator.tracking import schema
from orchestrator.tracking.client import REFUSALS, connect, one_line, quiet, refusal
from orchestrator.tracking.location import LOCK, LOCK_SECONDS, local_file, moved_from, own_storage, settle
from orchestrator.tracking.mlflow_store import Run, index
from orchestrator.tracking.sync import PLAN_FILE
from orchestrator.tracking.uri import database_file, parts_of, shown, without_login
from ups_model.evaluation.metric_names import OUTCOMES


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
    with _reading(uri):
        _settle(uri)
        return _fetch(connect(uri), uri, study)


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    """Errors as ValueError in one line."""
    with quiet():
        try:
            yield
        except ValueError:
            raise
        except Exception as error:  # MLflow, its server, its database and its artifacts raise all kinds.
            if getattr(error, "error_code", "") in REFUSALS:
                raise ValueError(refusal(uri, error)) from error
            raise ValueError(f"--tracking-uri {shown(uri)}: can't be read ({one_line(error)})") from error


def outcomes_reader(uri: str) -> Callable[[str], bytes | None]:
    """Reads the outcomes.npz of a unit by its key; None where its run has none, as runs of earlier versions.

    What it returns raises ValueError if the store can't be read. Runs are looked up at its first call.
    """

    @cache
    def client_and_runs() -> tuple[Any, dict[str, Run]]:
        client = connect(uri)
        runs: dict[str, Run] = {}
        for experiment in client.search_experiments():
            runs = index(client, experiment.experiment_id).units | runs
        return client, runs

    def read(key: str) -> bytes | None:
        with _reading(uri):
            client, runs = client_and_runs()
            if key not in runs or OUTCOMES not in {file.path for file in client.list_artifacts(runs[key].id)}:
                return None
            return _artifact_bytes(uri, runs[key], OUTCOMES)

    return read


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
    plans_and_records, studies = [], set()
    for experiment in client.search_experiments():
        runs = index(client, experiment.experiment_id)
        texts: dict[str, Record | None] = {}
        for name, run in sorted(runs.plans.items()):
            if schema.SEARCH in run.tags:
                continue  # Its values chose; a report's are of studies.
            studies |= {run.tags.get(schema.STUDY, name)}
            if schema.PLAN_DIGEST not in run.tags or study not in (None, name, run.tags.get(schema.STUDY)):
                continue
            plan = PlanFile.from_json(_artifact(uri, run, PLAN_FILE))
            for key in plan.units:
                if key not in texts:
                    texts[key] = _record(uri, runs.units.get(key))
            plans_and_records.append((plan, {key: texts[key] for key in plan.units}))
    if not plans_and_records:
        has = (
            f"it has {', '.join(sorted(studies))}" if studies else _deleted(client) or "nothing has been mirrored there"
        )
        raise ValueError(f"--tracking-uri {shown(uri)}: no study {study or ''}".rstrip() + f"; {has}")
    return sorted(plans_and_records, key=lambda pair: pair[0].name)


def _deleted(client: Any) -> str:
    """What of ours has been deleted in MLflow, and the way out; empty where nothing has."""
    from mlflow.entities import ViewType

    for experiment in client.search_experiments(view_type=ViewType.ALL):
        number = experiment.experiment_id
        # The runs of a deleted experiment are deleted with it.
        condition = f"tags.`{schema.PLAN}` != ''"
        page = client.search_runs([number], condition, run_view_type=ViewType.DELETED_ONLY, max_results=1)
        for run in page:
            what, which = f"experiment {experiment.name!r} has", f"experiments restore --experiment-id {number}"
            if experiment.lifecycle_stage == "active":
                what, which = f"the run {run.info.run_name!r} has", f"runs restore --run-id {run.info.run_id}"
            return f"{what} been deleted in MLflow: MLFLOW_TRACKING_URI=... mlflow {which}, or report from --storage"
    return ""


def _record(uri: str, run: Run | None) -> Record | None:
    if run is None or schema.MIRRORED not in run.tags:
        return None
    record = Record.from_json(_artifact(uri, run, RECORD))
    if record.key != run.tags[schema.KEY]:
        raise ValueError(f"run {run.id} has the record of another unit ({record.key})")
    return record


def _artifact(uri: str, run: Run, name: str) -> str:
    return _artifact_bytes(uri, run, name).decode("utf-8")


def _artifact_bytes(uri: str, run: Run, name: str) -> bytes:
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
        return Path(copy).read_bytes()
