"""How large a plan is: parameters and operations of its units, and the time they will take, measured where it was."""

import heapq
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.planning.plan import Unit, UnitSize, chain_seconds
from orchestrator.project import Data, Sizes
from orchestrator.record import Record

BACKWARD = 2
"""Operations of the backward pass for one of the forward pass."""
GUESSED_SECONDS = 60.0
"""Of a unit whose operations can't be counted, where no unit has been measured."""
GUESSED_RATE = 12e9
"""Operations a second of a unit on one processor, where nothing has been measured yet: a guess within a factor of two
on the machines that we have seen."""
GUESSED_GPU_RATE = 10e12
"""The same of a GPU. No GPU has been measured: a tenth of what the matrix units of a V100 do at most."""
GUESSED_START = 5.0
"""Seconds that a unit needs before its first step."""
MEASURING = 0.05
"""Share of its training's time that a unit takes which only measures the weights of another: a guess."""


@dataclass(frozen=True)
class Measured:
    """What a unit has taken."""

    project: str
    stage: str
    task: str
    operations: float
    seconds: float


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
    measured_elsewhere: int = 0
    """Units of other studies that the rate rests on, where none of these has been measured."""


def estimate(
    units: Mapping[str, Unit],
    sets: Mapping[str, Data],
    records: Mapping[str, Record],
    slots: int,
    gpus_per_unit: int = 0,
    others: Callable[[], Sequence[Measured]] = lambda: (),
) -> Estimate:
    """Times of all units.

    A finished unit's time is its own; of another one with the same training it's that one's; else operations over the
    median rate of the units of its stage and task that were measured, or of all of its project; where operations can't
    be counted, the median of their times. A unit that measures another one's weights in its own way costs `MEASURING`
    of that.

    Args:
        others: units of other studies, asked for where none of these was measured.
        gpus_per_unit: for a plan on GPUs, to which times measured on processors say nothing; 0 for any other.
    """
    own = {
        key: seconds_of(records[key])
        for key in units
        if key in records and seconds_of(records[key]) and not (gpus_per_unit and is_of_cpu(records[key]))
    }
    alike: dict[str, list[float]] = {}
    for key, taken in own.items():
        alike.setdefault(units[key].kind, []).append(taken)
    # Counting operations takes seconds, and is not needed where all times are measured.
    needs_rate = any(key not in own and unit.kind not in alike for key, unit in units.items())
    operations = {key: operations_of(unit, sets) for key, unit in units.items()} if needs_rate else {}
    guessed = GUESSED_GPU_RATE * gpus_per_unit if gpus_per_unit else GUESSED_RATE
    elsewhere = others() if needs_rate and not own else ()
    measured_rates: dict[tuple[str, ...], list[float]] = {}
    measured_times: dict[str, list[float]] = {}
    for key, taken in own.items():
        measured_times.setdefault(units[key].project, []).append(taken)
        if (count := operations.get(key)) is not None:
            for kind in _kinds(units[key]):
                measured_rates.setdefault(kind, []).append(count / taken)
    for one in elsewhere:
        for kind in _kinds(one):
            measured_rates.setdefault(kind, []).append(one.operations / one.seconds)
    rates = {kind: statistics.median(each) for kind, each in measured_rates.items()}

    def of(unit: Unit) -> float:
        if twins := alike.get(unit.kind):
            return statistics.median(twins)
        if (count := operations[unit.key]) is None:
            return statistics.median(measured_times.get(unit.project, [GUESSED_SECONDS]))
        measured = next((rates[kind] for kind in _kinds(unit) if kind in rates), None)
        return count / measured if measured else GUESSED_START + count / guessed

    borrowing = borrowers(units)
    seconds = {key: own.get(key) or of(unit) * (MEASURING if key in borrowing else 1.0) for key, unit in units.items()}
    rate = statistics.median(rates.values()) if rates else guessed
    open_units = [key for key in units if key not in records]
    return Estimate(
        seconds,
        len(own),
        sum(seconds.values()),
        sum(seconds[key] for key in open_units),
        makespan(units, seconds, open_units, slots),
        slots,
        rate,
        len(elsewhere),
    )


def borrowers(units: Mapping[str, Unit]) -> set[str]:
    """Keys of units that have the weights of one before them and measure these in their own way."""
    trained: set[str] = set()
    keys = set()
    for key, unit in units.items():
        if unit.training_key in trained:
            keys.add(key)
        elif unit.training_key:
            trained.add(unit.training_key)
    return keys


def _kinds(unit: Unit | Measured) -> tuple[tuple[str, ...], ...]:
    """What units of like rates have in common, the most alike first: stages and tasks differ in theirs."""
    return (unit.project, unit.stage, unit.task), (unit.project,)


def operations_of(unit: Unit, sets: Mapping[str, Data]) -> float | None:
    """Multiplications and additions of a unit's training, forward and backward; None where they can't be counted."""
    sizes = unit.trainer.sizes(unit.config, sets)
    return None if sizes is None else _operations(unit, sizes)


def _operations(unit: Unit, sizes: Sizes) -> float:
    flops = sizes.training_flops or sizes.flops
    return (1 + BACKWARD) * sum(count * flops[task] for task, count in unit.samples.items())


def unit_sizes(
    units: Mapping[str, Unit], sets: Mapping[str, Data], counted: Mapping[str, UnitSize]
) -> dict[str, UnitSize]:
    """Of each unit by key, as far as it can be counted; once for units that differ in the seed alone.

    Args:
        counted: of these or other units by key, as an earlier call returned them. Counting takes about a second each.
    """
    by_kind: dict[str, UnitSize | None] = {units[key].kind: size for key, size in counted.items() if key in units}
    for unit in units.values():
        if unit.kind not in by_kind:
            sizes = unit.trainer.sizes(unit.config, sets)
            by_kind[unit.kind] = (
                None
                if sizes is None
                else UnitSize(sizes.active_parameters, sizes.flops, _operations(unit, sizes), sizes.parameters)
            )
    return {key: size for key, unit in units.items() if (size := by_kind[unit.kind]) is not None}


def on_slots(
    expected: Estimate,
    units: Mapping[str, Unit],
    open_units: Sequence[str],
    slots: int,
    measured_only: Collection[str] = (),
) -> Estimate:
    """The same of another number of slots and other units to run: those without a record, those finished whose weights
    have to be made again, and those that are only measured."""
    seconds = {key: each * (MEASURING if key in measured_only else 1) for key, each in expected.seconds.items()}
    left = sum(seconds[key] for key in open_units)
    return replace(expected, left=left, makespan=makespan(units, seconds, open_units, slots), slots=slots)


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


def is_of_cpu(record: Record) -> bool:
    """Whether a unit was trained on processors."""
    return str(record.about.get("device", "cpu")).startswith("cpu")


def seconds_of(record: Record) -> float:
    """Of the whole unit, those before an interruption included: the longer of its last call and its training."""
    about = record.about
    if "trained_by" in about or "taken_over_steps" in about:  # Measured alone, or trained in part.
        return 0.0
    seconds: float = max(about["ended"] - about["started"], about["train_seconds"]) if "ended" in about else 0.0
    return seconds
