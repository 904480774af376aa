"""Adds what a storage lacks of an archive; importing twice changes nothing.

present       imported             becomes
nothing       any record           the imported one, with its outcomes and progress
failure       finished             the imported one
failure       failure              the later one
finished      failure              stays
finished      the same             stays; outcomes and progress are added where they are missing
finished      measured further     the imported one: all metrics of the present one, equal, and more
finished      other metrics        stays; a conflict
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

from tqdm import tqdm

from orchestrator.record import Record
from orchestrator.storage.archive import MAX_UNITS_IN_MEMORY, NamedFile, UnitFiles, contents, read_unit
from orchestrator.storage.backends.base import Storage, as_object
from orchestrator.storage.ledger import FAILURE, IMPORTED, RECORD, REPORTS, Ledger
from orchestrator.storage.portable import portable
from orchestrator.storage.search_journal import search_place

Became = Literal["added", "brought up to date", "there already", "in conflict", "held"]


@dataclass
class Imported:
    """What an import did, and what it left alone."""

    units: Counter[Became] = field(default_factory=Counter)
    files: int = 0
    """Plans and journals of searches that were written."""
    left: list[str] = field(default_factory=list)
    """Units and searches that were left out, and why."""
    notes: list[str] = field(default_factory=list)
    """What was decided about plans and searches."""

    @property
    def changed(self) -> bool:
        """Whether anything was written."""
        return bool(self.units["added"] or self.units["brought up to date"] or self.files)


def import_archives(storage: str, files: Sequence[Path]) -> dict[Path, Imported]:
    """Add archives to a storage, which is made if there is none.

    Raises:
        ValueError: before anything is written, that a file can't be read or holds what an export doesn't, or that the
            storage can't be used.
        OSError: the storage doesn't answer. Import again: what is there already is passed over.
    """
    with ExitStack() as opened:
        streams = {file: opened.enter_context(_opened(file)) for file in files}
        sizes = {file: sum(1 for _ in contents(stream, str(file))) for file, stream in streams.items()}
        ledger = Ledger.open(storage)
        return {file: _import(ledger.storage, stream, file, sizes[file]) for file, stream in streams.items()}


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise ValueError(
            f"{file}: can't be read ({error.strerror or error}); give a file that orchestrator.storage export wrote"
        ) from error


def _import(storage: Storage, stream: BinaryIO, file: Path, size: int) -> Imported:
    result = Imported()
    units: list[UnitFiles] = []

    def add_units() -> None:
        for what, text in storage.each(lambda unit: _import_unit(storage, unit, file), units):
            result.units[what] += 1
            if text:
                result.left.append(text)
        units.clear()

    for content in tqdm(contents(stream, str(file)), total=size, desc=file.name, disable=None, leave=False):
        if isinstance(content, UnitFiles):
            units.append(content)
            if len(units) == MAX_UNITS_IN_MEMORY:
                add_units()
        elif content.name.startswith("studies/"):
            _import_plan(storage, content, result)
        else:
            _import_journal(storage, content, result)
    add_units()
    return result


def _import_unit(storage: Storage, unit: UnitFiles, file: Path) -> tuple[Became, str]:
    """What became of a unit, and why it was left out."""
    present, begun = _present(storage, unit.folder), _is_begun(storage, unit)
    if not _due(present, unit, begun):
        return _unchanged(present, unit, file)
    with storage.claim(unit.place) as claim:
        if not claim:
            return "held", f"{unit.folder}: held by a process and left as it is; import again when that has ended"
        # Again: it may have changed before the claim.
        present, begun = _present(storage, unit.folder), _is_begun(storage, unit)
        due = _due(present, unit, begun)
        for name, content in due.items():
            claim.insist(partial(storage.write, f"{unit.place}/{name}", content))
        if RECORD in due:
            storage.delete(f"{unit.place}/{FAILURE}")
    if not due:
        return _unchanged(present, unit, file)
    return ("added", "") if present is None else ("brought up to date", "")


def _is_begun(storage: Storage, unit: UnitFiles) -> bool:
    """Whether a unit that failed elsewhere can be gone on with here; a finished one is looked no further into."""
    return unit.record.status == "failed" and next(storage.entries(f"{unit.place}/checkpoints"), None) is not None


def _unchanged(present: UnitFiles | None, unit: UnitFiles, file: Path) -> tuple[Became, str]:
    if conflict := _conflict(present, unit):
        return "in conflict", f"conflict: {unit.folder}: {conflict} in {file}; the record here is kept"
    return "there already", ""


def _present(storage: Storage, folder: str) -> UnitFiles | None:
    with suppress(ValueError):  # A record that can't be read is none.
        return read_unit(storage, folder)
    return None


def _conflict(present: UnitFiles | None, imported: UnitFiles) -> str:
    """How two finished records of a unit contradict each other; empty where they don't."""
    if present is None or present.record.status == "failed" or imported.record.status == "failed":
        return ""
    ours, theirs = present.record.metrics, imported.record.metrics
    if ours.items() <= theirs.items() or theirs.items() <= ours.items():
        return ""
    first, *_ = different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    more = f" and {len(different) - 1} more differ" if len(different) > 1 else " differs"
    return f"two finished records: {first}{more}, it is {ours.get(first)} here and {theirs.get(first)}"


