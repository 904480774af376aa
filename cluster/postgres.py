"""A PostgreSQL of one's own: Debian's programs, a data folder, a Unix socket and no other way in."""

import ctypes
import getpass
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

ROLE, DATABASE = "mlflow", "mlflow"
SERVER_USER = "postgres"
"""Who runs the server where we are root, which PostgreSQL refuses to be run by."""
START_SECONDS, STOP_SECONDS = 60.0, 30.0
LONGEST_SOCKET = 107
"""Bytes of a socket's path, in Linux."""
PACKAGES = "/usr/lib/postgresql"
WAY_OUT = "apt-get install postgresql, or give --database-uri sqlite:////FOLDER/mlflow.db, which is for one driver"


@dataclass(frozen=True)
class Postgres:
    """A data folder, its programs and who runs them. `start` makes what isn't there yet."""

    folder: Path
    """Of the tables. Beside it is the folder of the socket."""
    programs: Path
    account: pwd.struct_passwd | None
    """Whose processes; None: ours."""

    @classmethod
    def at(cls, folder: Path) -> Self:
        """Find the programs and check that they can be run on a folder.

        Raises:
            ValueError: there are none, or none of the version that made the folder; the folder can't be used.
        """
        account = _account()
        made = folder / "PG_VERSION"
        version = made.read_text().strip() if made.is_file() else ""
        found = cls(folder, _programs(version), account)
        if len(os.fsencode(found.socket / ".s.PGSQL.5432")) > LONGEST_SOCKET:
            raise ValueError(f"--data {folder.parent}: is too long for a Unix socket; give a shorter one")
        if account is not None:
            _check_entry(folder.parent, account)
        return found

    @property
    def socket(self) -> Path:
        """Folder of the socket."""
        return self.folder.with_name("run")

    @property
    def uri(self) -> str:
        """SQLAlchemy's address of the database. Holds no secret: the kernel tells the server who is calling."""
        return f"postgresql+psycopg2://{ROLE}@/{DATABASE}?host={quote(str(self.socket), safe='')}"

    def start(self, log: Path, wanted: Callable[[], bool]) -> subprocess.Popen[bytes]:
        """Run it until it answers, with our role and database in it.

        Args:
            log: what it says goes there.
            wanted: whether it still is; asked while it starts.

        Raises:
            ValueError: it doesn't start.
        """
        self._wait_for_predecessor()
        if not (self.folder / "PG_VERSION").is_file():
            self._make()
        self.socket.mkdir(mode=0o700, exist_ok=True)
        self._own(self.socket)
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.folder, "-k", self.socket, "-c", "listen_addresses="],
                cwd=self.folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # Ctrl-C is for us, who end it when nobody needs it any more.
                preexec_fn=end_with_parent(signal.SIGINT),
                **self._as_account(),
            )
        try:
            self._wait_until_it_answers(process, log, wanted)
            if wanted():
                self._make_database()
        except BaseException:
            self.stop(process)
            raise
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End it: clients are cut off, what they had committed is kept."""
        for number in (signal.SIGINT, signal.SIGQUIT):
            if process.poll() is None:
                process.send_signal(number)
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    continue

    def _make(self) -> None:
        # Renamed when it is whole: one that was interrupted is made anew.
        new = self.folder.with_name(f"{self.folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        self._own(new)
        options = ["--encoding=UTF8", "--locale=C.UTF-8", "--auth=peer"]
        command: list[str | Path] = [self.programs / "initdb", "-D", new, *options]
        done = subprocess.run(
            [*command, f"--username={SERVER_USER}"],
            cwd=new,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            **self._as_account(),
        )
        if done.returncode:
            raise ValueError(f"PostgreSQL's initdb failed: {done.stderr.strip()[-500:]}")
        # Who may be who: our own account may be both roles, and nobody else any.
        (new / "pg_hba.conf").write_text("local all all peer map=ups\n")
        names = f"ups {getpass.getuser()} {SERVER_USER}\nups {getpass.getuser()} {ROLE}\n"
        (new / "pg_ident.conf").write_text(names)
        new.rename(self.folder)

    def _make_database(self) -> None:
        connection = self._connect(SERVER_USER, "postgres")
        connection.autocommit = True  # A database can't be made in a transaction.
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE ROLE {ROLE} LOGIN")
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE DATABASE {DATABASE} OWNER {ROLE}")
        connection.close()

    def _connect(self, role: str, database: str) -> Any:
        import psycopg2

        return psycopg2.connect(host=str(self.socket), user=role, dbname=database, connect_timeout=5)

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes], log: Path, wanted: Callable[[], bool]) -> None:
        import psycopg2

        end = time.monotonic() + START_SECONDS
        while wanted():
            if process.poll() is not None:
                raise ValueError(f"PostgreSQL ended with status {process.returncode}; {log} says:\n{last_lines(log)}")
            try:
                self._connect(SERVER_USER, "postgres").close()
                return
            except psycopg2.OperationalError as error:
                if time.monotonic() > end:
                    raise ValueError(
                        f"PostgreSQL didn't answer in {START_SECONDS:g} s ({str(error).strip()}); see {log}"
                    ) from error
            time.sleep(0.1)

    def _wait_for_predecessor(self) -> None:
        """One whose parent was killed ends by itself, in its own time."""
        end = time.monotonic() + STOP_SECONDS
        while (pid := self._running()) is not None:
            if time.monotonic() > end:
                raise ValueError(f"process {pid} still serves {self.folder}; end it with kill -INT {pid}")
            time.sleep(0.1)

    def _running(self) -> int | None:
        try:
            pid = int((self.folder / "postmaster.pid").read_text().split()[0])
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            return None
        return pid if os.fsencode(self.folder) in command else None

    def _own(self, folder: Path) -> None:
        if self.account is not None:
            os.chown(folder, self.account.pw_uid, self.account.pw_gid)

    def _as_account(self) -> dict[str, Any]:
        """For subprocess."""
        if self.account is None:
            return {}
        return {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}


def _account() -> pwd.struct_passwd | None:
    if os.geteuid():
        return None
    try:
        return pwd.getpwnam(SERVER_USER)
    except KeyError as error:
        raise ValueError(
            f"root can't run PostgreSQL, and there is no user {SERVER_USER} to run it; {WAY_OUT}, or be another user"
        ) from error


def _programs(version: str) -> Path:
    """Folder of initdb and postgres, of one major version or of the newest."""
    found = {path.parent.parent.name: path.parent for path in Path(PACKAGES).glob("*/bin/postgres")}
    if (elsewhere := shutil.which("postgres")) and not found:
        told = subprocess.run([elsewhere, "--version"], capture_output=True, text=True).stdout
        if number := re.search(r"(\d+)", told):
            found[number[1]] = Path(elsewhere).resolve().parent
    if not found:
        raise ValueError(f"there is no PostgreSQL in {PACKAGES} or on the PATH; {WAY_OUT}")
    if not version:
        return found[max(found, key=float)]
    if version not in found:
        raise ValueError(
            f"the data was made by PostgreSQL {version}, found {', '.join(sorted(found))}; apt-get install "
            f"postgresql-{version}, or bring it over as docs/tracking.md says"
        )
    return found[version]


def _check_entry(folder: Path, account: pwd.struct_passwd) -> None:
    """ValueError where an account can't reach a folder."""
    for one in reversed([folder, *folder.parents]):
        if not one.exists():
            return
        mode, owner = one.stat().st_mode, one.stat()
        mine = owner.st_uid == account.pw_uid and mode & 0o100
        ours = owner.st_gid == account.pw_gid and mode & 0o010
        if not (mine or ours or mode & 0o001) and one != folder:
            raise ValueError(
                f"--data {folder}: the user {account.pw_name}, who runs PostgreSQL for root, may not enter {one}; "
                "give a folder elsewhere, e.g. /var/lib/ups-mlflow"
            )


def _environment() -> dict[str, str]:
    """Nothing of ours: the server needs none of our secrets."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}


def end_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """For subprocess: the kernel sends the child this signal when we die, of SIGKILL, too."""
    if sys.platform != "linux":
        return None
    prctl, set_death_signal = ctypes.CDLL(None, use_errno=True).prctl, 1

    def ask() -> None:
        prctl(set_death_signal, int(number))

    return ask


def last_lines(log: Path, lines: int = 8) -> str:
    """The end of a log."""
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-lines:])
