"""Tables of cells as Markdown, HTML, LaTeX and CSV. Whatever a template prints is escaped unless it is marked safe."""

import csv
import html
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.planning.plan_file import PlannedColumn
from orchestrator.report import captions, wording
from orchestrator.report.figures import Figures
from orchestrator.report.model import Cell, Report, RowOfCells, TableOfCells
from orchestrator.report.tuning import tuning_view
from orchestrator.tracking.pages import unit_page
from search_spaces.study import Claim


class Safe(str):
    """Text that is markup already."""


@dataclass(frozen=True)
class Line:
    """A line of a table as it reads; each cell is one or more lines of text."""

    kind: str
    """ours, paper or reference."""
    label: str
    cells: tuple[tuple[str, ...], ...]
    parameters: str


@dataclass(frozen=True)
class View:
    """A table as it reads."""

    table: TableOfCells
    headings: tuple[tuple[str, str], ...]
    """Title, and unit with direction, of each column."""
    lines: tuple[Line, ...]
    synthetic: str
    caption: str
    """Below the report's head, which says how everything was trained."""
    full_caption: str
    warnings: tuple[str, ...]
    footnotes: tuple[str, ...]
    findings: tuple[tuple[str, tuple[str, ...], str], ...]
    """Of each column, what the rows show beside the baseline row, and how their seeds go with that row's."""
    costs: tuple[tuple[str, ...], ...]
    """Lines of what the rows cost, headings first; empty where nothing is known."""
    figure: Safe
    """Name of its figure's files, without suffix; empty for none."""


def views(report: Report, figures: Mapping[str, str]) -> list[View]:
    """The tables in words; `figures` has the names of their figures' files, without suffix, by the tables' names."""
    return [_view(report, table, Safe(figures.get(table.name, ""))) for table in report.tables]


def _view(report: Report, table: TableOfCells, figure: Safe) -> View:
    correlations = table.seed_correlations
    return View(
        table=table,
        headings=tuple((column.title, wording.column_text(column)) for column in table.columns),
        lines=tuple(_lines(table)),
        synthetic=captions.synthetic_text(table.sources),
        caption=" ".join(captions.table_caption(report, table, alone=False)),
        full_caption=" ".join(captions.table_caption(report, table)),
        warnings=tuple(captions.table_warnings(table)),
        footnotes=(*captions.budget_notes(table), *table.notes),
        findings=tuple(
            (
                column.title,
                tuple(
                    wording.finding(table, index, row.label, row.cells[index]) for row in table.rows if not row.baseline
                ),
                wording.correlation_text(correlations[index]),
            )
            for index, column in enumerate(table.columns)
        )
        if len(table.rows) > 1
        else (),
        costs=wording.cost_lines(table, report.price_per_hour),
        figure=figure,
    )


def _lines(table: TableOfCells) -> list[Line]:
    lines = []
    printed = any(cell.published is not None for row in table.rows for cell in row.cells)
    for row in table.rows:
        label = row.label + (" (baseline)" if row.baseline else "")
        ours = tuple(
            tuple(filter(None, (*wording.value_texts(cell), wording.difference_text(cell)))) for cell in row.cells
        )
        lines.append(Line("ours", label, ours, wording.parameters_text(row.parameters)))
        if printed:
            paper = tuple(wording.published_texts(table, index, cell) for index, cell in enumerate(row.cells))
            lines.append(Line("paper", "", paper, wording.NONE))
    for reference in table.references:
        values = tuple(
            (wording.NONE if value is None else wording.number(value, wording.published_digits(table, index)),)
            for index, value in enumerate(reference.published)
        )
        lines.append(Line("reference", reference.label, values, wording.NONE))
    return lines


def markdown(report: Report, tables: list[View], figures: Figures) -> str:
    """For GitHub; figures are linked relative to it."""
    return _render("report.md.j2", escape_markdown, report, tables, figures=figures)


def html_page(report: Report, tables: list[View], figures: Figures, mlflow_page: str | None = None) -> str:
    """One file without any other; with links to its runs' pages where MLflow's is given."""
    links = _run_links(report, mlflow_page) if mlflow_page else []
    return _render("report.html.j2", html.escape, report, tables, figures=figures, run_links=links)


def _run_links(report: Report, mlflow_page: str) -> list[tuple[str, str, str, list[tuple[int, str]]]]:
    """Of each table, row and group of columns that are measured on the same runs: their titles, and of each seed the
    address of its run."""
    units = report.plan.units
    return [
        (
            table.title,
            row.label,
            ", ".join(column.title for column in table.columns if column.group == group),
            [(units[key].seed, unit_page(mlflow_page, key)) for key in keys],
        )
        for table in report.plan.tables
        for row in table.rows
        for group, keys in row.units.items()
    ]


