"""The indexes of trained weights and of trunks: which unit has those of a training key, of a trunk key.

    <storage>/trained/<training key>.json      {"folder": <the unit's>, "key": <the unit's>}
    <storage>/trunks/<trunk key>.json          the same, and "step": <its steps>

Units that differ only in how they are measured have one training key. The first to finish is in the index; the others
take its weights and are measured. Units that differ only in how long they train, and whose rate doesn't depend on that
until it decays, have one trunk key; a longer one begins from the longest trunk that it can. An entry is a hint: whoever
follows it looks at the unit's record and weights.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.planning.plan import Unit
from orchestrator.record import Record
from orchestrator.storage.ledger import Ledger, Place
from orchestrator.storage.source_check import Policy, is_trained_otherwise
from orchestrator.storage.usage import INDEX, TRUNKS
from ups_model.training.run_folder import STATE, TRUNK, checkpoint_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Twin:
    """A finished unit with the weights that another one would be trained to."""

    folder: str
    record: Record

    @property
    def weights(self) -> str:
        """Place of its chosen weights on storage."""
        return f"units/{self.folder}/{self.record.checkpoint}"


def find_twin(ledger: Ledger, unit: Unit, policy: Policy = "refuse") -> Twin | None:
    """The unit of the index whose weights this one can take; None where there is none. Weights aren't read.

    Raises:
        OSError: the storage doesn't answer.
    """
    if not unit.training_key:
        return None
    twin = _other(ledger, unit, ledger.storage.read_object(_name(unit)), policy)
    if twin is None or not twin.record.checkpoint:
        return None
    return twin if ledger.storage.look(f"{twin.weights}/{STATE}") is not None else None


def _other(ledger: Ledger, unit: Unit, entry: Mapping[str, Any], policy: Policy = "refuse") -> Twin | None:
    """The finished unit that an entry of an index names; None where it is no other, or other code has trained it."""
    folder, key = str(entry.get("folder", "")), str(entry.get("key", ""))
    if not key or key == unit.key or "/" in folder:
        return None
    record = ledger.done(Place(key, folder))
    if record is None or (is_trained_otherwise(record) and policy != "accept"):
        return None
    return Twin(folder, record)


def enter(ledger: Ledger, unit: Unit, looked: bool = False) -> None:
    """Put a finished unit in the index, unless another one stands there whose weights can be taken.

    Args:
        looked: none stood there when the unit began.

    A storage that can't be written to leaves the index as it is: the unit is done without.
    """
    if not unit.training_key:
        return
    try:
        if looked or find_twin(ledger, unit) is None:
            _write(ledger, _name(unit), unit)
    except OSError as error:
        logger.warning("%s is not in the index of trained weights (%s)", unit.name, error)


def find_trunk(ledger: Ledger, unit: Unit) -> str:
    """Place of the checkpoint of a shorter unit that this one continues; empty where there is none.

    Raises:
        OSError: the storage doesn't answer.
    """
    entry = ledger.storage.read_object(_trunk_name(unit)) if unit.trunk[0] else {}
    step = entry.get("step", 0)
    other = _other(ledger, unit, entry) if 0 < step <= unit.trunk[1] else None
    if other is None:
        return ""
    place = checkpoint_folder(Path("units", other.folder, TRUNK), step).as_posix()
    return place if ledger.storage.look(f"{place}/{STATE}") is not None else ""


def enter_trunk(ledger: Ledger, unit: Unit) -> None:
    """Put a finished unit in the index of trunks, unless a longer one stands there. As `enter` where that fails."""
    key, step = unit.trunk
    if not key:
        return
    try:
        if ledger.storage.read_object(_trunk_name(unit)).get("step", 0) <= step:
            _write(ledger, _trunk_name(unit), unit, step=step)
    except OSError as error:
        logger.warning("%s is not in the index of trunks (%s)", unit.name, error)


def _write(ledger: Ledger, name: str, unit: Unit, **more: int) -> None:
    entry = {"folder": unit.folder, "key": unit.key, **more}
    ledger.storage.write(name, (json.dumps(entry) + "\n").encode("utf-8"))


def with_twin(ledger: Ledger, units: Iterable[Unit], policy: Policy) -> list[str]:
    """Keys of those units that only have to be measured. OSError where the storage doesn't answer."""
    every = list(units)
    twins = ledger.storage.each(lambda unit: find_twin(ledger, unit, policy), every)
    return [unit.key for unit, twin in zip(every, twins, strict=True) if twin is not None]


def _trunk_name(unit: Unit) -> str:
    return f"{TRUNKS}/{unit.trunk[0]}.json"


def _name(unit: Unit) -> str:
    return f"{INDEX}/{unit.training_key}.json"
