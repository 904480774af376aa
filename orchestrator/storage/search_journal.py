"""Where a search keeps its journal, a file to which lines are added. Several processes may run one search: each holds
the journal for as long as it reads, decides and writes."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator.storage.backends.base import Claim, Storage, as_object
from orchestrator.storage.backends.workspace import scratch

JOURNAL = "journal.log"
NUMBER = "trial"
"""Attribute of Optuna's trials: the trial's number."""
TRANSACTION_TIMEOUT_SECONDS = 120.0
"""Another process needs seconds at most, unless it is stopped; the lease of one that died is stale before."""
RETRY_SECONDS = 0.2


def trials_begun(journal: bytes) -> int:
    """Trials that a journal's lines tell of, however often each was tried; a line that was cut off tells of none."""
    numbers = {as_object(line).get("user_attrs", {}).get(NUMBER) for line in journal.splitlines()}
    return len(numbers - {None})


class JournalPlace:
    """A file that no other process has."""

    def transaction(self) -> AbstractContextManager[None]:
        """Keep other processes out of the journal while it lasts; may be entered again within itself.

        Raises:
            OSError: another process doesn't let go of it (TimeoutError), or the storage can't be read.
        """
        return nullcontext()

    def reading(self) -> AbstractContextManager[None]:
        """The file has what other processes have added. OSError as of `transaction`."""
        return nullcontext()

    def keep(self) -> None:
        """A line has been added, in a transaction. OSError where it can't be kept, or others have taken over."""


class SearchPlace(JournalPlace, ABC):
    """`<storage>/searches/<name>/`."""

    def __init__(self, storage: Storage, name: str, folder: Path) -> None:
        self._storage, self._name, self._place = storage, name, f"searches/{name}"
        self.folder = folder
        """Of the tables, on this machine."""
        self._held = ExitStack()

    def begun(self) -> bool:
        """Whether there is a journal."""
        return self._storage.look(f"{self._place}/{JOURNAL}") is not None

    @abstractmethod
    def hold(self, alone: bool = False) -> Path:
        """The journal's file.

        Args:
            alone: keep other processes out until `release`.

        Raises:
            ValueError: another process has it, and `alone` is true.
        """

    @abstractmethod
    def publish(self, files: Iterable[Path]) -> str:
        """Bring tables to an object store; returns their address there, empty for a folder."""

    def release(self) -> None:
        """Let others have it."""
        self._held.close()

    def _others(self) -> str:
        return f"another process runs the search {self._name} on this storage; wait for it to end"

    def _timeout(self) -> TimeoutError:
        return TimeoutError(
            f"another process has held the journal of {self._name} for {TRANSACTION_TIMEOUT_SECONDS:.0f} seconds"
        )


def search_place(storage: Storage, name: str, reports: Path) -> SearchPlace:
    """Where a search is kept. Tables of one on an object store are written to a folder in `reports`, too."""
    if storage.root is not None:
        return _FolderPlace(storage, name, storage.root / "searches" / name)
    return _StorePlace(storage, name, reports / name)


class _FolderPlace(SearchPlace):
    """The file itself, behind a lock."""

    def __init__(self, storage: Storage, name: str, folder: Path) -> None:
        super().__init__(storage, name, folder)
        self._lock = FileLock(folder.with_name(f".{name}.lock"))

    def hold(self, alone: bool = False) -> Path:
        if alone:
            try:
                self._lock.acquire(blocking=False)
            except Timeout as error:
                raise ValueError(self._others()) from error
            self._held.callback(self._lock.release)
        return self.folder / JOURNAL

    @contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            self._lock.acquire(timeout=TRANSACTION_TIMEOUT_SECONDS)
        except Timeout as error:
            raise self._timeout() from error
        try:
            yield
        finally:
            self._lock.release()

    def reading(self) -> AbstractContextManager[None]:
        return self.transaction()  # A line that another process is writing is not whole yet.

    def publish(self, files: Iterable[Path]) -> str:
        return ""


class _StorePlace(SearchPlace):
    """A copy in a scratch folder: an object store can't add to an object. Before a transaction it takes over what the
    store has more, after each line it is brought there whole."""

    def __init__(self, storage: Storage, name: str, folder: Path) -> None:
        super().__init__(storage, name, folder)
        self._file = Path()
        self._claim: Claim | None = None
        """While a transaction lasts."""
        self._tag = ""
        """Of the object as it was last read."""

    def hold(self, alone: bool = False) -> Path:
        if alone:
            claim = self._held.enter_context(self._storage.claim(self._place))
            if not claim:
                raise ValueError(self._others())
            self._claim = claim
        self._file = self._held.enter_context(scratch(self._storage.address)) / JOURNAL
        self._update()
        return self._file

    @contextmanager
    def transaction(self) -> Iterator[None]:
        if self._claim is not None:
            yield
            return
        with ExitStack() as stack:
            self._claim = self._wait(stack)
            try:
                self._update()
                yield
            finally:
                self._claim = None

    def _wait(self, stack: ExitStack) -> Claim:
        """The claim on the journal, held by the stack."""
        last = time.monotonic() + TRANSACTION_TIMEOUT_SECONDS
        while True:
            claim = stack.enter_context(self._storage.claim(self._place))
            if claim:
                return claim
            if time.monotonic() > last:
                raise self._timeout()
            time.sleep(RETRY_SECONDS)

    @contextmanager
    def reading(self) -> Iterator[None]:
        if self._claim is None:  # An object is always whole.
            self._update()
        yield

    def _update(self) -> None:
        """Add what other processes have added to the object since it was last read."""
        entry = self._storage.look(f"{self._place}/{JOURNAL}")
        if entry is None or entry.tag == self._tag:
            return
        content = self._storage.read(entry.name)
        here = self._file.read_bytes() if self._file.exists() else b""
        if not content.startswith(here):
            raise OSError(
                f"{self._storage.where(entry.name)} lacks what this process has written; run the command again: it "
                "goes on from what is there"
            )
        with self._file.open("ab") as stream:
            stream.write(content[len(here) :])
        self._tag = entry.tag

    def keep(self) -> None:
        assert self._claim is not None
        self._claim.check()
        self._tag = ""
        self._storage.write(f"{self._place}/{JOURNAL}", self._file.read_bytes())

    def publish(self, files: Iterable[Path]) -> str:
        for file in files:
            self._storage.write(f"{self._place}/{file.name}", file.read_bytes())
        return self._storage.where(self._place)

    def release(self) -> None:
        super().release()
        self._claim = None
