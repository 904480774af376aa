"""A real MLflow server with a real PostgreSQL, as a process of its own, in a folder that both can use."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.postgres import Postgres
from tests.support.drivers import ROOT, alive, command_of, descendants, wait_until

START = 120


def missing() -> str:
    """What this machine lacks for the server; empty where it lacks nothing."""
    if sys.platform != "linux":
        return "looks at processes through /proc"
    try:
        Postgres(Path("/tmp/ups/postgres"))
    except ValueError as error:
        return str(error)
    if shutil.which("psql") is None:
        return "needs psql (apt-get install postgresql-client)"
    try:
        import flask_wtf  # noqa: F401
        import psycopg2  # noqa: F401
    except ImportError as error:
        return f"needs {error.name}; pip install -e '.[server]'"
    return ""


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass
class Server:
    """The command, started any number of times on one folder."""

    folder: Path
    more: list[str] = field(default_factory=list)
    """Arguments, in which {folder} is the folder."""
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """Its data folder."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder / "printed.log"

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def login(self) -> dict[str, str]:
        """Environment of somebody who may write."""
        return {
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": (self.data / "password").read_text(),
        }

    def command(self) -> list[str]:
        """Its command line."""
        more = [text.format(folder=self.folder) for text in self.more]
        module = [sys.executable, "-m", "cluster.mlflow_server"]
        return [*module, "--data", str(self.data), "--port", str(self.port), *more]

    def start(self) -> None:
        """Until it answers."""
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                self.command(), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )
        wait_until(
            lambda: "where the driver runs" in self.log.read_text() or self.process.poll() is not None,
            self.log.read_text,
            timeout=START,
        )
        assert self.process.poll() is None, self.log.read_text()

    def pids(self, word: bytes = b"") -> list[int]:
        """Its processes whose command line has a word."""
        return [pid for pid in descendants(self.process.pid) if word in command_of(pid)]

    def kill(self, what: str) -> int:
        """SIGKILL the command itself, PostgreSQL or MLflow; returns when all are gone, with the command's status."""
        everything = [self.process.pid, *self.pids()]
        if what == "command":
            os.kill(self.process.pid, signal.SIGKILL)
        else:
            word = {"postgres": b"bin/postgres", "mlflow": b"mlflow\0server"}[what]
            os.kill(min(self.pids(word)), signal.SIGKILL)
        status = self.process.wait(60)
        wait_until(lambda: not any(alive(pid) for pid in everything), lambda: str(everything))
        return status

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; returns its status."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def query(self, statement: str, role: str = "mlflow") -> list[tuple[str, ...]]:
        """Rows, as psql prints them: the database itself, without MLflow."""
        where = ("--no-psqlrc", "-h", str(self.data / "run"), "-U", role, "-d", "mlflow")
        command = ["psql", *where, "-A", "-t", "-F", "\t", "-c", statement]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [tuple(line.split("\t")) for line in done.stdout.splitlines()]

    def runs_by_key(self) -> dict[str, list[tuple[str, str]]]:
        """Key of each unit -> (id, status) of its runs that aren't deleted."""
        runs: dict[str, list[tuple[str, str]]] = {}
        for key, run, status in self.query(
            "SELECT value, run_uuid, status FROM tags JOIN runs USING (run_uuid) "
            "WHERE key = 'ups.key' AND lifecycle_stage = 'active'"
        ):
            runs.setdefault(key, []).append((run, status))
        return runs


@contextmanager
def running_server(*more: str) -> Iterator[Server]:
    """A server that answers; ended, with its data, at the end of the block."""
    # Not in pytest's folder: root's PostgreSQL runs as another user, who may not enter it.
    folder = Path(tempfile.mkdtemp(prefix="ups-mlflow-"))
    folder.chmod(0o711)
    server = Server(folder, list(more))
    try:
        server.start()
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def client(server: Server) -> Any:
    """MLflow's own, for what only it can do; credentials come from the environment."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=server.url)
