"""How many units share a GPU: measured in a few steps of training, with a margin. Imports no Ray.

A unit that has a fraction of a GPU may take that fraction of its memory and no more, so that one that grows runs out of
memory itself, and not its neighbours. It is then tried again with a whole GPU (`orchestrator.scheduling.task_graph`).
"""

import logging
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from orchestrator.worker.job import Job

logger = logging.getLogger(__name__)

MARGIN = 0.1
"""Of a GPU's memory, left free: the allocator's pieces don't fit together without gaps."""
MAX_UNITS_PER_GPU = 16
"""Beyond this many, processes wait for each other more than they gain."""
CONTEXT_BYTES = 700 * 2**20
"""What a process is given of a GPU beside its tensors, for the driver and its libraries."""


@dataclass(frozen=True)
class Footprint:
    """What a unit takes of a GPU."""

    peak_bytes: int
    """Of its process, with the libraries' own memory, which counts for `CONTEXT_BYTES` at least."""
    total_bytes: int
    """Of the GPU."""
    gpu: str
    """Its name."""

    @classmethod
    def measured(cls, tensors: int, beside: int, total: int, gpu: str) -> Self:
        """Of the most bytes that tensors took, and what the process took beside them.

        `limit_memory` takes `CONTEXT_BYTES` off each share, so a share has to hold as much: with less a small unit
        would run out of the memory that it was measured to need.
        """
        return cls(tensors + max(beside, CONTEXT_BYTES), total, gpu)

    @property
    def fit(self) -> int:
        """Units of this size that fit on such a GPU with the margin, 1 at least."""
        return max(1, min(MAX_UNITS_PER_GPU, int(self.total_bytes * (1 - MARGIN) // max(self.peak_bytes, 1))))

    @property
    def share(self) -> float:
        """Of a GPU for each unit, in the ten-thousandths that Ray counts in; never rounded up, so that `fit` do fit."""
        return int(10_000 / self.fit) / 10_000


def smallest_gpu(footprints: Mapping[str, Footprint]) -> dict[str, Footprint]:
    """Footprints as if all were measured on the smallest of their GPUs: any unit may come to run there."""
    total = min((one.total_bytes for one in footprints.values()), default=0)
    return {key: replace(footprint, total_bytes=total) for key, footprint in footprints.items()}


def described(footprints: Iterable[tuple[str, Footprint]]) -> str:
    """A line a kind of unit, for people."""
    return "\n".join(
        f"  {name}: {one.peak_bytes / 2**30:.2f} of {one.total_bytes / 2**30:.1f} GiB ({one.gpu}), {one.fit} on a GPU"
        for name, one in footprints
    )


def measure(job: Job) -> Footprint:
    """Train a few steps of a unit and evaluate one batch of each task, on a GPU that nothing else uses.

    Raises:
        ValueError: torch sees no GPU here, or the unit doesn't fit on a whole one.
    """
    import torch

    if not torch.cuda.is_available():
        raise ValueError(
            "--gpus-per-unit auto measures memory on a GPU, and torch sees none on this node; give a number, or "
            "install the build of torch for its GPU"
        )
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        with tempfile.TemporaryDirectory(prefix="ups-packing-") as folder:
            job.unit.trainer.try_batches(job.request(Path(folder), test=False))
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{job.unit.name} does not fit on a whole GPU ({torch.cuda.get_device_name()}): give "
            "--micro-batch auto, or take larger GPUs"
        ) from error
    free, total = torch.cuda.mem_get_info()
    beside = total - free - torch.cuda.memory_reserved()
    return Footprint.measured(torch.cuda.max_memory_reserved(), beside, total, torch.cuda.get_device_name())


def limit_memory(share: float) -> None:
    """Let this process take its share of the GPU, and no more."""
    import torch

    if not torch.cuda.is_available():
        return
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(fraction_for_tensors(share, total))


def fraction_for_tensors(share: float, total_bytes: int) -> float:
    """Of a GPU's memory, for the tensors of a unit that has a share of the GPU: its libraries' memory isn't counted by
    the limit, and comes out of the same share."""
    return 1.0 if share >= 1 else max(0.01, share - CONTEXT_BYTES / total_bytes)
