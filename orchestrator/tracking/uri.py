"""Addresses of MLflow stores: which are understood, how one is shown without its password. Imports no MLflow."""

import shlex
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from orchestrator.storage.ledger import Ledger

DATABASE = "mlflow.db"
SQL = ("postgresql", "mysql", "mssql")
LOCAL_UI = "http://127.0.0.1:5000"
"""Where `mlflow ui` answers by default."""


def default_uri(ledger: Ledger) -> str:
    """The store that lies beside the records. ValueError where they are on an object store, which holds no database."""
    if ledger.root is None:
        raise ValueError(
            f"--storage {ledger.address} has no place for MLflow's database; give --tracking-uri http://HOST:5000 or "
            "sqlite:////FOLDER/mlflow.db"
        )
    return sqlite_uri(ledger.root.absolute() / DATABASE)


def sqlite_uri(file: Path) -> str:
    """Address of an SQLite database. SQLAlchemy decodes the path and ends it at "?"; all other characters stay."""
    return f"sqlite:///{str(file).replace('%', '%25').replace('?', '%3F')}"


def ui_command(uri: str) -> str:
    """What a person enters, or opens, to compare runs."""
    if parts_of(uri).scheme in ("http", "https"):
        return shown(uri)
    return f"mlflow ui --backend-store-uri {shlex.quote(shown(uri))}"


def page_address(uri: str, page: str) -> str:
    """Address of a page of MLflow's interface, for a browser on the machine where a person enters `ui_command`.

    Args:
        page: relative to the server, as `pages.arms_page` makes it.
    """
    server = without_login(uri)[0] if parts_of(uri).scheme in ("http", "https") else LOCAL_UI
    return f"{server.rstrip('/')}/{page}"


def parts_of(uri: str) -> SplitResult:
    """An address, checked; the driver of a database ("+psycopg2") is left out of the scheme.

    Raises:
        ValueError: malformed, or of a kind that isn't supported.
    """
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"--tracking-uri {shown(uri)}: malformed ({error}); give e.g. http://HOST:5000") from error
    scheme = parts.scheme.split("+")[0]
    if scheme == "sqlite":
        if not uri.startswith("sqlite:///") or uri in ("sqlite:///", "sqlite:///:memory:"):
            raise ValueError(f"--tracking-uri {shown(uri)}: names no file; give sqlite:////FOLDER/mlflow.db")
    elif scheme in ("http", "https", *SQL):
        if not parts.hostname:
            raise ValueError(f"--tracking-uri {shown(uri)}: names no host; give e.g. {scheme}://HOST:PORT")
    else:
        raise ValueError(
            f"--tracking-uri {shown(uri)}: must be http(s)://, sqlite:///, {', '.join(f'{name}://' for name in SQL)}; "
            "MLflow keeps no runs in plain folders any more; give sqlite:////FOLDER/mlflow.db"
        )
    return parts._replace(scheme=scheme)


def database_file(uri: str) -> Path:
    """Of an address of sqlite; the inverse of `sqlite_uri`."""
    return Path(unquote(uri.removeprefix("sqlite:///").split("?")[0])).absolute()


def shown(uri: str) -> str:
    """An address without a password, malformed ones included."""
    start, slashes, rest = uri.partition("://")
    before, at, host = rest.rpartition("@")
    if not at or ":" not in before or start.startswith("sqlite"):  # A file's path holds no password.
        return uri
    return f"{start}{slashes}{before.partition(':')[0]}:***@{host}"


def without_login(uri: str) -> tuple[str, list[str]]:
    """The address of a server without user and password, and those of them that it had."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return uri, []
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return bare, [unquote(text) for text in (parts.username, parts.password) if text is not None]
