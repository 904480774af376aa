"""Minutes of training until one joint UPS is as good as each network that is made for one task.

    python benchmarks/time_to_quality.py --storage DIR [--study training --row joint] [--than yardsticks]

All values are of the validation subjects, from the curves by which health is judged: the other network's at the end of
its run, UPS's at each fifth of its run, means over the seeds that both have, since another seed holds out another
subject. Minutes are those of a run's training, its measuring included, times the share of its steps: of machines as
they were.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from orchestrator.planning.plan_file import PlanFile
from orchestrator.record import Record
from orchestrator.report.sources import open_study
from orchestrator.storage.ledger import Ledger
from ups_model.evaluation.health import TaskHealth

Points = list[tuple[float, float]]
"""Minutes and value, at each fifth of a run."""


@dataclass(frozen=True)
class Comparison:
    """One network, and when the row's runs are as good, means over common seeds."""

    metric: str
    network: str
    value: float
    """Of the network, at its end."""
    minutes: float
    """Of its training."""
    reached: float | None
    """Minutes until the row's runs are as good; None: they never are."""
    end: tuple[float, float]
    """Minutes and value at their end."""
    seeds: int


def curves_of(plan: PlanFile, records: Mapping[str, Record | None]) -> dict[tuple[str, str], dict[int, Points]]:
    """By row and metric, and by seed, of runs that start from no other one."""
    curves: dict[tuple[str, str], dict[int, Points]] = {}
    for row in (row for table in plan.tables for row in table.rows):
        for key in dict.fromkeys(key for of_column in row.units.values() for key in of_column):
            record, unit = records.get(key), plan.units[key]
            if record is None or unit.parent:
                continue
            for health in map(TaskHealth.from_plain, record.health.values()):
                minutes, steps = record.about["train_seconds"] / 60, health.curve[-1][0]
                points = [(minutes * step / steps, value) for step, value in health.curve]
                curves.setdefault((row.label, health.metric), {})[unit.seed] = points
    return curves


def compare(
    row: str, ours: Mapping[tuple[str, str], dict[int, Points]], theirs: Mapping[tuple[str, str], dict[int, Points]]
) -> list[Comparison]:
    """The row against every network that is measured by the same metric."""
    compared = []
    for (label, metric), own in ours.items():
        for (network, other_metric), others in theirs.items() if label == row else ():
            seeds = sorted(own.keys() & others.keys())
            if metric != other_metric or not seeds:
                continue
            stops = zip(*(own[seed] for seed in seeds), strict=True)
            curve = [(fmean(taken for taken, _ in stop), fmean(value for _, value in stop)) for stop in stops]
            minutes, target = (fmean(others[seed][-1][place] for seed in seeds) for place in (0, 1))
            sign = -1 if metric.endswith("_mm") else 1
            reached = next((taken for taken, value in curve if sign * (value - target) >= 0), None)
            compared.append(Comparison(metric, network, target, minutes, reached, curve[-1], len(seeds)))
    return compared


def table(compared: list[Comparison]) -> str:
    """For people."""
    lines = [f"{'metric':<14}{'network':<42}{'its value':>10}{'minutes':>9}{'seeds':>7}   as good after minutes"]
    for one in compared:
        never = f"never: {one.end[1]:.1f} after {one.end[0]:.0f}"
        lines.append(
            f"{one.metric:<14}{one.network:<42}{one.value:>10.1f}{one.minutes:>9.1f}{one.seeds:>7}   "
            + (never if one.reached is None else f"{one.reached:.0f}")
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Minutes until a joint UPS is as good as networks made for one task.")
    parser.add_argument("--storage", required=True)
    parser.add_argument("--study", default="training")
    parser.add_argument("--row", default="joint")
    parser.add_argument("--than", default="yardsticks", help="the study of the other networks (yardsticks)")
    options = parser.parse_args(arguments)
    ledger = Ledger.open(options.storage, create=False)
    ours, theirs = (open_study(study, ledger, None) for study in (options.study, options.than))
    curves = (curves_of(study.plan, study.records) for study in (ours, theirs))
    print(table(compare(options.row, *curves)))


if __name__ == "__main__":
    main()
