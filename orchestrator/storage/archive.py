"""A ledger in one file: records, outcomes, progress, plans, journals of searches; no weights, logs or claims.

    ledger.json                                  the format's number
    searches/<name>/journal.log
    studies/<name>/plan.json
    units/<folder>/record.json or failure.json   with outcomes.npz and progress.jsonl where the unit has them

The file is a tar.gz with sorted names, times of 0 and no owners: equal ledgers make equal bytes. Absolute paths of the
machine, as tracebacks have them, are shortened to their last part. An archive may come from anywhere: all of it is
checked before any of it is used.
"""

import gzip
import json
import os
import re
import tarfile
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from orchestrator.record import Record
from orchestrator.storage.backends.base import Storage
from orchestrator.storage.ledger import FAILURE, PLAN, PROGRESS, RECORD, Ledger
from orchestrator.storage.portable import plain_json, portable
from orchestrator.storage.search_journal import JOURNAL
from orchestrator.storage.usage import key_of
from ups_model.evaluation.metric_names import OUTCOMES

FORMAT, HEADER = 1, "ledger.json"
EXTRAS = (OUTCOMES, PROGRESS)
"""What a unit may have beside its record."""
FOREIGN = "not a file that orchestrator.storage export wrote"
MAX_ENTRY_BYTES = 256 * 2**20
MAX_UNITS_IN_MEMORY = 64
_PART, _UNIT = r"\w[\w.=+-]*", r"\w[\w.=+-]*-[0-9a-f]{16}"
_FILES = "|".join(map(re.escape, (RECORD, FAILURE, *EXTRAS)))
_NAME = re.compile(rf"ledger\.json|searches/{_PART}/journal\.log|studies/{_PART}/plan\.json|units/{_UNIT}/(?:{_FILES})")
_CHECKPOINT = re.compile(r"(best/\w[\w.-]*)?")


@dataclass(frozen=True)
class UnitFiles:
    """A unit's record and what lies beside it, as an archive holds them."""

    folder: str
    record: Record
    files: Mapping[str, bytes]
    """By name; the record's own file among them."""
    left_out: str = ""
    """What of the unit was left out, and why."""

    @property
    def place(self) -> str:
        """Its folder on storage."""
        return f"units/{self.folder}"


@dataclass(frozen=True)
class NamedFile:
    """The plan of a study or the journal of a search."""

    name: str
    """On storage, e.g. `studies/<name>/plan.json`."""
    content: bytes


@dataclass
class Exported:
    """What an export holds."""

    finished: int = 0
    failed: int = 0
    plans: int = 0
    searches: int = 0
    size: int = 0
    """Of the file, in bytes."""
    unreadable: list[str] = field(default_factory=list)
    """Records, outcomes and plans that were left out, and why."""


def export_ledger(ledger: Ledger, file: Path, studies: Iterable[str] = ()) -> Exported:
    """Write a ledger into a file, which is there whole or not at all.

    Args:
        studies: names of studies or of their plans; only their plans and units. All there is if empty.

    Raises:
        ValueError: the storage has no such study, or the file can't be written.
        OSError: the storage doesn't answer.
    """
    storage, names, exported = ledger.storage, list(studies), Exported()
    plans = _plans(ledger, names, exported)
    folders = {unit["folder"] for content in plans.values() for unit in json.loads(content)["units"].values()}
    if not names:
        folders |= set(storage.children("units"))
    with _tar_file(file) as tar:
        _add(tar, HEADER, json.dumps({"format": FORMAT}).encode())
        for name, journal in () if names else _journals(storage):
            _add(tar, name, journal)
            exported.searches += 1
        for name in sorted(plans):
            _add(tar, f"studies/{name}/{PLAN}", plans[name])
        for unit in _units(storage, sorted(folders), exported):
            for name in sorted(unit.files):
                _add(tar, f"{unit.place}/{name}", unit.files[name])
            exported.finished += unit.record.status == "finished"
            exported.failed += unit.record.status == "failed"
    exported.plans, exported.size = len(plans), file.stat().st_size
    return exported


def _plans(ledger: Ledger, studies: list[str], exported: Exported) -> dict[str, bytes]:
    storage, plans, present = ledger.storage, {}, set()
    for name in storage.children("studies"):
        file = f"studies/{name}/{PLAN}"
        try:
            content = portable(storage.read(file))
            names = {name, _plan(name, content)["study"]}
        except FileNotFoundError:
            continue
        except ValueError as error:
            exported.unreadable.append(f"{storage.where(file)}: {error}")
            continue
        present |= names
        if not studies or names & set(studies):
            plans[name] = content
    if missing := [name for name in studies if name not in present]:
        there = ", ".join(sorted(present)) or "none"
        raise ValueError(f"--study {missing[0]}: no such study on {ledger.address}; there are {there}")
    return plans


