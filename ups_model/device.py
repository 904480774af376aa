"""The device a run uses and the number format its network computes in."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def pick_device(name: str, rank: int = 0) -> torch.device:
    """`auto` is a GPU where there is one; ValueError for a device that cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{rank % max(1, torch.cuda.device_count())}"
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no data")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try cpu") from error
    return device


def pick_precision(name: Precision, device: torch.device) -> str:
    """The precision of `auto`: bf16 from sm_80, fp16 on older GPUs, fp32 on the CPU."""
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def device_name(device: torch.device) -> str:
    """For people and for records: the GPU's name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def memory_mb(device: torch.device) -> float:
    """Memory of the run in MiB: its peak on the GPU so far, or the process's resident host memory now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:  # Not Linux: the peak so far.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def autocast_dtype(precision: str) -> torch.dtype:
    """The number format of autocast; of no effect in fp32, where autocast is off."""
    return torch.float16 if precision == "fp16" else torch.bfloat16


@contextmanager
def flush_denormal_numbers() -> Iterator[None]:
    """Round denormal numbers to zero: second moments of small gradients are denormal, and slow a CPU down a lot."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
