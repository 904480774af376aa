"""How a run's batches are cut so that they fit the memory: parts whose gradients add up, and blocks computed twice.

What a part takes is linear in its clips, so two small parts tell the largest that fits.
"""

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
"""Clips below which a part keeps a GPU so idle that computing blocks twice costs less."""
SHRINK = 0.9

Loss = Callable[[TaskName, Batch], Tensor]
"""The training loss of a part of a batch."""


@dataclass(frozen=True)
class Fit:
    """How the batches of each task are cut."""

    sizes: Mapping[TaskName, int] = field(default_factory=dict)
    """Most clips that a process computes at once; a task that isn't there is not cut."""
    activation_checkpointing: bool = False
    """Encoder blocks keep their inputs alone for the backward pass."""

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
        return "; ".join(
            words + ["encoder blocks are computed again in the backward pass"] * self.activation_checkpointing
        )


def choose_fit(options: RunOptions, model: UPS, shares: Mapping[TaskName, Batch], loss: Loss) -> Fit:
    """The fit that the options ask for, or with `auto` the largest parts for which there is memory.

    Sets `model.encoder.activation_checkpointing`. The model's gradients are dropped.

    Args:
        shares: this process's share of a batch of each task.
        loss: as in training.
    """
    if options.micro_batch != "auto":
        fit = Fit(
            dict.fromkeys(shares, options.micro_batch) if options.micro_batch else {},
            options.activation_checkpointing == "on",
        )
    else:
        fit = _measured(options, model, shares, loss, options.activation_checkpointing == "on")
        if options.activation_checkpointing == AUTO and any(0 < fit.part(task) < MIN_USEFUL_PART for task in shares):
            fit = _measured(options, model, shares, loss, True)
    model.encoder.activation_checkpointing = fit.activation_checkpointing
    return fit


def _measured(options: RunOptions, model: UPS, shares: Mapping[TaskName, Batch], loss: Loss, recompute: bool) -> Fit:
    device = model.logit_scale.device
    weights = sum(parameter.nbytes for parameter in model.parameters())
    # AdamW's two moments come with the first update.
    room = room_bytes(device) * (1 - MARGIN) * options.memory_share - 2 * weights
    model.encoder.activation_checkpointing = recompute
    sizes = {}
    for task, batch in shares.items():
        size = _largest(batch, room, lambda part, task=task: peak_bytes(model, lambda: loss(task, part)))  # type: ignore[misc]  # bound at once
        if size < len(batch):
            sizes[task] = size
    return Fit(sizes, recompute)


def _largest(batch: Batch, room: float, peak: Callable[[Batch], float]) -> int:
    """Most clips whose peak fits; 1 at least."""
    low, high = (min(size, len(batch)) for size in SMALL_PARTS)
    if low == high or math.isinf(room):
        return len(batch)
    least, more = peak(batch[:low]), peak(batch[:high])
    each = max((more - least) / (high - low), 1.0)
    size = int(min(max(low + (room - least) // each, 1), len(batch)))
    if batch.clip_B.device.type == "cuda":  # Larger parts take other kernels, which may need more.
        while size > 1 and peak(batch[:size]) > room:
            size = max(1, int(size * SHRINK))
    return size


def peak_bytes(model: UPS, loss: Callable[[], Tensor]) -> float:
    """Memory at the peak of one forward and backward pass; infinite where there isn't enough.

    On the CPU, which has no counter, from the tensors that autograd keeps, weights and gradients.
    """
    device = model.logit_scale.device
    model.zero_grad(set_to_none=True)
    if device.type != "cuda":
        kept = saved_bytes(model, loss)
        return kept + 2.0 * sum(parameter.nbytes for parameter in model.parameters())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        loss().backward()
        return float(torch.cuda.max_memory_allocated(device))
    except torch.OutOfMemoryError:
        return float("inf")
    finally:
        model.zero_grad(set_to_none=True)


def saved_bytes(model: UPS, loss: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps between the passes, beside weights and buffers; each piece of memory counts once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = loss()
    total = sum(kept.values())
    del result  # Only now: while the graph lives, no two of its pieces share an address.
    return total


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
