"""Each measure of a table against its rows' value: how it changes with the factor that the rows vary."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from orchestrator.report.figures.style import (
    OURS,
    PAPER,
    PAPER_DATA,
    Drawing,
    data_names,
    finish,
    grid,
    hollow_entry,
    is_unhealthy,
    marker,
    paper_entry,
    shorten,
    styled,
)
from orchestrator.report.model import TableOfCells
from orchestrator.report.wording import column_text
from ups_model.wording import count

MIN_LOG_RATIO = 8
"""Largest to smallest value from which on the axis is logarithmic."""
MAX_LEVEL_LABEL = 6
"""Characters of a row's label that fit below a panel without being turned."""


def factor(table: TableOfCells, name: str) -> Drawing | None:
    """A panel a column, a thin line a seed; None for a table of one row or without any value."""
    cells = [cell for row in table.rows for cell in row.cells]
    if len(table.rows) < 2 or not any(cell.values for cell in cells):
        return None
    published = any(cell.published is not None for cell in cells)
    with styled():
        figure, panels = grid(len(table.columns), 1.9, 2.1)
        for number, panel in enumerate(panels):
            _panel(panel, table, number)
        entries = [("ours, one line a seed", panels[0].plot([], [], "-o", color=OURS, linewidth=0.8, markersize=4)[0])]
        if any(is_unhealthy(state) for cell in cells for state in cell.health.values()):
            entries.append(hollow_entry(panels[0]))
        if published:
            entries.append(paper_entry(panels[0]))
        image = finish(figure, entries)
    runs = [cell.n for cell in cells]
    n = count(max(runs), "seed") if min(runs) == max(runs) else f"{min(runs)} to {count(max(runs), 'seed')}"
    data = data_names(source.name for sources in table.sources for source in sources[:1])
    return Drawing(
        name=f"factor-{name}",
        title=table.title,
        caption=f"Each measure on the test split against the rows' value ({table.varies}), one thin line a seed; "
        f"n = {n} a row; data: {data}{PAPER_DATA if published else ''}.",
        image=image,
    )


def _panel(panel: Axes, table: TableOfCells, index: int) -> None:
    labels = [row.label for row in table.rows]
    numbers = numeric(labels)
    places = numbers or [float(line) for line in range(len(labels))]
    order = sorted(range(len(labels)), key=places.__getitem__)
    cells = [row.cells[index] for row in table.rows]
    if numbers and min(numbers) > 0 and max(numbers) / min(numbers) >= MIN_LOG_RATIO:
        panel.set_xscale("log")
    for seed in sorted({seed for cell in cells for seed in cell.values}):
        measured = [line for line in order if seed in cells[line].values]
        heights = [cells[line].values[seed] for line in measured]
        across = [places[line] for line in measured]
        panel.plot(across, heights, "-", color=OURS, linewidth=0.8, alpha=0.6, gid=f"seed-{index}-{seed}")
        for line, height in zip(measured, heights, strict=True):
            hollow = is_unhealthy(cells[line].health.get(seed))
            marker(panel, f"{index}-{line}-{seed}", places[line], height, OURS, hollow)
    for line, cell in enumerate(cells):
        if cell.published is not None:
            panel.plot(places[line], cell.published, "D", color=PAPER, markersize=4, gid=f"paper-{index}-{line}")
    panel.set_xticks(places, [shorten(label) for label in labels])
    panel.xaxis.set_minor_locator(NullLocator())
    if max(map(len, labels)) > MAX_LEVEL_LABEL:
        panel.tick_params(axis="x", labelrotation=35)
        for label in panel.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
        panel.margins(x=0.2)
    column = table.columns[index]
    panel.set_title(column.title, fontsize=8)
    panel.set_ylabel(column_text(column))
    if numbers:
        panel.set_xlabel(table.varies)


def numeric(labels: Sequence[str]) -> list[float]:
    """The rows' labels as different finite numbers; empty where they aren't."""
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) and len(set(numbers)) == len(numbers) else []
