"""What every part is given, and how operations and memory are counted."""

import argparse
import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from synthetic_runs import seconds_per_call, stand_in, start
from torch.utils.flop_counter import FlopCounterMode

from ups_model.config import Config
from ups_model.device import autocast_dtype, pick_device, pick_precision
from ups_model.training.run import Run

NOT_OFFERED = "not offered"


class Part:
    """What every part knows: the device, the precision of training on it, and how long to measure."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.quick, self.limit = options, options.quick, options.seconds
        self.name = options.device
        self.device = pick_device(options.device)
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # So small a step takes longer on more.
        self.precision = pick_precision("auto", self.device)
        self.deadline = time.monotonic() + self.limit
        self.seconds = 0.1 if self.quick else min(4.0, self.limit / 15)
        """Of one measurement of many steps."""

    @property
    def left(self) -> float:
        """Seconds until the part is ended from outside."""
        return self.deadline - time.monotonic()

    @property
    def formats(self) -> tuple[str, ...]:
        """Number formats that the device has; before compute capability 8.0 there is no bf16."""
        old = self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) < (8, 0)
        return ("fp32", "fp16") if old else ("fp32", "bf16", "fp16")

    def config(self, name: str, **changes: Any) -> Config:
        return stand_in(name, changes, self.quick)

    def start(self, config: Config, precision: str = "", **options: Any) -> Run:
        return start(config, self.name, precision or self.precision, options)

    def matrix_rate(self, precision: str) -> float:
        """Operations a second of a large matrix product in a precision."""
        size = 512 if self.device.type == "cpu" else 8192
        dtype = torch.float32 if precision == "fp32" else autocast_dtype(precision)
        left, right = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
        products = 4  # In a row, so that waiting for the device after them counts for little.
        seconds = seconds_per_call(lambda: [left @ right for _ in range(products)], self.device, min(1.0, self.seconds))
        return products * 2 * size**3 / seconds

    @property
    def first_micro_batch(self) -> int:
        """Samples of preset `paper` at once: what a card of this size holds with room to spare."""
        if self.device.type == "cpu":
            return 2
        gibibytes = torch.cuda.get_device_properties(self.device).total_memory / 2**30
        return next((size for size in (256, 128, 64, 32, 16) if size <= 1.9 * gibibytes), 8)


def free_memory(part: Part) -> None:
    """Give back what earlier runs took, and count the peak from here."""
    gc.collect()
    if part.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(part.device)


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention of a call."""
    counter = FlopCounterMode(display=False)
    with counter:
        call()
    return counter.get_total_flops()
