"""The claims at a glance: each effect with its intervals, its margin, the paper's effect and the verdict."""

import math
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from orchestrator.report.figures.style import (
    GREY,
    OURS,
    PAPER,
    PAPER_DATA,
    Drawing,
    data_names,
    extent,
    finish,
    paper_entry,
    styled,
)
from orchestrator.report.model import ClaimResult, NewSubjects, Report
from ups_model.config import set_of

SUBJECTS, MARGIN = "#00845f", "#dce6f2"
LINE_HEIGHT = 0.52
"""Inches of a claim."""
MAX_LABEL_WIDTH, MAX_LABEL_LINES = 42, 3
"""Characters and lines of a claim's statement; the table has all of it."""
HALF = 0.42
"""Of a margin's height, in claims."""
ABOVE, BELOW = -0.24, 0.24
"""Places of the paper's effect and of the interval for new subjects beside the effect's own."""


def forest(report: Report) -> Drawing | None:
    """A panel a unit, a line a claim; None where there are no claims."""
    results = report.claims
    if not results:
        return None
    units: dict[str, list[ClaimResult]] = {}
    for result in results:
        units.setdefault(result.column.unit, []).append(result)
    with styled():
        heights = [len(claims) * LINE_HEIGHT + 0.5 for claims in units.values()]
        figure = Figure(figsize=(7.6, sum(heights)))
        panels = list(figure.subplots(len(units), 1, squeeze=False, height_ratios=heights).flat)
        first = 0
        for panel, (unit, claims) in zip(panels, units.items(), strict=True):
            _panel(panel, claims, unit, first)
            first += len(claims)
        image = finish(figure, _entries(panels[0], results))
    return Drawing(
        name="claims",
        title="Claims",
        caption="The effect of each claim, signed so that the better side is on the right, with its 95 % interval over "
        "seeds on these test subjects, neither corrected for the number of claims nor of looks; grey: no verdict is "
        f"given; n = {extent(len(result.effects) for result in results)} paired seeds a claim; data: "
        f"{data_names(set_of(name) for result in results for name in result.column.sources[:1])}"
        f"{PAPER_DATA if any(result.published is not None for result in results) else ''}.",
        image=image,
    )


def _panel(panel: Axes, claims: list[ClaimResult], unit: str, first: int) -> None:
    panel.axvline(0, color=GREY, linewidth=0.8)
    for line, result in enumerate(claims):
        _claim(panel, result, line, f"{first + line}")
    panel.set_yticks(range(len(claims)), [_label(result) for result in claims])
    panel.set_ylim(len(claims) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.margins(x=0.06)
    panel.xaxis.set_major_locator(MaxNLocator(6))
    panel.set_xlabel(f"effect ({'points' if unit == '%' else unit}), better →")


def _label(result: ClaimResult) -> str:
    return textwrap.fill(result.claim.text, MAX_LABEL_WIDTH, max_lines=MAX_LABEL_LINES, placeholder=" …")


def _claim(panel: Axes, result: ClaimResult, line: int, name: str) -> None:
    withheld = result.verdict == "withheld"
    ours, subjects, paper = (GREY if withheld else color for color in (OURS, SUBJECTS, PAPER))
    _margin(panel, result, line, name)
    if result.published is not None:
        panel.plot(result.published, line + ABOVE, "D", color=paper, markersize=4, gid=f"paper-{name}")
    if result.low is not None and result.high is not None:
        panel.plot([result.low, result.high], [line] * 2, "-", color=ours, linewidth=1.4, gid=f"interval-{name}")
    if result.mean is not None:
        panel.plot(result.mean, line, "o", color=ours, markersize=4.5, gid=f"effect-{name}")
    new = result.new_subjects
    if isinstance(new, NewSubjects) and all(map(math.isfinite, (new.mean, new.low, new.high))):
        ends, below = [new.low, new.high], line + BELOW
        panel.plot(ends, [below] * 2, "-", color=subjects, linewidth=1.4, gid=f"subjects-{name}")
        panel.plot(new.mean, below, "s", color=subjects, markersize=3)
    panel.text(
        1.02,
        line,
        result.verdict,
        transform=panel.get_yaxis_transform(),
        va="center",
        color=GREY if withheld else "black",
        fontweight="bold" if result.verdict in ("supported", "contradicted") else "normal",
    )


def _margin(panel: Axes, result: ClaimResult, line: int, name: str) -> None:
    """A band within which settings count as equal; a line that the effect should be above, or below."""
    margin = result.claim.margin
    if result.claim.kind == "equivalent":
        band = Rectangle((-margin, line - HALF), 2 * margin, 2 * HALF, facecolor=MARGIN, edgecolor="none", zorder=0)
        panel.add_patch(band).set_gid(f"margin-{name}")
    elif margin:
        ends = [line - HALF, line + HALF]
        panel.plot([margin] * 2, ends, "--", color="#444444", linewidth=1, gid=f"margin-{name}")


def _entries(panel: Axes, results: tuple[ClaimResult, ...]) -> list[tuple[str, Line2D]]:
    def key(style: str, **more: object) -> Line2D:
        return panel.plot([], [], style, **more)[0]  # type: ignore[arg-type]  # keywords of a line

    entries = [("effect, 95 % interval over seeds", key("-o", color=OURS, linewidth=1.4, markersize=4.5))]
    if any(isinstance(result.new_subjects, NewSubjects) for result in results):
        entries.append(("95 % interval for new subjects", key("-s", color=SUBJECTS, linewidth=1.4, markersize=3)))
    if any(result.claim.kind == "equivalent" for result in results):
        entries.append(("equal within the margin", key("s", color=MARGIN, markersize=8)))
    if any(result.claim.margin and result.claim.kind != "equivalent" for result in results):
        entries.append(("margin", key("--", color="#444444", linewidth=1)))
    if any(result.published is not None for result in results):
        entries.append(paper_entry(panel))
    return entries
