"""One figure a table: the paired differences to the baseline row, ours beside the paper's. Same numbers, same bytes."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orchestrator.report.figures.style import (
    GREY,
    MAX_PANELS_ACROSS,
    OURS,
    PAPER,
    Image,
    finish,
    hollow_entry,
    marker,
    paper_entry,
    styled,
)
from orchestrator.report.model import TableOfCells
from orchestrator.report.wording import column_text, missing_text


def figure(table: TableOfCells) -> Image | None:
    """A panel a column, a line a row; None for a table without a row besides its baseline.

    Points are single seeds' differences, the bar their 95 % t interval (from two seeds on), the diamond the published
    difference.
    """
    if len(table.rows) < 2:
        return None
    down = math.ceil(len(table.columns) / MAX_PANELS_ACROSS)
    across = math.ceil(len(table.columns) / down)
    with styled():
        drawing = Figure(figsize=(2.2 * across + 0.8, down * (0.34 * (len(table.rows) - 1) + 1.0) + 0.3))
        panels = drawing.subplots(down, across, squeeze=False, sharey=True)
        for index, panel in enumerate(panels.flat):
            if index < len(table.columns):
                _panel(panel, table, index)
            else:
                panel.set_axis_off()
        published = any(cell.published_difference is not None for row in table.rows for cell in row.cells)
        key = panels.flat[0]
        entries = [
            ("ours, one seed", key.plot([], [], "o", color=OURS, markersize=3, alpha=0.6)[0]),
            ("ours, mean and 95 % interval", key.plot([], [], "-|", color=OURS, linewidth=1.5, markersize=9)[0]),
        ]
        if any(cell.withheld and cell.difference for row in table.rows for cell in row.cells):
            entries.append(("no statement: runs failed, collapsed or did not converge", hollow_entry(key)[1]))
        if published:
            entries.append(paper_entry(key))
        return finish(drawing, entries)


def _panel(panel: Axes, table: TableOfCells, index: int) -> None:
    rows = [row for row in table.rows if not row.baseline]
    column = table.columns[index]
    panel.axvline(0, color=GREY, linewidth=0.8)
    for line, row in enumerate(rows):
        cell = row.cells[index]
        pairs = cell.difference
        assert pairs is not None, "the baseline row differs from nothing"
        if cell.published_difference is not None:
            panel.plot(cell.published_difference, line + 0.2, "D", color=PAPER, markersize=4)
        if pairs.mean is None:
            reason = missing_text(cell) or "no common seed"
            # In the panel's middle, wherever its axis begins and ends.
            middle, box = panel.get_yaxis_transform(), {"color": "white", "pad": 1}
            panel.text(0.5, line - 0.12, reason, color=GREY, bbox=box, transform=middle, ha="center", va="center")
            continue
        if cell.withheld:  # The text makes no statement on it, so there is no interval.
            for seed, value in pairs.by_seed.items():
                marker(panel, f"{index}-{line}-{seed}", value, line - 0.12, GREY, hollow=True)
            continue
        panel.plot(list(pairs.by_seed.values()), [line - 0.12] * pairs.n, "o", color=OURS, markersize=3, alpha=0.6)
        if pairs.low is not None and pairs.high is not None:
            panel.plot([pairs.low, pairs.high], [line - 0.12] * 2, "-", color=OURS, linewidth=1.5)
            panel.plot(pairs.mean, line - 0.12, "|", color=OURS, markersize=9, markeredgewidth=1.8)
    panel.set_yticks(range(len(rows)), [row.label for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.margins(x=0.1)
    panel.xaxis.set_major_locator(MaxNLocator(4))
    panel.set_title(column.title, fontsize=8)
    panel.set_xlabel(f"Δ {column_text(column)}")
