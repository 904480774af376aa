"""The report's files: what a reader's program makes of each format, hostile labels included, and the command."""

# ruff: noqa: RUF001 - a minus sign is meant where one stands.

import csv
import hashlib
import io
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote
from xml.etree import ElementTree

import pandas
import pytest

from orchestrator.planning.plan import UnitSize
from orchestrator.record import Record
from orchestrator.report import __main__ as command
from orchestrator.report import build, files, write_report
from orchestrator.report.render import CSV_COLUMNS, escape_latex, escape_markdown, latex_numbers
from orchestrator.storage.backends.local import FolderStorage
from orchestrator.storage.ledger import Ledger, Place
from search_spaces.columns import ABLATION, AR3D, MPJPE
from search_spaces.study import Claim, Column, Reference, Row
from tests.support.report_cases import ROWS, finished, keys_of, plan_file_of, plan_of, records_of

HOSTILE = r'<b> | & _x_ *y* % $5$ #1 {z} ~ ^ \n "q" [l](u) `c` << -- <% -- ü 手'
"""Every sign that some format takes for markup, and letters beyond ASCII."""
THIN, FULL = (80.0, 82.0, 84.0), (81.0, 85.0, 86.0)


def hostile():
    """A report whose study says nothing harmless, with each kind of cell."""
    rows = (
        Row(HOSTILE, {"encoder_layers": 1}, "joint", published=(88.0, 42.0)),
        Row("full", {"steps": 960}, "joint", published=(89.3, None)),
        Row("silent", {"encoder_layers": 3}, "joint"),
    )
    columns = (AR3D, Column("pe/mpjpe_mm", HOSTILE, "mm", False))
    plan = plan_of(rows, columns, notes=(HOSTILE,), references=(Reference(HOSTILE, (90.0, None)),))
    plan_file = plan_file_of(plan, {"text_model": HOSTILE})
    tables = (replace(plan_file.tables[0], title=HOSTILE, varies=HOSTILE, name=HOSTILE),)
    plan_file = replace(plan_file, question=HOSTILE, expectation=HOSTILE, command=HOSTILE, tables=tables)
    records = records_of(plan, {HOSTILE: THIN, "full": (81.0, None, 86.0)})
    for key in keys_of(plan, "silent"):
        records[key] = Record(key, "failed", error=HOSTILE)
    first = keys_of(plan, "full")[0]
    records[first] = finished(first, {"ar3d/top1": 81.0}, {"commit": HOSTILE, "device": HOSTILE}, routes={"pe": [0, 1]})
    return plan_file, records


def plain():
    plan = plan_of(references=(Reference("elsewhere", (90.5, None)),))
    return plan_file_of(plan), records_of(
        plan, {"thin": THIN, "full": FULL}, {"thin": (51, 51, 54), "full": (50, 52, 50)}
    )


def claimed():
    """A report with a decided claim whose words are hostile."""
    plan_file, records = plain()
    claim = Claim(HOSTILE, "depth", "thin", "full", "ar3d/top1", "superior", margin=0.5, reason=HOSTILE)
    return replace(plan_file, claims=(claim,)), records


def costed():
    """A report whose rows have costs."""
    plan_file, records = plain()
    size = UnitSize(1_000_000, {"ar3d": 2e6, "pe": 3e6}, 4e12)
    units = {key: replace(unit, size=size) for key, unit in plan_file.units.items()}
    return replace(plan_file, units=units), records


class Page(HTMLParser):
    """Checks that tags close in order; collects texts, ids, links and the cells of table rows."""

    VOID = ("meta", "br", "img", "path", "use", "hr")

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.ids, self.rows, self.addresses = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        values = dict(attributes)
        self.ids += filter(None, [values.get("id")])
        self.addresses += [values[name] for name in ("href", "src", "xlink:href") if name in values]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open[-3:]}"
            self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)
        if self.rows and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data


def rendered(markdown):
    """Markdown as a reader sees it, by another program."""
    markdown_it = pytest.importorskip("markdown_it")
    return Page(markdown_it.MarkdownIt("commonmark").enable("table").render(markdown))


# --- Markdown


