"""The report's figures as SVG texts, from the report alone: same numbers, same bytes."""

from dataclasses import replace

from orchestrator.report.figures.curves import learning_curves
from orchestrator.report.figures.differences import figure as differences
from orchestrator.report.figures.early import early
from orchestrator.report.figures.factor import factor
from orchestrator.report.figures.routes import routes
from orchestrator.report.figures.style import Drawing
from orchestrator.report.model import Report

__all__ = ["Drawing", "differences", "drawings"]


def drawings(report: Report) -> list[Drawing]:
    """Figures of the report's own section; each is there only where its data are."""
    by_table = [make(table, index) for index, table in enumerate(report.tables) for make in (factor, early)]
    made = [drawing for drawing in (*by_table, learning_curves(report), routes(report)) if drawing is not None]
    if not any(source.synthetic for sources in report.sources.values() for source in sources):
        return made
    return [replace(drawing, caption=f"{drawing.caption} SYNTHETIC DATA.") for drawing in made]
