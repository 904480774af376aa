"""The ledger: one folder a unit on storage, one record a unit. It alone decides what is done.

    <storage>/units/<slug>-<key>/   checkpoints/ best/ progress.jsonl log.txt result.json, and at the end record.json
                                    outcomes.npz beside a record, imported.json beside one that came without weights
    <storage>/studies/<name>/       plan.json, and the report
    <storage>/claims/<training>/    who trains what units have in common that differ in how they are measured

A record is there whole or not at all. A unit is trained under a claim, which ends with the process that holds it:
nobody waits for the dead, and two drivers on one storage don't train one unit at a time. What kind of storage it is,
`orchestrator.storage` knows; names are asked for one by one and nothing rests on a listing.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from orchestrator.planning.plan import Plan, Unit
from orchestrator.planning.plan_file import PlanFile
from orchestrator.record import Record
from orchestrator.storage import Claim, Storage, Workspace, storage_at
from orchestrator.storage.backends.local import CLAIM, OWNER, FolderStorage
from orchestrator.storage.backends.workspace import download_all, scratch
from orchestrator.storage.report_files import replace_files
from ups_model.evaluation.metric_names import OUTCOMES
from ups_model.training.progress import read_rows
from ups_model.training.run_folder import STATE

__all__ = ["CLAIM", "FAILURE", "LOG", "OWNER", "RECORD", "Ledger", "Record"]

logger = logging.getLogger(__name__)

RECORD, FAILURE, LOG, PROGRESS, PLAN = "record.json", "failure.json", "log.txt", "progress.jsonl", "plan.json"
CLAIMED = "claims"
"""Folder of the claims on trainings."""
IMPORTED = "imported.json"
"""Which record was imported (`orchestrator.storage.merge`)."""
REPORTS = Path("runs/reports")
"""Where reports are written that are then brought to an object store."""


class Stored(Protocol):
    """What has a record: a unit, or as much of it as says where."""

    @property
    def key(self) -> str: ...
    @property
    def folder(self) -> str:
        """Its name below `units/`."""


class Place(NamedTuple):
    """Of a unit of which nothing else is known."""

    key: str
    folder: str


class Ledger:
    """Records, checkpoints and studies on one storage."""

    def __init__(self, storage: Storage | Path) -> None:
        self.storage: Storage = FolderStorage(storage) if isinstance(storage, Path) else storage
        self.address = self.storage.address
        """What `at` makes the same ledger of, on any machine that reaches it."""
        self.root = self.storage.root
        """Its folder; None on an object store."""
        self._remembered: dict[str, Record | None] = {}
        self._copies = ExitStack()

    @classmethod
    def at(cls, storage: str) -> Self:
        """The ledger at an address, without a look at it. ValueError where that names nothing that can be one."""
        return cls(storage_at(storage))

    @classmethod
    def open(cls, storage: str, create: bool = True) -> Self:
        """The ledger at a path, file:// or s3:// address.

        Raises:
            ValueError: the storage can't be reached or written to, or (without `create`) there is none.
        """
        ledger = cls.at(storage)
        ledger.storage.check(create)
        return ledger

    def fault(self) -> str:
        """Why units can't be kept there now, empty where they can."""
        try:
            self.storage.check(create=True)
        except ValueError as error:
            return str(error)
        return ""

    def folder(self, unit: Unit) -> Path:
        """Where a unit's files lie. ValueError on an object store: there is no such folder."""
        return self._own() / "units" / unit.folder

    def folders(self) -> list[Path]:
        """What `open` makes."""
        return [] if self.root is None else [self.root / "units", self.root / "studies"]

    def _own(self) -> Path:
        if self.root is None:
            raise ValueError(f"{self.address} is no folder; ask the ledger for a unit's record, weights or workspace")
        return self.root

    def where(self, unit: Unit, name: str = "") -> str:
        """The address of a unit's file, for people."""
        return self.storage.where(f"{_place(unit)}/{name}".rstrip("/"))

    def read(self, units: Iterable[Stored]) -> dict[str, Record | None]:
        """By key, the finished record of each unit, else that of its last failure, else None. Many requests at a time.

        A damaged record counts as none. OSError where the storage doesn't answer: no reason to train a unit twice.
        """
        folders = {unit.key: unit.folder for unit in units}
        if folders.keys() <= self._remembered.keys():
            return {key: self._remembered[key] for key in folders}
        records = self.storage.each(lambda pair: self._read(*pair, (RECORD, FAILURE)), folders.items())
        return dict(zip(folders, records, strict=True))

    def done(self, unit: Stored) -> Record | None:
        """The finished record of a unit; OSError as `read`."""
        return _finished(self._read(unit.key, unit.folder, (RECORD,)))

    def record(self, unit: Stored) -> Record | None:
        """As `read`, of one unit, for whoever only looks: a storage that doesn't answer counts as no record."""
        return self._tolerant(unit, (RECORD, FAILURE))

    def finished(self, unit: Stored) -> Record | None:
        """As `done`, for whoever only looks: a storage that doesn't answer counts as no record."""
        return _finished(self._tolerant(unit, (RECORD,)))

    @contextmanager
    def remembering(self, units: Iterable[Stored]) -> Iterator[None]:
        """While it lasts, `read`, `record` and `finished` answer for these units from one reading of them all at its
        start: one request after another would take minutes for a large plan. OSError as `read`."""
        self._remembered = self.read(units)
        try:
            yield
        finally:
            self._remembered = {}

    def _tolerant(self, unit: Stored, names: tuple[str, ...]) -> Record | None:
        if unit.key in self._remembered:
            return self._remembered[unit.key]
        try:
            return self._read(unit.key, unit.folder, names)
        except OSError as error:
            where = self.storage.where(f"units/{unit.folder}")
            logger.warning("%s can't be read (%s): the unit counts as not done", where, error)
            return None

    def _read(self, key: str, folder: str, names: tuple[str, ...]) -> Record | None:
        for file, record in read_records(self.storage, key, folder, names):
            if isinstance(record, Record):
                return record
            logger.warning("%s can't be read (%s): the unit counts as not done", self.storage.where(file), record)
        return None

    def write(self, unit: Unit, record: Record) -> None:
        """Put a record on storage. A finished one stays: it is never replaced by a failure."""
        name = FAILURE if record.status == "failed" else RECORD
        self.storage.write(f"{_place(unit)}/{name}", record.to_json().encode("utf-8"))
        if record.status == "finished":
            with suppress(OSError):
                self.storage.delete(f"{_place(unit)}/{FAILURE}")

    def written(self, unit: Unit) -> float | None:
        """Age in seconds of a unit's record; None where it has none."""
        entries = [self.storage.look(f"{_place(unit)}/{name}") for name in (RECORD, FAILURE)]
        return next((entry.age for entry in entries if entry is not None), None)

    def weights(self, unit: Unit, record: Record) -> Path:
        """Folder of a finished unit's chosen weights, which may be missing or damaged. Of an object store it is a
        copy on this machine, good until the next call; OSError where the store doesn't answer."""
        if self.root is not None:
            return self.folder(unit) / record.checkpoint
        self._copies.close()
        folder = self._copies.enter_context(scratch(self.address)) / unit.folder / record.checkpoint
        place = f"{_place(unit)}/{record.checkpoint}"
        state = self.storage.read_object(f"{place}/{STATE}")
        names = [STATE, *(name for name in state.get("sha256", {}) if Path(name).name == name)]
        with suppress(FileNotFoundError):  # The folder then lacks it, as it would on a disk.
            download_all(self.storage, place, [f"{place}/{name}" for name in names], folder)
        return folder

    def has_weights(self, unit: Unit, record: Record) -> bool:
        """Whether the chosen weights of a finished unit lie where the record says; their content is not read."""
        if not record.checkpoint:
            return False
        try:
            return self.storage.look(f"{_place(unit)}/{record.checkpoint}/{STATE}") is not None
        except OSError as error:
            logger.warning("%s: the storage doesn't answer (%s); its weights count as there", unit.name, error)
            return True  # Who starts from them looks again.

    @contextmanager
    def claim(self, unit: Unit) -> Iterator[Claim]:
        """Hold a unit without waiting; the claim is false where another process does, or trains another unit to the
        same weights. Ends with the process at the latest, on an object store after the lease at the latest."""
        with ExitStack() as held:
            claims = []
            for place in _places(unit):
                claims.append(held.enter_context(self.storage.claim(place)))
                if not claims[-1]:
                    break
            yield claims[0] if claims[-1] else claims[-1]

    def claimed(self, unit: Unit) -> bool:
        """Whether some process holds the unit now; if the storage doesn't answer it counts as held."""
        return self._claimed(unit, _places(unit)[:1])

    def is_free(self, unit: Unit) -> bool:
        """Whether no process holds the unit now, or another one of its training; as `claimed` without an answer."""
        return not self._claimed(unit, _places(unit))

    def _claimed(self, unit: Unit, places: Iterable[str]) -> bool:
        try:
            return any(map(self.storage.claimed, places))
        except OSError as error:
            logger.warning("%s: the storage doesn't tell who holds it (%s)", unit.name, error)
            return True

    def owner(self, unit: Unit) -> str:
        """Who holds a unit or its training, or last held the unit, for people."""
        places = _places(unit)
        owner = self.storage.owner(next((place for place in places if self._claimed(unit, [place])), places[0]))
        return f"process {owner['pid']} on {owner['host']}" if {"pid", "host"} <= owner.keys() else "another process"

    def workspace(self, unit: Unit, claim: Claim) -> AbstractContextManager[Workspace]:
        """The folder that a unit that is held is trained in, which has what is needed to go on with it."""
        return self.storage.workspace(_place(unit), claim)

    def progress(self, unit: Unit) -> list[dict[str, float]]:
        """What a unit has reported so far: rows with "step", "time" and metrics. On an object store they come with the
        checkpoints."""
        if self.root is not None:
            return read_rows(self.folder(unit) / PROGRESS)
        with tempfile.TemporaryDirectory() as folder, suppress(FileNotFoundError):
            file = Path(folder) / PROGRESS
            file.write_bytes(self.storage.read(f"{_place(unit)}/{PROGRESS}"))
            return read_rows(file)
        return []

    def progress_tag(self, unit: Unit) -> str:
        """Another one whenever a unit has reported more; empty where it has reported nothing."""
        entry = self.storage.look(f"{_place(unit)}/{PROGRESS}")
        return entry.tag if entry is not None else ""

    def study(self, plan: Plan | str) -> Path:
        """Folder of a study's plan and report. ValueError on an object store: there is no such folder."""
        return self._own() / "studies" / _name(plan)

    def report_folder(self, plan: Plan | str) -> Path:
        """Where a study's report is written unless told otherwise; of an object store, on this machine."""
        return REPORTS / _name(plan) if self.root is None else self.study(plan) / "report"

    def publish_report(self, plan: Plan | str, files: Iterable[Path], out: Path) -> str:
        """Bring the files of a report in `out` to an object store, in place of an earlier report's.

        Args:
            files: the one that refers to the others comes first.

        Returns:
            Their address, empty where the storage is a folder. OSError where it can't be written to.
        """
        if self.root is not None:
            return ""
        place = f"studies/{_name(plan)}/report"
        replace_files(self.storage, place, {file.relative_to(out).as_posix(): file.read_bytes() for file in files})
        return self.storage.where(place)

    def outcomes(self, unit: Stored) -> bytes | None:
        """The outcomes.npz of a unit, whichever record it belongs to; None where there is none."""
        with suppress(FileNotFoundError):
            return self.storage.read(f"units/{unit.folder}/{OUTCOMES}")
        return None

    def save_plan(self, plan: PlanFile, sources: Mapping[str, bytes] | None = None) -> None:
        """Keep what the report needs of a plan, and beside it texts that it was made from; an empty one is removed."""
        for name, content in (sources or {}).items():
            file = f"studies/{plan.name}/{name}"
            if content:
                self.storage.write(file, content)
            elif self.storage.look(file) is not None:
                self.storage.delete(file)
        self.storage.write(f"studies/{plan.name}/{PLAN}", plan.to_json().encode("utf-8"))

    def studies(self, name: str | None = None) -> dict[str, PlanFile]:
        """Saved plans by the name of their folder; `name` is looked for whether or not it is listed."""
        names = sorted({*self.storage.children("studies"), *([name] if name and "/" not in name else [])})
        plans = zip(names, self.storage.each(self.plan, names), strict=True)
        return {name: plan for name, plan in plans if plan is not None}

    def plan(self, name: str) -> PlanFile | None:
        """The saved plan of this name; None where there is none that can be read."""
        file = f"studies/{name}/{PLAN}"
        try:
            return PlanFile.from_json(self.storage.read(file))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            where = self.storage.where(file)
            logger.warning("%s can't be read (%s); run the study's ablate command again", where, error)
            return None


def read_records(
    storage: Storage, key: str, folder: str, names: Iterable[str] = (RECORD, FAILURE)
) -> Iterator[tuple[str, Record | ValueError]]:
    """Each of these files of a unit's folder that is there: its name on storage, and its record or what is wrong."""
    for name in names:
        file = f"units/{folder}/{name}"
        try:
            record = Record.from_json(storage.read(file).decode("utf-8"), key)
        except FileNotFoundError:
            continue
        except ValueError as error:
            yield file, error
        else:
            yield file, record


def _finished(record: Record | None) -> Record | None:
    return record if record is not None and record.status == "finished" else None


def _place(unit: Unit) -> str:
    return f"units/{unit.folder}"


def _places(unit: Unit) -> list[str]:
    """What is held while a unit runs: the unit, and its training, which other units may share."""
    return [_place(unit), *([f"{CLAIMED}/{unit.training_key}"] if unit.training_key else [])]


def _name(plan: Plan | str) -> str:
    return plan if isinstance(plan, str) else plan.name