def latex(report: Report, tables: list[View]) -> str:
    r"""Table environments to \input; the file's head names the packages."""
    return _render("tables.tex.j2", escape_latex, report, tables)


def _render(template: str, escape: Callable[[str], str], report: Report, tables: list[View], **more: Any) -> str:
    environment = Environment(
        loader=PackageLoader("orchestrator.report"),
        undefined=StrictUndefined,
        # Escaping by default: a template can't forget it.
        finalize=lambda value: value if isinstance(value, Safe) else Safe(escape(str(value))),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # LaTeX is full of braces and per cents; the same signs serve all formats.
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
    )
    environment.filters |= {
        "code": code_markdown,
        "inline_svg": lambda svg, prefix: Safe(_inline_svg(svg, prefix)),
        "cell": _cell_joiner(escape, template),
        "numbers": latex_numbers,
        "safe": Safe,
        "bullets": lambda lines: Safe("\n".join(f"- {escape_markdown(line)}" for line in lines)),
        "table": markdown_table,
    }
    return environment.get_template(template).render(
        report=report,
        tables=tables,
        health=captions.health_lines(report),
        summary=captions.summary(report),
        setup=captions.setup(report),
        legend=captions.legend(report),
        claims=[wording.claim_texts(result) for result in report.claims],
        of_paper=any(result.published is not None for result in report.claims),
        claim_notes=captions.claim_notes(report),
        cost_note=captions.COST_NOTE,
        samples=captions.sample_lines(report),
        routes=captions.route_lines(report),
        tuning=tuning_view(report),
        synthetic=captions.synthetic_text(sources for _, sources in captions.all_sources(report)),
        **more,
    )


def _cell_joiner(escape: Callable[[str], str], template: str) -> Callable[[tuple[str, ...]], Safe]:
    """A cell's lines, escaped, with the format's line break."""
    if template.endswith(".tex.j2"):
        return lambda texts: Safe(r"\lines{" + r"\\ ".join(map(latex_numbers, texts)) + "}")
    return lambda texts: Safe("<br>".join(map(escape, texts)))


def escape_markdown(text: str) -> str:
    """Text that GitHub shows as it is, in a table too."""
    text = " ".join(text.split())
    # An underscore inside a word is no emphasis; names stay readable in the file itself.
    marked = re.sub(r"([\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)
    return html.escape(marked, quote=False)


def markdown_table(lines: Sequence[Sequence[str]], columns: str = "") -> Safe:
    """A table, headings first; `columns` has l or r for each column, by default l for the first and r for others."""
    rules = {"l": "---|", "r": "---:|"}
    heading, *others = [f"| {' | '.join(map(escape_markdown, line))} |" for line in lines]
    rule = "|" + "".join(rules[column] for column in columns or "l" + "r" * (len(lines[0]) - 1))
    return Safe("\n".join([heading, rule, *others]))


def code_markdown(text: str) -> Safe:
    """A code span; as HTML where backticks or bars would end it."""
    text = " ".join(text.split())
    return Safe(f"`{text}`" if text and not set(text) & set("`|") else f"<code>{escape_markdown(text)}</code>")


_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    # A bracket after \\ would be its argument.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    wording.MINUS: "$-$",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "—": "---",
    "·": r"\textperiodcentered{}",
    "…": r"\ldots{}",
    "“": "``",
    "”": "''",
}


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is; letters beyond Latin need xelatex or lualatex."""
    text = " ".join(text.split())
    # Two hyphens would become a dash, in the command too.
    return "".join(
        "-{}" if sign + after == "--" else _LATEX.get(sign, sign)
        for sign, after in zip_longest(text, text[1:], fillvalue="")
    )


_NUMBER = re.compile(rf"(?<![\w.,])([+{wording.MINUS}]?\d+\.\d+)(?: ± (\d+\.\d+))?(?![\w.])")


def latex_numbers(text: str) -> Safe:
    r"""A text of our own words as LaTeX, with its decimals in siunitx's \num, so that a paper sets how they look."""
    parts, end = [], 0
    for match in _NUMBER.finditer(text):
        value = match[1].replace(wording.MINUS, "-") + (f" +- {match[2]}" if match[2] else "")
        parts += [_escape_between(text[end : match.start()]), rf"\num{{{value}}}"]
        end = match.end()
    return Safe("".join([*parts, _escape_between(text[end:])]))