@pytest.mark.slow
def test_markdown_shows_hostile_text_as_it_is():
    page = rendered(files(build(*hostile()))["report.md"])
    assert "b" not in page.open
    labels = [row[0] for row in page.rows]
    assert labels.count(HOSTILE) == 3  # The heading, our row, the reference.
    cells = {cell for row in page.rows for cell in row}
    assert f"Preset tiny with text_model={HOSTILE}; seeds 0, 1, 2" in cells


def test_every_line_of_a_markdown_table_has_the_headings_cells():
    page = rendered(files(build(*hostile()))["report.md"])
    table = [row for row in page.rows if len(row) == 5]
    assert [row[1] for row in table] == ["", "ours", "paper", "ours", "paper", "ours", "paper", "paper"]
    assert [row[2] for row in table[1:]] == [
        "82.00‡ ± 2.00 (n=3)Δ −1.50 ± 0.71 (2 pairs)",
        "88.0Δ −1.3",
        "83.50 ± 3.54 (n=2 of 3)1 not run",
        "89.3",
        "failed‡Δ —",
        "—",
        "90.0",
    ]
    assert all(cell for row in table for cell in row[2:])


@pytest.mark.parametrize("text", [HOSTILE, "_a_b__c_", "a_b", "**x**", "&amp;", "\\", "line\nbreak"])
def test_escaped_markdown_reads_as_the_text(text):
    assert "".join(rendered(escape_markdown(text)).texts).strip() == " ".join(text.split())


def test_names_stay_readable_in_the_markdown_file():
    assert escape_markdown("synthetic_ntu25 and table_7") == "synthetic_ntu25 and table_7"


@pytest.mark.slow
def test_figures_are_linked_relative_to_the_markdown_file(tmp_path):
    written = write_report(build(*hostile()), tmp_path / "report")
    links = re.findall(r"\]\((tables/[^)]*)\)", written[0].read_text("utf-8"))
    assert links and all((tmp_path / "report" / link).is_file() for link in links)


# --- HTML


@pytest.mark.slow
def test_the_page_is_well_formed_and_shows_hostile_text_as_it_is():
    text = files(build(*hostile()))["report.html"]
    page = Page(text)
    assert "<b>" not in text
    assert [row[0] for row in page.rows].count(HOSTILE) == 3
    assert HOSTILE in page.texts


@pytest.mark.slow
def test_the_page_needs_no_other_file():
    page = Page(files(build(*plain()))["report.html"])
    assert page.addresses == [] or all(address.startswith("#") for address in page.addresses)
    assert page.open == [] and "<svg" in files(build(*plain()))["report.html"]


@pytest.mark.slow
def test_names_inside_the_page_are_there_once_and_links_to_them_lead_somewhere():
    rows = tuple(Row(row.label, row.changes, "joint") for row in ROWS)
    plan_file = plan_file_of(plan_of(rows, ABLATION))
    tables = (*plan_file.tables, replace(plan_file.tables[0], name="again"))
    text = files(build(replace(plan_file, tables=tables), {}))["report.html"]
    page = Page(text)
    assert text.count("<svg") == 2
    assert [name for name, times in Counter(page.ids).items() if times > 1] == []
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert used and used <= set(page.ids)


@pytest.mark.slow
def test_the_page_links_to_each_run_where_mlflows_page_is_given():
    plan_file, records = plain()
    assert not [one for one in Page(files(build(plan_file, records))["report.html"]).addresses if "://" in one]
    written = files(build(plan_file, records), "http://host:5000/#/experiments/7/")
    addresses = [one for one in Page(written["report.html"]).addresses if one.startswith("http")]
    keys = [re.fullmatch(r"http://host:5000/#/experiments/7/runs\?searchFilter=(.*)", one)[1] for one in addresses]
    assert {unquote(key) for key in keys} == {f"tags.`ups.key` = '{key}'" for key in plan_file.units}
    assert written["report.md"] == files(build(plan_file, records))["report.md"]


@pytest.mark.parametrize("page", ["host:5000", "http://host:5000", "javascript:#/experiments/1", ""])
def test_a_page_that_is_none_of_an_experiment_is_refused(page, capsys):
    assert command.main(["--mlflow-page", page]) == 2
    assert f"http://HOST:5000/#/experiments/1, got {page!r}" in capsys.readouterr().err


