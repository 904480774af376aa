"""What a better value costs: each measure of a table against what its rows take, with the rows that none dominates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from orchestrator.report.figures.style import (
    GREY,
    Drawing,
    data_names,
    extent,
    finish,
    grid,
    has_unhealthy,
    hollow_entry,
    line_color,
    shorten,
    styled,
)
from orchestrator.report.model import RowOfCells, TableOfCells
from orchestrator.report.wording import column_text
from ups_model.config import set_of

PREDICTION, TRAINING = "MFLOPs a prediction", "minutes of training a seed"
MIN_DECADE = 5
"""Largest to smallest cost from which on ticks are round numbers of each decade."""


@dataclass(frozen=True)
class Point:
    """One row in one panel."""

    row: int
    """Its place in the table."""
    cost: float
    value: float
    """Mean over seeds."""
    sd: float | None = None
    hollow: bool = False
    """Whether a run collapsed or did not converge."""


def front(points: Sequence[Point], higher_is_better: bool) -> list[Point]:
    """The points that no other one dominates, by ascending cost: none costs at most as much and is at least as good,
    and differs in either."""
    sign = 1 if higher_is_better else -1
    best: list[Point] = []
    # Of equal costs the best comes first.
    for point in sorted(points, key=lambda point: (point.cost, -sign * point.value)):
        last = best[-1] if best else None
        if not last or sign * (point.value - last.value) > 0 or (point.cost, point.value) == (last.cost, last.value):
            best.append(point)
    return best


def pareto(table: TableOfCells, name: str) -> Drawing | None:
    """A panel a column, a point a row: against the operations of a prediction where rows differ in them, else against
    the time of training; None where fewer than two rows have different costs and values."""
    for cost in (PREDICTION,) if _trains_alike(table) else (PREDICTION, TRAINING):
        columns = {place: _points(table, place, cost) for place in range(len(table.columns))}
        columns = {place: points for place, points in columns.items() if len({point.cost for point in points}) > 1}
        if columns:
            return _drawing(table, name, cost, columns)
    return None


def _points(table: TableOfCells, place: int, cost: str) -> list[Point]:
    points = []
    for line, row in enumerate(table.rows):
        cell, amount = row.cells[place], _cost(row, place, cost)
        if cell.mean is not None and amount is not None and 0 < amount < math.inf:
            points.append(Point(line, amount, cell.mean, cell.sd, has_unhealthy(cell)))
    return points


def _cost(row: RowOfCells, place: int, cost: str) -> float | None:
    if cost == PREDICTION:
        flops = row.cost.flops.get(row.cells[place].column.group)
        return None if flops is None else flops / 1e6
    return None if row.cost.seconds is None else row.cost.seconds / 60


def _trains_alike(table: TableOfCells) -> bool:
    """Whether all rows compute as much: then times differ by what else their machines did."""
    counted = {row.cost.operations for row in table.rows}
    return len(counted) == 1 and counted != {None}


def _drawing(table: TableOfCells, name: str, cost: str, columns: Mapping[int, list[Point]]) -> Drawing:
    shown = sorted({point.row for points in columns.values() for point in points})
    baseline = next(line for line, row in enumerate(table.rows) if row.baseline)
    with styled():
        figure, panels = grid(len(columns), 2.5, 2.3)
        for panel, (place, points) in zip(panels, columns.items(), strict=True):
            _panel(panel, table, place, points, baseline)
            panel.set_xlabel(cost)
        key = panels[0].plot
        entries = [
            (shorten(table.rows[line].label), key([], [], "o", color=line_color(line), markersize=5)[0])
            for line in shown
        ]
        if baseline in shown:
            entries.append(("baseline", key([], [], "o", color=GREY, markersize=10, markerfacecolor="none")[0]))
        entries.append(("not dominated", key([], [], "-", color=GREY, linewidth=1)[0]))
        if any(point.hollow for points in columns.values() for point in points):
            entries.append(hollow_entry(panels[0]))
        image = finish(figure, entries)
    runs = {table.rows[point.row].cells[place].n for place, points in columns.items() for point in points}
    meaning = "counted from the configuration" if cost == PREDICTION else "as measured, machines may have differed"
    return Drawing(
        name=f"pareto-{name}",
        title=f"Cost and result: {table.title}",
        caption=f"Each measure on the test split against {cost} ({meaning}): mean over seeds with its standard "
        "deviation; costs on a logarithmic axis; the line joins the rows that no other one dominates; n = "
        f"{extent(runs)} a point; data: "
        f"{data_names(set_of(source.name) for place in columns for source in table.sources[place][:1])}.",
        image=image,
    )


def _panel(panel: Axes, table: TableOfCells, place: int, points: list[Point], baseline: int) -> None:
    column = table.columns[place]
    panel.set_xscale("log")
    best = front(points, column.higher_is_better)
    ends = [point.cost for point in best], [point.value for point in best]
    panel.plot(*ends, "-", color=GREY, linewidth=1, zorder=1, gid=f"front-{place}")
    for point in points:
        name, color = f"{place}-{point.row}", line_color(point.row)
        if point.sd:
            spread = [point.value - point.sd, point.value + point.sd]
            panel.plot([point.cost] * 2, spread, "-", color=color, linewidth=1, gid=f"sd-{name}")
        inside, kind = ("white", "hollow") if point.hollow else (color, "row")
        at = point.cost, point.value
        panel.plot(*at, "o", color=color, markersize=5, markerfacecolor=inside, gid=f"{kind}-{name}")
        if point.row == baseline:
            panel.plot(*at, "o", color=GREY, markersize=10, markerfacecolor="none", gid=f"baseline-{name}")
    costs = [point.cost for point in points]
    wide = max(costs) / min(costs) >= MIN_DECADE
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(3))
    panel.xaxis.set_minor_locator(NullLocator())
    # The scale's own formatter writes formulas.
    panel.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:,.4g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.margins(x=0.15, y=0.15)
    panel.set_title(column.title, fontsize=8)
    panel.set_ylabel(column_text(column))
