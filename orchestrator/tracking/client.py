"""MLflow's client: its settings, its login, and the check of an address before anything starts."""

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from orchestrator.tracking.location import check_database, has_experiments
from orchestrator.tracking.uri import database_file, parts_of, shown, sqlite_uri, without_login

logger = logging.getLogger(__name__)

EXPERIMENT = "UPS ablations"
LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
REFUSALS = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")
PERMANENT_CODES = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE")
"""Error codes of MLflow after which a retry of the same call fails again."""
DRAFT = ".mlflow-"
PROBE = "/api/2.0/mlflow/experiments/search?max_results=1"
WRITER = "ups.mirror"
"""Tag of the experiment, written to learn whether the user may write."""
_SETTINGS = {
    # MLflow's client would retry for about four minutes, with time-outs of two; the mirror retries by itself.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0.2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # The mirror reports an error once; MLflow would log a traceback at each call.
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
        file = database_file(uri)
        if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
            raise ValueError(f"--tracking-uri {uri}: {file.parent} is no folder that can be written to; make it first")
        if file.exists():
            try:
                check_database(file)
            except ValueError as error:
                raise ValueError(f"--tracking-uri {uri}: {error}; give another file, or make it writable") from error
    elif parts.scheme in ("http", "https"):
        try:
            # Probe without credentials first; plain HTTP, since importing MLflow takes a second.
            urlopen(Request(without_login(uri)[0].rstrip("/") + PROBE), timeout=3).close()
        except HTTPError as error:
            if error.code in (401, 403):
                _check_login(uri)
            else:
                _warn(uri, f"answers {error.code}")
        except OSError as error:
            _warn(uri, f"is away ({getattr(error, 'reason', error)})")


def _check_login(uri: str) -> None:
    """ValueError where a server refuses to let the configured user read or write."""
    with quiet():
        try:
            client = connect(uri)
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment is not None:
                # A user who may only read is told now, and not by warnings during hours of training.
                client.set_experiment_tag(experiment.experiment_id, WRITER, "yes")
        except Exception as error:  # The mirror will meet any other error and report it.
            if getattr(error, "error_code", "") in REFUSALS:
                raise ValueError(refusal(uri, error)) from error
            _warn(uri, f"can't be read ({one_line(error)})")


def _warn(uri: str, what: str) -> None:
    logger.warning("tracking server %s %s; runs go on, and are mirrored later", shown(uri), what)


def refusal(uri: str, error: Exception) -> str:
    """The message for a server that doesn't accept the configured user, with the way out."""
    are_set = ", ".join(name for name in LOGIN if os.environ.get(name)) or "none of them"
    return (
        f"--tracking-uri {shown(uri)}: refuses us ({one_line(error)}); export {LOGIN[0]} and {LOGIN[1]} of a user "
        f"who may write there (set now: {are_set})"
    )


def one_line(error: Exception) -> str:
    """An error's type and the first line of its text, at most 300 characters of it."""
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what urllib3 logs in this thread about connections that fail: the mirror reports it, once."""
    connections, thread = logging.getLogger("urllib3.connectionpool"), threading.get_ident()

    def is_of_another(record: logging.LogRecord) -> bool:
        return record.thread != thread

    connections.addFilter(is_of_another)
    try:
        yield
    finally:
        connections.removeFilter(is_of_another)


def make_database(uri: str) -> None:
    """MLflow's tables in an SQLite database that has no experiment yet, whole or not at all: a process that is killed
    while MLflow makes them leaves some, and MLflow then neither goes on nor begins anew. The caller has the store's
    lock."""
    file = database_file(uri).resolve()
    if has_experiments(file):
        return
    _configure()
    from mlflow.db import upgrade

    assert upgrade.callback is not None, "a command of click's has the function that it was made of"
    for folder in file.parent.glob(f"{DRAFT}*"):  # Of a process that was killed.
        shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=DRAFT, dir=file.parent) as name:
        draft = Path(name) / file.name
        with _no_folder_of_quoted_names(sqlite_uri(draft)):
            upgrade.callback(sqlite_uri(draft))  # As `mlflow db upgrade`.
        for suffix in ("-journal", "-wal", "-shm"):  # They would be taken for the new file's.
            file.with_name(file.name + suffix).unlink(missing_ok=True)
        draft.replace(file)


def _configure() -> None:
    """Import MLflow with our settings."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401

    # If mlflow was imported before, it has not read the setting.
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())


def connect(uri: str) -> Any:
    """An MLflow client. Importing mlflow takes a second."""
    # MLflow puts addresses into the texts of its errors.
    uri, login = without_login(uri)
    os.environ.update(zip(LOGIN, login, strict=False))  # The address may have the user alone.
    _configure()
    from mlflow import MlflowClient

    with _no_folder_of_quoted_names(uri):
        return MlflowClient(tracking_uri=uri)


@contextmanager
def _no_folder_of_quoted_names(uri: str) -> Iterator[None]:
    """MLflow takes the path in the address of an SQLite database for a plain one and makes its folder, whose name is
    another one where SQLAlchemy decodes it: what is new of it is removed."""
    made = Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:///") and "%" in uri else None
    new = [folder for folder in (made, *made.parents) if not folder.exists()] if made is not None else []
    try:
        yield
    finally:
        for folder in new:
            with suppress(OSError):
                folder.rmdir()


def forget_artifact_addresses() -> None:
    """MLflow caches for the whole process where the artifacts of a run are, by the run's id, which a copied storage has
    in common with the original. It has no public way to clear that."""
    from mlflow.tracking._tracking_service import utils

    getattr(utils, "_artifact_repos_cache", {}).clear()
