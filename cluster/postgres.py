"""A PostgreSQL of one's own: Debian's programs, a data folder, a Unix socket and no other way in."""

import ctypes
import getpass
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

USER = "postgres"
"""Runs the server where we are root, which PostgreSQL refuses to be run by."""
START_SECONDS, STOP_SECONDS = 60.0, 30.0
MAX_SOCKET_BYTES = 107
PACKAGES = "/usr/lib/postgresql"
WAY_OUT = "apt-get install postgresql, or give --database-uri sqlite:////FOLDER/mlflow.db, which is for one driver"
# The server needs none of our secrets.
ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True)
class Postgres:
    """The folder of the tables, and the programs for it. `start` makes what isn't there yet."""

    folder: Path
    programs: Path
    account: dict[str, Any]
    """Arguments of subprocess for another user's processes; empty: ours."""

    @classmethod
    def at(cls, folder: Path) -> Self:
        """Find the programs; ValueError where there are none of the right version or the folder can't be used."""
        version = folder / "PG_VERSION"
        found = cls(folder, _programs(version.read_text().strip() if version.is_file() else ""), _account())
        if len(os.fsencode(found.socket / ".s.PGSQL.5432")) > MAX_SOCKET_BYTES:
            raise ValueError(f"--data {folder.parent}: is too long for a Unix socket; give a shorter one")
        entry = next(one for one in folder.parent.parents if one.exists())
        if subprocess.run(["test", "-x", entry], **found.account).returncode:
            raise ValueError(f"--data {folder.parent}: the user {USER} may not enter {entry}; try /var/lib/ups-mlflow")
        return found

    @property
    def socket(self) -> Path:
        """Folder of the socket."""
        return self.folder.with_name("run")

    @property
    def uri(self) -> str:
        """SQLAlchemy's address of the database. Holds no secret: the kernel tells the server who is calling."""
        return f"postgresql+psycopg2://mlflow@/mlflow?host={quote(str(self.socket), safe='')}"

    @contextmanager
    def running(self, log: Path, stopped: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
        """A server that answers, unless `stopped` before it did; ValueError where it doesn't start."""
        wait_until(lambda: not self._is_served(), STOP_SECONDS, f"another PostgreSQL still serves {self.folder}")
        if not (self.folder / "PG_VERSION").is_file():
            self._make()
        self._make_folder(self.socket)
        command = [self.programs / "postgres", "-D", self.folder, "-k", self.socket, "-c", "listen_addresses="]
        probe = [str(self.programs / "pg_isready"), "-q", "-h", str(self.socket)]
        # SIGINT cuts clients off; what they had committed is kept.
        with child(command, log, self.folder, ENVIRONMENT, (signal.SIGINT, signal.SIGQUIT), self.account) as process:
            wait_until(
                lambda: process.poll() is not None or stopped() or subprocess.run(probe).returncode == 0,
                START_SECONDS,
                f"PostgreSQL didn't answer in {START_SECONDS:g} s; see {log}",
            )
            yield process

    def _make(self) -> None:
        # Renamed when it is whole: one that was interrupted is made anew.
        new = self.folder.with_name(f"{self.folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        self._make_folder(new)
        options = ("--encoding=UTF8", "--locale=C.UTF-8", "--auth=peer", f"--username={USER}")
        database = "CREATE ROLE mlflow LOGIN;\nCREATE DATABASE mlflow OWNER mlflow;\n"
        for program, arguments, text in (
            ("initdb", ("-D", str(new), *options), ""),
            ("postgres", ("--single", "-D", str(new), "-c", "exit_on_error=on", "postgres"), database),
        ):
            done = subprocess.run(
                [str(self.programs / program), *arguments],
                cwd=new, env=ENVIRONMENT, input=text, capture_output=True, text=True, **self.account,
            )  # fmt: skip
            if done.returncode:
                raise ValueError(f"PostgreSQL's {program} failed: {done.stderr.strip()[-500:]}")
        # Our own account may be both roles, and nobody else any.
        (new / "pg_hba.conf").write_text("local all all peer map=ups\n")
        (new / "pg_ident.conf").write_text("".join(f"ups {getpass.getuser()} {role}\n" for role in (USER, "mlflow")))
        new.rename(self.folder)

    def _make_folder(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if self.account:
            os.chown(folder, self.account["user"], self.account["group"])

    def _is_served(self) -> bool:
        """Whether a server whose parent was killed is still ending."""
        try:
            pid = (self.folder / "postmaster.pid").read_text().split()[0]
            return os.fsencode(self.folder) in Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, IndexError):
            return False


def _account() -> dict[str, Any]:
    if os.geteuid():
        return {}
    try:
        user = pwd.getpwnam(USER)
    except KeyError as error:
        raise ValueError(f"root can't run PostgreSQL, and there is no user {USER} to run it; {WAY_OUT}") from error
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _programs(version: str) -> Path:
    """Folder of initdb and postgres, of one major version or of the newest."""
    found = {path.parent.parent.name: path.parent for path in Path(PACKAGES).glob("*/bin/postgres")}
    if (elsewhere := shutil.which("postgres")) and not found:
        said = subprocess.run([elsewhere, "--version"], capture_output=True, text=True).stdout
        found = {number: Path(elsewhere).resolve().parent for number in re.findall(r"\d+", said)[:1]}
    if not found:
        raise ValueError(f"there is no PostgreSQL in {PACKAGES} or on the PATH; {WAY_OUT}")
    if version and version not in found:
        raise ValueError(
            f"the data was made by PostgreSQL {version}, found {', '.join(sorted(found))}; apt-get install "
            f"postgresql-{version}, or bring it over as docs/tracking.md says"
        )
    return found[version or max(found, key=float)]


@contextmanager
def child(
    command: list[Any],
    log: Path,
    folder: Path,
    environment: Mapping[str, str],
    signals: tuple[signal.Signals, signal.Signals],
    account: Mapping[str, Any],
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a session of its own. At the end of the block it gets the first signal, and after a time its whole
    group the second: some may be left where it was killed itself. When we are killed, the kernel sends it the first."""
    prctl, set_death_signal = getattr(ctypes.CDLL(None), "prctl", None), 1  # Linux alone has it.
    arguments = {"cwd": folder, "env": environment, "stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, **account}
    ask_kernel = (lambda: prctl(set_death_signal, int(signals[0]))) if prctl else None
    with log.open("ab") as stream:
        process = subprocess.Popen(command, stdout=stream, start_new_session=True, preexec_fn=ask_kernel, **arguments)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signals[0])
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signals[1])
        process.wait()


def wait_until(ready: Callable[[], bool], seconds: float, failure: str) -> None:
    """Ask again and again; ValueError with a message when the time is up."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise ValueError(failure)
        time.sleep(0.1)
