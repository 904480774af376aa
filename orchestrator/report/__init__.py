"""Rebuilds a study's tables from its plan and its records, wherever they came from: same input, same bytes."""

from pathlib import Path

from orchestrator.report.build import build
from orchestrator.report.captions import health_lines, summary
from orchestrator.report.figures import draw
from orchestrator.report.figures.style import file_name
from orchestrator.report.model import Records, Report
from orchestrator.report.render import cells_csv, claims_csv, html_page, latex, markdown, views
from ups_model.atomic import write_atomic

__all__ = ["Records", "Report", "build", "files", "health_lines", "summary", "write_report"]


def write_report(report: Report, out: Path) -> list[Path]:
    """Write report.md, report.html, tables.tex, cells.csv, claims.csv and figures; each is there whole or not at all.

    Args:
        out: a folder; made if it isn't there. Other files in it stay.

    Returns:
        The files, report.md first.

    Raises:
        ValueError: the folder can't be written to.
    """
    texts = files(report)
    written = []
    try:
        # What others refer to comes first.
        for name, text in reversed(texts.items()):
            file = out / name
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, text)
            written.append(file)
    except OSError as error:
        raise ValueError(f"{out}: cannot be written to ({error.strerror or error}); give another --out") from error
    return written[::-1]


def files(report: Report) -> dict[str, str]:
    """All files of a report, by their names relative to its folder. Depends on nothing but the report."""
    figures = draw(report)
    names = {name: f"{file_name(name, index)}.svg" for index, name in enumerate(figures.tables)}
    tables = views(report, names)
    drawings = (*filter(None, [figures.claims]), *figures.section)
    return {
        "report.md": markdown(report, tables, figures),
        "report.html": html_page(report, tables, figures),
        "tables.tex": latex(report, tables),
        "cells.csv": cells_csv(report),
        **({"claims.csv": claims_csv(report)} if report.claims else {}),
        **{f"tables/{names[name]}": svg for name, svg in figures.tables.items()},
        **{f"figures/{drawing.name}.svg": drawing.svg for drawing in drawings},
    }
