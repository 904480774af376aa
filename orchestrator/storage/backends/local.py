"""A folder, or a shared mount whose locks hold between machines."""

import errno
import fcntl
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, SoftFileLock, Timeout

from orchestrator.storage.backends.base import Claim, Entry, Removal, Storage, Workspace, as_object, holder
from ups_model.atomic import write_atomic

CLAIM, OWNER = ".claim", "owner.json"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
TEMPORARY = re.compile(r"\.(.+-[0-9a-f]{32}|result\.json|progress\.jsonl)")
"""Names under which files are written before they get their own."""


class FolderStorage(Storage):
    """See `Storage`, whose methods these are. A unit is trained in its folder, under a lock of the operating system,
    which ends with its process."""

    root: Path

    def __init__(self, root: Path) -> None:
        self.root = root
        self.address = str(root)

    def check(self, create: bool) -> None:
        if not create:
            if not (self.root / "units").is_dir():
                raise ValueError(f"--storage {self.root}: no study has been run there; run orchestrator.ablate first")
            return
        try:
            (self.root / "units").mkdir(parents=True, exist_ok=True)
            (self.root / "studies").mkdir(exist_ok=True)
            probe = self.root / "units" / f".probe-{uuid.uuid4().hex}"
            write_atomic(probe, "probe")
            try:
                _check_locks(probe)
            finally:
                probe.unlink()
        except OSError as error:
            if error.errno in NO_LOCKS:
                raise ValueError(f"--storage {self.root}: {_no_locks(error)}") from error
            raise ValueError(
                f"--storage {self.root}: cannot be written to ({error.strerror or error}); give another folder"
            ) from error

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, content)

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def remove(self, place: str) -> None:
        away = (self.root / place).with_name(f".{Path(place).name}-{uuid.uuid4().hex}")
        with suppress(FileNotFoundError):
            os.replace(self.root / place, away)
            _remove(away)

    def look(self, name: str) -> Entry | None:
        return self._entry(self.root / name)

    def _entry(self, file: Path) -> Entry | None:
        try:
            stat = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        name = file.relative_to(self.root).as_posix()
        return Entry(name, stat.st_size, max(0.0, time.time() - stat.st_mtime), f"{stat.st_size}-{stat.st_mtime_ns}")

    def entries(self, place: str) -> Iterator[Entry]:
        for folder, below, files in os.walk(self.root / place):
            below.sort()
            for name in sorted(files):
                if (entry := self._entry(Path(folder) / name)) is not None:
                    yield entry

    def children(self, place: str) -> list[str]:
        try:
            with os.scandir(self.root / place) as folders:
                return sorted(one.name for one in folders if one.is_dir() and not one.name.startswith("."))
        except FileNotFoundError:
            return []

    def fetch(self, name: str, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, self.read(name))

    @contextmanager
    def claim(self, place: str) -> Iterator[Claim]:
        """OSError where the mount has no locks, too."""
        folder = self.root / place
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
        if lock is not None and not _is_locked(folder / CLAIM):
            lock.release()  # Of a file that was deleted, with its folder, between its opening and its locking.
            lock = None
        if lock is None:
            yield Claim(False)
            return
        try:
            write_atomic(folder / OWNER, json.dumps(holder()))
            yield Claim(True)
        finally:
            lock.release()

    def claimed(self, place: str) -> bool:
        folder = self.root / place
        if not (folder / CLAIM).exists():
            return False
        lock = _lock(folder)
        if lock is not None:
            lock.release()
        return lock is None

    def owner(self, place: str) -> dict[str, Any]:
        try:
            return as_object(self.read(f"{place}/{OWNER}"))
        except OSError:
            return {}

    def workspace(self, place: str, claim: Claim) -> AbstractContextManager[Workspace]:
        return nullcontext(Workspace(self.root / place))

    def local(self, place: str) -> AbstractContextManager[Path]:
        return nullcontext(self.root / place)

    def leftovers(self, place: str) -> Iterator[Removal]:
        for folder, below, files in os.walk(self.root / place):
            left = [name for name in (*below, *files) if TEMPORARY.fullmatch(name)]
            below[:] = [name for name in below if name not in left]
            yield from (self._leftover(Path(folder) / name) for name in left)

    def strays(self, place: str) -> Iterator[Removal]:
        with suppress(FileNotFoundError), os.scandir(self.root / place) as entries:
            yield from (self._leftover(Path(one.path)) for one in entries if TEMPORARY.fullmatch(one.name))

    def _leftover(self, path: Path) -> Removal:
        name, own = path.relative_to(self.root).as_posix(), self._entry(path)
        contents = list(self.entries(name)) if path.is_dir() else [own] * (own is not None)
        age = min((entry.age for entry in (*contents, own) if entry), default=0.0)  # Of an empty folder, its own.
        return Removal(name, sum(entry.size for entry in contents if entry), age, lambda: _remove(path))


def _lock(folder: Path) -> FileLock | None:
    """The acquired lock of a folder; None where another process has it."""
    lock = FileLock(folder / CLAIM)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise OSError(error.errno, _no_locks(error), str(folder)) from error
        raise
    if isinstance(lock, SoftFileLock):
        # Where the system has no locks, filelock falls back to marker files, which outlive a killed process.
        lock.release()
        unsupported = OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        raise OSError(errno.ENOSYS, _no_locks(unsupported), str(folder))
    return lock


def _is_locked(file: Path) -> bool:
    """Whether the file that is there now is locked, by this process or another; OSError where none can be."""
    # Opened for writing: NFS refuses an exclusive lock on a file opened for reading (flock(2)).
    try:
        with file.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _check_locks(file: Path) -> None:
    """OSError where a lock can't be taken, or is not exclusive."""
    with file.open("r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_locked(file):
            raise OSError(errno.ENOLCK, "the file lock is not exclusive on this mount")


def _no_locks(error: OSError) -> str:
    return (
        f"this mount has no file locks ({error.strerror or error}), without which two processes could train one unit; "
        "mount it as NFS version 4 without nolock, or give another folder or s3://BUCKET/PREFIX"
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