# --- LaTeX


def body_of(latex):
    """LaTeX without comments, the definition at its head and escaped signs."""
    lines = [line for line in latex.splitlines() if not line.startswith(("%", "\\providecommand"))]
    return re.sub(r"\\[&%$#_{}]", "", "\n".join(lines))


@pytest.mark.parametrize("case", [hostile, plain, claimed, costed])
def test_latex_is_balanced(case):
    body = body_of(files(build(*case()))["tables.tex"])
    depth = 0
    for sign in body:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0
    environments = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", body):
        if kind == "begin":
            environments.append(name)
        else:
            assert environments.pop() == name
    assert environments == []
    assert body.count("$") % 2 == 0
    assert not set(body) & set('#~^%_"<>')


def test_each_latex_line_has_as_many_cells_as_columns():
    text = body_of(files(build(*hostile()))["tables.tex"])
    columns = re.sub(r"\{\d+mm\}", "", re.search(r"\\begin\{tabular\}\{((?:l|p\{\d+mm\})+)\}", text)[1])
    lines = text.split("\\toprule\n")[1].split("\\bottomrule")[0].splitlines()
    lines = [line for line in lines if line != "\\midrule"]
    assert len(lines) == 8
    assert {line.count("&") + 1 for line in lines} == {len(columns)} == {5}
    assert all(line.endswith(r" \\") for line in lines)


def latex_is_missing():
    if shutil.which("pdflatex") is None:
        return "pdflatex isn't installed (Debian: texlive-latex-extra, texlive-science)"
    styles = ("booktabs.sty", "adjustbox.sty", "siunitx.sty", "textcomp.sty")
    looked_up = subprocess.run(["kpsewhich", *styles], capture_output=True, text=True, check=False).stdout.split()
    return "" if len(looked_up) == len(styles) else "LaTeX lacks booktabs, adjustbox or siunitx (texlive-science)"


@pytest.mark.slow
@pytest.mark.parametrize("case", [hostile, plain, claimed, costed])
def test_latex_compiles(case, tmp_path):
    if reason := latex_is_missing():
        pytest.skip(reason)
    # pdflatex has Latin letters alone.
    (tmp_path / "tables.tex").write_text(files(build(*case()))["tables.tex"].replace("手", ""))
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{textcomp,booktabs,adjustbox,siunitx}"
        r"\begin{document}\input{tables}\end{document}"
    )
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Undefined control sequence" not in done.stdout
    # The hostile texts stand in the caption, too, again and again.
    assert case is hostile or "Float too large" not in done.stdout, "the page cuts it off"


def test_numbers_become_siunitx_by_hand():
    def latex(text):
        return str(latex_numbers(text.replace("-", "\N{MINUS SIGN}")))

    assert latex("82.00 ± 2.00 (n=3)") == r"\num{82.00 +- 2.00} (n=3)"
    assert latex("Δ -1.20 ± 0.30*") == r"$\Delta$ \num{-1.20 +- 0.30}{*}"
    assert latex("-0.3 mm [-1.9, +1.6]") == r"\num{-0.3} mm {[}\num{-1.9}, \num{+1.6}{]}"
    assert latex("1 failed, 2 not run") == "1 failed, 2 not run"


def test_latex_escapes_by_hand():
    assert escape_latex("50 % & a_b --x \\ [1] *") == r"50 \% \& a\_b -{}-x \textbackslash{} {[}1{]} {*}"
    assert escape_latex("\N{MINUS SIGN}1 ± 2") == r"$-$1 $\pm$ 2"
    assert escape_latex("---") == "-{}-{}-"
    assert escape_latex("") == ""


# --- CSV


