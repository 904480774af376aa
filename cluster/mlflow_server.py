"""An MLflow server for many hosts: python -m cluster.mlflow_server. With PostgreSQL, proxied artifacts and users.

Both servers are children of this command and end with it, however it ends. No secret is on a command line: the kernel
tells PostgreSQL who is calling, and MLflow's password and key are files that only their owner may read.
"""

import base64
import importlib.util
import os
import re
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from cluster.child import Children, wait_until
from cluster.cli import command_parser
from cluster.postgres import Postgres

OWN_FILES = {"lock", "login", "usage", "password", "flask-key", "auth.ini", "run", "artifacts", "mlflow.db"}
OWN_FILES |= {"postgres", "postgres.new"}
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
PORT_TIMEOUT_SECONDS = 10.0
# Names of this machine, at whatever port a tunnel ends: a page of another site can't make a browser call the server.
HOSTS = "localhost,127.0.0.1,localhost:*,127.0.0.1:*,[[]::1]:*"
CLIENT_VARIABLES = {"MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
EXAMPLES = """examples:
  python -m cluster.mlflow_server                                    PostgreSQL and artifacts in the data folder
  python -m cluster.mlflow_server --artifacts s3://MY-BUCKET/mlflow   artifacts in a bucket
  python -m cluster.mlflow_server --database-uri postgresql://me@db.example.org/mlflow        its password in ~/.pgpass
  python -m cluster.mlflow_server --database-uri sqlite:////data/mlflow.db                    without PostgreSQL

Listens on this machine alone; from another one through a tunnel, which the command prints.
exit status: 0 ended as asked, or runs already; 1 a server died or doesn't start; 2 usage"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command_parser(
        "cluster.mlflow_server", "Run an MLflow server with a database, until it is interrupted.", EXAMPLES
    )
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address (127.0.0.1)")
    parser.add_argument("--port", type=int, default=5000, help="(5000)")
    parser.add_argument("--data", type=Path, metavar="DIR", default=default_data(), help="what it keeps (%(default)s)")
    parser.add_argument("--database-uri", metavar="URI", help="of a database that is there (a PostgreSQL of its own)")
    parser.add_argument("--artifacts", metavar="URI", help="folder or s3://BUCKET/PREFIX (in the data folder)")
    options = parser.parse_args(arguments)
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)
    data, status = options.data.absolute(), 2
    try:
        server = Server(options.host, options.port, data, options.database_uri, options.artifacts)
        prepare(data)
        status = 1
        with FileLock(data / "lock", mode=0o600, timeout=0):
            server.serve()
    except KeyboardInterrupt:
        return 0
    except Timeout:
        usage = data / "usage"
        print(f"runs already, with {data}\n{usage.read_text() if usage.exists() else 'it is about to start'}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return status
    return 0


def _interrupt(*_: object) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # A second one must not cut the servers' end short.
    raise KeyboardInterrupt


def default_data() -> Path:
    """The data folder. Root's home is closed to the user who runs PostgreSQL for root."""
    if os.geteuid() == 0:
        return Path("/var/lib/ups-mlflow")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "ups" / "mlflow"


def prepare(data: Path) -> None:
    """Make the data folder, closed to others; ValueError where another user owns it or it holds other files."""
    data.mkdir(parents=True, exist_ok=True)
    if data.stat().st_uid != os.geteuid():
        raise ValueError(f"--data {data} belongs to user {data.stat().st_uid}; give a folder of your own")
    foreign = {path.name for path in data.iterdir()} - OWN_FILES
    if foreign and not (data / "lock").exists():
        raise ValueError(f"--data {data} holds other things ({sorted(foreign)[0]}); give an empty folder")
    # The user who runs PostgreSQL for root must pass through; what is in it is closed.
    data.chmod(0o711 if os.geteuid() == 0 else 0o700)


def check_database(uri: str) -> None:
    """ValueError for a database that can't work or a password on the command line."""
    parts = urlsplit(uri)
    kind = parts.scheme.split("+")[0]
    if parts.password or "password=" in parts.query:
        raise ValueError(
            "--database-uri holds a password, which everybody on this machine can read in the list of processes; put "
            "it into ~/.pgpass (HOST:PORT:DATABASE:USER:PASSWORD, mode 600)"
        )
    if kind not in ("postgresql", "sqlite"):
        raise ValueError(f"--database-uri must be postgresql:// or sqlite:///, got {kind or uri}")
    if kind == "sqlite" and not uri.startswith("sqlite:////"):
        raise ValueError(f"--database-uri {uri}: must name a file by its whole path; give sqlite:////FOLDER/mlflow.db")
    if kind == "sqlite" and not (folder := Path(unquote(uri.removeprefix("sqlite:///").split("?")[0])).parent).is_dir():
        raise ValueError(f"--database-uri {uri}: there is no folder {folder}; make it first")


class Server:
    """The two servers that the options describe; ValueError for what can't work."""

    def __init__(self, host: str, port: int, data: Path, database: str | None, artifacts: str | None) -> None:
        if not re.fullmatch(r"localhost|127(\.\d+){3}|::1", host):
            raise ValueError(
                f"--host must be a loopback address, got {host}: passwords would cross the network in the clear; use "
                "127.0.0.1, and ssh -L or a proxy with TLS on this machine"
            )
        if not 0 < port < 2**16:
            raise ValueError(f"--port must be from 1 to {2**16 - 1}, got {port}")
        if database is not None:
            check_database(database)
        artifacts = artifacts or str(data / "artifacts")
        bucket = artifacts.startswith("s3://")
        if bucket and ("@" in artifacts or not urlsplit(artifacts).netloc):
            raise ValueError("--artifacts must be s3://BUCKET/PREFIX, and the keys in ~/.aws or the environment")
        if not bucket and "://" in artifacts:
            raise ValueError(f"--artifacts must be a folder or s3://BUCKET/PREFIX, got {artifacts}")
        self.host, self.port, self.data = host, port, data
        self.postgres = Postgres(data / "postgres") if database is None else None
        self.database: str = self.postgres.uri if self.postgres else str(database)
        self.artifacts = artifacts if bucket else Path(artifacts).absolute().as_uri()
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        modules = ["mlflow", "flask_wtf", *["psycopg2"] * self.database.startswith("postgresql"), *["boto3"] * bucket]
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            raise ValueError(f"{', '.join(missing)} is missing; pip install -e '.[orchestrator,aws,server]'")

    def serve(self) -> None:
        """Run both servers until KeyboardInterrupt; ValueError where one doesn't start, or died."""
        os.umask(0o077)  # New files are readable by their owner alone.
        # A server whose parent was killed takes some seconds to end.
        taken = f"--port {self.port} of {self.host} can't be listened on; give another"
        wait_until(self._is_port_free, PORT_TIMEOUT_SECONDS, taken)
        (self.data / "artifacts").mkdir(exist_ok=True)
        with Children(self.data) as children:
            if self.postgres is not None:
                self.postgres.start(children)
            usage = self._write_usage()
            self._start_mlflow(children)
            self._check_protection()
            print(usage, flush=True)
            while children.check():
                time.sleep(0.2)

    def _is_port_free(self) -> bool:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with suppress(OSError), socket.create_server((self.host, self.port), family=family):
            return True
        return False

    def _start_mlflow(self, children: Children) -> None:
        configuration = self.data / "auth.ini"
        escaped = self.database.replace("%", "%%")
        # Without the cache every request costs a key derivation of tens of milliseconds.
        configuration.write_text(
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {escaped}\nadmin_username = admin\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\nauth_cache_ttl_seconds = 60\n"
        )
        environment = {name: value for name, value in os.environ.items() if name not in CLIENT_VARIABLES} | {
            "MLFLOW_BACKEND_STORE_URI": self.database,
            "MLFLOW_AUTH_CONFIG_PATH": str(configuration),
            "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
            "MLFLOW_AUTH_ADMIN_PASSWORD": secret(self.data / "password"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secret(self.data / "flask-key"),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # Judges and gateways for language models: none here.
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        }
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", self.host, "--port", str(self.port)),
            *("--app-name", "basic-auth", "--workers", "2", "--allowed-hosts", HOSTS),
            *("--serve-artifacts", "--artifacts-destination", self.artifacts),
            *("--uvicorn-opts", "--no-access-log --timeout-graceful-shutdown 5"),
        ]
        signals = (signal.SIGTERM, signal.SIGKILL)
        children.start("mlflow", command, lambda: self._status("/health") == 200, signals, env=environment)

    def _check_protection(self) -> None:
        """ValueError where MLflow lets anybody in, or doesn't let us."""
        probe = "/api/2.0/mlflow/experiments/search?max_results=1"
        if (status := self._status(probe)) != 401:
            raise ValueError(f"MLflow must refuse who has no password, but answers {status}; it is ended again")
        login = base64.b64encode(f"admin:{secret(self.data / 'password')}".encode()).decode()
        if (status := self._status(probe, Authorization=f"Basic {login}")) in (401, 403):
            raise ValueError(
                f"MLflow doesn't take the password in {self.data / 'password'} ({status}): it was changed in MLflow, "
                "or the database is of another data folder; write the right one into the file"
            )

    def _status(self, path: str, **headers: str) -> int:
        """Status of MLflow's answer; 0 where there is none."""
        with suppress(OSError, HTTPException), closing(HTTPConnection(self.host, self.port, timeout=10)) as connection:
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status
        return 0

    def _write_usage(self) -> str:
        """How to use the server; written to files, with `login` for a driver's shell. None holds the password."""
        login, password, port = self.data / "login", self.data / "password", self.port
        login.write_text(
            f"export MLFLOW_TRACKING_URI={self.url} MLFLOW_TRACKING_USERNAME=admin\n"
            f'export MLFLOW_TRACKING_PASSWORD="$(cat {shlex.quote(str(password))})"\n'
        )
        usage = f"""MLflow: {self.url}
artifacts: {self.artifacts}
logs: {self.data / "mlflow.log"}

where the driver runs:
  . {shlex.quote(str(login))}     (sets MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)
  python -m orchestrator.ablate ... --tracking-uri {self.url}
to look from another machine, at the same address there:
  ssh -N -L {port}:{urlsplit(self.url).netloc} THIS-MACHINE   (of ray up: ray attach -p {port} FILE.yaml)
  user admin, the password is in {password}"""
        (self.data / "usage").write_text(usage)
        return usage


def secret(file: Path) -> str:
    """The secret in a file; made at the first call."""
    if not file.exists():
        new = file.with_name(f"{file.name}.new")
        with new.open("w") as stream:
            stream.write(secrets.token_urlsafe(32))
            stream.flush()
            os.fsync(stream.fileno())
        new.rename(file)
    file.chmod(0o600)  # A password may have been copied here from a backup.
    return file.read_text().strip()


if __name__ == "__main__":
    sys.exit(main())
