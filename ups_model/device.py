"""The device a run uses and the number format its network computes in."""

from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def pick_device(name: str, rank: int = 0) -> torch.device:
    """`auto` is a GPU where there is one; ValueError for a device that is not there."""
    if name == "auto":
        name = f"cuda:{rank % max(1, torch.cuda.device_count())}" if torch.cuda.is_available() else "cpu"
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


def autocast_dtype(precision: str) -> torch.dtype:
    """The number format of autocast; of no effect in fp32, where autocast is off."""
    return torch.float16 if precision == "fp16" else torch.bfloat16
