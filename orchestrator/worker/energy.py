"""Energy that a unit's GPUs take, from the counters of NVIDIA's driver (Volta and newer). Imports no Ray."""

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class EnergyMeter:
    """Starts when it is made."""

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
    """Sum of the counters of all GPUs that this process sees; None where one has none."""
    import torch

    try:
        import pynvml
    except ImportError:  # Nobody has installed it; units need it for nothing else.
        return None
    try:
        pynvml.nvmlInit()
        uuids = [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(torch.cuda.device_count())]
        handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        millijoules = [pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles]
    except (AttributeError, pynvml.NVMLError):  # Older torch names no UUIDs; older GPUs have no counter.
        return None
    return sum(millijoules) / 1000 if millijoules else None
