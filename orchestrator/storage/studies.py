"""Which studies and searches a storage has, and removing one with the units that nothing else needs."""

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.storage.ledger import CLAIM, OWNER, Ledger, Place
from orchestrator.storage.search_journal import JOURNAL, trials_begun
from orchestrator.storage.usage import key_of

TRIALS = "trials.csv"
CLAIMS = (CLAIM, OWNER, "claims")
"""What says in a unit's folder who holds it, in folders and on object stores."""


@dataclass(frozen=True)
class Work:
    """A study or search on storage."""

    kind: str
    """study or search."""
    name: str
    units: frozenset[str]
    """Folders."""
    trials: Mapping[str, int] | None = None
    """Of a search: number of trials by state; None where no table has them all: it is written when a call ends."""

    @property
    def place(self) -> str:
        """Its folder on storage."""
        return f"{'studies' if self.kind == 'study' else 'searches'}/{self.name}"


@dataclass(frozen=True)
class Removed:
    """What became of the removal of one study or search."""

    units: tuple[str, ...]
    """Folders that went."""
    kept: int
    """Units that others use."""
    held: tuple[str, ...]
    """Folders of units that a process holds; they stay, and so does the plan."""


def works(ledger: Ledger) -> list[Work]:
    """All studies and searches, by name. OSError where the storage doesn't answer."""
    studies = [
        Work("study", name, frozenset(unit.folder for unit in plan.units.values()))
        for name, plan in ledger.studies().items()
    ]
    folders = {key_of(folder): folder for folder in ledger.storage.children("units")}
    return studies + [_search(ledger, name, folders) for name in ledger.storage.children("searches")]


def _search(ledger: Ledger, name: str, folders: Mapping[str, str]) -> Work:
    try:
        text = ledger.storage.read(f"searches/{name}/{TRIALS}").decode("utf-8")
        begun = trials_begun(ledger.storage.read(f"searches/{name}/{JOURNAL}"))
    except FileNotFoundError:
        return Work("search", name, frozenset())
    rows = list(csv.DictReader(io.StringIO(text)))
    if len(rows) < begun:
        return Work("search", name, frozenset())
    units = {folders[key] for row in rows for key in row["units"].split() if key in folders}
    return Work("search", name, frozenset(units), Counter(row["state"] for row in rows))


def states_of(ledger: Ledger, work: Work) -> dict[str, int]:
    """Number of its units by state: finished, failed, running, open."""
    places = [Place(key_of(folder), folder) for folder in sorted(work.units)]
    records = ledger.read(places)
    held = ledger.storage.each(lambda place: ledger.storage.claimed(f"units/{place.folder}"), places)
    counts = dict.fromkeys(("finished", "failed", "running", "open"), 0)
    for place, is_held in zip(places, held, strict=True):
        record = records[place.key]
        if record is not None and record.status == "finished":
            counts["finished"] += 1
        else:
            counts["running" if is_held else "failed" if record is not None else "open"] += 1
    return counts


def remove(ledger: Ledger, name: str, dry_run: bool) -> Removed:
    """Remove a study's or search's plan, report and journal, and those of its units that no other uses.

    Args:
        name: of a plan or search, as `works` has it.
        dry_run: only say it.

    Raises:
        ValueError: there is none of this name, or the units of another one aren't known.
        OSError: the storage doesn't answer, or can't be written to.
    """
    every = works(ledger)
    unread = set(ledger.storage.children("studies")) - {work.name for work in every if work.kind == "study"}
    if unread:
        raise ValueError(
            f"the plan of {min(unread)} can't be read, so nobody can tell which units it needs; run its ablate command "
            f"again, or delete {ledger.storage.where(f'studies/{min(unread)}')} by hand: its units then stay"
        )
    wanted = [work for work in every if work.name == name]
    if not wanted:
        raise ValueError(f"the storage has no {name!r}; it has {', '.join(work.name for work in every) or 'none'}")
    (work, *_), others = wanted, [other for other in every if other.name != name]
    if unknown := [other.name for other in (*others, work) if other.kind == "search" and other.trials is None]:
        raise ValueError(
            f"the units of the search {unknown[0]} are not known before its end; run its command again, or "
            f"delete {ledger.storage.where(f'searches/{unknown[0]}')} by hand: its units then stay"
        )
    used = frozenset[str]().union(*(other.units for other in others))
    own = sorted(work.units - used)
    there = [folder for folder in own if next(ledger.storage.entries(f"units/{folder}"), None) is not None]
    held = tuple(folder for folder in there if ledger.storage.claimed(f"units/{folder}"))
    gone = []
    for folder in () if dry_run or held else there:
        if _remove_unit(ledger, folder):
            gone.append(folder)
        else:
            held = (*held, folder)
    if not held and not dry_run:
        ledger.storage.remove(work.place)  # Last: as long as it is there, the same call goes on.
    return Removed(tuple(there if dry_run and not held else gone), len(work.units & used), held)


def _remove_unit(ledger: Ledger, folder: str) -> bool:
    """Whether a unit's files are gone; not where a process has taken it just now. On an object store its claims stay:
    without the older ones nobody could tell which is the newest."""
    place = f"units/{folder}"
    with ledger.storage.claim(place) as claim:
        if not claim:
            return False
        # The record first: half a unit is none.
        names = [entry.name for entry in ledger.storage.entries(place)]
        for name in sorted(names, key=lambda name: (not name.endswith("record.json"), name)):
            if name.removeprefix(f"{place}/").split("/")[0] not in CLAIMS:
                claim.check()
                ledger.storage.delete(name)
        if ledger.storage.root is not None:
            ledger.storage.remove(place)  # While it is held: nobody can begin in between.
    return True
