"""A PostgreSQL for MLflow alone: Debian's programs, a data folder, a Unix socket and no network port."""

import getpass
import os
import pwd
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cluster.child import STOP_TIMEOUT_SECONDS, Children, wait_until

USER = "postgres"
"""Runs the server for root, since PostgreSQL refuses to run as root."""
MAX_SOCKET_BYTES = 107
PACKAGES = "/usr/lib/postgresql"
REMEDY = "apt-get install postgresql, or give --database-uri sqlite:////FOLDER/mlflow.db, which is for one driver"
# The server needs none of our secrets.
ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}


class Postgres:
    """The folder of the tables, and the programs for it; ValueError where there are none, or the folder can't be used.

    `account` holds the arguments of subprocess that run a process as another user; empty: as ourselves.
    """

    def __init__(self, folder: Path) -> None:
        version = folder / "PG_VERSION"
        made_by = version.read_text().strip() if version.is_file() else ""
        self.folder, self.socket, self.programs = folder, folder.with_name("run"), _programs(made_by)
        self.account = _account()
        if len(os.fsencode(self.socket / ".s.PGSQL.5432")) > MAX_SOCKET_BYTES:
            raise ValueError(f"--data {folder.parent}: is too long for a Unix socket; give a shorter one")
        entry = next(parent for parent in folder.parent.parents if parent.exists())
        if subprocess.run(["test", "-x", entry], **self.account).returncode:
            raise ValueError(f"--data {folder.parent}: the user {USER} may not enter {entry}; try /var/lib/ups-mlflow")

    @property
    def uri(self) -> str:
        """SQLAlchemy's address of the database. Holds no secret: the kernel tells the server who is calling."""
        return f"postgresql+psycopg2://mlflow@/mlflow?host={quote(str(self.socket), safe='')}"

    def start(self, children: Children) -> None:
        """Start the server, with new tables where there are none; ValueError where it doesn't start."""
        # The server of a command that was killed may still be ending.
        wait_until(
            lambda: self._run("pg_ctl", "status", "-D", self.folder).returncode != 0,
            STOP_TIMEOUT_SECONDS,
            f"another PostgreSQL still serves {self.folder}",
        )
        self._make_folder(self.socket)
        if not (self.folder / "PG_VERSION").is_file():
            self._make()
        children.start(
            "postgres",
            [self.programs / "postgres", "-D", self.folder, "-k", self.socket, "-c", "listen_addresses="],
            lambda: self._run("pg_isready", "-h", self.socket).returncode == 0,
            (signal.SIGINT, signal.SIGQUIT),  # SIGINT cuts clients off; what they had committed is kept.
            env=ENVIRONMENT,
            **self.account,
        )

    def _make(self) -> None:
        new = self.folder.with_name(f"{self.folder.name}.new")  # Renamed at the end: an interrupted one is made anew.
        shutil.rmtree(new, ignore_errors=True)
        self._make_folder(new)
        initdb = ("initdb", "-D", new, "--encoding=UTF8", "--locale=C.UTF-8", "--auth=peer", f"--username={USER}")
        single_user = ("postgres", "--single", "-D", new, "-c", "exit_on_error=on", "postgres")
        statements = "CREATE ROLE mlflow LOGIN;\nCREATE DATABASE mlflow OWNER mlflow;\n"
        for command in (initdb, single_user):
            process = self._run(*command, text=statements)
            if process.returncode:
                raise ValueError(f"PostgreSQL's {command[0]} failed: {process.stderr.strip()[-500:]}")
        # Our own account may take both roles, other accounts none.
        (new / "pg_hba.conf").write_text("local all all peer map=ups\n")
        (new / "pg_ident.conf").write_text("".join(f"ups {getpass.getuser()} {role}\n" for role in (USER, "mlflow")))
        new.rename(self.folder)

    def _make_folder(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if self.account:
            os.chown(folder, self.account["user"], self.account["group"])

    def _run(self, program: str, *arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
        command, how = [self.programs / program, *arguments], {"cwd": "/", "env": ENVIRONMENT, **self.account}
        return subprocess.run(command, input=text, capture_output=True, text=True, **how)


def _account() -> dict[str, Any]:
    if os.geteuid():
        return {}
    try:
        user = pwd.getpwnam(USER)
    except KeyError as error:
        raise ValueError(f"root can't run PostgreSQL, and there is no user {USER} to run it; {REMEDY}") from error
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _programs(version: str) -> Path:
    """Folder of initdb and postgres, of one major version or of the newest."""
    folders = {path.parent.parent.name: path.parent for path in Path(PACKAGES).glob("*/bin/postgres")}
    if (elsewhere := shutil.which("postgres")) and not folders:
        text = subprocess.run([elsewhere, "--version"], capture_output=True, text=True).stdout
        folders = {number: Path(elsewhere).resolve().parent for number in re.findall(r"\d+", text)[:1]}
    if not folders:
        raise ValueError(f"there is no PostgreSQL in {PACKAGES} or on the PATH; {REMEDY}")
    if version and version not in folders:
        raise ValueError(
            f"the data was made by PostgreSQL {version}, found {', '.join(sorted(folders))}; apt-get install "
            f"postgresql-{version}, or bring it over as docs/tracking.md says"
        )
    return folders[version or max(folders, key=float)]
