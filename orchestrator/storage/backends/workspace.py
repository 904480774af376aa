"""The workspace of a unit on an object store: a scratch folder of the machine that is uploaded.

The store is authoritative. A scratch folder is new for each lease and starts from what the store has; an earlier one is
never reused, since another machine may hold newer or different checkpoints. What was not uploaded is trained again.

The order of `save`, so that it may be interrupted anywhere:
1. progress and log: a checkpoint needs the lines up to it;
2. new checkpoints, those of chosen weights first, which others name: tensors, then `state.json`, which names their
   SHA-256. One of the same step is replaced after its `state.json` has been deleted;
3. `manifest.json` with the steps, read by name: a listing may be stale;
4. `result.json`;
5. checkpoints that the folder no longer has are deleted, their `state.json` first.
A checkpoint without `state.json` is ignored, and so is one whose digests don't match, when it is read.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from orchestrator.storage.backends.base import Claim, Storage, Workspace, as_object
from ups_model.evaluation.metric_names import OUTCOMES
from ups_model.training.run_folder import STATE, TRUNK, verify_checkpoint

logger = logging.getLogger(__name__)

MANIFEST, RESULT, SOURCE = "manifest.json", "result.json", "source.json"
CONFIG = "config.json"
FILES = ("progress.jsonl", CONFIG, "log.txt", SOURCE, OUTCOMES)
GROUPS = ("best", "checkpoints", TRUNK)
"""Folders of checkpoints; those of the second name those of the first."""
STEP = re.compile(r"step-\d{8,}")


class RemoteWorkspace(Workspace):
    """A scratch folder, and what of it is uploaded."""

    def __init__(self, store: Storage, place: str, claim: Claim, folder: Path) -> None:
        super().__init__(folder)
        self._store, self._place, self._claim = store, place, claim
        self._uploaded: dict[str, str] = {}
        """Digests of uploaded small files, and of the `state.json` of uploaded checkpoints."""
        self._tensors: dict[str, list[str]] = {}
        """Files of the checkpoints that this process has uploaded."""
        self._steps: dict[str, set[str]] = {}
        """Of each group, names of checkpoints that the store may have any file of."""

    @classmethod
    @contextmanager
    def opened(cls, store: Storage, place: str, claim: Claim) -> Iterator[Self]:
        """A workspace with what is needed to continue; deleted at the end."""
        with scratch(store.address) as folder:
            made = cls(store, place, claim, folder / place.rsplit("/", 1)[-1])
            made.folder.mkdir(parents=True)
            made._download()
            yield made

    def _download(self) -> None:
        """Download the small files, all chosen weights, and the newest readable checkpoint."""
        manifest = self._store.read_object(f"{self._place}/{MANIFEST}")
        for group in GROUPS:  # By the manifest, and by a listing, which may be stale.
            below = f"{self._place}/{group}"
            names = {entry.name.removeprefix(f"{below}/").split("/")[0] for entry in self._store.entries(below)}
            self._steps[group] = {step for step in names.union(manifest.get(group, ())) if STEP.fullmatch(step)}
        # Training and measuring write the others anew.
        for name in (name for name in (*FILES, RESULT) if name not in (CONFIG, OUTCOMES)):
            with suppress(FileNotFoundError):
                content = self._store.read(f"{self._place}/{name}")
                (self.folder / name).write_bytes(content)
                self._uploaded[name] = _digest(content)
        for group in GROUPS:
            for step in sorted(self._steps[group], reverse=True):
                if self._take(group, step) and group == "checkpoints":
                    break

    def _take(self, group: str, step: str) -> bool:
        """Download a checkpoint; whether it is whole."""
        folder, place = self.folder / group / step, f"{self._place}/{group}/{step}"
        try:
            state = self._store.read(f"{place}/{STATE}")
        except FileNotFoundError:
            return False
        folder.mkdir(parents=True)
        (folder / STATE).write_bytes(state)
        try:
            download_all(self._store, place, [f"{place}/{name}" for name in _tensors(state)], folder)
            verify_checkpoint(folder)
        except (ValueError, FileNotFoundError) as error:
            logger.warning("%s on storage can't be used (%s)", place, error)
            shutil.rmtree(folder)
            return False
        self._uploaded[f"{group}/{step}"] = _digest(state)
        return True

    def save(self) -> None:
        for name in FILES:
            self._put(name)
        here = {
            group: sorted({file.parent.name for file in (self.folder / group).glob(f"step-*/{STATE}")})
            for group in GROUPS
        }
        for group in GROUPS:
            for step in here[group]:
                self._put_checkpoint(group, step)
        self._claim.check()
        self._write(MANIFEST, json.dumps(here).encode())
        if (self.folder / RESULT).exists():
            self._put(RESULT)
        elif RESULT in self._uploaded:
            self._claim.check()
            self._store.delete(f"{self._place}/{RESULT}")
            del self._uploaded[RESULT]
        for group in reversed(GROUPS):
            for step in sorted(self._steps[group] - set(here[group])):
                self._delete_checkpoint(group, step)

    def save_log(self) -> None:
        try:
            for name in FILES:
                self._put(name)
        except OSError as error:
            logger.warning("the log of %s is not on storage (%s)", self._place, error)

    def _put(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._write(name, (self.folder / name).read_bytes())

    def _write(self, name: str, content: bytes) -> None:
        if self._uploaded.get(name) != (digest := _digest(content)):
            self._claim.insist(lambda: self._store.write(f"{self._place}/{name}", content))
            self._uploaded[name] = digest

    def _put_checkpoint(self, group: str, step: str) -> None:
        folder, place = self.folder / group / step, f"{self._place}/{group}/{step}"
        state = (folder / STATE).read_bytes()
        if self._uploaded.get(f"{group}/{step}") == _digest(state):
            return
        if step in self._steps[group]:  # Being replaced: a state must not name tensors that change.
            self._claim.check()
            self._uploaded.pop(f"{group}/{step}", None)
            self._store.delete(f"{place}/{STATE}")
        self._steps[group].add(step)
        for name in _tensors(state):
            self._claim.check()
            self._store.upload(folder / name, f"{place}/{name}", self._claim.check)
        self._claim.insist(lambda: self._store.write(f"{place}/{STATE}", state))
        self._uploaded[f"{group}/{step}"], self._tensors[f"{group}/{step}"] = _digest(state), list(_tensors(state))

    def _delete_checkpoint(self, group: str, step: str) -> None:
        self._claim.check()
        own = self._tensors.pop(f"{group}/{step}", None)
        delete_checkpoint(self._store, f"{self._place}/{group}/{step}", self._claim.check, own)
        self._uploaded.pop(f"{group}/{step}", None)
        self._steps[group].discard(step)


def delete_checkpoint(
    store: Storage, place: str, going_on: Callable[[], None] = lambda: None, tensors: Iterable[str] | None = None
) -> None:
    """Delete the state first, so that the rest is ignored; then what it names, listed or not.

    Args:
        store: where it lies.
        place: its folder.
        going_on: called between requests; an exception of it ends the deletion.
        tensors: the files that its state names; None: the state is read.
    """
    names = {entry.name for entry in store.entries(place)}
    with suppress(FileNotFoundError, ValueError):
        listed = _tensors(store.read(f"{place}/{STATE}")) if tensors is None else tensors
        names |= {f"{place}/{name}" for name in listed}
    store.delete(f"{place}/{STATE}")
    for name in sorted(names - {f"{place}/{STATE}"}):
        going_on()
        store.delete(name)


def download_all(store: Storage, place: str, names: Iterable[str], folder: Path) -> None:
    """Copy contents below a place into a folder, several at a time."""
    store.each(lambda name: store.fetch(name, folder / name.removeprefix(f"{place}/")), names)


@contextmanager
def scratch(address: str) -> Iterator[Path]:
    """An empty folder on this machine's disk, deleted at the end, as are those of killed processes.

    It lies in UPS_SCRATCH, else in a folder of the user's own in the system's temporary one (TMPDIR). OSError where it
    can't be made, or is another user's.
    """
    base = scratch_base()
    _sweep(base)
    folder = base / f"{_digest(address.encode())[:8]}-{uuid.uuid4().hex}"
    lock = FileLock(folder.with_suffix(".lock"))
    lock.acquire(timeout=60)  # Another process may be sweeping.
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.with_suffix(".lock").unlink()
        lock.release()


def scratch_base() -> Path:
    """The folder of scratch folders on this machine; made, closed to other users, where it is missing."""
    configured = os.environ.get("UPS_SCRATCH")
    base = Path(configured).expanduser() if configured else Path(tempfile.gettempdir()) / f"ups-scratch-{os.getuid()}"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    if base.stat().st_uid != os.getuid() and not configured:
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


def _tensors(state: bytes) -> list[str]:
    """Names of the files that a checkpoint's state lists; ValueError where it isn't one."""
    names = as_object(state).get("sha256")
    if not isinstance(names, dict) or any(Path(name).name != name or name in ("", ".", "..") for name in names):
        raise ValueError(f"{STATE} is not that of a checkpoint")
    return sorted(names)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
