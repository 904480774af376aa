"""An MLflow server for many hosts: python -m cluster.mlflow_server. With PostgreSQL, proxied artifacts and users.

Both servers are children of this command and end with it, however it ends. Nothing secret is ever on a command line:
PostgreSQL asks the kernel who is calling, MLflow's password and key are files that only their owner may read.
"""

import argparse
import base64
import importlib.util
import ipaddress
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout

from cluster.postgres import Postgres, end_with_parent, last_lines

USER = "admin"
ADDRESS, LOCK, PASSWORD, KEY, AUTHENTICATION = "address.json", "lock", "password", "flask-key", "auth.ini"
LOGIN = "login"
"""What a driver's shell sources. Reads the password, and doesn't hold it."""
OURS = {
    ADDRESS,
    LOCK,
    LOGIN,
    PASSWORD,
    KEY,
    AUTHENTICATION,
    "postgres",
    "postgres.new",
    "run",
    "artifacts",
    "mlflow.db",
}
START_SECONDS, STOP_SECONDS, PORT_SECONDS = 180.0, 20.0, 10.0
WORKERS = 2
PROBE = "/api/2.0/mlflow/experiments/search?max_results=1"

EXAMPLES = """examples:
  python -m cluster.mlflow_server                                    PostgreSQL and artifacts in the data folder
  python -m cluster.mlflow_server --artifacts s3://MY-BUCKET/mlflow   artifacts in a bucket
  python -m cluster.mlflow_server --database-uri postgresql://me@db.example.org/mlflow        its password in ~/.pgpass
  python -m cluster.mlflow_server --database-uri sqlite:////data/mlflow.db                    without PostgreSQL

Listens on this machine alone; from another one through a tunnel, which the command prints.
exit status: 0 ended as asked, or runs already; 1 a server died or doesn't start; 2 usage"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.mlflow_server",
        description="Run an MLflow server with a database, until it is interrupted.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address (127.0.0.1)")
    parser.add_argument("--port", type=int, default=5000, help="(5000)")
    parser.add_argument("--data", type=Path, metavar="DIR", help=f"what it keeps ({default_data()})")
    parser.add_argument("--database-uri", metavar="URI", help="of a database that is there (a PostgreSQL of its own)")
    parser.add_argument("--artifacts", metavar="URI", help="folder or s3://BUCKET/PREFIX (in the data folder)")
    given = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        settings = Settings.of(given.host, given.port, given.data, given.database_uri, given.artifacts)
        prepare(settings.data)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lock = FileLock(settings.data / LOCK, mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"runs already, with {settings.data}\n{usage(settings.data)}")
        return 0
    try:
        with lock:
            serve(settings, stop)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def default_data() -> Path:
    """Where it keeps what it keeps. Root's own folders are closed to the user who runs PostgreSQL for root."""
    if os.geteuid() == 0:
        return Path("/var/lib/ups-mlflow")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "ups" / "mlflow"