def _due(present: UnitFiles | None, imported: UnitFiles, begun: bool) -> dict[str, bytes]:
    """Files to write, the record last: with it the unit is done. Beside an imported failure nothing where the unit has
    begun here: its curve goes with its checkpoints."""
    name = RECORD if imported.record.status == "finished" else FAILURE
    record = imported.files[name]
    if name == FAILURE and begun:
        imported = replace(imported, files={name: record})
    beside = {other: content for other, content in imported.files.items() if other != name}
    if present is not None and present.files.get(name) == record:
        return {other: content for other, content in beside.items() if other not in present.files}
    if present is not None and not _is_better(imported.record, present.record):
        return {}
    if name == RECORD:
        beside[IMPORTED] = json.dumps({"record": _digest(record)}).encode()
    return beside | {name: record}


def _is_better(imported: Record, present: Record) -> bool:
    if imported.status == present.status == "failed":
        return _age(imported) > _age(present)
    if imported.status == "finished" and present.status == "finished":
        # Of a record that has measured nothing only the start tells which training it is of.
        is_same = bool(present.metrics) or present.about.get("started") == imported.about.get("started")
        return is_same and present.metrics.items() < imported.metrics.items()
    return imported.status == "finished"


def _age(failure: Record) -> tuple[float, str]:
    """Orders failures, also of one time: imports in any order end with the same one."""
    return failure.about.get("ended", 0.0), failure.to_json()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def came_without_weights(storage: Storage, folder: str) -> bool:
    """Whether a unit's record was imported, and not replaced by training here since."""
    imported = storage.read_object(f"units/{folder}/{IMPORTED}").get("record")
    with suppress(FileNotFoundError):
        return imported is not None and imported == _digest(storage.read(f"units/{folder}/{RECORD}"))
    return False


def _import_plan(storage: Storage, plan: NamedFile, result: Imported) -> None:
    """Keep the imported plan if it has all units of the present one and more; else the present one."""
    present, study = _present_plan(storage, plan.name), plan.name.split("/")[1]
    if present == plan.content:
        return
    ours, theirs = (as_object(content).get("units", {}) for content in (present, plan.content))
    if not present or ours.keys() < theirs.keys():
        storage.write(plan.name, plan.content)
        result.files += 1
        if ours:
            result.notes.append(
                f"plan {study}: replaced by the imported one, with {len(theirs) - len(ours)} more units"
            )
    elif lacking := len(theirs.keys() - ours.keys()):
        result.notes.append(
            f"plan {study}: the one here is kept; it lacks {lacking} units of the imported one and has "
            f"{len(ours.keys() - theirs.keys())} others. The study's ablate command makes a plan with all of its own"
        )
    else:
        result.notes.append(f"plan {study}: the one here is kept; it has all units of the imported one")


def _present_plan(storage: Storage, name: str) -> bytes:
    """A plan as it is exported; empty where there is none that can be read."""
    with suppress(FileNotFoundError, ValueError):
        content = portable(storage.read(name))
        return content if "units" in as_object(content) else b""
    return b""


def _import_journal(storage: Storage, journal: NamedFile, result: Imported) -> None:
    """Keep the imported journal if it continues the present one (a journal only grows); else the present one."""
    name = journal.name.split("/")[1]
    place = search_place(storage, name, REPORTS)
    if _journal(storage, journal).startswith(journal.content):
        return
    try:
        place.hold()
        with place.transaction():
            if not journal.content.startswith(_journal(storage, journal)):
                result.notes.append(f"search {name}: the trials here are kept; the imported ones are others")
                return
            storage.write(journal.name, journal.content)
            result.files += 1
    except (ValueError, TimeoutError) as error:
        result.left.append(f"search {name}: {error}")
    finally:
        place.release()


def _journal(storage: Storage, journal: NamedFile) -> bytes:
    try:
        return storage.read(journal.name)
    except FileNotFoundError:
        return b""
