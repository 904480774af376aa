"""What a unit's machine does while it trains: processors, memory, GPUs, and the energy that the GPUs take.

GPUs are read through NVIDIA's library. Names are those of MLflow's system metrics. Imports no Ray.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ups_model.training.progress import append_row

PREFIX = "system/"
"""Begins the names of MLflow's system metrics."""
MB = 2**20


def sampler(file: Path) -> Callable[[int, Any], None]:
    """A callback for training that adds a line of system metrics to a progress file at each of its own lines.

    `cpu_utilization_percentage` is of the whole machine since the line before; the rest is of the moment.
    `process_memory_usage_megabytes` is of this process and all that it has started: those that train one unit together,
    so it has to be called in the one that started them.
    """
    psutil.cpu_percent()  # The first call says nothing but when the next one begins.

    def sample(step: int, metrics: Any) -> None:
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": psutil.virtual_memory().used / MB,
            "process_memory_usage_megabytes": _resident_bytes() / MB,
            **_gpu_state(),
        }
        append_row(file, {"step": step, **{f"{PREFIX}{name}": round(value, 1) for name, value in values.items()}})

    return sample


def _resident_bytes() -> int:
    """Resident memory of this process and its descendants; pages that they share count in each."""
    own = psutil.Process()
    total = 0
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # Ended since it was listed.
            total += process.memory_info().rss
    return total


@dataclass(frozen=True)
class EnergyMeter:
    """Energy that a unit's GPUs take, from their own counters (Volta and newer). Starts when it is made."""

    gpus: float
    """Of the unit. A share of a GPU has no counter of its own."""
    started: float = field(default_factory=time.monotonic)
    before: float | None = None

    @classmethod
    def start(cls, gpus: float) -> "EnergyMeter":
        return cls(gpus, before=_joules() if gpus >= 1 else None)

    def joules(self, train_seconds: float) -> float | None:
        """Since the start; None without counters, or if a part of the training was done before."""
        if self.before is None or train_seconds > time.monotonic() - self.started + 1:
            return None
        after = _joules()
        return None if after is None else round(after - self.before, 1)


def _joules() -> float | None:
    """Sum of the energy counters of all GPUs; None where one has none."""
    gpus = _gpu_values({"joules": lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000})
    return sum(gpu["joules"] for gpu in gpus) if gpus and all(gpus) else None


def _gpu_state() -> dict[str, float]:
    """Utilisation, memory and power of each GPU, as far as it tells them."""
    gpus = _gpu_values(
        {
            "utilization_percentage": lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
            "memory_usage_megabytes": lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used / MB,
            "power_usage_watts": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
        }
    )
    return {f"gpu_{index}_{name}": value for index, gpu in enumerate(gpus) for name, value in gpu.items()}


def _gpu_values(readers: Mapping[str, Callable[[Any, Any], float]]) -> list[dict[str, float]]:
    """Of each GPU that this process sees, and so the unit's processes have, the values that it has; empty without
    NVIDIA's driver."""
    import torch

    try:
        import pynvml
    except ImportError:  # Nobody has installed it; units need it for nothing else.
        return []
    try:
        pynvml.nvmlInit()
        # Numbers of the driver and of a process with CUDA_VISIBLE_DEVICES differ.
        uuids = [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(torch.cuda.device_count())]
        gpus = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
    except (AttributeError, pynvml.NVMLError):  # Older torch names no UUIDs.
        return []
    values: list[dict[str, float]] = [{} for _ in gpus]
    for gpu, of_gpu in zip(gpus, values, strict=True):
        for name, read in readers.items():
            with suppress(pynvml.NVMLError):
                of_gpu[name] = read(pynvml, gpu)
    return values