@dataclass(frozen=True)
class Settings:
    """What the arguments mean, checked."""

    host: str
    port: int
    data: Path
    database: str
    """SQLAlchemy's address, without a secret."""
    postgres: Postgres | None
    """None where the database is somebody else's."""
    artifacts: str

    @classmethod
    def of(cls, host: str, port: int, data: Path | None, database: str | None, artifacts: str | None) -> "Settings":
        """ValueError for what can't work."""
        if not _is_loopback(host):
            raise ValueError(
                f"--host must be a loopback address, got {host}: passwords would cross the network in the clear; use "
                "127.0.0.1, and ssh -L or a proxy with TLS on this machine"
            )
        if not 0 < port < 2**16:
            raise ValueError(f"--port must be from 1 to {2**16 - 1}, got {port}")
        place = (data or default_data()).absolute()
        wanted = {"mlflow": "mlflow", "flask_wtf": "mlflow[auth]"}
        postgres = None
        if database is None:
            wanted["psycopg2"] = "psycopg2-binary"
            postgres = Postgres.at(place / "postgres")
            database = postgres.uri
        else:
            _check_database(database)
            if database.startswith("postgresql"):
                wanted["psycopg2"] = "psycopg2-binary"
        if artifacts is None:
            artifacts = (place / "artifacts").as_uri()
        elif artifacts.startswith("s3://"):
            if not urlsplit(artifacts).netloc or "@" in artifacts:
                raise ValueError("--artifacts must be s3://BUCKET/PREFIX, and the keys in ~/.aws or the environment")
            wanted["boto3"] = "boto3"
        elif "://" in artifacts:
            raise ValueError(f"--artifacts must be a folder or s3://BUCKET/PREFIX, got {artifacts}")
        else:
            artifacts = Path(artifacts).absolute().as_uri()
        missing = [package for module, package in wanted.items() if importlib.util.find_spec(module) is None]
        if missing:
            raise ValueError(f"{', '.join(missing)} is missing; pip install -e '.[orchestrator,aws,server]'")
        return cls(host, port, place, database, postgres, artifacts)

    @property
    def url(self) -> str:
        """Where MLflow answers."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_database(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.password or "password=" in parts.query:
        raise ValueError(
            "--database-uri holds a password, which everybody on this machine can read in the list of processes; put "
            "it into ~/.pgpass (HOST:PORT:DATABASE:USER:PASSWORD, mode 600)"
        )
    kind = parts.scheme.split("+")[0]
    if kind not in ("postgresql", "sqlite"):
        raise ValueError(f"--database-uri must be postgresql:// or sqlite:///, got {kind or uri}")
    if kind == "sqlite":
        if not uri.startswith("sqlite:////"):
            raise ValueError(
                f"--database-uri {uri}: must name a file by its whole path; give sqlite:////FOLDER/mlflow.db"
            )
        if not (folder := Path(uri.removeprefix("sqlite:///")).parent).is_dir():
            raise ValueError(f"--database-uri {uri}: there is no folder {folder}; make it first")


def prepare(data: Path) -> None:
    """Make the data folder, for its owner alone.

    Raises:
        ValueError: it is somebody else's, or holds something else.
    """
    data.mkdir(parents=True, exist_ok=True)
    if data.stat().st_uid != os.geteuid():
        raise ValueError(f"--data {data} belongs to user {data.stat().st_uid}; give a folder of your own")
    foreign = {path.name for path in data.iterdir()} - OURS
    if foreign and not (data / LOCK).exists():
        raise ValueError(f"--data {data} holds other things ({sorted(foreign)[0]}); give an empty folder")
    # Root's is passed through by the user who runs PostgreSQL; what is in it is closed.
    data.chmod(0o711 if os.geteuid() == 0 else 0o700)


def secret(file: Path) -> str:
    """What a file holds; made at the first call, for its owner alone."""
    if not file.exists():
        new = file.with_name(f"{file.name}.new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_urlsafe(32))
            stream.flush()
            os.fsync(stream.fileno())
        new.rename(file)
    file.chmod(0o600)
    return file.read_text().strip()


def serve(settings: Settings, stop: threading.Event) -> None:
    """Run both servers until `stop` is set.

    Raises:
        ValueError: one doesn't start, or died.
    """
    data = settings.data
    _wait_for_port(settings)
    for name in ("postgres.log", "mlflow.log"):
        new_log(data / name)
    (data / "artifacts").mkdir(mode=0o700, exist_ok=True)
    servers: list[tuple[str, subprocess.Popen[bytes], Callable[[], None]]] = []
    try:
        postgres = settings.postgres
        if postgres is not None:
            database = postgres.start(data / "postgres.log", lambda: not stop.is_set())
            servers.append(("postgres", database, lambda: postgres.stop(database)))
        if stop.is_set():
            return
        mlflow = _start_mlflow(settings)
        servers.append(("mlflow", mlflow, lambda: _stop_group(mlflow)))
        address = data / ADDRESS
        address.write_text(json.dumps({"url": settings.url, "artifacts": settings.artifacts}))
        (data / LOGIN).write_text(login(settings))
        told = False
        end = time.monotonic() + START_SECONDS
        while not stop.is_set():
            for name, process, _ in servers:
                if process.poll() is not None:
                    raise ValueError(
                        f"{name} ended with status {process.returncode}; the other is ended, too. The same command "
                        f"starts them again. {data / f'{name}.log'} says:\n{last_lines(data / f'{name}.log')}"
                    )
            if not told and _answer(f"{settings.url}/health") == 200:
                _check_protection(settings)
                print(usage(data), flush=True)
                told = True
            if not told and time.monotonic() > end:
                raise ValueError(f"MLflow didn't answer in {START_SECONDS:g} s; see {data / 'mlflow.log'}")
            stop.wait(0.2)
    finally:
        for _, _, end_it in reversed(servers):
            end_it()


def _wait_for_port(settings: Settings) -> None:
    """A server whose parent was killed takes some seconds to end."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    end = time.monotonic() + PORT_SECONDS
    while True:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, settings.port))
                return
            except OSError as error:
                if time.monotonic() > end:
                    raise ValueError(
                        f"--port {settings.port} of {settings.host} can't be listened on ({error.strerror}); give "
                        "another"
                    ) from error
        time.sleep(0.2)


