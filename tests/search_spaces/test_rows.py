"""Rows by product and one at a time, and studies as YAML files."""

import re
from pathlib import Path

import pytest

from search_spaces import find_study
from search_spaces.rows import grid, one_at_a_time
from search_spaces.study import Claim, Column, FineTuning, Reference, Row, Study, Table
from search_spaces.study_file import __doc__ as example


def test_a_grid_has_a_row_for_every_combination_the_last_field_fastest():
    rows = grid(encoder_layers=(1, 3, 5), dropout=(0, 0.1))
    assert [row.label for row in rows] == [
        "encoder_layers=1, dropout=0", "encoder_layers=1, dropout=0.1", "encoder_layers=3, dropout=0",
        "encoder_layers=3, dropout=0.1", "encoder_layers=5, dropout=0", "encoder_layers=5, dropout=0.1",
    ]  # fmt: skip
    assert rows[3].changes == {"encoder_layers": 3, "dropout": 0.1}


def test_one_at_a_time_varies_one_field_a_row_and_has_the_base():
    rows = one_at_a_time({"data.pe.frames": (9,)}, encoder_layers=(1, 5), training="joint")
    assert [(row.label, dict(row.changes), row.training) for row in rows] == [
        ("base", {}, "joint"),
        ("frames=9", {"data.pe.frames": 9}, "joint"),
        ("encoder_layers=1", {"encoder_layers": 1}, "joint"),
        ("encoder_layers=5", {"encoder_layers": 5}, "joint"),
    ]


@pytest.mark.parametrize("maker", [grid, one_at_a_time])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "rows need at least one field with values"),
        ({"layers": 3}, r"layers needs a list of values, got 3; write layers=\(1, 2\)"),
        ({"layers": ()}, "layers needs a list of values"),
        ({"name": "abc"}, "name needs a list of values, got 'abc'"),
    ],
)
def test_rows_of_nothing_are_refused(maker, fields, message):
    with pytest.raises(ValueError, match=message):
        maker(fields)
    if fields:
        with pytest.raises(ValueError, match="is given twice"):
            maker({name: (1,) for name in fields}, **{name: (1,) for name in fields})


WHOLE = """
name: whole
question: Is all of it read?
expectation: It is.
seeds: 2
base: {encoder_layers: 2, ar3d.sources: [synthetic_ntu25]}
fine_tuning: {share: 0.5}
tables:
  - name: t
    title: Title
    varies: Setting
    columns:
      - {metric: ar3d/top1, title: Recognition, unit: "%", higher_is_better: true}
      - {metric: ar3d/top1, title: Other, unit: "%", higher_is_better: true, changes: {ar3d.frames: 8}}
    rows:
      - {label: plain}
      - {label: joint, changes: {routing: false}, training: joint, published: [88.0, null]}
    baseline: plain
    notes: [A note.]
    references: [{label: theirs, published: [90.1, 80]}]
claims:
  - {text: joint is worse, table: t, arm: plain, baseline: joint, column: Recognition, kind: superior, margin: 0.5,
     reason: Half a point.}
"""


def file_of(tmp_path, text):
    file = tmp_path / "study.yaml"
    file.write_text(text)
    return str(file)


def test_a_yaml_file_is_the_study_that_python_would_have_made(tmp_path):
    column = Column("ar3d/top1", "Recognition", "%", True)
    other = Column("ar3d/top1", "Other", "%", True, {"ar3d.frames": 8})
    rows = (Row("plain"), Row("joint", {"routing": False}, "joint", (88.0, None)))
    table = Table(
        "t", "Title", "Setting", (column, other), rows, "plain", ("A note.",), (Reference("theirs", (90.1, 80)),)
    )
    claim = Claim("joint is worse", "t", "plain", "joint", "Recognition", "superior", 0.5, "Half a point.")
    expected = Study(
        "whole", "Is all of it read?", "It is.", (table,), {"encoder_layers": 2, "ar3d.sources": ("synthetic_ntu25",)},
        2, FineTuning(0.5), (claim,),
    )  # fmt: skip
    read = find_study(file_of(tmp_path, WHOLE))
    assert {**vars(read), "base": 0} == {**vars(expected), "base": 0}
    assert {name: tuple(value) if isinstance(value, list) else value for name, value in read.base.items()} == {
        "encoder_layers": 2, "ar3d.sources": ("synthetic_ntu25",),
    }  # fmt: skip


def test_the_documented_file_is_a_study(tmp_path):
    text = re.search(r"\n\n((?:    .*\n)+)", example)[1]
    study = find_study(file_of(tmp_path, "\n".join(line[4:] for line in text.splitlines())))
    assert study.tables[0].rows[0].label == "layers=1, dropout=0" and study.project == "my_package.project:PROJECT"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("question:", "questoin:", "the study: no field 'questoin'; near: question"),
        ("expectation: It is.", "", "the study: expectation is missing"),
        ("    varies: Setting", "", "table 1: varies is missing"),
        ("title: Other,", "titel: Other,", "table 1, column 2: no field 'titel'; near: title"),
        ("{label: plain}", "{label: 1}", 'row 1: label must be a text, got 1; write it in quotes: "1"'),
        ("published: [88.0, null]", "published: high", "published must be a list of numbers"),
        ("changes: {routing: false}", "changes: 5", "changes must be fields and their values, got 5"),
        ("baseline: plain", "baseline: none", "baseline must be the label of a row, got 'none'"),
        ("kind: superior", "kind: better", "kind must be one of superior"),
        ("share: 0.5", "share: 2", "fine-tuning needs 0 < share < 1"),
        ("share: 0.5", "share: half", "fine_tuning: a field has a value of another kind than it takes"),
        ("tables:", "tables: 3\nx:", "tables must be a list, got 3"),
        ("seeds: 2", "seeds: [", "not YAML"),
        ("seeds: 2", "seeds: 2\nseeds: 3", "'seeds' is given twice"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_place(tmp_path, old, new, message):
    assert old in WHOLE
    with pytest.raises(ValueError, match=f"study.yaml: .*{re.escape(message)}"):
        find_study(file_of(tmp_path, WHOLE.replace(old, new, 1)))


@pytest.mark.parametrize("rows", ["rows: {all: {layers: [1]}}", "rows: 3", "rows: {grid: 3}"])
def test_rows_of_no_known_kind_are_refused(tmp_path, rows):
    text = re.sub(r"    rows:\n(      .*\n)+", f"    {rows}\n", WHOLE)
    with pytest.raises(ValueError, match="table 1: "):
        find_study(file_of(tmp_path, text))


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"nowhere\.yaml: cannot be read \(No such file"):
        find_study(str(Path("nowhere.yaml")))
