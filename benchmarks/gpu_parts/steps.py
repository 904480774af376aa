"""Rates of training steps, of one temporal encoding module, of two processes at a time, and of decoding."""

import statistics
import subprocess
import sys
from pathlib import Path

import torch
from synthetic_runs import TimedFeed, offered, seconds_by_task, seconds_of, seconds_per_call

from gpu_parts.part import NOT_OFFERED, Part, free_memory, operations
from gpu_parts.table import Row
from ups_model.config import TASK_NAMES
from ups_model.device import autocast_dtype, memory_mb
from ups_model.model.decoding import decode_poses
from ups_model.model.encoder import Tem
from ups_model.model.layers import Scene, initialise
from ups_model.training.run import Run

GRAPHS = {"cuda_graphs": True, "graphs": True, "compile": True, "compile_mode": "reduce-overhead"}
"""Options of `RunOptions` that let a step run as CUDA graphs, and their values; the first that it has is measured."""


def steps(part: Part, name: str) -> None:
    """Steps a second of a preset, by task and in its cycle, waiting for data, and operations against the card's own."""
    if name == "paper":
        paper_steps(part)
        return
    config = part.config(name)
    run = part.start(config)
    rate = report_steps(part, run, name, aim=">= 150 (H100)" if name == "small" else "")
    option = next((option for option in GRAPHS if offered(option)), None)
    if option is None:
        Row(f"{name}: with CUDA graphs", NOT_OFFERED).emit()
        return
    run = part.start(config, **{option: GRAPHS[option]})
    graphs = joint_rate(part, run)
    Row(f"{name}: with CUDA graphs", graphs, "steps/s", data={"option": option}).emit()
    Row(f"{name}: with CUDA graphs, of eager", graphs / rate, "times").emit()


def report_steps(part: Part, run: Run, name: str, aim: str = "", least_cycles: int = 2) -> float:
    """Rows of one run; returns steps a second of its cycle."""
    run.train_step()
    by_task = seconds_by_task(run, part.seconds, least_cycles)
    for task, seconds in by_task.items():
        Row(f"{name}: {task}", 1 / seconds, "steps/s").emit()
    rate = joint_rate(part, run)
    Row(f"{name}: joint cycle", rate, "steps/s", aim).emit()
    feeds = {task: TimedFeed(feed, run.device) for task, feed in run.parts.feeds.items()}
    run.parts.feeds = feeds
    cycle = len(run.config.optim.cycle)
    seconds = seconds_of(lambda: [run.train_step() for _ in range(cycle)], run.device)
    waiting = sum(feed.seconds for feed in feeds.values())
    Row(f"{name}: waiting for data", 100 * waiting / seconds, "% of a step", "< 2").emit()
    count = operations(lambda: [run.train_step() for _ in range(cycle)]) / cycle
    share = 100 * count * rate / part.matrix_rate(run.precision)
    aim = ">= 35" if name.startswith("paper") else ""
    Row(
        f"{name}: operations", share, f"% of a matrix product's rate, {run.precision}", aim, data={"step": count}
    ).emit()
    Row(f"{name}: peak memory", memory_mb(run.device), "MiB").emit()
    return rate


def joint_rate(part: Part, run: Run) -> float:
    """Steps a second over whole cycles."""
    cycle = len(run.config.optim.cycle)
    return cycle / seconds_per_call(lambda: [run.train_step() for _ in range(cycle)], run.device, part.seconds, least=1)


