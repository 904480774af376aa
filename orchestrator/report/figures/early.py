"""Early action prediction: accuracy against the share of the action that has been observed."""

from statistics import fmean

from matplotlib.axes import Axes

from orchestrator.report.figures.style import (
    PAPER_DATA,
    Drawing,
    data_names,
    extent,
    finish,
    grid,
    has_unhealthy,
    hollow_entry,
    line_color,
    marker,
    styled,
)
from orchestrator.report.model import RowOfCells, TableOfCells
from orchestrator.report.wording import listed

Curve = list[tuple[float, int]]
"""(percentage observed, index of the column) of the columns that differ in nothing else, in ascending order."""


def early(table: TableOfCells, name: str) -> Drawing | None:
    """A panel for each measure at two shares or more, a line a row; None where there is no such measure or no value."""
    curves = {
        title: curve
        for title, curve in _curves(table).items()
        if any(row.cells[column].values for row in table.rows for _, column in curve)
    }
    if not curves:
        return None
    columns = [column for curve in curves.values() for _, column in curve]
    cells = [row.cells[column] for row in table.rows for column in columns]
    published = any(cell.published is not None for cell in cells)
    with styled():
        figure, panels = grid(len(curves), 3.6, 2.4)
        for panel, (title, curve) in zip(panels, curves.items(), strict=True):
            for line, row in enumerate(table.rows):
                _line(panel, row, curve, line)
            panel.set_title(title, fontsize=8)
            panel.set_xticks([share for share, _ in curve])
            panel.set_xlabel("observed (%)")
            panel.set_ylabel("% ↑")
        entries = [
            (row.label, panels[0].plot([], [], "-o", color=line_color(line), markersize=3)[0])
            for line, row in enumerate(table.rows)
        ]
        if any(map(has_unhealthy, cells)):
            entries.append(hollow_entry(panels[0]))
        if published:
            entries.append(("paper", panels[0].plot([], [], ":D", color="#444444", linewidth=0.8, markersize=4)[0]))
        image = finish(figure, entries)
    return Drawing(
        name=f"early-{name}",
        title=f"Early prediction: {table.title}",
        caption="Accuracy against the share of the action that has been observed: mean over seeds, the smallest and "
        f"largest as a bar; n = {extent(cell.n for cell in cells)} a point; data: "
        f"{data_names(source.name for column in columns for source in table.sources[column][:1])}"
        f"{PAPER_DATA if published else ''}.",
        image=image,
    )


def _curves(table: TableOfCells) -> dict[str, Curve]:
    """By title."""
    groups: dict[tuple[str, str], Curve] = {}
    for index, column in enumerate(table.columns):
        measure, at, share = column.metric.partition("@")
        if at and column.task == "eap":
            groups.setdefault((measure, column.group), []).append((round(100 * float(share), 6), index))
    named: dict[str, Curve] = {}
    for curve in groups.values():
        if len(curve) > 1:
            curve.sort()
            column = table.columns[curve[0][1]]
            sets = listed(source.name for source in table.sources[curve[0][1]][:1])
            named[f"{column.metric.partition('@')[0].partition('/')[2]}, {sets}, {len(named) + 1}"] = curve
    # Numbered only where the sets alone don't tell the panels apart.
    plain = {name.rpartition(", ")[0]: curve for name, curve in named.items()}
    return plain if len(plain) == len(named) else named


def _line(panel: Axes, row: RowOfCells, curve: Curve, line: int) -> None:
    measured = [(share, list(row.cells[column].values.values())) for share, column in curve]
    measured = [(share, values) for share, values in measured if values]
    color, place = line_color(line), f"{curve[0][1]}-{line}"
    unsound = {share for share, column in curve if has_unhealthy(row.cells[column])}
    if measured:
        shares, means = zip(*((share, fmean(values)) for share, values in measured), strict=True)
        panel.plot(shares, means, "-", color=color, linewidth=1.4, gid=f"arm-{place}")
        for share, mean in zip(shares, means, strict=True):
            marker(panel, f"{place}-{share:g}", share, mean, color, hollow=share in unsound)
    for share, values in measured:
        if len(values) > 1:
            ends = [min(values), max(values)]
            panel.plot([share] * 2, ends, "-", color=color, linewidth=0.9, gid=f"spread-{place}-{share:g}")
    published = [(share, value) for share, column in curve if (value := row.cells[column].published) is not None]
    if published:
        at, heights = zip(*published, strict=True)
        panel.plot(at, heights, ":D", color=color, linewidth=0.8, markersize=4, alpha=0.8, gid=f"paper-{place}")
