"""Deleting what no study needs any more, by one rule.

Of a unit that is finished and tested, and whose chosen weights can be read whole: the checkpoints to resume from. Of
units that nobody holds: temporary files, and checkpoints and uploads that never became whole, older than a limit. Never
records, chosen weights or logs, and nothing of a unit that a process holds.
"""

from dataclasses import dataclass
from functools import partial

from orchestrator.record import Record
from orchestrator.storage.backends.base import Entry, Removal
from orchestrator.storage.backends.workspace import GROUPS
from orchestrator.storage.ledger import Ledger, Place
from orchestrator.storage.usage import key_of
from ups_model.training.run_folder import STATE, verify_checkpoint


@dataclass(frozen=True)
class Swept:
    """What became of one unit."""

    removed: tuple[Removal, ...] = ()
    note: str = ""
    """Why something that could go stays; empty where nothing does."""
    failed: bool = False
    """Whether that is an error of the storage."""


def sweep_unit(ledger: Ledger, folder: str, older_than: float, dry_run: bool) -> Swept:
    """Delete what the rule allows of one unit.

    Args:
        older_than: seconds; younger leftovers may belong to somebody.
        dry_run: only say it.

    Raises:
        OSError: the storage doesn't answer, or can't be written to.
    """
    storage, place = ledger.storage, f"units/{folder}"
    removals, note = _removals(ledger, folder, older_than)
    if not removals:
        return Swept(note=note)
    if storage.claimed(place):
        return Swept(note="held by a process; left as it is")
    if dry_run:
        return Swept(tuple(removals), note)
    with storage.claim(place) as claim:
        if not claim:
            return Swept(note="held by a process; left as it is")
        removals, note = _removals(ledger, folder, older_than)  # Again: it may have changed before the claim.
        for removal in removals:
            claim.check()
            removal.remove()
    return Swept(tuple(removals), note)


def sweep_rest(ledger: Ledger, older_than: float, dry_run: bool) -> Swept:
    """Old temporary files of studies and searches, and what a killed deletion has left of units."""
    removals = [*_leftovers(ledger, "studies", older_than), *_leftovers(ledger, "searches", older_than)]
    removals += [left for left in ledger.storage.strays("units") if left.age > older_than]
    for removal in () if dry_run else removals:
        removal.remove()
    return Swept(tuple(removals))


def _leftovers(ledger: Ledger, place: str, older_than: float) -> list[Removal]:
    return [left for left in ledger.storage.leftovers(place) if left.age > older_than]


def _removals(ledger: Ledger, folder: str, older_than: float) -> tuple[list[Removal], str]:
    """What goes of a unit, and why something that could go stays."""
    removals = _leftovers(ledger, f"units/{folder}", older_than)
    checkpoints = checkpoints_of(ledger, folder)

    def remove(name: str, why: str) -> None:
        size, age = sum(entry.size for entry in checkpoints[name]), min(entry.age for entry in checkpoints[name])
        removals.append(Removal(name, size, age, partial(ledger.storage.remove, name), why))

    for name, entries in checkpoints.items():
        whole = any(entry.name == f"{name}/{STATE}" for entry in entries)
        if not whole and min(entry.age for entry in entries) > older_than:
            remove(name, "half a checkpoint")
    resume = [name for name in checkpoints if name.startswith(f"units/{folder}/checkpoints/")]
    record = ledger.read([Place(key_of(folder), folder)])[key_of(folder)] if resume else None
    if record is None or record.status != "finished" or not record.tested:
        return removals, ""
    if fault := weights_fault(ledger, folder, record):
        return removals, f"its chosen weights can't be read, so its checkpoints stay ({fault})"
    broken = {removal.name for removal in removals}
    for name in resume:
        if name not in broken:
            remove(name, "the unit is finished and tested")
    return removals, ""


def weights_fault(ledger: Ledger, folder: str, record: Record) -> str:
    """Why the chosen weights of a finished unit can't be used; empty where they are whole."""
    if not record.checkpoint:
        return "its record names none"
    return checkpoint_fault(ledger, f"units/{folder}/{record.checkpoint}")


def checkpoint_fault(ledger: Ledger, place: str) -> str:
    """Why a checkpoint can't be used, all of it read; empty where it is whole. OSError where the storage fails."""
    with ledger.storage.local(place) as folder:
        try:
            verify_checkpoint(folder)
        except ValueError as error:
            return str(error).replace(str(folder), ledger.storage.where(place))
    return ""


def checkpoints_of(ledger: Ledger, folder: str) -> dict[str, list[Entry]]:
    """The contents of each checkpoint of a unit, by its place."""
    checkpoints: dict[str, list[Entry]] = {}
    for entry in ledger.storage.entries(f"units/{folder}"):
        place, _, _ = entry.name.rpartition("/")
        parts = place.removeprefix(f"units/{folder}/").split("/")
        if len(parts) == 2 and parts[0] in GROUPS and not parts[1].startswith("."):
            checkpoints.setdefault(place, []).append(entry)
    return dict(sorted(checkpoints.items()))