def test_the_csv_reads_back_with_hand_worked_numbers():
    plan_file, records = plain()
    rows = list(csv.DictReader(io.StringIO(files(build(plan_file, records))["cells.csv"])))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [(row["row"], row["column"], row["kind"]) for row in rows] == [
        ("thin", "ar3d/top1", "ours"),
        ("thin", "pe/mpjpe_mm", "ours"),
        ("full", "ar3d/top1", "ours"),
        ("full", "pe/mpjpe_mm", "ours"),
        ("elsewhere", "ar3d/top1", "reference"),
        ("elsewhere", "pe/mpjpe_mm", "reference"),
    ]
    thin = rows[0]
    assert [float(thin[name]) for name in ("n", "mean", "sd", "difference", "difference_sd", "difference_pairs")] == [
        3,
        82,
        2,
        -2,
        1,
        3,
    ]
    assert [round(float(thin[name]), 4) for name in ("difference_low", "difference_high")] == [-4.4841, 0.4841]
    assert thin["seeds"] == "0=80.0;1=82.0;2=84.0" and thin["status"] == "finished"
    assert (thin["published"], thin["published_difference"]) == ("88.0", "-1.3")
    assert (thin["samples"], thin["baseline_samples"], thin["parameters"]) == ("1920", "1920", "1230000")
    assert float(rows[1]["sampling_error"]) == 1.25  # As the records have it, with three seeds too.
    assert rows[2]["difference"] == "" and rows[5]["status"] == "not published"


def test_the_csv_names_the_fate_of_every_seed_and_keeps_hostile_labels():
    plan_file, records = hostile()
    rows = list(csv.DictReader(io.StringIO(files(build(plan_file, records))["cells.csv"])))
    assert rows[0]["row"] == rows[0]["table"] == HOSTILE
    assert [row["status"] for row in rows[2:6]] == [
        "2 finished, 1 not run",
        "1 finished, 1 not run, 1 not measured",
        "failed",
        "failed",
    ]
    assert rows[2]["seeds"] == "0=81.0;1=not run;2=86.0" and rows[4]["seeds"] == "0=failed;1=failed;2=failed"


# --- figures


