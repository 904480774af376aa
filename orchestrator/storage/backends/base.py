"""What a storage is: named contents, whole or not at all, and units that one process holds at a time.

A name is a relative path with slashes, such as `units/joint-seed0-0123456789abcdef/record.json`; a place is the name
of a folder without the last slash. Whatever can't be reached or written to raises OSError.
"""

import json
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.process import restarts_so_far

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Entry:
    """One content on storage."""

    name: str
    size: int
    """Bytes."""
    age: float
    """Seconds since it was written, by the storage's own clock."""
    tag: str
    """Another one for another content."""


class ClaimLost(OSError):
    """This process may not write the unit any more: it could not renew its lease in time."""


class Claim:
    """Exclusive use of a place; false where another process has it. The base class is never lost."""

    def __init__(self, held: bool) -> None:
        self.held = held

    def __bool__(self) -> bool:
        return self.held

    def lost(self) -> bool:
        """Whether another process may have taken over, so that this one must stop. Asks nobody; once true, always."""
        return False

    def check(self) -> None:
        """ClaimLost where it is lost."""
        if self.lost():
            raise ClaimLost("lost its lease on the unit; stopping, since another process may have taken it")

    def confirm(self) -> None:
        """`check`, and ask the storage as well; for what cannot be undone."""
        self.check()

    def insist(self, write: Callable[[], None]) -> None:
        """Make a short write, and retry it while the claim is not lost."""
        self.check()
        write()


class Workspace:
    """The folder that a unit is trained in. The base class is a folder of the storage itself: nothing to upload."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self) -> None:
        """Upload what the folder has. ClaimLost or OSError where that fails: some of it may be on storage, but never a
        partial checkpoint that looks whole."""

    def save_log(self) -> None:
        """Upload only logs and progress; never raises."""


class Storage(ABC):
    """A place for records, checkpoints and studies."""

    address: str
    """What `--storage` takes to find it again, from anywhere that reaches it."""
    root: Path | None = None
    """Its folder, where it is one."""
    parallel = 8
    """Requests at a time that it takes well."""

    @abstractmethod
    def check(self, create: bool) -> None:
        """Try what will be needed. ValueError, in one line with the way out, where it can't be used; without `create`
        nothing is written, and a folder that holds no units is refused."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A content; FileNotFoundError where there is none."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Put a content there, in place of what was: whole or not at all, and for good once this returns."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a content; none there is fine."""

    @abstractmethod
    def remove(self, place: str) -> None:
        """Remove a checkpoint, so that half of it never passes for a whole one; none there is fine."""

    @abstractmethod
    def look(self, name: str) -> Entry | None:
        """Object metadata (HEAD), without its content; None where there is none."""

    @abstractmethod
    def entries(self, place: str) -> Iterator[Entry]:
        """All contents below a place. May miss what was written just now: nothing relies on it alone."""

    @abstractmethod
    def children(self, place: str) -> list[str]:
        """Names of the folders right below a place."""

    @abstractmethod
    def fetch(self, name: str, file: Path) -> None:
        """Copy a content into a file, whole or not at all; FileNotFoundError where there is none."""

    def upload(self, file: Path, name: str, going_on: Callable[[], None] = lambda: None) -> None:
        """Put a file there, as `write`; an exception of `going_on`, called meanwhile, ends it."""
        self.write(name, file.read_bytes())

    def read_object(self, name: str) -> dict[str, Any]:
        """The JSON object that a content is; empty where there is none, or it isn't one."""
        try:
            return as_object(self.read(name))
        except FileNotFoundError:
            return {}

    @abstractmethod
    def claim(self, place: str) -> AbstractContextManager[Claim]:
        """Claim a place without waiting. The claim ends with its process, on an object store after a time-out."""

    @abstractmethod
    def claimed(self, place: str) -> bool:
        """Whether some process has claimed a place."""

    @abstractmethod
    def owner(self, place: str) -> dict[str, Any]:
        """Who has or last had the claim on a place: "host", "pid", "time"; empty where that isn't known."""

    @abstractmethod
    def workspace(self, place: str, claim: Claim) -> AbstractContextManager[Workspace]:
        """A folder on this machine with what is needed to continue a claimed unit."""

    @abstractmethod
    def local(self, place: str) -> AbstractContextManager[Path]:
        """A folder on this machine with all contents of a place, to read from while the block lasts."""

    @abstractmethod
    def leftovers(self, place: str) -> "Iterator[Removal]":
        """What killed writers left below a place: temporary files, unfinished uploads."""

    def strays(self, place: str) -> "Iterator[Removal]":
        """What killed deletions left directly in a place; an object store has none."""
        return iter(())

    def where(self, name: str) -> str:
        """A content's address, for people."""
        return f"{self.address.rstrip('/')}/{name}"

    def each(self, call: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Results of calls, several at a time, in the order of the items."""
        every = list(items)
        if len(every) < 2:
            return [call(one) for one in every]
        with ThreadPoolExecutor(min(self.parallel, len(every))) as pool:
            return list(pool.map(call, every))


@dataclass(frozen=True)
class Removal:
    """Something that may go, since no reader uses it."""

    name: str
    size: int
    age: float
    remove: Callable[[], None]
    why: str = "left by a writer that was killed"


def holder() -> dict[str, Any]:
    """This process, for others: host, pid, time, and what tells on the same machine whether it still runs."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": time.time(),
        "process": _life(os.getpid()),
        "restarts": restarts_so_far(),
    }


def has_ended(owner: dict[str, Any]) -> bool:
    """Whether it is certain that a holder's process has ended: it ran here, and doesn't any more."""
    life: dict[str, str] | None = owner.get("process")
    here = _life(os.getpid())
    if not life or not here or owner.get("host") != socket.gethostname():
        return False
    if (life.get("boot"), life.get("pids")) != (here["boot"], here["pids"]):
        return False
    pid = int(owner["pid"])
    if pid == os.getpid() and owner.get("restarts", 0) < restarts_so_far():
        return True  # It was us, before the call began anew.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # Another user's, of which /proc may hide all else.
        return False
    return _life(pid) != life


def _life(pid: int) -> dict[str, str] | None:
    """What no two processes share: the boot of their machine, their process-id namespace, and their start. None where
    the system doesn't tell, and for a process that isn't there or has ended."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        if stat[0] in "ZX":  # Ended; its parent hasn't asked yet.
            return None
        return {"boot": boot, "pids": os.readlink("/proc/self/ns/pid"), "born": stat[19]}
    except (OSError, IndexError):
        return None


def as_object(content: bytes) -> dict[str, Any]:
    """A JSON object; empty where it isn't one."""
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
