"""Deleting what no study needs any more, by one rule.

Of a unit that is finished and tested, and whose chosen weights can be read whole: the checkpoints to resume from. Of
units that nobody holds: temporary files, and checkpoints and uploads that never became whole, older than a limit. Never
records, chosen weights or logs, and nothing of a unit that a process holds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from orchestrator.record import Record
from orchestrator.storage.backends.base import Entry
from orchestrator.storage.backends.workspace import GROUPS
from orchestrator.storage.ledger import Ledger, Place
from orchestrator.storage.usage import key_of
from ups_model.training.checkpoint import load_checkpoint
from ups_model.training.run_folder import STATE


@dataclass(frozen=True)
class Removal:
    """Something that goes."""

    name: str
    size: int
    why: str
    remove: Callable[[], None]


@dataclass(frozen=True)
class Swept:
    """What became of one unit."""

    removed: tuple[Removal, ...] = ()
    note: str = ""
    """Why something that could go stays; empty where nothing does."""


def sweep_unit(ledger: Ledger, folder: str, older_than: float, dry_run: bool) -> Swept:
    """Delete what the rule says of one unit.

    Args:
        older_than: seconds; younger leftovers may belong to somebody.
        dry_run: only say it.

    Raises:
        OSError: the storage doesn't answer, or can't be written to.
    """
    storage, place = ledger.storage, f"units/{folder}"
    going, note = _going(ledger, folder, older_than)
    if not going:
        return Swept(note=note)
    if storage.claimed(place):
        return Swept(note="held by a process; left as it is")
    if dry_run:
        return Swept(tuple(going), note)
    with storage.claim(place) as claim:
        if not claim:
            return Swept(note="held by a process; left as it is")
        going, note = _going(ledger, folder, older_than)  # Again: somebody may have been at it since.
        for one in going:
            claim.check()
            one.remove()
    return Swept(tuple(going), note)


def sweep_rest(ledger: Ledger, older_than: float, dry_run: bool) -> Swept:
    """Old temporary files of studies and searches."""
    found = [
        Removal(left.name, left.size, "left by a writer that was killed", left.remove)
        for place in ("studies", "searches")
        for left in ledger.storage.leftovers(place)
        if left.age > older_than
    ]
    for one in () if dry_run else found:
        one.remove()
    return Swept(tuple(found))


def _going(ledger: Ledger, folder: str, older_than: float) -> tuple[list[Removal], str]:
    storage, place = ledger.storage, f"units/{folder}"
    found = [
        Removal(left.name, left.size, "left by a writer that was killed", left.remove)
        for left in storage.leftovers(place)
        if left.age > older_than
    ]
    checkpoints = _checkpoints(list(storage.entries(place)), place)
    for name, entries in checkpoints.items():
        whole = any(entry.name == f"{name}/{STATE}" for entry in entries)
        if not whole and min(entry.age for entry in entries) > older_than:
            found.append(_checkpoint(ledger, name, entries, "half a checkpoint"))
    resume = {name: entries for name, entries in checkpoints.items() if name.startswith(f"{place}/checkpoints/")}
    note = ""
    taken = {one.name for one in found}
    if resume:
        record = ledger.read([Place(key_of(folder), folder)])[key_of(folder)]
        if record is not None and record.status == "finished" and record.tested:
            if fault := weights_fault(ledger, folder, record):
                note = f"its chosen weights can't be read, so its checkpoints stay ({fault})"
            else:
                found += [
                    _checkpoint(ledger, name, entries, "the unit is finished and tested")
                    for name, entries in resume.items()
                    if name not in taken
                ]
    return found, note


def weights_fault(ledger: Ledger, folder: str, record: Record) -> str:
    """Why the chosen weights of a finished unit can't be used; empty where they are whole."""
    if not record.checkpoint:
        return "its record names none"
    return checkpoint_fault(ledger, f"units/{folder}/{record.checkpoint}")


def checkpoint_fault(ledger: Ledger, place: str) -> str:
    """Why a checkpoint can't be used, all of it read; empty where it is whole. OSError where the storage fails."""
    with ledger.storage.local(place) as folder:
        try:
            load_checkpoint(folder)
        except ValueError as error:
            return str(error).replace(str(folder), ledger.storage.where(place))
    return ""


def checkpoints_of(ledger: Ledger, folder: str) -> dict[str, list[Entry]]:
    """The contents of each checkpoint of a unit, by its place."""
    return _checkpoints(list(ledger.storage.entries(f"units/{folder}")), f"units/{folder}")


def _checkpoints(entries: list[Entry], place: str) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        parts = entry.name.removeprefix(f"{place}/").split("/")
        if len(parts) == 3 and parts[0] in GROUPS and not parts[1].startswith("."):
            found.setdefault(f"{place}/{parts[0]}/{parts[1]}", []).append(entry)
    return dict(sorted(found.items()))


def _checkpoint(ledger: Ledger, name: str, entries: list[Entry], why: str) -> Removal:
    return Removal(name, sum(entry.size for entry in entries), why, lambda: ledger.storage.remove(name))


def units_of(ledger: Ledger) -> Iterator[str]:
    """Folders of all units."""
    return iter(ledger.storage.children("units"))
