"""The ledger: one folder a unit on storage, one record a unit. It alone decides what is done.

    <storage>/units/<slug>-<key>/   checkpoints/ best/ progress.jsonl log.txt result.json, and at the end record.json
    <storage>/studies/<name>/       plan.json, and the report

A record is written under another name and renamed, so it is there whole or not at all. A unit is trained under a lock
of the operating system, which ends with the process that holds it: nobody waits for the dead, and two drivers on one
storage don't train one unit at a time.
"""

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from orchestrator.plan import Plan, Unit
from ups_model.checkpoint import STATE
from ups_model.progress import read_rows

logger = logging.getLogger(__name__)

RECORD, FAILURE, CLAIM, OWNER, LOG = "record.json", "failure.json", ".claim", "owner.json", "log.txt"


@dataclass(frozen=True)
class Record:
    """What a unit leaves."""

    key: str
    status: Literal["finished", "failed"]
    metrics: Mapping[str, float] = field(default_factory=dict)
    """As `ups_model.result.Result` has them: "test/...", "validation/..."."""
    routes: Mapping[str, list[int]] = field(default_factory=dict)
    """The block that each task takes in each encoder layer."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Configuration, data, parameters, times, device, versions, commit."""
    checkpoint: str = ""
    """Folder of the chosen weights, relative to the unit's."""
    error: str = ""
    """Of a failed unit: what it raised, with the traceback."""

    @property
    def tested(self) -> bool:
        """Whether the test split has been measured; a search leaves it alone."""
        return any(name.startswith("test/") for name in self.metrics)

    def to_json(self) -> str:
        """One text for equal records."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError where the text is not a record."""
        try:
            record = cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"not a record ({error})") from error
        if record.status not in ("finished", "failed"):
            raise ValueError(f"not a record (status {record.status!r})")
        return record


class Ledger:
    """Records, checkpoints and studies on one storage."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def open(cls, storage: str, create: bool = True) -> Self:
        """The ledger at a path or file:// address.

        Raises:
            ValueError: the storage can't be reached or written to, or (without `create`) there is none.
        """
        root = storage_path(storage)
        if not create:
            if not (root / "units").is_dir():
                raise ValueError(f"--storage {storage}: no study has been run there; run orchestrator.ablate first")
            return cls(root)
        try:
            (root / "units").mkdir(parents=True, exist_ok=True)
            (root / "studies").mkdir(exist_ok=True)
            probe = root / "units" / f".probe-{uuid.uuid4().hex}"
            write_whole(probe, "probe")
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"--storage {storage}: cannot be written to ({error.strerror or error}); give another folder"
            ) from error
        return cls(root)

    def folder(self, unit: Unit) -> Path:
        """Where a unit's files lie."""
        return self.root / "units" / unit.folder

    def record(self, unit: Unit) -> Record | None:
        """The finished record of a unit, else that of its last failure, else None."""
        return self.read(unit.folder, unit.key)

    def read(self, folder: str, key: str) -> Record | None:
        """`record`, by the unit's folder and key."""
        for name in (RECORD, FAILURE):
            file = self.root / "units" / folder / name
            try:
                record = Record.from_json(file.read_text("utf-8"))
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                logger.warning("%s can't be read (%s): the unit counts as not done", file, error)
                continue
            if record.key == key:
                return record
            logger.warning("%s is the record of another unit (%s); it is ignored", file, record.key)
        return None

    def finished(self, unit: Unit) -> Record | None:
        """The finished record of a unit."""
        record = self.record(unit)
        return record if record is not None and record.status == "finished" else None

    def write(self, unit: Unit, record: Record) -> None:
        """Put a record on storage. A finished one stays: it is never replaced by a failure."""
        folder = self.folder(unit)
        folder.mkdir(parents=True, exist_ok=True)
        if record.status == "failed":
            write_whole(folder / FAILURE, record.to_json())
            return
        write_whole(folder / RECORD, record.to_json())
        with suppress(OSError):
            (folder / FAILURE).unlink()

    def weights(self, unit: Unit, record: Record) -> Path:
        """Folder of a finished unit's chosen weights."""
        return self.folder(unit) / record.checkpoint

    def has_weights(self, unit: Unit, record: Record) -> bool:
        """Whether the chosen weights of a finished unit lie where the record says; their content is not read."""
        return bool(record.checkpoint) and (self.weights(unit, record) / STATE).is_file()

    @contextmanager
    def claim(self, unit: Unit) -> Iterator[bool]:
        """Hold a unit without waiting; yields whether it is held. Ends with the process at the latest."""
        folder = self.folder(unit)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / CLAIM)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            owner = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
            write_whole(folder / OWNER, json.dumps(owner))
            yield True
        finally:
            lock.release()

    def claimed(self, unit: Unit) -> bool:
        """Whether some process holds the unit now."""
        if not (self.folder(unit) / CLAIM).exists():
            return False
        lock = FileLock(self.folder(unit) / CLAIM)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return True
        lock.release()
        return False

    def owner(self, unit: Unit) -> str:
        """Who holds or last held a unit, for people."""
        try:
            owner = json.loads((self.folder(unit) / OWNER).read_text("utf-8"))
            return f"process {owner['pid']} on {owner['host']}"
        except (OSError, ValueError, KeyError):
            return "another process"

    def progress(self, unit: Unit) -> list[dict[str, float]]:
        """What a unit has reported so far: rows with "step", "time" and metrics."""
        return read_rows(self.folder(unit) / "progress.jsonl")

    def study(self, plan: Plan | str) -> Path:
        """Folder of a study's plan and report."""
        return self.root / "studies" / (plan if isinstance(plan, str) else plan.name)

    def save_plan(self, plan: Plan, content: Mapping[str, Any]) -> None:
        """Keep what the report needs of a plan."""
        self.study(plan).mkdir(parents=True, exist_ok=True)
        write_whole(self.study(plan) / "plan.json", json.dumps(content, indent=1, sort_keys=True, allow_nan=False))

    def studies(self) -> dict[str, dict[str, Any]]:
        """Saved plans by the name of their folder."""
        found = {}
        for file in sorted((self.root / "studies").glob("*/plan.json")):
            try:
                found[file.parent.name] = json.loads(file.read_text("utf-8"))
            except (OSError, ValueError) as error:
                logger.warning("%s can't be read (%s); run the study's ablate command again", file, error)
        return found


def write_whole(file: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, and stays after a crash of the machine."""
    temporary = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_path(storage: str) -> Path:
    """The folder that a path or file:// address names; ValueError for any other address. Looks at no disk."""
    parts = urlsplit(storage)
    if parts.scheme == "file":
        return Path(parts.path)
    if parts.scheme and "://" in storage:
        raise ValueError(f"--storage {storage}: {parts.scheme}:// is not supported; give a folder or a shared mount")
    return Path(storage).expanduser().absolute()
