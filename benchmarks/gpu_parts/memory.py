"""Peak memory of training steps beside what is forecast."""

import time

import torch

from gpu_parts.part import NOT_OFFERED, Part, free_memory
from gpu_parts.table import Row
from ups_model.config import Config
from ups_model.device import memory_mb


def forecast(config: Config, task: str, micro_batch: int, precision: str) -> float | None:
    """MiB that a step of a task is forecast to take; None where nothing forecasts it."""
    return None


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
    peak, foreseen = memory_mb(run.device), forecast(config, task, size, run.precision)
    Row(f"{name}, {task}, {size} samples: peak", peak, "MiB").emit()
    ratio = NOT_OFFERED if foreseen is None else foreseen / peak
    Row(f"{name}, {task}, {size} samples: forecast", ratio, "of the peak", data={"forecast_mib": foreseen}).emit()
