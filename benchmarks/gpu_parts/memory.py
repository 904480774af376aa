"""Peak memory of training steps beside what is forecast."""

import time

import torch

from gpu_parts.part import Part, free_memory
from gpu_parts.table import Row
from orchestrator.ups.sizes import peaks_of
from ups_model.device import memory_mb


def memory(part: Part) -> None:
    """Peak memory of steps of one task, beside what is forecast; on the CPU what the process holds."""
    cases = [("small", "pe", 16), ("small", "ar3d", 32)]
    size = part.first_micro_batch
    cases += [("paper", task, count) for task in ("pe", "ar2d", "ar3d") for count in (size // 2, size)]
    longest = 0.0
    for name, task, count in cases[:3] if part.quick else cases:
        started = time.monotonic()
        if part.left < 1.5 * longest:
            return
        try:
            compare_memory(part, name, task, count)
        except torch.OutOfMemoryError:
            Row(f"{name}, {task}, {count} samples: peak", "out of memory").emit()
        longest = max(longest, time.monotonic() - started)


def compare_memory(part: Part, name: str, task: str, size: int) -> None:
    """One configuration: a batch of so many samples, at once."""
    free_memory(part)
    config = part.config(name, **{"optim.cycle": (task,), f"data.{task}.batch_size": size})
    run = part.start(config)
    for _ in range(2):  # The second has gradients and the optimizer's state beside it.
        run.train_step()
    peak = memory_mb(run.device)
    Row(f"{name}, {task}, {size} samples: peak", peak, "MiB").emit()
    sets = {clips.name: clips for clips, _ in run.parts.sets.values()}
    foreseen = peaks_of(config, sets, half=run.precision != "fp32")[task].of(size) / 2**20
    Row(f"{name}, {task}, {size} samples: forecast", foreseen / peak, "of the peak", data={"forecast": foreseen}).emit()
