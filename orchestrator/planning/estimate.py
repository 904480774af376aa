"""How large a plan is: parameters and operations of its units, and the time they will take, measured where it was."""

import heapq
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.planning.plan import Unit, chain_seconds
from orchestrator.planning.sizes import operations_of
from orchestrator.record import Record
from ups_model.data.format.clip_set import ClipSet

if TYPE_CHECKING:  # Imported where needed: a plan without estimates needs no torch.
    pass

GUESSED_RATE = 12e9
"""Operations a second of a unit on one processor, where nothing has been measured yet: a guess within a factor of two
on the machines that we have seen."""
GUESSED_GPU_RATE = 10e12
"""The same of a GPU. No GPU has been measured: a tenth of what the matrix units of a V100 do at most."""
GUESSED_START = 5.0
"""Seconds that a unit needs before its first step."""


@dataclass(frozen=True)
class Estimate:
    """What a plan costs."""

    seconds: Mapping[str, float]
    """By unit key."""
    measured: int
    """Units whose own time is known; 0 means that all times are guesses from operations."""
    total: float
    """Seconds of all units together."""
    left: float
    """Seconds of those that aren't finished."""
    makespan: float
    """Seconds from now to the end, on `slots`."""
    slots: int
    rate: float
    """Operations a second that times rest on where they weren't measured."""


def estimate(
    units: Mapping[str, Unit],
    sets: Mapping[str, ClipSet],
    records: Mapping[str, Record],
    slots: int,
    gpus_per_unit: int = 0,
) -> Estimate:
    """Times of all units.

    A finished unit's time is its own; of another one with the same training it's that one's; else operations over the
    median rate of the units that were measured.

    Args:
        gpus_per_unit: for a plan on GPUs, to which times measured on processors say nothing; 0 for any other.
    """
    own = {
        key: _seconds(records[key])
        for key in units
        if key in records and _seconds(records[key]) and not (gpus_per_unit and _is_of_cpu(records[key]))
    }
    alike: dict[str, list[float]] = {}
    for key, taken in own.items():
        alike.setdefault(units[key].kind, []).append(taken)
    # Counting operations takes seconds, and is not needed where all times are measured.
    needs_rate = any(key not in own and unit.kind not in alike for key, unit in units.items())
    operations = {key: operations_of(unit, sets) for key, unit in units.items()} if needs_rate else {}
    rates = [operations[key] / taken for key, taken in own.items()] if needs_rate else []
    guessed = GUESSED_GPU_RATE * gpus_per_unit if gpus_per_unit else GUESSED_RATE
    rate, start = (statistics.median(rates), 0.0) if rates else (guessed, GUESSED_START)
    seconds = {}
    for key, unit in units.items():
        twins = alike.get(unit.kind)
        seconds[key] = own.get(key) or (statistics.median(twins) if twins else start + operations[key] / rate)
    open_units = [key for key in units if key not in records]
    return Estimate(
        seconds,
        len(own),
        sum(seconds.values()),
        sum(seconds[key] for key in open_units),
        makespan(units, seconds, open_units, slots),
        slots,
        rate,
    )


def on_slots(expected: Estimate, units: Mapping[str, Unit], open_units: Sequence[str], slots: int) -> Estimate:
    """The same with another number of slots; `open_units` are those that aren't finished."""
    return replace(expected, makespan=makespan(units, expected.seconds, open_units, slots), slots=slots)


def makespan(units: Mapping[str, Unit], seconds: Mapping[str, float], keys: Sequence[str], slots: int) -> float:
    """Seconds that `keys` take on `slots`, each after its parent, those with the longest way to the end first."""
    wanted = set(keys)
    way = chain_seconds(units.values(), seconds)
    children: dict[str, list[str]] = {}
    for key, unit in units.items():
        children.setdefault(unit.parent, []).append(key)
    ready = [(-way[key], key) for key in wanted if units[key].parent not in wanted]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            key = heapq.heappop(ready)[1]
            heapq.heappush(running, (now + seconds[key], key))
        now, key = heapq.heappop(running)
        for child in children.get(key, ()):
            if child in wanted:
                heapq.heappush(ready, (-way[child], child))
    return now


def _is_of_cpu(record: Record) -> bool:
    return str(record.about.get("device", "cpu")).startswith("cpu")


def _seconds(record: Record) -> float:
    """Of the whole unit, those before an interruption included: the longer of its last call and its training."""
    about = record.about
    if "trained_by" in about:  # It was only measured, which says nothing of a training's time.
        return 0.0
    seconds: float = max(about["ended"] - about["started"], about["train_seconds"]) if "ended" in about else 0.0
    return seconds
