"""Where a search keeps its journal: a file to which lines are added. In a folder several processes may run one search,
each of which locks the file for as long as it reads, decides and writes; on an object store one process at a time."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator.storage.backends.base import Claim, Storage
from orchestrator.storage.backends.workspace import scratch

JOURNAL = "journal.log"
TRANSACTION_TIMEOUT_SECONDS = 120.0
"""Another process needs seconds at most, unless it is stopped."""


class SearchPlace:
    """`<storage>/searches/<name>/`. On an object store, which can't add to an object, the file is a copy in a scratch
    folder that begins with what the store has and is brought there whole after each line."""

    def __init__(self, storage: Storage, name: str, reports: Path) -> None:
        """`reports` is where an object store's tables are written on this machine."""
        self._storage, self._name = storage, name
        self._place = f"searches/{name}"
        self._local = storage.root / self._place if storage.root is not None else None
        self.folder = reports / name if self._local is None else self._local
        """Of the tables."""
        self._claim = Claim(False)
        self._held = ExitStack()
        self._lock = None if self._local is None else FileLock(self._local.with_name(f".{name}.lock"))

    def begun(self) -> bool:
        """Whether there is a journal."""
        return self._storage.look(f"{self._place}/{JOURNAL}") is not None

    def hold(self, alone: bool = False) -> Path:
        """The journal's file. On an object store the search is this process's own until `release`.

        Args:
            alone: in a folder, too.

        Raises:
            ValueError: another process has it.
        """
        if self._local is not None and self._lock is not None:
            if alone:
                self._hold_alone(self._lock)
            return self._local / JOURNAL
        file = self._hold_remote()
        if file is None:
            raise ValueError(
                f"another process runs the search {self._name} on this storage; wait for it to end: only in a folder "
                "several run one search"
            )
        return file

    def _hold_alone(self, lock: FileLock) -> None:
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise ValueError(
                f"another process runs the search {self._name} on this storage; wait for it to end"
            ) from error
        self._held.callback(lock.release)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep other processes out of the journal while it lasts. TimeoutError where one doesn't let go of it."""
        if self._lock is None:
            yield
            return
        try:
            self._lock.acquire(timeout=TRANSACTION_TIMEOUT_SECONDS)
        except Timeout as error:
            raise TimeoutError(
                f"another process has held the journal of {self._name} for {TRANSACTION_TIMEOUT_SECONDS:.0f} seconds"
            ) from error
        try:
            yield
        finally:
            self._lock.release()

    def _hold_remote(self) -> Path | None:
        self._claim = self._held.enter_context(self._storage.claim(self._place))
        if not self._claim:
            return None
        file = self._held.enter_context(scratch(self._storage.address)) / JOURNAL
        with suppress(FileNotFoundError):
            self._storage.fetch(f"{self._place}/{JOURNAL}", file)
        self._file = file
        return file

    def keep(self) -> None:
        """A line has been added. OSError where it can't be brought to the store, or another process has the search."""
        if self._local is None:
            self._claim.check()
            self._storage.write(f"{self._place}/{JOURNAL}", self._file.read_bytes())

    def publish(self, files: Iterable[Path]) -> str:
        """Bring tables to an object store; returns their address there, empty for a folder."""
        if self._local is not None:
            return ""
        for file in files:
            self._storage.write(f"{self._place}/{file.name}", file.read_bytes())
        return self._storage.where(self._place)

    def release(self) -> None:
        """Let others have it."""
        self._held.close()
