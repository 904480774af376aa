"""Numbers that a step needs on the host, read without stopping the device's queue of work."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


def read_later(x: Tensor) -> Callable[[], Any]:
    """A function that gives `x.tolist()`; it waits for the work queued up to now, and for none that is queued before it
    is called."""
    x = x.detach()
    if x.device.type != "cuda":
        return x.tolist
    copy = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    copy.copy_(x, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> Any:
        copied.synchronize()
        return copy.tolist()

    return read


def constant(values: Iterable[float], device: torch.device) -> Tensor:
    """A tensor of fixed numbers, copied to a device once; not to be changed in place."""
    array = np.asarray(values)
    return _constant(tuple(array.tolist()), array.dtype.kind, device)


@cache
def _constant(values: tuple[float, ...], kind: str, device: torch.device) -> Tensor:
    """`kind` tells 1 from 1.0, which are equal keys."""
    return torch.tensor(values, device=device)
