"""Speed and accuracy of each exit of a trained multi-task network, beside those that its paper names.

    python -m baselines multitask --preset small --out runs/multitask
    python benchmarks/exits.py runs/multitask [RUN ...] [--svg exits.svg] [--rounds 15] [--seconds 0.5]

A run is a folder with `result.json` and `best/`: of the command above, or a unit's on an orchestrator's storage. With
several (seeds), accuracy is the mean over runs; speed is the first one's, which is that of all.

One thread. A call takes one window of frames, or a batch of 16, to the poses of all its frames and its class, and
leaves at the exit. Times are CPU times, which other processes change less than the clock's; the exits take turns, and
the median of the rounds counts, each the mean of as many calls as fit into its share of the time.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from baselines.multitask.learner import MultitaskModel, load_multitask

BATCH = 16
PAPER = ((240, 63.9, 86.6), (180, 57.3, 87.7), (90, 48.6, 89.9))
"""Luvizon et al., Table 7: frames/s on a GTX 1080Ti, MPJPE on Human3.6M in mm, top-1 on NTU RGB+D in percent."""


@dataclass(frozen=True)
class Line:
    """One exit."""

    number: int
    window: float
    """Frames a second, a window at a time."""
    poses: float
    """The same without classes."""
    batch: float
    """In batches of 16 windows."""
    mpjpe_mm: float | None
    top1: float | None


def frames_per_second(model: MultitaskModel, rounds: int, seconds: float) -> list[tuple[float, float, float]]:
    """By exit: a window at a time, that without classes, batches of 16; medians of the rounds."""
    layers, frames, joints = model.config.network.layers, model.shape.frames, len(model.shape.slots)
    inputs = {size: torch.randn(size, frames, joints, 2) for size in (1, BATCH)}

    def call(number: int, size: int, actions: bool) -> Callable[[], object]:
        return lambda: model.network(inputs[size], number, actions)

    calls = {
        (number, kind): (size, call(number, size, actions))
        for number in range(1, layers + 1)
        for kind, (size, actions) in enumerate(((1, True), (1, False), (BATCH, True)))
    }
    speeds: dict[tuple[int, int], list[float]] = {key: [] for key in calls}
    share = seconds / len(calls)
    with torch.no_grad():
        for number in range(rounds + 1):
            for key, (size, run) in calls.items():
                speed = frames * size / cpu_seconds(run, share)
                if number:  # The first round warms up.
                    speeds[key].append(speed)
    median = {key: statistics.median(values) for key, values in speeds.items()}
    return [(median[number, 0], median[number, 1], median[number, 2]) for number in range(1, layers + 1)]


def cpu_seconds(run: Callable[[], object], seconds: float) -> float:
    """Mean CPU seconds of a call, of as many as fit into `seconds`."""
    begin, count = time.process_time(), 0
    while not count or time.process_time() - begin < seconds:
        run()
        count += 1
    return (time.process_time() - begin) / count


def accuracies(runs: Sequence[Path], number: int) -> tuple[float | None, float | None]:
    """Mean MPJPE and top-1 of an exit on the test split, or on validation subjects where that wasn't measured."""
    means = []
    for name in ("pe/mpjpe_mm", "action/top1"):
        values = []
        for run in runs:
            metrics = json.loads((run / "result.json").read_text("utf-8"))["metrics"]
            part = "test" if any(key.startswith("test/") for key in metrics) else "validation"
            values.append(metrics.get(f"{part}/{name}@exit{number}"))
        kept = [value for value in values if value is not None]
        means.append(statistics.fmean(kept) if kept else None)
    return means[0], means[1]


def measure(runs: Sequence[Path], rounds: int, seconds: float) -> list[Line]:
    """Every exit. ValueError where a run has no weights."""
    result = json.loads((runs[0] / "result.json").read_text("utf-8"))
    model, _ = load_multitask(runs[0] / "best" / Path(result["checkpoint"]).name, torch.device("cpu"))
    speeds = frames_per_second(model.eval(), rounds, seconds)
    return [Line(number, *speed, *accuracies(runs, number)) for number, speed in enumerate(speeds, 1)]


def table(lines: Sequence[Line], runs: int, rounds: int) -> str:
    """The lines as text, with the paper's below."""
    head = f"{'':12}{'frames/s':>10}{'poses alone':>13}{f'batch of {BATCH}':>13}{'MPJPE mm':>11}{'top-1 %':>10}"
    rows = [head]
    for line in lines:
        errors = "".join(
            f"{'-' if value is None else f'{value:.1f}':>{width}}"
            for value, width in ((line.mpjpe_mm, 11), (line.top1, 10))
        )
        rows.append(f"{f'exit {line.number}':12}{line.window:10.0f}{line.poses:13.0f}{line.batch:13.0f}{errors}")
    rows += [f"{'deephar':12}{speed:10}{'-':>13}{'-':>13}{error:11.1f}{top1:10.1f}" for speed, error, top1 in PAPER]
    return "\n".join([
        *rows,
        "",
        f"Ours: 2D joints, {platform.machine()}, one thread, torch {torch.__version__}, medians of {rounds} "
        f"rounds of CPU time; accuracy of {runs} run(s).",
        "deephar: RGB frames on a GTX 1080Ti, Human3.6M and NTU RGB+D. Neither speeds nor accuracies can be compared",
        "with ours, but how much accuracy an earlier exit costs for how much speed.",
    ])  # fmt: skip


def draw(lines: Sequence[Line], file: Path) -> None:
    """Accuracy over speed, ours beside the paper's, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams |= {"svg.hashsalt": "exits", "svg.fonttype": "none"}
    figure, rows = pyplot.subplots(2, 2, figsize=(8, 5.5), sharex="col")
    ours = [(line.window, line.mpjpe_mm, line.top1) for line in lines]
    sides = (
        ("ours, joints of UI-PRMD, one CPU thread", ours, [f"exit {line.number}" for line in lines]),
        ("deephar, RGB, GTX 1080Ti", PAPER, [f"{speed} frames/s" for speed, _, _ in PAPER]),
    )
    for side, (title, points, labels) in enumerate(sides):
        rows[0][side].set_title(title, fontsize=10)
        for place, (axis, name) in enumerate(zip(rows[:, side], ("MPJPE, mm", "action, top-1 %"), strict=True), 1):
            kept = [(one[0], one[place], label) for one, label in zip(points, labels, strict=True) if one[place]]
            axis.plot([one[0] for one in kept], [one[1] for one in kept], "o-")
            for x, y, label in kept:
                axis.annotate(label, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8)
            axis.set_ylabel(name)
            axis.margins(0.3, 0.15)
            axis.grid(alpha=0.3)
        rows[1][side].set_xlabel("frames/s")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="also draw accuracy over speed")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="(15)")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="N", help="of a round (0.5)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        lines = measure(args.runs, args.rounds, args.seconds)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(lines, len(args.runs), args.rounds))
    if args.svg:
        draw(lines, args.svg)
    return 0


if __name__ == "__main__":
    sys.exit(main())
