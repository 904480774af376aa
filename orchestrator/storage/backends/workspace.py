"""Training a unit whose files are on an object store: in a scratch folder of the machine, brought to the store.

The store wins. A scratch folder is new for each hold of a unit and begins with what the store has; nothing is ever
taken from an earlier one, for since then another machine may have gone further, or another way. What was not on the
store when a process ended is made again.

What `save` does, in this order, so that it may end anywhere:
1. progress and the log, since a checkpoint must not be there without the lines up to it;
2. new checkpoints, those of chosen weights first, which others name: tensors, then `state.json`, which names their
   SHA-256. One of the same step is replaced after its `state.json` has been deleted;
3. `manifest.json` with the steps, which is read by its name: a listing may not know of a checkpoint yet;
4. `result.json`;
5. checkpoints that the folder has no more are deleted, their `state.json` first.
A checkpoint without `state.json` is none, and one that has another content than its `state.json` says is found when it
is read, and passed over.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, Self

from filelock import FileLock, Timeout

from orchestrator.storage.backends.base import Claim, Entry, Workspace, as_object
from ups_model.evaluation.metric_names import OUTCOMES
from ups_model.training.run_folder import STATE

logger = logging.getLogger(__name__)

MANIFEST, RESULT, SOURCE = "manifest.json", "result.json", "source.json"
CONFIG = "config.json"
FILES = ("progress.jsonl", CONFIG, "log.txt", SOURCE, OUTCOMES)
GROUPS = ("best", "checkpoints")
"""Folders of checkpoints; those of the second name those of the first."""
STEP = re.compile(r"step-\d{8,}")


class Downloads(Protocol):
    """What a download needs of a storage."""

    def fetch(self, name: str, file: Path) -> None: ...
    def each(self, call: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]: ...


class Store(Downloads, Protocol):
    """What a workspace needs of a store."""

    address: str

    def read(self, name: str) -> bytes: ...
    def write(self, name: str, content: bytes) -> None: ...
    def delete(self, name: str) -> None: ...
    def entries(self, place: str) -> Iterator[Entry]: ...
    def upload(self, file: Path, name: str, going_on: Callable[[], None] = ...) -> None: ...


class RemoteWorkspace(Workspace):
    """A scratch folder and what the store has of it."""

    def __init__(self, store: Store, place: str, claim: Claim, folder: Path) -> None:
        super().__init__(folder)
        self._store, self._place, self._claim = store, place, claim
        self._there: dict[str, str] = {}
        """What the store is known to have: digests of small files, and of the `state.json` of checkpoints."""
        self._tensors: dict[str, list[str]] = {}
        """Files of the checkpoints that this process has put there."""
        self._steps: dict[str, set[str]] = {}
        """Of each group, names of checkpoints that the store may have any file of."""

    @classmethod
    @contextmanager
    def opened(cls, store: Store, place: str, claim: Claim) -> Iterator[Self]:
        """A workspace with what is needed to go on; gone at the end."""
        with scratch(store.address) as folder:
            made = cls(store, place, claim, folder / place.rsplit("/", 1)[-1])
            made.folder.mkdir(parents=True)
            made._begin()
            yield made

    def _begin(self) -> None:
        """Take from the store the small files, all chosen weights, and the newest checkpoint that can be read."""
        manifest = _manifest(self._store, self._place)
        self._steps = {group: steps_of(self._store, self._place, group, manifest) for group in GROUPS}
        for name in (*FILES, RESULT):
            if name in (CONFIG, OUTCOMES):  # Whoever trains or measures writes them anew.
                continue
            with suppress(FileNotFoundError):
                content = self._store.read(f"{self._place}/{name}")
                (self.folder / name).write_bytes(content)
                self._there[name] = _digest(content)
        for group in GROUPS:
            for step in sorted(self._steps[group], reverse=True):
                if self._take(group, step) and group == "checkpoints":
                    break

    def _take(self, group: str, step: str) -> bool:
        """Download a checkpoint; whether it is whole."""
        from ups_model.training.checkpoint import load_checkpoint  # It imports torch, which planning need not wait for.

        folder = self.folder / group / step
        try:
            state = self._store.read(f"{self._place}/{group}/{step}/{STATE}")
        except FileNotFoundError:
            return False
        folder.mkdir(parents=True)
        (folder / STATE).write_bytes(state)
        try:
            names = [f"{self._place}/{group}/{step}/{name}" for name in _tensors(state)]
            download_all(self._store, f"{self._place}/{group}/{step}", names, folder)
            load_checkpoint(folder)
        except (ValueError, FileNotFoundError) as error:
            logger.warning("%s/%s/%s on storage can't be used (%s)", self._place, group, step, error)
            shutil.rmtree(folder)
            return False
        self._there[f"{group}/{step}"] = _digest(state)
        return True

    def save(self) -> None:
        """See `Workspace`."""
        for name in FILES:
            self._put(name)
        here = {group: sorted(_whole_steps(self.folder / group)) for group in GROUPS}
        for group in GROUPS:
            for step in here[group]:
                self._put_checkpoint(group, step)
        self._claim.check()
        self._write(MANIFEST, json.dumps(here).encode())
        if (self.folder / RESULT).exists():
            self._put(RESULT)
        elif RESULT in self._there:
            self._claim.check()
            self._store.delete(f"{self._place}/{RESULT}")
            del self._there[RESULT]
        for group in reversed(GROUPS):
            for step in sorted(self._steps[group] - set(here[group])):
                self._delete_checkpoint(group, step)

    def save_log(self) -> None:
        """See `Workspace`."""
        try:
            for name in FILES:
                self._put(name)
        except OSError as error:
            logger.warning("the log of %s is not on storage (%s)", self._place, error)

    def _put(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._write(name, (self.folder / name).read_bytes())

    def _write(self, name: str, content: bytes) -> None:
        if self._there.get(name) != (digest := _digest(content)):
            self._claim.insist(lambda: self._store.write(f"{self._place}/{name}", content))
            self._there[name] = digest

    def _put_checkpoint(self, group: str, step: str) -> None:
        folder, place = self.folder / group / step, f"{self._place}/{group}/{step}"
        state = (folder / STATE).read_bytes()
        if self._there.get(f"{group}/{step}") == _digest(state):
            return
        if step in self._steps[group]:  # Of another content: no state must promise what is being replaced.
            self._claim.check()
            self._there.pop(f"{group}/{step}", None)
            self._store.delete(f"{place}/{STATE}")
        self._steps[group].add(step)
        for name in _tensors(state):
            self._claim.check()
            self._store.upload(folder / name, f"{place}/{name}", self._claim.check)
        self._claim.insist(lambda: self._store.write(f"{place}/{STATE}", state))
        self._there[f"{group}/{step}"], self._tensors[f"{group}/{step}"] = _digest(state), list(_tensors(state))

    def _delete_checkpoint(self, group: str, step: str) -> None:
        self._claim.check()
        own = self._tensors.pop(f"{group}/{step}", None)
        delete_checkpoint(self._store, f"{self._place}/{group}/{step}", self._claim.check, own)
        self._there.pop(f"{group}/{step}", None)
        self._steps[group].discard(step)


def delete_checkpoint(
    store: Store, place: str, going_on: Callable[[], None] = lambda: None, tensors: Iterable[str] | None = None
) -> None:
    """Its state first, so that it is none from there on. What the state names is deleted whatever a listing says.

    Args:
        store: where it lies.
        place: its folder.
        going_on: called between requests; what it raises ends the deleting.
        tensors: what its state names, if that is known; else the state is read.
    """
    names = {entry.name for entry in store.entries(place)}
    with suppress(FileNotFoundError, ValueError):
        listed = _tensors(store.read(f"{place}/{STATE}")) if tensors is None else tensors
        names |= {f"{place}/{name}" for name in listed}
    store.delete(f"{place}/{STATE}")
    for name in sorted(names - {f"{place}/{STATE}"}):
        going_on()
        store.delete(name)


def steps_of(store: Store, place: str, group: str, manifest: Mapping[str, Any] | None = None) -> set[str]:
    """Names of a unit's checkpoints that the store may have: by its manifest, and by a listing, which may be late. Some
    may be half there."""
    manifest = _manifest(store, place) if manifest is None else manifest
    below = f"{place}/{group}/"
    found = {entry.name.removeprefix(below).split("/")[0] for entry in store.entries(f"{place}/{group}")}
    found |= set(manifest.get(group, ()))
    return {step for step in found if STEP.fullmatch(step)}


def _manifest(store: Store, place: str) -> dict[str, Any]:
    try:
        return as_object(store.read(f"{place}/{MANIFEST}"))
    except FileNotFoundError:
        return {}


def download_all(store: Downloads, place: str, names: Iterable[str], folder: Path) -> None:
    """Copy contents below a place into a folder, several at a time."""
    store.each(lambda name: store.fetch(name, folder / name.removeprefix(f"{place}/")), names)


@contextmanager
def scratch(address: str) -> Iterator[Path]:
    """An empty folder on this machine's disk, gone at the end; those of killed processes go as well, whatever storage
    they were for.

    It lies in UPS_SCRATCH, else in a folder of the user's own in the system's temporary one (TMPDIR). OSError where it
    can't be made, or is another user's.
    """
    base = scratch_base()
    _sweep(base)
    folder = base / f"{_digest(address.encode())[:8]}-{uuid.uuid4().hex}"
    lock = FileLock(folder.with_suffix(".lock"))
    lock.acquire(timeout=60)  # Somebody who sweeps may have it for a moment.
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.with_suffix(".lock").unlink()
        lock.release()


def scratch_base() -> Path:
    """Where scratch folders lie on this machine; made, and closed to others, if it isn't there."""
    given = os.environ.get("UPS_SCRATCH")
    base = Path(given).expanduser() if given else Path(tempfile.gettempdir()) / f"ups-scratch-{os.getuid()}"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    if base.stat().st_uid != os.getuid() and not given:
        raise OSError(f"{base} is another user's; name a folder of your own in UPS_SCRATCH")
    return base


def _sweep(base: Path) -> None:
    for file in base.glob("*.lock"):
        lock = FileLock(file)
        with suppress(OSError, Timeout):
            lock.acquire(blocking=False)
            shutil.rmtree(file.with_suffix(""), ignore_errors=True)
            file.unlink()
            lock.release()


def _whole_steps(folder: Path) -> set[str]:
    return {file.parent.name for file in folder.glob(f"step-*/{STATE}")}


def _tensors(state: bytes) -> list[str]:
    """Names of the files that a state speaks of; ValueError where it isn't one."""
    names = as_object(state).get("sha256")
    if not isinstance(names, dict) or any(Path(name).name != name or name in ("", ".", "..") for name in names):
        raise ValueError(f"{STATE} is not that of a checkpoint")
    return sorted(names)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
