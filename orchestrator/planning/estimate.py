"""How large a plan is: parameters and operations of its units, and the time they will take, measured where it was."""

import heapq
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from orchestrator.planning.plan import Unit, chain_seconds
from orchestrator.record import Record
from ups_model.config import Config, ModelConfig, TaskData, TaskName, set_of
from ups_model.config.identity import configured_tasks
from ups_model.data.format.clip_set import ClipSet
from ups_model.tasks import TASKS

if TYPE_CHECKING:  # Imported where needed: a plan without estimates needs no torch.
    from ups_model.model.ups import UPS

BACKWARD = 2
"""Operations of the backward pass for one of the forward pass."""
GUESSED_RATE = 12e9
"""Operations a second of a unit on one processor, where nothing has been measured yet: a guess within a factor of two
on the machines that we have seen."""
GUESSED_START = 5.0
"""Seconds that a unit needs before its first step."""
TEXT_WIDTHS = {"roberta-base": 768, "minilm": 384}


@dataclass(frozen=True)
class Sizes:
    """Of one unit's model."""

    parameters: int
    flops: Mapping[TaskName, float]
    """Multiplications and additions of a forward pass of each trained task's batch, divided by its samples."""


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


def estimate(
    units: Mapping[str, Unit], sets: Mapping[str, ClipSet], records: Mapping[str, Record], slots: int
) -> Estimate:
    """Times of all units.

    A finished unit's time is its own; of another one with the same training it's that one's; else operations over the
    median rate of the units that were measured.
    """
    own = {key: _seconds(records[key]) for key in units if key in records and _seconds(records[key])}
    alike: dict[str, list[float]] = {}
    for key, taken in own.items():
        alike.setdefault(units[key].kind, []).append(taken)
    # Counting operations takes seconds, and is not needed where all times are measured.
    needs_rate = any(key not in own and unit.kind not in alike for key, unit in units.items())
    operations = {key: operations_of(unit, sets) for key, unit in units.items()} if needs_rate else {}
    rates = [operations[key] / taken for key, taken in own.items()] if needs_rate else []
    rate, start = (statistics.median(rates), 0.0) if rates else (GUESSED_RATE, GUESSED_START)
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


def operations_of(unit: Unit, sets: Mapping[str, ClipSet]) -> float:
    """Multiplications and additions of a unit's training, forward and backward."""
    flops = sizes_of(unit.config, sets).flops
    return (1 + BACKWARD) * sum(count * flops[task] for task, count in unit.samples.items())


def sizes_of(config: Config, sets: Mapping[str, ClipSet]) -> Sizes:
    """Parameters, and operations of a forward pass, of the model that this configuration trains."""
    names = dict.fromkeys(
        set_of(source)
        for task in configured_tasks(config)
        if TASKS[task].kind == "class"
        for source in getattr(config.data, task).sources
    )
    classes = tuple((name, len(sets[name].info.classes)) for name in names)
    pose = config.data.pe.sources
    network = _Network(
        config.model,
        classes,
        tuple(map(int, sets[set_of(pose[0])].skeleton.native_slot)) if pose else (),
        max(getattr(config.data, task).frames for task in configured_tasks(config)),
    )
    flops: dict[TaskName, float] = {}
    for task in config.optim.tasks:
        data: TaskData = getattr(config.data, task)
        joints = tuple(map(int, sets[set_of(data.sources[0])].skeleton.slots_present))
        flops[task] = _forward_flops(network.with_one_route(), task, data, joints)
    return Sizes(_parameters(network), flops)


@dataclass(frozen=True)
class _Network:
    """All that fixes the shapes of a model."""

    model: ModelConfig
    classes: tuple[tuple[str, int], ...]
    pose_slots: tuple[int, ...]
    most_frames: int

    def with_one_route(self) -> "_Network":
        """The same operations without a choice: a routed layer runs one block in sparse execution. Which one is a
        question of weights, so one stands for it."""
        model = self.model
        runs = 1 if model.routing and model.routing_execution == "sparse" else model.blocks_per_layer
        return replace(
            self, model=model.replace(routing=False, blocks_per_layer=runs, dropout=0.0, decoder_dropout=0.0)
        )

    def build(self) -> "UPS":
        """The model on the meta device: shapes without values."""
        import torch

        from ups_model.model.ups import UPS
        from ups_model.model.vocabulary import Quantiser, Vocabulary

        classes = tuple((name, tuple(f"class {index}" for index in range(count))) for name, count in self.classes)
        vocabulary = Vocabulary(classes, self.model.n_bins)
        quantiser = Quantiser((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), self.model.n_bins) if self.pose_slots else None
        with torch.device("meta"):
            text_VE = torch.zeros(vocabulary.size, TEXT_WIDTHS.get(self.model.text_model, 768))
            joints = len(self.pose_slots) or 17
            return UPS(self.model, vocabulary, quantiser, text_VE, self.most_frames, joints, pose_slots=self.pose_slots)


@cache
def _parameters(network: _Network) -> int:
    return sum(value.numel() for value in network.build().parameters())


@lru_cache(maxsize=1)
def _zeroed(network: _Network) -> "UPS":
    """The model with values on the processor, all 0: drawing real weights would take longer."""
    model = network.build().to_empty(device="cpu").eval().requires_grad_(False)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().zero_()
    return model


@cache
def _forward_flops(network: _Network, task: TaskName, data: TaskData, joints: tuple[int, ...]) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ups_model.model.ups import Inputs
    from ups_model.skeletons import SLOTS

    model = _zeroed(network)
    mask_S = torch.zeros(SLOTS, dtype=torch.bool)
    mask_S[list(joints)] = True
    poses = TASKS[task].kind == "pose"
    targets, length = (data.targets_per_window, 3 * len(network.pose_slots) + 1) if poses else (1, 2)
    counted: list[float] = []
    for clips in (1, 2):
        frame_BR = torch.zeros(clips, targets, dtype=torch.long) if poses else None
        pose_BPNSC = torch.zeros(clips, 1, data.frames, SLOTS, 3)
        target_BK = torch.zeros(clips * targets, length, dtype=torch.long)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(Inputs(task, pose_BPNSC, mask_S, target_frame_BR=frame_BR), target_BK)
        counted.append(counter.get_total_flops())
    each = counted[1] - counted[0]
    # The vocabulary is projected once a batch, however many samples share it.
    return each + (counted[0] - each) / data.batch_size


def _seconds(record: Record) -> float:
    """Of the whole unit, those before an interruption included: the longer of its last call and its training."""
    about = record.about
    if "trained_by" in about:  # It was only measured, which says nothing of a training's time.
        return 0.0
    seconds: float = max(about["ended"] - about["started"], about["train_seconds"]) if "ended" in about else 0.0
    return seconds