def test_a_figure_is_well_formed_and_shows_labels_as_they_are():
    texts = files(build(*hostile()))
    svg = next(text for name, text in texts.items() if name.endswith(".svg"))
    shown = [node.text for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert HOSTILE in shown and "failed" in shown


@pytest.mark.slow
def test_figures_are_the_same_bytes_in_another_process_and_style(tmp_path):
    """Element names, dates and the user's own settings of matplotlib could all differ."""
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nsvg.fonttype: path\naxes.grid: True\n")
    program = (
        "import hashlib; from tests.orchestrator.report.test_report_formats import plain\n"
        "from orchestrator.report import build, files\n"
        "contents = files(build(*plain())).values()\n"
        "print(hashlib.sha256(b''.join(c if isinstance(c, bytes) else c.encode() for c in contents)).hexdigest())"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": ".", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", **more},
        ).stdout
        for more in ({}, {"MATPLOTLIBRC": str(tmp_path), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"})
    }
    assert len(answers) == 1


@pytest.mark.slow
def test_no_two_tables_share_a_figures_file_and_none_leaves_the_folder():
    plan_file, records = plain()
    tables = tuple(replace(plan_file.tables[0], name=name) for name in ("a/b", "a b", "../up", "a-b"))
    texts = files(build(replace(plan_file, tables=tables), records))
    for folder in ("tables", "figures"):
        names = [name for name in texts if name.startswith(f"{folder}/")]
        assert len(set(names)) == 2 * 4
        assert all(re.fullmatch(rf"{folder}/[\w-]+\.(svg|png)", name) for name in names)
    assert sum(name.endswith(".svg") for name in texts) == 8


def test_a_table_of_one_row_has_no_figure_and_claims_nothing():
    plan = plan_of(ROWS[1:])
    texts = files(build(plan_file_of(plan), records_of(plan, {"full": FULL})))
    assert not any(name.endswith(".svg") for name in texts)
    assert "What it shows" not in texts["report.md"] and "84.00 ± 2.65 (n=3)" in texts["report.md"]


# --- the command


def filled(folder, plans=((MPJPE, AR3D),), records=True):
    """A storage with one plan for each choice of columns."""
    ledger = Ledger.open(str(folder))
    for seeds, columns in enumerate(plans, 1):
        rows = tuple(Row(row.label, row.changes | {"steps": 480 * seeds}, "joint") for row in ROWS)
        plan = plan_of(rows, columns, seeds=2, name="tiny" if seeds == 1 else "small")
        ledger.save_plan(plan_file_of(plan))
        for unit in plan.units.values() if records else ():
            ledger.write(unit, finished(unit.key, {"ar3d/top1": 80.0 + unit.seed, "pe/mpjpe_mm": 50.0}))
    return ledger


@pytest.mark.slow
def test_the_command_writes_beside_the_plan_what_the_records_say(tmp_path, capsys):
    ledger = filled(tmp_path / "storage")
    assert command.main(["--storage", str(tmp_path / "storage")]) == 0
    ((name, plan_file),) = ledger.studies().items()
    folder = tmp_path / "storage" / "studies" / name / "report"
    records = ledger.read(Place(key, unit.folder) for key, unit in plan_file.units.items())
    said = capsys.readouterr().out.splitlines()
    for file, content in files(build(plan_file, records)).items():
        assert (folder / file).read_bytes() == (content if isinstance(content, bytes) else content.encode())
        assert str(folder / file) in said
    assert said[:2] == [name, "4 of 4 units finished, 0 failed, 0 not run."]
    assert "80.50 ± 0.71 (n=2)" in (folder / "report.md").read_text("utf-8")
    assert sorted(path.name for path in folder.iterdir()) == [
        "cells.csv",
        "figures",
        "report.html",
        "report.md",
        "report.sha256",
        "tables",
        "tables.tex",
    ]


@pytest.mark.slow
def test_the_command_takes_a_study_or_a_plan_and_another_folder(tmp_path):
    ledger = filled(tmp_path / "storage")
    (name,) = ledger.studies()
    for study in ("invented", name):
        out = tmp_path / study
        assert command.main([study, "--storage", str(tmp_path / "storage"), "--out", str(out)]) == 0
        assert (out / "report.md").is_file()
    assert (tmp_path / "invented" / "report.html").read_bytes() == (tmp_path / name / "report.html").read_bytes()


def refusal(arguments, capsys):
    assert command.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    return said.err


def test_several_plans_are_listed_and_one_can_be_named(tmp_path, capsys):
    storage = ["--storage", str(tmp_path / "storage")]
    ledger = filled(tmp_path / "storage", ((AR3D, MPJPE), (AR3D,)))
    names = sorted(ledger.studies())
    assert len(names) == 2
    for arguments in (storage, ["invented", *storage]):
        assert f"several plans are there; name one of {', '.join(names)}" in refusal(arguments, capsys)
    assert command.main([names[1], *storage]) == 0
    assert names[1] in capsys.readouterr().out


def test_an_unknown_study_is_refused_with_those_that_are_there(tmp_path, capsys):
    (name,) = filled(tmp_path / "storage").studies()
    said = refusal(["other", "--storage", str(tmp_path / "storage")], capsys)
    assert f"no study 'other'; there are {name}" in said


def test_a_plan_without_a_record_is_nothing_to_report(tmp_path, capsys):
    filled(tmp_path / "storage", records=False)
    assert "nothing to report: no unit of invented-tiny" in refusal(["--storage", str(tmp_path / "storage")], capsys)
    assert not list((tmp_path / "storage").glob("studies/*/report"))


def test_an_empty_storage_is_nothing_to_report(tmp_path, capsys):
    Ledger.open(str(tmp_path / "empty"))
    assert "nothing to report" in refusal(["--storage", str(tmp_path / "empty")], capsys)
    assert "no study has been run there" in refusal(["--storage", str(tmp_path / "none")], capsys)
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, capsys):
    filled(tmp_path / "storage")
    (tmp_path / "file").write_text("")
    said = refusal(["--storage", str(tmp_path / "storage"), "--out", str(tmp_path / "file" / "below")], capsys)
    assert "cannot be written to" in said and "--out" in said


def test_storage_and_tracking_address_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--storage", "a", "--tracking-uri", "sqlite:///b"])
    assert stop.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def test_the_command_has_the_arguments_of_the_contract():
    options = {text for action in command.parser()._actions for text in action.option_strings}
    assert options == {
        "-h",
        "--help",
        "--storage",
        "--tracking-uri",
        "--out",
        "--outcomes",
        "--price-per-hour",
        "--mlflow-page",
    }
    assert "examples:" in command.parser().format_help()


