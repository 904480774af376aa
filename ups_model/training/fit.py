"""How a run's batches are cut so that they fit the memory: parts whose gradients add up, and layers computed twice.

What a part takes is linear in its clips, so two small parts tell the largest that fits.
"""

import logging
import math
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ups_model.config import TaskName
from ups_model.data.batching.batch import Batch
from ups_model.model.ups import UPS
from ups_model.training.options import AUTO, RunOptions

logger = logging.getLogger(__name__)

MARGIN = 0.1
"""Of the memory, left free: the allocator's pieces don't fit together without gaps."""
SMALL_PARTS = (2, 4)
"""Clips of the two parts that are measured."""
MIN_USEFUL_PART = 8
"""Clips below which a part keeps a GPU so idle that computing layers twice costs less."""
SHRINK = 0.9

Loss = Callable[[TaskName, Batch], Tensor]
"""The training loss of a part of a batch."""


@dataclass(frozen=True)
class Fit:
    """How the batches of each task are cut."""

    sizes: Mapping[TaskName, int] = field(default_factory=dict)
    """Most clips that a process computes at once; a task that isn't there is not cut."""
    activation_checkpointing: bool = False
    """Layers of tokenizer and encoder keep their inputs alone for the backward pass."""

    def part(self, task: TaskName) -> int:
        """Most clips of a part; 0 = the whole share."""
        return self.sizes.get(task, 0)

    def facts(self, processes: int) -> dict[str, Any]:
        """A record's entries on how batches were cut; none where they were not."""
        facts: dict[str, Any] = {"processes": processes} if processes > 1 else {}
        facts |= {"micro_batch": dict(self.sizes)} if self.sizes else {}
        return facts | ({"activation_checkpointing": True} if self.activation_checkpointing else {})

    def describe(self, shares: Mapping[TaskName, int]) -> str:
        """For the log; empty where nothing is cut. `shares`: clips of a batch that a process has."""
        cut = [f"{task} {size} of {shares[task]}" for task, size in self.sizes.items() if 0 < size < shares[task]]
        words = [f"clips computed at once: {', '.join(cut)}"] if cut else []
        return "; ".join(words + ["layers are computed again in the backward pass"] * self.activation_checkpointing)


def choose_fit(
    options: RunOptions,
    model: UPS,
    shares: Mapping[TaskName, int],
    draw: Callable[[TaskName], Batch],
    loss: Loss,
) -> Fit:
    """The fit that the options ask for, or with `auto` the largest parts for which there is memory.

    With `auto` the model's gradients are dropped, and whether it computes layers twice is left as it was tried last.

    Args:
        shares: clips of a batch of each task that this process has.
        draw: gives this process's share of a batch.
        loss: as in training.
    """
    if options.micro_batch != "auto":
        size = options.micro_batch
        cut = {task: size for task, share in shares.items() if 0 < size < share}
        return Fit(cut, options.activation_checkpointing == "on")
    batches = {task: draw(task) for task in shares}
    fit = _measured(options, model, batches, loss, options.activation_checkpointing == "on")
    if options.activation_checkpointing == AUTO and any(0 < fit.part(task) < MIN_USEFUL_PART for task in shares):
        return _measured(options, model, batches, loss, True)
    return fit


def _measured(options: RunOptions, model: UPS, batches: Mapping[TaskName, Batch], loss: Loss, recompute: bool) -> Fit:
    device = model.logit_scale.device
    weights = sum(parameter.nbytes for parameter in model.parameters())
    # AdamW's two moments come with the first update.
    room = room_bytes(device) * (1 - MARGIN) * options.memory_share - 2 * weights
    model.set_activation_checkpointing(recompute)
    sizes = {}
    for task, batch in batches.items():
        size = _largest(batch, room, lambda part, task=task: peak_bytes(model, lambda: loss(task, part)))  # type: ignore[misc]  # bound at once
        if size < len(batch):
            sizes[task] = size
    return Fit(sizes, recompute)


def _largest(batch: Batch, room: float, peak: Callable[[Batch], float]) -> int:
    """Most clips whose peak fits; 1 at least."""
    low, high = (min(size, len(batch)) for size in SMALL_PARTS)
    if low == high or math.isinf(room):
        return len(batch)
    size = Peak.through(low, peak(batch[:low]), high, peak(batch[:high])).largest(room, len(batch))
    if batch.clip_B.device.type == "cuda":  # Larger parts take other kernels, which may need more.
        while size > 1 and peak(batch[:size]) > room:
            size = max(1, int(size * SHRINK))
    return size


@dataclass(frozen=True)
class Peak:
    """Memory at the peak of a training step on a part of a batch, in bytes."""

    fixed: float
    """Weights, gradients, buffers and whatever doesn't depend on the part."""
    each: float
    """Of each clip."""

    @classmethod
    def through(cls, low: int, low_bytes: float, high: int, high_bytes: float) -> Self:
        """The line through the peaks of two parts."""
        each = max((high_bytes - low_bytes) / (high - low), 1.0)
        return cls(low_bytes - low * each, each)

    def of(self, clips: int) -> float:
        """Of a part of so many clips."""
        return self.fixed + clips * self.each

    def largest(self, room: float, most: int) -> int:
        """Most clips that fit, up to `most`; 1 at least, whether it fits or not."""
        return int(min(max((room - self.fixed) // self.each, 1), most))


def peak_bytes(model: nn.Module, loss: Callable[[], Tensor]) -> float:
    """Memory at the peak of one forward and backward pass that adds to gradients that are there; infinite where there
    isn't enough. Of a GPU all that is allocated on it, on the CPU, which has no counter, weights, gradients and what
    operations make. The model's gradients are dropped."""
    parameters = list(model.parameters())
    device = parameters[0].device
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    try:
        if device.type != "cuda":
            with _LiveBytes() as live:
                for tensor in (*parameters, *(parameter.grad for parameter in parameters), *model.buffers()):
                    live.count(tensor)
                loss().backward()
            return float(live.peak)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        loss().backward()
        return float(torch.cuda.max_memory_allocated(device))
    except torch.OutOfMemoryError:
        return float("inf")
    finally:
        model.zero_grad(set_to_none=True)


class _LiveBytes(TorchDispatchMode):
    """Counts the memory of tensors that operations make, for as long as anything holds it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.count(tensor)
        return out

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's memory, once."""
        storage = tensor.untyped_storage()
        address = storage._cdata  # Not the pointer to its data, which tensors without values have not.
        if address not in self._alive:
            self._alive.add(address)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, address, storage.nbytes())

    def _free(self, address: int, size: int) -> None:
        self._alive.discard(address)
        self.now -= size


def room_bytes(device: torch.device) -> float:
    """Memory that this process may plan for: its share of the GPU, or of what the host has free the share of its
    threads; infinite where that can't be known."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return float(total * torch.cuda.get_per_process_memory_fraction(device))
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    except (OSError, StopIteration):  # Not Linux.
        return float("inf")
    return free * min(1.0, torch.get_num_threads() / (os.cpu_count() or 1))
