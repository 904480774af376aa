"""Rebuilds a study's tables from its plan and its records, wherever they came from: same input, same bytes."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.report.build import build
from orchestrator.report.captions import health_lines, summary
from orchestrator.report.figures import draw
from orchestrator.report.figures.style import file_name
from orchestrator.report.frames import Frames, load
from orchestrator.report.model import Records, Report
from orchestrator.report.render import cells_csv, claims_csv, html_page, latex, markdown, views
from orchestrator.storage.backends.local import FolderStorage
from orchestrator.storage.report_files import replace_files

if TYPE_CHECKING:  # It takes half a second to import, and a report needs none of it.
    from pandas import DataFrame

__all__ = ["Frames", "Records", "Report", "build", "files", "health_lines", "load", "summary", "write_report"]

logger = logging.getLogger(__name__)


def write_report(
    report: Report, out: Path, mlflow_page: str | None = None, outcomes: "DataFrame | None" = None
) -> list[Path]:
    """Write report.md, report.html, tables.tex, cells.csv, claims.csv and figures; each is there whole or not at all.

    What an earlier report left in the folder and this one doesn't write is removed, with a warning (`replace_files`).

    Args:
        out: a folder; made if it isn't there. Other files in it stay.
        mlflow_page: as for `files`.
        outcomes: written as outcomes.csv.

    Returns:
        The files, report.md first.

    Raises:
        ValueError: the folder can't be written to.
    """
    contents = files(report, mlflow_page)
    if outcomes is not None:
        contents["outcomes.csv"] = outcomes.to_csv(index=False)
    encoded = {name: one.encode("utf-8") if isinstance(one, str) else one for name, one in contents.items()}
    try:
        removed = replace_files(FolderStorage(out), "", encoded)
    except OSError as error:
        raise ValueError(f"{out}: cannot be written to ({error.strerror or error}); give another --out") from error
    if removed:
        logger.warning("%s: removed files of an earlier report that are none of this one: %s", out, ", ".join(removed))
    return [out / name for name in contents]


def files(report: Report, mlflow_page: str | None = None) -> dict[str, str | bytes]:
    """All files of a report, by their names relative to its folder: texts, and pictures as bytes. Depends on nothing
    but the arguments.

    Args:
        mlflow_page: address of the experiment's page in MLflow; report.html then links to each run.
    """
    figures = draw(report)
    names = {name: file_name(name, index) for index, name in enumerate(figures.tables)}
    tables = views(report, names)
    images = {f"tables/{names[name]}": image for name, image in figures.tables.items()}
    images |= {f"figures/{one.name}": one.image for one in (figures.claims, *figures.section) if one is not None}
    return {
        "report.md": markdown(report, tables, figures),
        "report.html": html_page(report, tables, figures, mlflow_page),
        "tables.tex": latex(report, tables),
        "cells.csv": cells_csv(report),
        **({"claims.csv": claims_csv(report)} if report.claims else {}),
        **{f"{name}.svg": image.svg for name, image in images.items()},
        **{f"{name}.png": image.png for name, image in images.items()},
    }
