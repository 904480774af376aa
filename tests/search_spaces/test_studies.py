"""Studies: the published values against the paper's text, their rules, and where they may come from."""

import dataclasses
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.planning.plan import make_plan
from orchestrator.planning.resolve import resolve
from orchestrator.project import DataFacts, load_project
from search_spaces import find_study, study_names
from search_spaces.space import Range, Space
from search_spaces.study import Claim, Column, FineTuning, Reference, Row, Study, Table
from search_spaces.ups.paper_tables import BINS, TABLE_7, TABLE_8, TABLE_9, TRAINING
from search_spaces.ups.tables_1_6 import STUDY as TABLES_1_6

COLUMN = Column("ar3d/top1", "Accuracy", "%", True)


@pytest.fixture(scope="module")
def paper(repo_root):
    file = repo_root.parent / "shared" / "papers" / "ups.txt"
    if not file.is_file():
        pytest.skip(f"the paper's text is not at {file}")
    return file.read_text("utf-8")


def printed_rows(paper, caption):
    """Rows of a table of the paper's text: label -> the numbers after it."""
    lines = paper[paper.index(caption) :].splitlines()[1:]
    rows = {}
    for line in lines:
        cells = [cell.strip() for cell in line.split("\t")]
        numbers = [float(cell) for cell in cells[1:] if re.fullmatch(r"\d+(\.\d+)?", cell)]
        if len(numbers) == len(cells) - 1 and numbers:
            rows[re.sub(r"[\s${}]", "", cells[0])] = tuple(numbers)
        if line.startswith("Table"):
            break
    return rows


@pytest.mark.parametrize(
    ("table", "caption"),
    [(TABLE_7, "Table 7. Eval"), (TABLE_8, "Table 8. Eval"), (TABLE_9, "Table 9. Eval")],
    ids=["7", "8", "9"],
)
def test_published_ablations_are_those_of_the_paper(paper, table, caption):
    printed = printed_rows(paper, caption)
    assert {row.label.replace(" ", ""): row.published for row in table.rows} == printed


def test_published_training_rows_are_those_of_tables_1_to_6(paper):
    by_metric = {column.metric: index for index, column in enumerate(TRAINING.columns)}
    separate, _, tuned = TRAINING.rows
    for row, name in ((separate, "UPS_separate"), (tuned, "UPS")):
        table_1 = printed_rows(paper, "Table 1. Perf")[name]
        table_2 = printed_rows(paper, "Table 2. Perf")[name]
        table_3, table_4 = printed_rows(paper, "Table 3. MPJPE")[name], printed_rows(paper, "Table 4. P-MPJPE")[name]
        table_6 = printed_rows(paper, "Table 6. Perf")[name]
        published = {metric: row.published[index] for metric, index in by_metric.items()}
        assert published["ar3d/top1"] == table_1[2]  # NTU120 xsub
        assert (published["ar2d/top1"], published["ar2d/top5"]) == table_2
        assert (published["pe/mpjpe_mm"], published["pe/p_mpjpe_mm"]) == (table_3[-1], table_4[-1])
        assert (published["eap/top1@0.2"], published["eap/top1@0.4"], published["eap/top1@0.6"]) == table_6
        table_5 = printed_rows(paper, "Table 5. Perf")[name]
        lines = {line.label: line.published for line in TRAINING.references}
        assert lines[f"{name}, NTU60 xsub"][0] == table_1[0]
        assert lines[f"{name}, NTU60 xsub"][3:6] == table_5
        assert lines[f"{name}, NTU60 xview"][0] == table_1[1]
        assert lines[f"{name}, NTU120 xset"][0] == table_1[3]


CAPTIONS = ("Table 1. Perf", "Table 2. Perf", "Table 3. MPJPE", "Table 4. P-MPJPE", "Table 5. Perf", "Table 6. Perf")


@pytest.mark.parametrize(("table", "caption"), list(zip(TABLES_1_6.tables, CAPTIONS, strict=True)), ids="123456")
def test_every_published_line_of_tables_1_to_6_is_there(paper, table, caption):
    printed = {re.sub(r"</?i>", "", label): values for label, values in printed_rows(paper, caption).items()}
    lines = {line.label.replace(" ", ""): line.published for line in (*table.references, *table.rows)}
    assert lines == printed and len(lines) >= 3


