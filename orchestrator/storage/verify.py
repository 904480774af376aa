"""Reading everything, to find what is damaged before a study needs it."""

from dataclasses import dataclass, replace

from orchestrator.record import Record
from orchestrator.storage.backends.base import as_object
from orchestrator.storage.backends.workspace import RESULT
from orchestrator.storage.gc import checkpoint_fault, checkpoints_of, weights_fault
from orchestrator.storage.ledger import PLAN, RECORD, Ledger, read_records
from orchestrator.storage.merge import came_without_weights
from orchestrator.storage.usage import key_of
from ups_model.training.run_folder import STATE


@dataclass(frozen=True)
class Damage:
    """Something that can't be read."""

    name: str
    what: str
    then: str
    """What the next run of a study does about it."""


@dataclass(frozen=True)
class Verified:
    """Of one unit."""

    damages: tuple[Damage, ...] = ()
    checkpoints: int = 0
    """That were read whole or found damaged."""
    held: bool = False
    """A process is at it, so its checkpoints were not looked at."""
    imported: bool = False
    """Its record was imported, and has no weights here."""


def verify_unit(ledger: Ledger, folder: str) -> Verified:
    """Read a unit's records, chosen weights and checkpoints. OSError where the storage doesn't answer."""
    place = f"units/{folder}"
    record, damages = _records(ledger, folder)
    if ledger.storage.claimed(place):
        return Verified(tuple(damages), held=True)
    checkpoints = checkpoints_of(ledger, folder)
    whole = {name: f"{name}/{STATE}" in {entry.name for entry in entries} for name, entries in checkpoints.items()}
    faults = {}
    for name in (name for name, has_state in whole.items() if has_state):
        try:
            faults[name] = checkpoint_fault(ledger, name)
        except OSError as error:
            if ledger.storage.root is None:  # The store doesn't answer, which is no matter of one checkpoint.
                raise
            then = "what needs it fails until it can be read; delete it to have it made again"
            damages.append(Damage(name, f"can't be read ({error})", then))
    resume = [name for name in faults if name.startswith(f"{place}/checkpoints/")]
    usable = [name for name in resume if not faults[name]]
    finished = record is not None and record.status == "finished"
    chosen = f"{place}/{record.checkpoint}" if record is not None and record.checkpoint else ""
    imported = finished and not whole.get(chosen) and came_without_weights(ledger.storage, folder)
    # There is none, or it has no state. A record names none while its unit is trained again.
    if record is not None and finished and chosen and not whole.get(chosen) and not imported:
        faults[chosen] = weights_fault(ledger, folder, record)
    for name, fault in faults.items():
        if fault:
            damages.append(Damage(name, fault, _then(name == chosen and finished, finished, usable, name)))
    if damages and record is None and any(damage.name.endswith(f"/{RECORD}") for damage in damages):
        damages[0] = replace(damages[0], then=_then_without_record(ledger, folder, faults, usable))
    return Verified(tuple(damages), len(faults), imported=imported)


def _then(chosen: bool, finished: bool, usable: list[str], name: str) -> str:
    if chosen:
        how = f"from {usable[-1].rsplit('/', 1)[-1]}" if usable else "by training the unit again"
        return f"the next call makes them again, {how}, if a unit that isn't done starts from them; else nothing"
    if finished:
        return "nothing: the unit is finished and has its chosen weights"
    older = [step for step in usable if step < name] if "/checkpoints/" in name else usable
    return f"the next call goes on from {older[-1].rsplit('/', 1)[-1]}" if older else "the next call begins anew"


def _then_without_record(ledger: Ledger, folder: str, faults: dict[str, str], usable: list[str]) -> str:
    """What becomes of a unit without a readable record depends on what else it has."""
    result = ledger.storage.read_object(f"units/{folder}/{RESULT}")
    weights = f"units/{folder}/best/{str(result.get('checkpoint', '')).rsplit('/', 1)[-1]}"
    if result.get("status") == "finished" and faults.get(weights, "absent") == "":
        return "the next call makes it again from result.json, without training"
    if usable:
        return f"the next call goes on from {usable[-1].rsplit('/', 1)[-1]}"
    return "the next call trains the unit again"


def _records(ledger: Ledger, folder: str) -> tuple[Record | None, list[Damage]]:
    readings = dict(read_records(ledger.storage, key_of(folder), folder))
    damages = [
        Damage(file, str(fault), "the next call writes it again")
        for file, fault in readings.items()
        if isinstance(fault, ValueError)
    ]
    return next((record for record in readings.values() if isinstance(record, Record)), None), damages


def verify_studies(ledger: Ledger) -> list[Damage]:
    """Saved plans that can't be read."""
    damages = []
    for name in ledger.storage.children("studies"):
        file = f"studies/{name}/{PLAN}"
        try:
            content = as_object(ledger.storage.read(file))
        except FileNotFoundError:
            continue
        if "units" not in content:
            damages.append(Damage(file, "it is not a plan", "the study's ablate command writes it again"))
    return damages
