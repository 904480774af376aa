"""Which part is which."""

import argparse
import platform
from collections.abc import Callable

import torch
from synthetic_runs import seconds_of, stand_in, use_random_text

from gpu_parts.memory import memory
from gpu_parts.part import Part
from gpu_parts.precision import precision
from gpu_parts.steps import decoding, steps, temporal_encoding, two_processes, worker
from gpu_parts.table import Row
from gpu_parts.training import training
from ups_model.config.identity import configured_sets
from ups_model.data.prepare.catalog import prepare
from ups_model.device import device_name


def device(part: Part) -> None:
    """The card, and its own rates, which others are compared with; also makes the synthetic clips."""
    seconds = seconds_of(lambda: [prepare(name) for name in configured_sets(stand_in("tiny"))], part.device)
    about = {"python": platform.python_version(), "clips_seconds": round(seconds, 1)}
    memory: float | str = "-"
    if part.device.type == "cuda":
        properties = torch.cuda.get_device_properties(part.device)
        memory = properties.total_memory / 2**30
        about |= {"capability": f"{properties.major}.{properties.minor}", "cuda": str(torch.version.cuda)}
    Row("device", device_name(part.device), data=about).emit()
    Row("torch", torch.__version__).emit()
    Row("memory", memory, "GiB").emit()
    for name in part.formats:
        Row(f"matrix product, {name}", part.matrix_rate(name) / 1e12, "TFLOP/s").emit()


PARTS: dict[str, Callable[[Part], None]] = {
    "device": device,
    "precision": precision,
    "steps tiny": lambda part: steps(part, "tiny"),
    "steps small": lambda part: steps(part, "small"),
    "steps paper": lambda part: steps(part, "paper"),
    "temporal encoding": temporal_encoding,
    "memory": memory,
    "two processes": two_processes,
    "worker": worker,
    "decoding": decoding,
    "training": training,
}


def run(options: argparse.Namespace) -> None:
    """Measure the part that `--part` names."""
    if options.part != "training":  # Which asks for the real ones where it trains on real motion.
        use_random_text()
    PARTS[options.part](Part(options))