def test_tables_1_to_6_need_20_trainings_a_seed_and_no_task_of_one_trains_on_another_protocol():
    data = {
        name: DataFacts(f"{index:064x}", False, name, 10)
        for index, name in enumerate(("h36m", "kinetics", "ntu60", "ntu120"))
    }
    plan = make_plan(resolve(TABLES_1_6, "paper", {}), 1, data, "text")
    counts = Counter((unit.stage, unit.task) for unit in plan.units.values())
    # Four protocols: each trained jointly, and tuned or trained alone for 3D recognition; early prediction on two of
    # them; pose estimation and 2D recognition once.
    assert counts == {
        ("joint", ""): 4,
        **{(stage, "ar3d"): 4 for stage in ("finetune", "separate")},
        **{(stage, "eap"): 2 for stage in ("finetune", "separate")},
        **{(stage, task): 1 for stage in ("finetune", "separate") for task in ("ar2d", "pe")},
    }
    for unit in plan.units.values():
        assert unit.config.data.ar3d.sources == unit.config.data.eap.sources
        assert unit.config.data.pe.detections == "stored"
    (_, rows), *_ = plan.tables
    protocols = [plan.units[keys[0]].config.data.ar3d.sources for keys in rows[0].units.values()]
    assert protocols == [("ntu60:xsub",), ("ntu60:xview",), ("ntu120:xsub",), ("ntu120:xset",)]


def study_of(column):
    return Study("s", "?", "!", (Table("t", "T", "x", (column,), (Row("a"),), "a"),))


def test_a_column_changes_data_alone():
    with pytest.raises(ValueError, match="column 'Deep': changes must be fields of the section data, got 'encoder_la"):
        resolve(study_of(Column("ar3d/top1", "Deep", "%", True, {"encoder_layers": 5})), "tiny", {})


def test_one_metric_on_two_protocols_is_two_columns_and_on_one_is_an_error():
    other = Column("ar3d/top1", "Other", "%", True, {"ar3d.sources": ("ntu60:xview",)})
    Table("t", "T", "x", (COLUMN, other), (Row("a"),), "a")
    with pytest.raises(ValueError, match=r"column 'ar3d/top1 of ar3d-\w+' is there twice"):
        Table("t", "T", "x", (other, other), (Row("a"),), "a")


def test_the_bins_table_has_the_bins_asked_for():
    assert [row.changes["n_bins"] for row in BINS.rows] == [50, 100, 250, 500, 1000]


@pytest.mark.parametrize("name", study_names())
def test_every_study_states_its_question_and_expectation(name):
    study = find_study(name)
    assert study.name == name
    assert study.question.endswith("?")
    assert len(study.expectation) > 20


@pytest.mark.parametrize("name", study_names())
@pytest.mark.parametrize("preset_name", ["tiny", "small", "paper"])
def test_every_row_is_a_configuration_of_every_preset(name, preset_name):
    resolved = resolve(find_study(name), preset_name, {})  # It raises where a field or a value isn't allowed.
    for table in resolved.tables:
        rows = {
            (row.project, row.training, *(config.fingerprint() for config in row.configs.values()))
            for row in table.rows
        }
        assert len(rows) == len(table.rows)


def test_the_claims_of_first_look_change_its_plans_name_and_no_unit():
    study = find_study("first_look")
    names = ("synthetic_h36m17", "synthetic_openpose18", "synthetic_ntu25")
    data = {name: DataFacts("0" * 64, True, name, 10) for name in names}
    now, before = (
        make_plan(resolve(one, "tiny", {}), 3, data, "text") for one in (study, dataclasses.replace(study, claims=()))
    )
    assert study.claims and now.units.keys() == before.units.keys() and now.name != before.name


def test_importing_studies_imports_neither_torch_nor_a_scheduler(repo_root):
    program = "import sys, search_spaces; [search_spaces.find_study(n) for n in search_spaces.study_names()]; "
    program += "print(*sorted({'torch', 'ray', 'mlflow', 'optuna'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=repo_root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


FILE = """
from search_spaces.columns import ABLATION
from search_spaces.study import Row, Study, Table

STUDY = Study("mine", "Why?", "Because.", (Table("t", "T", "x", ABLATION, (Row("a"),), "a"),))
OTHER = STUDY
NUMBER = 3
"""


def test_a_study_is_found_by_path_and_by_module(tmp_path, monkeypatch):
    (tmp_path / "my_study.py").write_text(FILE)
    assert find_study(str(tmp_path / "my_study.py")).name == "mine"
    monkeypatch.syspath_prepend(tmp_path)
    assert find_study("my_study:OTHER").name == "mine"
    with pytest.raises(ValueError, match="NUMBER must be a Study, got 3"):
        find_study("my_study:NUMBER")


def test_an_unknown_study_is_answered_with_near_names():
    with pytest.raises(ValueError, match="unknown study 'tables_79'; near: tables_7_9"):
        find_study("tables_79")


@pytest.mark.parametrize(
    ("content", "message"),
    [("x = ", "SyntaxError"), ("import nowhere_at_all", "ModuleNotFoundError"), ("x = 1", "STUDY must be a Study")],
)
def test_a_broken_study_file_is_one_clear_line(tmp_path, content, message):
    file = tmp_path / "broken.py"
    file.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        find_study(str(file))
    assert "broken.py" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_study_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such Python file"):
        find_study(str(tmp_path / "gone.py"))


def test_a_table_lists_all_its_faults_at_once():
    rows = (Row("a", published=(1.0, 2.0)), Row("a"))
    with pytest.raises(ValueError) as caught:
        Table("t", "T", "x", (COLUMN,), rows, baseline="b", references=(Reference("r", (1.0, 2.0)),))
    text = str(caught.value)
    for part in ("row 'a' is there twice", "baseline must be the label", "row 'r' must have one published value"):
        assert part in text


