"""Where a plan comes from: which file defines its study, whether it continues an earlier plan of its name."""

import hashlib
from pathlib import Path

from orchestrator.planning.plan_file import PlanFile, PlannedTable
from search_spaces import source_file

FILES = (".py", ".yaml", ".yml")


def origin_of(study: str) -> str:
    """Tells studies of one name apart: a file's name with a digest of its path, else the name that it is found by."""
    if not study.endswith(FILES):
        return study
    path = Path(study).expanduser()
    return f"{path.name}@{hashlib.sha256(str(path.resolve()).encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def study_text(study: str) -> tuple[str, bytes]:
    """A name for a copy of the file that defines a study, and its content."""
    file = source_file(study)
    return f"study{file.suffix}", file.read_bytes()


def lost(before: PlanFile, plan: PlanFile) -> str:
    """The first table, column or row of an earlier plan that a plan of its name doesn't have as it was; empty where it
    only grew. Seeds are none of it: they are a call's own."""
    tables = {table.name: table for table in plan.tables}
    for table in before.tables:
        if table.name not in tables:
            return f"table {table.name!r}"
        if what := _lost_of(table, tables[table.name]):
            return f"{what} of table {table.name!r}"
    return ""


def _lost_of(before: PlannedTable, table: PlannedTable) -> str:
    measures = {(column.metric, column.group) for column in table.columns}
    rows = {row.label: row for row in table.rows}
    for column in before.columns:
        if (column.metric, column.group) not in measures:
            return f"column {column.title!r}"
    for row in before.rows:
        # A row's arms name its configuration; tasks that it has not been measured on may come.
        if row.label not in rows or not row.arms.items() <= rows[row.label].arms.items():
            return f"row {row.label!r}"
    return ""


def check_origin(before: PlanFile | None, plan: PlanFile, where: str) -> str:
    """A warning where a study's own file, or one that an earlier version saved no origin of, has lost rows; else
    nothing.

    Args:
        before: the plan of this name that is on storage; None where there is none.
        where: its folder.

    Raises:
        ValueError: it is another study's, whose rows the new plan doesn't have.
    """
    gone = lost(before, plan) if before is not None else ""
    if before is None or not gone:
        return ""
    if before.origin in ("", plan.origin):
        return f"{plan.name}: {gone} is no longer in the study as it was; its units stay, the plan is replaced"
    raise ValueError(
        f"another study of this name and base is on storage: {where} was planned by `{before.command}`, this call is "
        f"`{plan.command}`, which doesn't have {gone}; give one of them another name, take another --storage, or "
        "remove that folder to replace its plan and report (trained units stay)"
    )