def _journals(storage: Storage) -> Iterator[tuple[str, bytes]]:
    for name in storage.children("searches"):
        file = f"searches/{name}/{JOURNAL}"
        if _NAME.fullmatch(file):
            with suppress(FileNotFoundError):
                yield file, storage.read(file)


def _units(storage: Storage, folders: list[str], exported: Exported) -> Iterator[UnitFiles]:
    def read(folder: str) -> tuple[UnitFiles | None, str]:
        try:
            unit = read_unit(storage, folder)
        except ValueError as error:
            return None, str(error)
        return unit, unit.left_out if unit is not None else ""

    with tqdm(total=len(folders), desc="units", disable=None, leave=False) as bar:
        for start in range(0, len(folders), MAX_UNITS_IN_MEMORY):
            some = folders[start : start + MAX_UNITS_IN_MEMORY]
            for unit, fault in storage.each(read, some):
                exported.unreadable += [fault] if fault else []
                if unit is not None:
                    yield unit
            bar.update(len(some))


def read_unit(storage: Storage, folder: str) -> UnitFiles | None:
    """A unit with a record, as it is exported; None where it has none.

    Raises:
        ValueError: it has a record that can't be read, and no other.
        OSError: the storage doesn't answer.
    """
    fault, place = None, f"units/{folder}"
    for name in (RECORD, FAILURE):
        try:
            content = portable(storage.read(f"{place}/{name}"))
            record = _record(folder, name, content)
        except FileNotFoundError:
            continue
        except ValueError as error:
            fault = fault or ValueError(f"{storage.where(f'{place}/{name}')}: {error}")
            continue
        files, left_out = {name: content}, ""
        for extra in EXTRAS:
            with suppress(FileNotFoundError):
                files[extra] = storage.read(f"{place}/{extra}")
        if not _are_outcomes_of(record, files):
            del files[OUTCOMES]
            left_out = f"{storage.where(f'{place}/{OUTCOMES}')}: not the outcomes of its record"
        return UnitFiles(folder, record, files, left_out)
    if fault is not None:
        raise fault
    return None


@contextmanager
def _tar_file(file: Path) -> Iterator[tarfile.TarFile]:
    """A new archive, which takes its name once it is whole."""
    if file.is_dir():
        raise ValueError(f"{file}: is a folder; name a file, e.g. {file / 'ledger.tar.gz'}")
    temporary = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    try:
        raw = temporary.open("xb")
    except OSError as error:
        raise ValueError(f"{file}: can't be written ({error.strerror or error}); name a file elsewhere") from error
    try:
        with raw:
            with (
                gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
                tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
            ):
                yield tar
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    tar.addfile(entry, BytesIO(content))


class _Unpacked(gzip.GzipFile):
    """Bounds memory: tarfile reads headers of whatever size they claim."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_ENTRY_BYTES + tarfile.RECORDSIZE:
            raise _Fault(f"it has a header of {size:,} bytes")
        return super().read(size)


class _Fault(ValueError):
    """Of an archive; names the entry."""


def contents(stream: BinaryIO, source: str) -> Iterator[NamedFile | UnitFiles]:
    """Everything in an archive, checked entry by entry: exhaust it once before anything is written.

    Args:
        stream: the file, opened to be read; read from its beginning.
        source: its name, for messages.

    Raises:
        ValueError: it is not an archive, is damaged, or holds something that an export doesn't; names the entry.
    """
    stream.seek(0)
    try:
        yield from _contents(stream)
    except _Fault as error:
        raise ValueError(f"{source}: {error}; nothing was imported, export the ledger again") from error


def _contents(stream: BinaryIO) -> Iterator[NamedFile | UnitFiles]:
    # Names are in order, so entries of one folder follow each other.
    for place, entries in groupby(_entries(stream), key=lambda entry: entry[0].rpartition("/")[0]):
        kind, _, folder = place.partition("/")
        files = {name.rpartition("/")[2]: content for name, content in entries}
        if kind == "units":
            yield _unit(folder, files)
            continue
        for name, content in files.items() if kind else ():
            with _at(f"{place}/{name}"):
                if kind == "studies":
                    _plan(folder, content)
                else:
                    content.decode("utf-8")
            yield NamedFile(f"{place}/{name}", content)


def _entries(stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Names that an export has, and their contents. _Fault for any other."""
    name = ""
    try:
        with _Unpacked(fileobj=stream, mode="rb") as packed, tarfile.open(fileobj=packed, mode="r:") as tar:
            for member in tar:
                if not name and member.name != HEADER:
                    raise _Fault(f"{FOREIGN} (it begins with {member.name!r}, not {HEADER!r})")
                with _at(member.name):
                    _check_entry(member, name)
                file = tar.extractfile(member)
                assert file is not None, "only plain files pass _check_entry"
                content = file.read()
                if not name:
                    _check_header(content)
                name = member.name
                yield name, content
            while packed.read(2**20):  # The checksum is at its end.
                pass
        if not name:
            raise _Fault("it is empty")
    except _Fault:
        raise
    except (ValueError, OSError, EOFError, zlib.error, tarfile.TarError) as error:
        where = f"damaged after entry {name!r}" if name else FOREIGN
        raise _Fault(f"{where} ({error})") from error