@pytest.mark.slow
def test_mlflow_gives_the_same_bytes_as_storage(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlflow")
    from orchestrator.tracking.mirror import Mirror
    from orchestrator.tracking.uri import default_uri

    plan = plan_of(seeds=2)
    ledger = Ledger.open(str(tmp_path / "storage"))
    plan_file = plan_file_of(plan)
    ledger.save_plan(plan_file)
    *done, failing, missing = plan.units.values()
    for unit in done:
        ledger.write(
            unit, finished(unit.key, {"ar3d/top1": 80.1 + unit.seed, "pe/mpjpe_mm": 50.0, "ar3d/clips": 100.0})
        )
    ledger.write(failing, Record(failing.key, "failed", error="Traceback\nBoom: handlung ü"))
    assert ledger.record(missing) is None
    uri = default_uri(ledger)
    mirror = Mirror(ledger, plan, plan_file.to_plain(), uri)
    mirror.start()
    assert mirror.close("failed", None, 120) == 0
    monkeypatch.chdir(tmp_path)
    assert command.main(["--storage", "storage", "--out", "one"]) == 0
    assert command.main(["invented", "--tracking-uri", uri]) == 0
    first, second = tmp_path / "one", tmp_path / f"report-{plan.name}"
    reports = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")} for folder in (first, second)
    ]
    assert reports[0] == reports[1] and len(reports[0]) == 9


# --- a folder with an earlier report


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_an_earlier_reports_files_do_not_stay_beside_a_new_report(tmp_path, caplog):
    out = tmp_path / "out"
    write_report(build(*claimed()), out, outcomes=pandas.DataFrame({"clip": [1]}))
    assert {"outcomes.csv", "claims.csv"} < names_in(out)
    other = build(*hostile())
    written = write_report(other, out)
    assert (
        names_in(out)
        == {"report.sha256", *files(other)}
        == {"report.sha256", *(p.relative_to(out).as_posix() for p in written)}
    )
    assert "removed files of an earlier report" in caplog.text and "outcomes.csv" in caplog.text
    caplog.clear()
    write_report(other, out)
    assert caplog.text == ""


@pytest.mark.slow
def test_a_new_report_removes_no_file_that_no_report_wrote_or_that_was_edited(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "outcomes.csv").write_text("my own")
    (out / "report.sha256").write_text(f"{hashlib.sha256(b'mine').hexdigest()}  mine.txt\n")
    (out / "mine.txt").write_text("mine")
    write_report(build(*claimed()), out)
    (out / "claims.csv").write_text("edited")
    (out / "figures" / "own.png").write_text("my own")
    write_report(build(*plain()), out)
    own = {"outcomes.csv", "mine.txt", "claims.csv", "figures/own.png"}
    assert own < names_in(out) and (out / "claims.csv").read_text() == "edited"


@pytest.mark.slow
def test_a_manifest_reaches_nothing_outside_of_its_folder(tmp_path):
    out, outside = tmp_path / "out", tmp_path / "outside.txt"
    write_report(build(*plain()), out)
    outside.write_text("mine")
    digest = hashlib.sha256(b"mine").hexdigest()
    with (out / "report.sha256").open("a") as manifest:
        manifest.write(f"{digest}  ../outside.txt\n{digest}  {outside}\n")
    write_report(build(*plain()), out)
    assert outside.read_text() == "mine"


@pytest.mark.slow
def test_a_report_that_was_cut_short_leaves_no_file_that_the_next_does_not_know(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_report(build(*plain()), out)
    write = FolderStorage.write

    def full(self, name, content):
        if name == "report.md":
            raise OSError(28, "No space left on device")
        write(self, name, content)

    monkeypatch.setattr(FolderStorage, "write", full)
    with pytest.raises(ValueError, match=r"No space left on device\); give another --out"):
        write_report(build(*claimed()), out)
    assert "claims.csv" in names_in(out)
    monkeypatch.undo()
    write_report(build(*plain()), out)
    assert names_in(out) == {"report.sha256", *files(build(*plain()))}


@pytest.mark.slow
def test_the_manifest_is_one_that_sha256sum_checks(tmp_path):
    write_report(build(*claimed()), tmp_path)
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "report.sha256"], cwd=tmp_path, capture_output=True, text=True
    )
    assert checked.returncode == 0 and checked.stdout.count(": OK") == len(files(build(*claimed())))
