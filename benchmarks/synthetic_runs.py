"""Runs of any preset on synthetic clips, step by step: what the benchmarks of speed and memory share.

The sizes are the preset's; the clips, one person each, are synthetic, and text features are random, since the values of
neither matter to speed. So nothing but torch, numpy, scipy, safetensors and tqdm is needed.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ups_model.config import TASK_NAMES, Config
from ups_model.config.identity import configured_sets
from ups_model.config.presets import preset
from ups_model.data.batching.batches import Batch
from ups_model.data.prepare.catalog import prepare
from ups_model.device import autocast_dtype
from ups_model.training import build
from ups_model.training import run as training_run
from ups_model.training.options import RunOptions
from ups_model.training.run import Run

SYNTHETIC = {
    "pe": "synthetic_h36m17",
    "ar2d": "synthetic_openpose18",
    "eap": "synthetic_ntu25",
    "ar3d": "synthetic_ntu25",
}
TEXT_WIDTHS = {"minilm": 384, "roberta-base": 768}


def use_random_text() -> None:
    """From here on, text features in this process are random numbers of the language model's width."""

    def random_features(prompts: list[str], model: str, cache: Path) -> Tensor:
        return torch.randn(len(prompts), TEXT_WIDTHS[model], generator=torch.Generator().manual_seed(0))

    build.text_features = random_features
    training_run.text_identity = lambda model: f"random-{model}"


def stand_in(name: str, changes: dict[str, Any] | None = None, quick: bool = False) -> Config:
    """A preset on synthetic clips; `quick` keeps its shape and makes everything small.

    Args:
        changes: fields by name, as `Config.with_fields` takes them; they are applied last.
    """
    fields: dict[str, Any] = {f"data.{task}.sources": (SYNTHETIC[task],) for task in TASK_NAMES}
    fields |= {"data.pe.detections": "project", "data.validation_subjects": 0}
    if quick:
        fields |= {f"data.{task}.frames": 8 for task in TASK_NAMES}
        fields |= {f"data.{task}.batch_size": 4 for task in TASK_NAMES}
        fields |= {"token_width": 8, "decoder_width": 16, "decoder_heads": 2, "tem_heads": 2, "n_bins": 16}
        fields |= {"encoder_layers": 1, "tokenizer_layers": 1, "decoder_layers": 1}
        if name != "paper":
            fields |= {"tem_width": 16, "evaluation.decoding": "parallel"}
    return preset(name).with_fields({**fields, **(changes or {})})


def start(config: Config, device: str, precision: str, options: dict[str, Any] | None = None) -> Run:
    """A run at its first step; it logs and saves nothing until it is told to.

    Args:
        options: further fields of `RunOptions`.
    """
    paths = {name: prepare(name) for name in configured_sets(config)}
    folder = tempfile.TemporaryDirectory(prefix="ups-benchmark-")
    run = Run(config, paths, RunOptions(Path(folder.name), device, precision, **(options or {})), None, None)
    run.kept_folder = folder  # Deleted with the run.
    torch.set_flush_denormal(True)  # As `train` does.
    run.start_or_resume()
    return run


def offered(name: str) -> bool:
    """Whether `RunOptions` has an option of that name."""
    return any(field.name == name for field in dataclasses.fields(RunOptions))


def tasks_of(run: Run) -> list[str]:
    """The task of each step of a cycle, from the run's present step on."""
    cycle = run.config.optim.cycle
    return [cycle[(run.state.step + place) % len(cycle)] for place in range(len(cycle))]


class Fixed:
    """A feed that gives the same batch at every turn."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def train(self, *_: object, **__: object) -> Batch:
        return self.batch


class TimedFeed:
    """A feed that counts the seconds until its batches are on the device."""

    def __init__(self, feed: Any, device: torch.device) -> None:
        self.feed, self.device, self.seconds = feed, device, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.feed, name)

    def train(self, *arguments: Any, **options: Any) -> Batch:
        synchronize(self.device)
        started = time.perf_counter()
        batch = self.feed.train(*arguments, **options)
        synchronize(self.device)
        self.seconds += time.perf_counter() - started
        return batch


def synchronize(device: torch.device) -> None:
    """Wait for all that a GPU was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(call: Callable[[], object], device: torch.device, seconds: float, least: int = 3) -> float:
    """Mean time of calls made for about so long, after one that is not counted."""
    call()
    synchronize(device)
    started, calls = time.perf_counter(), 0
    while calls < least or time.perf_counter() - started < seconds:
        call()
        synchronize(device)  # Else a thousand calls would wait in the GPU's queue when the time is over.
        calls += 1
    return (time.perf_counter() - started) / calls


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Time of one call, until the device has done it."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def seconds_by_task(run: Run, seconds: float, least_cycles: int = 2) -> dict[str, float]:
    """Median time of a step of each task, over whole cycles."""
    times: dict[str, list[float]] = {}
    started, cycles = time.perf_counter(), 0
    while cycles < least_cycles or time.perf_counter() - started < seconds:
        for task in tasks_of(run):
            times.setdefault(task, []).append(seconds_of(run.train_step, run.device))
        cycles += 1
    return {task: statistics.median(values) for task, values in times.items()}


def autocast(run: Run) -> torch.autocast:
    """The number format that the network of a run's training steps computes in."""
    return torch.autocast(run.device.type, dtype=autocast_dtype(run.precision), enabled=run.precision != "fp32")