def _start_mlflow(settings: Settings) -> subprocess.Popen[bytes]:
    data = settings.data
    configuration = data / AUTHENTICATION
    escaped = settings.database.replace("%", "%%")
    configuration.write_text(
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = {escaped}\n"
        f"admin_username = {USER}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        # Else every request costs a key derivation of tens of milliseconds. A changed password counts after a minute.
        "auth_cache_ttl_seconds = 60\n"
    )
    configuration.chmod(0o600)
    # Names of this machine, at whatever port a tunnel ends: a page of another name can't make a browser call us.
    hosts = "localhost,127.0.0.1,localhost:*,127.0.0.1:*,[[]::1]:*"
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": settings.database,
        "MLFLOW_AUTH_CONFIG_PATH": str(configuration),
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": secret(data / PASSWORD),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secret(data / KEY),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # Judges and gateways for language models; nothing here has any.
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    }
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        environment.pop(name, None)  # Of somebody who uses a server, and not of the server.
    with (data / "mlflow.log").open("ab") as stream:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", settings.host, "--port", str(settings.port)),
                *("--app-name", "basic-auth", "--workers", str(WORKERS), "--allowed-hosts", hosts),
                *("--serve-artifacts", "--artifacts-destination", settings.artifacts),
                *("--uvicorn-opts", "--no-access-log --timeout-graceful-shutdown 5"),
            ],
            cwd=data,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # Ctrl-C is for us; and all its processes can be ended together.
            preexec_fn=end_with_parent(signal.SIGTERM),
        )


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    """End a server and what it has started, of which some may be left where it was killed itself."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def new_log(file: Path) -> None:
    """An empty one, for its owner alone; the one before is kept."""
    if file.exists():
        file.replace(file.with_name(f"{file.name}.1"))
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))


def _check_protection(settings: Settings) -> None:
    """ValueError where MLflow lets anybody in, or doesn't let us."""
    if (status := _answer(settings.url + PROBE)) != 401:
        raise ValueError(f"MLflow must refuse who has no password, but answers {status}; it is ended again")
    pair = f"{USER}:{secret(settings.data / PASSWORD)}"
    status = _answer(settings.url + PROBE, {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"})
    if status in (401, 403):
        raise ValueError(
            f"MLflow doesn't take the password in {settings.data / PASSWORD} ({status}): it was changed in MLflow, or "
            "the database is of another data folder; write the right one into the file"
        )


def _answer(url: str, headers: dict[str, str] | None = None) -> int:
    """Status of an answer; 0 where there is none."""
    try:
        with urlopen(Request(url, headers=headers or {}), timeout=10) as found:
            status: int = found.status
            return status
    except HTTPError as error:
        return error.code
    except OSError:
        return 0


def login(settings: Settings) -> str:
    """Commands for a shell that make a driver, or MLflow's own client, somebody who may write."""
    return (
        f"export MLFLOW_TRACKING_URI={settings.url} MLFLOW_TRACKING_USERNAME={USER}\n"
        f'export MLFLOW_TRACKING_PASSWORD="$(cat {shlex.quote(str(settings.data / PASSWORD))})"\n'
    )


def usage(data: Path) -> str:
    """How the running server is used. Names the file with the password, not the password."""
    try:
        known = json.loads((data / ADDRESS).read_text())
    except FileNotFoundError:
        return "it is about to start"
    url = known["url"]
    parts = urlsplit(url)
    return "\n".join(
        (
            f"MLflow: {url}",
            f"artifacts: {known['artifacts']}",
            f"logs: {data / 'mlflow.log'}",
            "",
            "where the driver runs:",
            f"  . {shlex.quote(str(data / LOGIN))}     (sets MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)",
            f"  python -m orchestrator.ablate ... --tracking-uri {url}",
            "to look from another machine, at the same address there:",
            f"  ssh -N -L {parts.port}:{parts.netloc} THIS-MACHINE   (of ray up: ray attach -p {parts.port} FILE.yaml)",
            f"  user {USER}, the password is in {data / PASSWORD}",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
