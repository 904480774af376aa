"""Error against training time, of one lifter for all actions and of one for each: what `action_based` cost and when.

    python -m orchestrator.ablate action_based --preset small --data uiprmd=PATH --storage DIR
    python benchmarks/action_based.py --storage DIR [--study action_based] [--out curves.svg]

Errors are those of the validation subjects at each fifth of a run, times its training seconds up to there; the
specialists' are the mean error and the sum of the times of all of them. The time-precision rate (Bai, 2021) is the gain
on the mean pose in mm, by the seconds: it depends on where one stops, so that each point has its own.
"""

import argparse
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.planning.plan_file import PlanFile, PlannedRow
from orchestrator.record import Record
from orchestrator.report.sources import open_study
from orchestrator.storage.ledger import Ledger
from ups_model.evaluation.health import TaskHealth

MAX_POINTS = 5


@dataclass(frozen=True)
class Point:
    """One stop of a row, mean over seeds."""

    row: str
    share: float
    """Of the run's steps."""
    seconds: float
    """Of all the row's runs of one seed."""
    error_mm: float
    sd_mm: float | None
    """Over seeds; None of one."""
    rate: float
    """Time-precision rate, mm a second."""
    seeds: int


def points_of(plan: PlanFile, records: Mapping[str, Record | None]) -> list[Point]:
    """Of each row of the study's first table, as far as all runs of a seed are there."""
    table = plan.tables[0]
    return [point for row in table.rows for point in _points(plan, row, records)]


def _points(plan: PlanFile, row: PlannedRow, records: Mapping[str, Record | None]) -> Iterable[Point]:
    by_seed: dict[int, dict[str, None]] = {}
    for keys in row.units.values():
        for key in keys:
            by_seed.setdefault(plan.units[key].seed, {})[key] = None
    curves = [[_curve(records.get(key)) for key in keys] for keys in by_seed.values()]
    whole = [[curve for curve in of_seed if curve] for of_seed in curves if all(of_seed)]
    for place in range(MAX_POINTS if whole else 0):
        stops = [[curve[place] for curve in of_seed if place < len(curve)] for of_seed in whole]
        if not all(len(of_seed) == len(every) for of_seed, every in zip(stops, whole, strict=True)):
            return
        errors = [statistics.fmean(error for _, _, error, _ in of_seed) for of_seed in stops]
        seconds = [sum(taken for _, taken, _, _ in of_seed) for of_seed in stops]
        trivial = statistics.fmean(mean_pose for of_seed in stops for _, _, _, mean_pose in of_seed)
        mean, taken = statistics.fmean(errors), statistics.fmean(seconds)
        sd = statistics.stdev(errors) if len(errors) > 1 else None
        yield Point(row.label, stops[0][0][0], taken, mean, sd, (trivial - mean) / taken, len(whole))


def _curve(record: Record | None) -> list[tuple[float, float, float, float]]:
    """Share of the steps, seconds, error and the mean pose's error, at each stop of a run; nothing without one."""
    if record is None or "pe" not in record.health or not record.about.get("train_seconds"):
        return []
    health = TaskHealth.from_plain(record.health["pe"])
    last = health.curve[-1][0]
    return [
        (step / last, record.about["train_seconds"] * step / last, error, health.trivial)
        for step, error in health.curve
    ]


def table(points: list[Point]) -> str:
    """For people."""
    lines = [f"{'training':<34}{'steps':>7}{'seconds':>10}{'error, mm':>16}{'mm a second':>14}{'seeds':>7}"]
    for point in points:
        error = f"{point.error_mm:.1f}" + ("" if point.sd_mm is None else f" ± {point.sd_mm:.1f}")
        lines.append(
            f"{point.row:<34}{point.share:>7.0%}{point.seconds:>10.0f}{error:>16}{point.rate:>14.4f}{point.seeds:>7}"
        )
    return "\n".join(lines)


def draw(points: list[Point], file: Path) -> None:
    """Error against training time, a line a row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6))
    panel = figure.subplots()
    for row in dict.fromkeys(point.row for point in points):
        own = [point for point in points if point.row == row]
        panel.errorbar(
            [point.seconds for point in own], [point.error_mm for point in own],
            [point.sd_mm or 0.0 for point in own], marker="o", capsize=2, label=row,
        )  # fmt: skip
    panel.set(xscale="log", xlabel="training seconds of all runs of a seed", ylabel="MPJPE on validation subjects, mm")
    panel.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Error against training time of the study action_based.")
    parser.add_argument("--storage", required=True)
    parser.add_argument("--study", default="action_based")
    parser.add_argument("--out", type=Path, help="draw the curves, .svg or .png")
    options = parser.parse_args(arguments)
    opened = open_study(options.study, Ledger.open(options.storage, create=False), None)
    points = points_of(opened.plan, opened.records)
    print(table(points))
    if options.out is not None:
        draw(points, options.out)


if __name__ == "__main__":
    main()
