"""Where the artifacts of a storage's own MLflow store lie. Imports no MLflow.

MLflow keeps absolute addresses of artifacts in its database. When a storage has been copied or moved, its database
still names the folder of the original: the copy would write into that, and read from it. Whoever opens the store of a
storage puts the addresses right first.
"""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.tracking.uri import DATABASE, database_file, parts_of

logger = logging.getLogger(__name__)

LOCK, ARTIFACTS = ".mlflow.lock", "mlartifacts"
LOCK_SECONDS = 30
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("trace_tags", "value"),
)
"""Tables and columns of MLflow's schema that hold addresses of artifacts. Its API changes none of them."""


def own_storage(uri: str) -> Path | None:
    """The storage that an MLflow store lies in: that of `mlflow.db` beside `units/`. None for any other store, which is
    a user's own."""
    if parts_of(uri).scheme != "sqlite":
        return None
    file = database_file(uri)
    return file.parent if file.name == DATABASE and (file.parent / "units").is_dir() else None


def moved_from(storage: Path) -> list[str]:
    """Addresses of artifact folders of other storages that this one's database has, as after a copy or a move.

    An address that leads to this storage by another path, such as a link, is left as it is.

    Raises:
        sqlite3.Error: the database can't be read.
    """
    file = storage / DATABASE
    if not file.is_file():
        return []
    with closing(_open(file, "ro")) as database:
        if not _has(database, "experiments"):  # Another process is just making it.
            return []
        addresses = [address for (address,) in database.execute("SELECT DISTINCT artifact_location FROM experiments")]
    return [address for address in addresses if address and _is_elsewhere(address, storage)]


def _is_elsewhere(address: str, storage: Path) -> bool:
    parts = urlsplit(address)
    if parts.scheme != "file" or Path(unquote(parts.path)).name != ARTIFACTS:
        return False  # Nothing that the mirror has made.
    folder = Path(unquote(parts.path)).parent
    try:
        return not folder.samefile(storage)
    except OSError:  # It is gone, or another user's.
        return True


def settle(storage: Path) -> None:
    """Give the artifacts in a storage's database the address of the folder that lies in it now. The caller has the
    store's lock. Files are not touched: the mirror writes those that are missing.

    Raises:
        sqlite3.Error: the database can't be read or written.
    """
    here = (storage / ARTIFACTS).as_uri()
    for before in moved_from(storage):
        logger.warning("MLflow's artifacts of %s were at %s; from now on they are at %s", storage, before, here)
        with closing(_open(storage / DATABASE, "rw")) as database, database:
            for table, column in _COLUMNS:
                if _has(database, table):
                    # The name of a folder may hold the letters that LIKE gives a meaning.
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (here, len(before) + 1, before, len(before) + 1, f"{before}/"),
                    )


def has_experiments(file: Path) -> bool:
    """Whether a database is one of MLflow's that has been opened before: the first thing MLflow does is to make one.

    Raises:
        sqlite3.Error: the database can't be read.
    """
    if not file.is_file():
        return False
    with closing(_open(file, "rw")) as database:  # Undoes what a killed process has begun.
        has_table = _has(database, "experiments")
        return has_table and bool(database.execute("SELECT 1 FROM experiments LIMIT 1").fetchone())


def check_database(file: Path) -> None:
    """ValueError where a database can't be written to. MLflow would try again for a minute before it says so."""
    try:
        with closing(sqlite3.connect(file, timeout=LOCK_SECONDS, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise ValueError(f"{file}: {error}") from error


def local_file(address: str, name: str) -> Path | None:
    """A file of a run by the address of the run's artifacts; None where that is no folder of this machine."""
    parts = urlsplit(address)
    return Path(unquote(parts.path)) / name if parts.scheme == "file" else None


def _open(file: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.as_uri()}?mode={mode}", uri=True, timeout=LOCK_SECONDS)


def _has(database: sqlite3.Connection, table: str) -> bool:
    return bool(database.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone())
