"""The report's figures, from the report alone: same numbers, same bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from orchestrator.report.captions import all_sources
from orchestrator.report.figures.confusion import confusion
from orchestrator.report.figures.curves import learning_curves
from orchestrator.report.figures.differences import figure as differences
from orchestrator.report.figures.early import early
from orchestrator.report.figures.factor import factor
from orchestrator.report.figures.forest import forest
from orchestrator.report.figures.pareto import pareto
from orchestrator.report.figures.poses import poses
from orchestrator.report.figures.routes import routes
from orchestrator.report.figures.style import Drawing, Image, file_name
from orchestrator.report.model import Report

__all__ = ["Drawing", "Figures", "draw"]


@dataclass(frozen=True)
class Figures:
    """All figures of a report, by where they stand; each is there only where its data are."""

    tables: Mapping[str, Image]
    """The differences to the baseline row, by the table's name."""
    claims: Drawing | None
    """Beside the table of claims."""
    section: tuple[Drawing, ...]
    """The report's own section of figures."""


def draw(report: Report) -> Figures:
    """All figures of a report."""
    synthetic = any(source.synthetic for _, sources in all_sources(report) for source in sources)

    def marked(drawing: Drawing) -> Drawing:
        return replace(drawing, caption=f"{drawing.caption} SYNTHETIC DATA.") if synthetic else drawing

    by_table = [
        make(table, file_name(table.name, index))
        for index, table in enumerate(report.tables)
        for make in (factor, early, pareto)
    ]
    section = (
        *by_table,
        learning_curves(report),
        routes(report),
        *map(confusion, report.confusions),
        poses(report.poses),
    )
    claims = forest(report)
    return Figures(
        tables={table.name: image for table in report.tables if (image := differences(table)) is not None},
        claims=marked(claims) if claims is not None else None,
        section=tuple(marked(drawing) for drawing in section if drawing is not None),
    )