def _escape_between(text: str) -> str:
    """As `escape_latex`, with the spaces at its ends."""
    before, after = (" " if text[at : at + 1 or None].isspace() else "" for at in (0, -1))
    return f"{before}{escape_latex(text)}{after}" if text.strip() else before


def _inline_svg(svg: str, prefix: str) -> str:
    """An SVG for use inside HTML: no XML head, and names of its own, as a page may have each name once."""
    svg = svg[svg.index("<svg") :]
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)


CSV_COLUMNS = (
    "table", "row", "column", "kind", "training", "baseline", "unit", "higher_is_better", "status", "n", "mean", "sd",
    "sampling_error", "seeds", "difference", "difference_sd", "difference_low", "difference_high", "difference_pairs",
    "difference_verdict", "published", "published_difference", "samples", "baseline_samples", "parameters", "title",
    "source", "arm", "active_parameters", "flops", "row_operations",
)  # fmt: skip


SAME_IN_CELL = (
    "arm", "n", "mean", "sd", "sampling_error", "published", "published_difference", "samples", "baseline_samples",
)  # fmt: skip
"""Columns that a `Cell` has under the same names."""


def cells_csv(report: Report) -> str:
    """One line a cell, in full precision; empty means that there is no such number."""
    lines = []
    for table in report.tables:
        for row in table.rows:
            for cell, sources in zip(row.cells, table.sources, strict=True):
                line = {"table": table.name, "row": row.label, "source": sources[0].name if sources else ""}
                lines.append(line | _csv_column(cell.column) | _csv_cell(row, cell))
        for reference in table.references:
            for column, value in zip(table.columns, reference.published, strict=True):
                status = "published alone" if value is not None else "not published"
                line = {"table": table.name, "row": reference.label, "kind": "reference"}
                lines.append(line | _csv_column(column) | {"status": status, "published": value})
    return _csv(CSV_COLUMNS, lines)


def _csv(columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


CLAIM_COLUMNS = (
    *(field.name for field in fields(Claim)), "unit", "verdict", "withheld", "effect", "low", "high", "p", "adjusted_p",
    "seeds_needed", "published", "new_subjects", "new_subjects_effect", "new_subjects_low", "new_subjects_high",
    "effects",
)  # fmt: skip


def claims_csv(report: Report) -> str:
    """Claims in full precision, one a line, of a report that has any; effects by seed as "0=1.25;1=0.75"."""
    lines = []
    for result in report.claims:
        line = {
            **asdict(result.claim),
            "unit": result.column.unit,
            "verdict": result.verdict,
            "withheld": "; ".join(result.withheld),
            "effect": result.mean,
            "low": result.low,
            "high": result.high,
            "p": result.decision.p,
            "adjusted_p": result.adjusted_p,
            "seeds_needed": result.seeds_needed,
            "published": result.published,
            "effects": ";".join(f"{seed}={effect}" for seed, effect in result.effects.items()),
        }
        if isinstance(new := result.new_subjects, str):
            lines.append(line | {"new_subjects": new})
            continue
        of_new = {"effect": new.mean, "low": new.low, "high": new.high}
        lines.append(line | {"new_subjects": new.subjects} | {f"new_subjects_{of}": of_new[of] for of in of_new})
    return _csv(CLAIM_COLUMNS, lines)


def _csv_column(column: PlannedColumn) -> dict[str, Any]:
    same = ("title", "unit", "higher_is_better")
    return {"column": column.metric, **{name: getattr(column, name) for name in same}}


def _csv_cell(row: RowOfCells, cell: Cell) -> dict[str, Any]:
    missing = wording.missing_text(cell)
    values = {
        "kind": "ours",
        **{name: getattr(cell, name) for name in SAME_IN_CELL},
        "training": row.training,
        "baseline": row.baseline,
        "status": "finished" if not missing else f"{cell.n} finished, {missing}" if cell.n else missing,
        "seeds": ";".join(f"{seed}={cell.values.get(seed, state)}" for seed, state in cell.states.items()),
        "parameters": ";".join(map(str, row.parameters)),
        "active_parameters": ";".join(map(str, row.cost.active_parameters)),
        "flops": row.cost.flops.get(cell.column.group),
        "row_operations": row.cost.operations,
    }
    if (pairs := cell.difference) is not None:
        values |= {
            "difference": pairs.mean,
            **{f"difference_{name}": getattr(pairs, name) for name in ("sd", "low", "high")},
            "difference_pairs": pairs.n,
            "difference_verdict": "withheld" if cell.withheld else pairs.verdict,
        }
    return values