def test_a_column_of_no_task_is_refused():
    with pytest.raises(ValueError, match=r"column 'Speed': metric must begin with a task .*, got 'speed/top1'"):
        resolve(study_of(Column("speed/top1", "Speed", "%", True)), "tiny", {})


@pytest.mark.parametrize(
    "changes",
    [
        *({"name": "two words"}, {"tables": ()}, {"seeds": 0}),
        *({"seeds": ()}, {"seeds": (0, 0)}, {"seeds": (-1, 2)}, {"seeds": "0,3"}, {"seeds": (0, 1.5)}),
    ],
    ids=str,
)
def test_a_study_checks_itself(changes):
    table = Table("t", "T", "x", (COLUMN,), (Row("a"),), "a")
    plain = {"name": "s", "question": "?", "expectation": "!", "tables": (table,)}
    Study(**plain)
    with pytest.raises(ValueError):
        Study(**(plain | changes))


@pytest.mark.parametrize(("share", "rate"), [(0, 0.3), (1, 0.3), (0.2, 0), (0.2, 1.5)])
def test_fine_tuning_out_of_range_is_refused(share, rate):
    with pytest.raises(ValueError, match="fine-tuning needs"):
        FineTuning(share, rate)


def test_example_paths_are_not_taken_for_names(tmp_path):
    file = Path(tmp_path / "smoke.py")
    file.write_text(FILE)
    assert find_study(str(file)).name == "mine"


def study_with(**texts):
    """A study with other texts in the places that are named."""
    column = Column("ar3d/top1", texts.get("column", "Accuracy"), "%", True)
    rows = (Row(texts.get("row", "a")), Row("b", {"encoder_layers": 2}))
    table = Table(
        texts.get("name", "t"),
        texts.get("title", "T"),
        texts.get("varies", "x"),
        (column,),
        rows,
        "b",
        notes=(texts.get("note", "a note"),),
        references=(Reference(texts.get("reference", "r"), (1.0,)),),
    )
    claim = Claim(
        texts.get("claim", "a is better"), "t", "a", "b", "ar3d/top1", "superior", 1.0, texts.get("reason", "so")
    )
    question, expectation = texts.get("question", "?"), texts.get("expectation", "!")
    return Study("s", question, expectation, (table,), claims=(claim,))


PLACES = (
    "column", "row", "name", "title", "varies", "note", "reference", "claim", "reason", "question", "expectation",
)  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("character", "code"),
    [
        ("\n", "U+000A"),
        ("\t", "U+0009"),
        ("\x1b", "U+001B"),
        ("\0", "U+0000"),
        ("\x85", "U+0085"),
        ("\u2028", "U+2028"),
        ("\u202e", "U+202E (right-to-left override)"),
        ("\u2066", "U+2066"),
        ("\u200f", "U+200F"),
        ("\ud800", "U+D800"),
    ],
)
def test_a_text_with_a_control_character_is_refused_and_the_message_shows_it_harmlessly(place, character, code):
    study_with()
    with pytest.raises(ValueError, match="must be one line of text without control characters") as caught:
        study_with(**{place: f"one{character}two"})
    assert code in str(caught.value) and "; remove it" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text", ["ü 手 שלום", "a\u00a0b", "± Δ ↑", "e\u0301", "👩\u200d🔬", "\u0645\u06cc\u200c\u062e", r"a\nb"]
)
def test_texts_of_any_language_and_signs_are_taken(text):
    study_with(**dict.fromkeys(("column", "title", "varies", "note", "reference", "claim", "reason", "question"), text))


def test_a_label_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match="the label of a row must be text, got 3"):
        study_with(row=3)


def test_a_spaces_question_is_one_line_too():
    with pytest.raises(ValueError, match="question must be one line of text without control characters"):
        Space("s", "Why\x1b[31m?", {"learning_rate": Range(1e-4, 1e-2)})


def test_all_systems_of_the_yardsticks_are_measured_alike_and_by_equal_samples_trained_alike():
    study = find_study("yardsticks")
    ups = load_project(study.project).base("small").with_fields(study.base)
    (lifting,) = (table for table in study.tables if table.name == "lifting")
    for row in lifting.rows[1:]:
        config = load_project(row.project).base("small").with_fields(row.changes)
        assert config.evaluation.flip and ups.evaluation.flip, "the mirrored input helps all or none"
        for name in ("sources", "frame_stride", "evaluate_targets", "evaluate_stride", "rotation_deg", "flip", "scale"):
            assert getattr(config.data.pe, name) == getattr(ups.data.pe, name)
        if "equal samples" in row.label:
            samples = load_project(study.project).samples(ups)["pe"]
            assert load_project(row.project).samples(config)["pe"] == samples
            assert config.data.pe.targets_per_window == ups.data.pe.targets_per_window
