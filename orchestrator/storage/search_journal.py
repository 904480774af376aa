"""Where a search keeps its journal: a file to which lines are added, held by one process at a time."""

from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator.storage.backends.base import Claim, Storage
from orchestrator.storage.backends.workspace import scratch

JOURNAL = "journal.log"


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

    def begun(self) -> bool:
        """Whether there is a journal."""
        return self._storage.look(f"{self._place}/{JOURNAL}") is not None

    def hold(self) -> Path:
        """Make the search this process's own until `release`; returns the journal's file.

        Raises:
            ValueError: another process has it.
        """
        file = self._hold_remote() if self._local is None else self._hold_local(self._local)
        if file is None:
            raise ValueError(
                f"another process runs the search {self._name} on this storage; wait for it to end"
            ) from None
        return file

    def _hold_local(self, folder: Path) -> Path | None:
        lock = FileLock(folder.with_name(f".{self._name}.lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        self._held.callback(lock.release)
        return folder / JOURNAL

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
