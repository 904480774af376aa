"""Which classes are taken for which: the confusion matrix of a classification task."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.transforms import Affine2D

from orchestrator.report.figures.style import Drawing, finish, shorten, styled
from orchestrator.report.model import Confusion
from ups_model.wording import count

SHADES = ((0.1, "#dbe7f4"), (0.25, "#aac8e6"), (0.5, "#6c9fd0"), (0.75, "#3674b5"), (1.0, "#123f73"))
"""Colour of cells up to a share of the true class's clips."""
LIGHT = 0.5
"""Largest share on whose colour text is black."""
MAX_LABELLED = 30
"""Classes up to which each has its label, and each cell its count."""
CELL, MAX_SIDE = 0.27, 6.5
"""Inches of a cell, and at most of all cells."""
TICK_EVERY = 10
MAX_CONFUSIONS = 10


def confusion(matrix: Confusion) -> Drawing:
    """Rows are true classes, columns predicted ones; of many classes the most frequent confusions as a table."""
    counts = np.array(matrix.counts)
    size = len(counts)
    labelled = size <= MAX_LABELLED
    side = min(max(size * CELL, 1.2), MAX_SIDE) if labelled else MAX_SIDE
    with styled():
        figure = Figure(figsize=(max(side + (2.2 if matrix.classes else 0.9), 4.2), side + 1.4))
        panel = figure.subplots()
        entries = _cells(panel, counts)
        if labelled:
            _write_counts(panel, counts, 72 * side / size)
        _ticks(panel, matrix, labelled)
        image = finish(figure, entries)
    clips = int(counts.sum())
    observed = f", {100 * float(matrix.ratio):g} % observed" if matrix.ratio else ""
    return Drawing(
        name=f"confusion-{matrix.task}",
        title=f"Confusions: {matrix.title}{observed}",
        caption=f"Predicted class of the test clips of each true class, of row “{matrix.row}”"
        f"{'' if matrix.classes else ', classes by their number from 0'}; shade: share of the true class's clips; "
        f"n = {count(clips, 'clip')} of {count(matrix.seeds, 'seed')}, {100 * int(counts.trace()) / max(clips, 1):.1f} "
        f"% of them right; data: {matrix.source}.",
        image=image,
        table=() if labelled else _most_frequent(matrix, counts),
    )


def _cells(panel: Axes, counts: np.ndarray) -> list[tuple[str, PathPatch]]:
    """Draws the cells that have clips, one path a shade; returns the key's entries."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    entries, lower = [], 0.0
    for level, (upper, color) in enumerate(SHADES):
        places = np.argwhere((share > lower) & (share <= upper))
        squares = [
            Path.unit_rectangle().transformed(Affine2D().translate(predicted - 0.5, true - 0.5))
            for true, predicted in places
        ]
        if squares:
            cells = PathPatch(Path.make_compound_path(*squares), facecolor=color, edgecolor="none")
            panel.add_patch(cells).set_gid(f"cells-{level}")
        entries.append(
            (f"to {100 * upper:.0f} %", PathPatch(Path.unit_rectangle(), facecolor=color, edgecolor="#bbbbbb"))
        )
        lower = upper
    panel.set_xlim(-0.5, len(counts) - 0.5)
    panel.set_ylim(len(counts) - 0.5, -0.5)
    panel.set_aspect("equal")
    for spine in panel.spines.values():
        spine.set(visible=True, color="#bbbbbb", linewidth=0.6)
    return entries


def _write_counts(panel: Axes, counts: np.ndarray, width: float) -> None:
    """In each cell; it is `width` points wide, a digit about 0.65 of the font's size."""
    for true, predicted in np.argwhere(counts):
        dark = counts[true, predicted] > LIGHT * counts[true].sum()
        text = str(counts[true, predicted])
        panel.text(
            predicted,
            true,
            text,
            ha="center",
            va="center",
            fontsize=min(7.0, 0.9 * width / (0.65 * len(text))),
            color="white" if dark else "black",
        ).set_gid(f"count-{true}-{predicted}")


def _ticks(panel: Axes, matrix: Confusion, labelled: bool) -> None:
    ticks = range(0, len(matrix.counts), 1 if labelled else TICK_EVERY)
    labels = [shorten(matrix.classes[tick]) if matrix.classes and labelled else str(tick) for tick in ticks]
    panel.set_xticks(ticks, labels, rotation=90 if max(map(len, labels)) > 2 else 0)
    panel.set_yticks(ticks, labels)
    panel.tick_params(length=0 if labelled else 3, labelsize=7)
    panel.set_xlabel("predicted class")
    panel.set_ylabel("true class")


def _most_frequent(matrix: Confusion, counts: np.ndarray) -> tuple[tuple[str, ...], ...]:
    def name(index: int) -> str:
        return matrix.classes[index] if matrix.classes else str(index)

    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_CONFUSIONS]
    lines = []
    for true, predicted in np.stack(np.unravel_index(order, wrong.shape), axis=1):
        if clips := int(wrong[true, predicted]):
            share = 100 * clips / int(counts[true].sum())
            lines.append((name(true), name(predicted), str(clips), f"{share:.1f} %"))
    return (("True class", "Predicted as", "Clips", "Of the true class"), *lines) if lines else ()