def paper_steps(part: Part) -> None:
    """Preset `paper`: batches of one micro-batch, then its own batch cut into micro-batches, if there is time."""
    size, rate = part.first_micro_batch, 0.0
    while not rate:
        batches = {f"data.{task}.batch_size": size for task in TASK_NAMES}
        try:
            rate = report_steps(part, part.start(part.config("paper", **batches)), f"paper, batch {size}")
        except torch.OutOfMemoryError:
            size //= 2
        free_memory(part)
    Row("paper: samples", rate * size, "a second", data={"micro_batch": size}).emit()
    whole = part.config("paper")
    batch = whole.data.pe.batch_size
    parts = batch / size
    name = f"paper, batch {batch} in {parts:.0f} micro-batches"
    if not offered("micro_batch"):
        Row(name, NOT_OFFERED, data={"steps_per_second_at_the_rate_above": rate / parts}).emit()
    elif part.left < 20 * parts / rate:
        Row(name, "no time left", data={"steps_per_second_at_the_rate_above": rate / parts}).emit()
    else:
        report_steps(part, part.start(whole, micro_batch=size), name, least_cycles=1)


def temporal_encoding(part: Part) -> None:
    """Forward and backward of one TEM at preset `paper`'s width, against the card's own rate."""
    config = part.config("paper")
    frames, size = config.data.ar3d.frames, part.first_micro_batch
    tem = Tem(config.model).to(part.device).train()
    initialise(tem, seed=0)  # Products with zeros would be faster than those of training.
    slots = torch.arange(25, device=part.device)
    x_BNJD = torch.randn(size, frames, 25, config.model.token_width, device=part.device, requires_grad=True)

    gradient_BNJD = torch.randn_like(x_BNJD)

    def call() -> None:
        with torch.autocast(part.device.type, dtype=autocast_dtype(part.precision), enabled=part.precision != "fp32"):
            out_BNJD = tem(x_BNJD, Scene(0, slots, None))
        out_BNJD.backward(gradient_BNJD)

    count = operations(call)
    seconds = seconds_per_call(call, part.device, part.seconds)
    data = {"operations": count, "seconds": seconds, "clips": size, "frames": frames}
    Row("TEM of `paper`", count / seconds / 1e12, f"TFLOP/s, {part.precision}", data=data).emit()
    share = 100 * count / seconds / part.matrix_rate(part.precision)
    Row("TEM of `paper`, of a matrix product", share, "%", ">= 35").emit()


def two_processes(part: Part) -> None:
    """Preset `small` in one process, then in two at a time on the same device."""
    command = [sys.executable, str(Path(__file__).parents[1] / "gpu.py"), "--part", "worker", "--device", part.name]
    command += ["--seconds", f"{part.limit:.1f}", *(["--quick"] if part.quick else [])]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(2)
    ]

    def rates(chosen: list[subprocess.Popen[str]]) -> list[float]:
        for worker in chosen:
            worker.stdin.write("go\n")
        return [float(worker.stdout.readline()) for worker in chosen]

    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    (alone,), both = rates(workers[:1]), rates(workers)
    for worker in workers:
        worker.stdin.close()
        worker.wait()
    Row("small, alone", alone, "steps/s").emit()
    Row("small, each of two processes", statistics.fmean(both), "steps/s", data={"each": both}).emit()
    Row("small, two processes together, of one", sum(both) / alone, "times").emit()


def worker(part: Part) -> None:
    """One of the two processes: a rate for each line it is given."""
    run = part.start(part.config("small"))
    joint_rate(part, run)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(joint_rate(part, run), flush=True)


@torch.no_grad()
def decoding(part: Part) -> None:
    """Poses a second of one encoded batch, token by token with the key/value cache, and all tokens at once."""
    for name in ("small", "paper"):
        windows = 4 if part.quick else 256
        config = part.config(
            name, **{"optim.cycle": ("pe",), "data.pe.batch_size": windows, "data.pe.targets_per_window": 1}
        )
        run = part.start(config)
        model = run.state.model.eval()
        memory, _, _ = model.encode(run.parts.feeds["pe"].train(0).inputs)
        for title, way in (("cached, token by token", "autoregressive"), ("parallel", "parallel")):
            seconds = seconds_per_call(lambda: decode_poses(model, memory, decoding=way), run.device, part.seconds)  # noqa: B023
            Row(f"{name}: decoding, {title}", windows / seconds, "poses/s", data={"windows": windows}).emit()