def _check_entry(entry: tarfile.TarInfo, before: str) -> None:
    """ValueError for what no export holds."""
    if not entry.isreg() or entry.issparse():
        raise ValueError("it is a link, a folder or a device; an export has plain files alone")
    if entry.name.startswith("/"):
        raise ValueError("an absolute name")
    if ".." in entry.name.split("/"):
        raise ValueError("the name leads out of the storage")
    if not _NAME.fullmatch(entry.name):
        raise ValueError("no name that an export has")
    if entry.size > MAX_ENTRY_BYTES:
        raise ValueError(f"{entry.size:,} bytes, where {MAX_ENTRY_BYTES:,} are the most")
    if entry.name.split("/") <= before.split("/"):
        raise ValueError("it is there twice" if entry.name == before else f"it comes after {before!r}, out of order")


def _check_header(content: bytes) -> None:
    with _at(HEADER):
        header = plain_json(content)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _Fault(
            f"{HEADER} is {content[:80]!r}, this version reads format {FORMAT}; take the version that wrote it"
        )


def _unit(folder: str, files: dict[str, bytes]) -> UnitFiles:
    with _at(f"units/{folder}"):
        if (RECORD in files) == (FAILURE in files):
            raise ValueError(f"needs either {RECORD} or {FAILURE}, has {', '.join(files)}")
    name = RECORD if RECORD in files else FAILURE
    with _at(f"units/{folder}/{name}"):
        record = _record(folder, name, files[name])
    with _at(f"units/{folder}/{PROGRESS}"):
        files.get(PROGRESS, b"").decode("utf-8")
    with _at(f"units/{folder}/{OUTCOMES}"):
        if not _are_outcomes_of(record, files):
            raise ValueError(f"not the outcomes that {name} has the digest of")
    return UnitFiles(folder, record, files)


def _are_outcomes_of(record: Record, files: Mapping[str, bytes]) -> bool:
    """Whether outcomes, if there are any, have the record's digest; old records name none."""
    content = files.get(OUTCOMES)
    return content is None or not record.outcomes or record.has_outcomes(content)


def _record(folder: str, name: str, content: bytes) -> Record:
    """The record in a file of a unit's folder. ValueError where it is none, or none that belongs there."""
    if not re.fullmatch(_UNIT, folder):
        raise ValueError(f"{folder!r} is no name of a unit's folder")
    plain_json(content)
    record = Record.from_json(content.decode("utf-8"), key_of(folder))
    if (record.status == "finished") != (name == RECORD):
        raise ValueError(f"its status is {record.status!r}")
    if not _CHECKPOINT.fullmatch(record.checkpoint):
        raise ValueError(f"checkpoint must be a folder in best/, got {record.checkpoint!r}")
    return record


def _plan(name: str, content: bytes) -> dict[str, Any]:
    """A plan as JSON data. Not a `PlanFile`: plans of other versions are carried too.

    Raises:
        ValueError: it is not a plan of this name, or its units would lie where no unit does.
    """
    plan = plain_json(content)
    if not re.fullmatch(_PART, name):
        raise ValueError(f"{name!r} is no name of a study's folder")
    if not isinstance(plan, dict) or not isinstance(plan.get("units"), dict) or not isinstance(plan.get("study"), str):
        raise ValueError("it is not a plan")
    if plan.get("name", name) != name:
        raise ValueError(f"it is the plan {plan['name']!r}")
    for key, unit in plan["units"].items():
        folder = unit.get("folder") if isinstance(unit, dict) else None
        if not isinstance(folder, str) or not re.fullmatch(_UNIT, folder) or key_of(folder) != key:
            raise ValueError(f"unit {key!r} has the folder {folder!r}")
    return plan


@contextmanager
def _at(entry: str) -> Iterator[None]:
    try:
        yield
    except _Fault:
        raise
    except ValueError as error:
        raise _Fault(f"entry {entry!r}: {error}") from error
