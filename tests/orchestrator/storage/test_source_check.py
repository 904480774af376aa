"""The command after a change of the code: what it refuses, what it keeps, and what it says."""

from __future__ import annotations

import json

import pytest

from orchestrator import ablate
from orchestrator.planning.inputs import read_inputs
from orchestrator.search import __main__ as search
from orchestrator.storage.ledger import RECORD, Ledger
from tests.support.fake_driver import FakeDriver
from tests.support.source_copy import SourceCopy
from ups_model import source
from ups_model.source import source_identity

UNITS = 11
"""Of the toy study with one seed."""
COLUMNS = ("ar3d/top1", "pe/mpjpe_mm", "eap/top1@0.5")
"""Its metrics."""


@pytest.fixture(autouse=True)
def code(tmp_path, monkeypatch):
    """The source that is digested, to edit."""
    monkeypatch.setenv("UPS_CACHE", str(tmp_path / "cache"))
    yield SourceCopy.make(tmp_path / "copy", monkeypatch)
    source.forget()


@pytest.fixture
def driver(monkeypatch):
    return FakeDriver.install(monkeypatch)


def command(bench, tmp_path, *more):
    data = [f"--data={name}={path}" for name, path in bench.data.items()]
    return [str(bench.study), *data, "--storage", str(tmp_path / "storage"), *more]


def plan_of(bench):
    return read_inputs(str(bench.study), "tiny", [f"{name}={path}" for name, path in bench.data.items()], [], 1).plan


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def edit_records(tmp_path, change):
    """Change the records on storage, as other releases would have left them."""
    for file in (tmp_path / "storage" / "units").glob(f"*/{RECORD}"):
        record = json.loads(file.read_text())
        change(record)
        file.write_text(json.dumps(record))


@pytest.mark.slow
def test_an_edited_activation_is_refused_in_one_line_that_names_commit_and_ways_out(
    bench, tmp_path, driver, code, capsys
):
    assert ablate.main(command(bench, tmp_path)) == 0
    edit_records(tmp_path, lambda record: record["about"].update(commit="0123456789ab"))
    before = source_identity()["training"]
    code.edit_training()
    there = files(tmp_path / "storage")
    capsys.readouterr()
    assert ablate.main(command(bench, tmp_path)) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("error: ") == 1
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert f"{UNITS} finished units (commit 0123456789ab) were trained by other code: training code" in line
    assert before in line and source_identity()["training"] in line
    assert "--accept-other-code" in line and "--retrain" in line and "--storage" in line
    assert driver.started == 1 and files(tmp_path / "storage") == there


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("model/layers.py", "Linear, GELU, linear", "Two linear maps with a GELU between them"),
        ("training/losses.py", "\n\n\ndef ", "\n\n\n# A remark.\ndef "),
        ("data/readers/ntu/files.py", "\n\n\ndef ", "\n\n\nUNUSED = 1\n\n\ndef "),
        ("train.py", "train one task alone instead of all", "train a single task"),
        ("predict.py", "\n\n\ndef ", "\n\n\nUNUSED = 1\n\n\ndef "),
    ],
    ids=["docstring", "comment", "reader", "help of a command", "another command"],
)
def test_a_change_that_changes_no_result_trains_nothing(name, old, new, bench, tmp_path, driver, code, capsys):
    assert ablate.main(command(bench, tmp_path)) == 0
    code.edit(name, old, new)
    assert ablate.main(command(bench, tmp_path)) == 0
    assert driver.started == 1
    assert f"{UNITS} of {UNITS} units finished, {UNITS} of them before this call" in capsys.readouterr().out


@pytest.mark.slow
def test_records_with_a_former_digest_of_the_same_code_are_kept(bench, tmp_path, driver, capsys, monkeypatch):
    monkeypatch.setattr(source, "FORMER", {f"former {part}": digest for part, digest in source_identity().items()})
    former = {part: f"former {part}" for part in source_identity()}
    assert ablate.main(command(bench, tmp_path)) == 0
    edit_records(tmp_path, lambda record: record["about"].update(source=former))
    assert ablate.main(command(bench, tmp_path)) == 0
    assert driver.started == 1
    assert f"{UNITS} of {UNITS} units finished, {UNITS} of them before this call" in capsys.readouterr().out


@pytest.mark.slow
def test_records_from_before_there_were_digests_are_of_unknown_code(bench, tmp_path, driver, capsys):
    def from_before(record):
        del record["about"]["source"]
        record["metrics"] |= {f"test/{name}": 1.0 for name in COLUMNS}
        record["outcomes"] = "of the former code"

    assert ablate.main(command(bench, tmp_path)) == 0
    edit_records(tmp_path, from_before)
    assert ablate.main(command(bench, tmp_path)) == 2
    assert "training code unknown" in capsys.readouterr().err
    assert ablate.main(command(bench, tmp_path, "--accept-other-code")) == 0
    assert driver.started == 1


@pytest.mark.slow
def test_accepted_units_that_lack_a_columns_metric_are_measured(bench, tmp_path, driver, code):
    assert ablate.main(command(bench, tmp_path)) == 0
    edit_records(tmp_path, lambda record: record["metrics"].update({f"test/{name}": 1.0 for name in COLUMNS}))
    edit_records(tmp_path, lambda record: record.update(outcomes="of the former code"))
    code.edit_training()
    code.edit_evaluation()
    released = len(driver.jobs)
    assert ablate.main(command(bench, tmp_path, "--accept-other-code")) == 0
    assert len(driver.jobs) == released
    (unit,) = [one for one in plan_of(bench).units.values() if one.stage == "separate" and one.task == "pe"]
    file = Ledger(tmp_path / "storage").folder(unit) / RECORD
    file.write_text(file.read_text().replace("test/pe/mpjpe_mm", "test/pe/another"))
    assert ablate.main(command(bench, tmp_path, "--accept-other-code")) == 0
    assert [job.unit.key for job in driver.jobs[released:]] == [unit.key]
    assert driver.jobs[-1].wanted == ("pe/mpjpe_mm",)


@pytest.mark.slow
def test_accepted_units_without_results_by_clip_are_measured(bench, tmp_path, driver, code):
    assert ablate.main(command(bench, tmp_path)) == 0
    edit_records(tmp_path, lambda record: record["metrics"].update({f"test/{name}": 1.0 for name in COLUMNS}))
    edit_records(tmp_path, lambda record: record.update(outcomes="of the former code"))
    (unit,) = [one for one in plan_of(bench).units.values() if one.stage == "separate" and one.task == "pe"]
    file = Ledger(tmp_path / "storage").folder(unit) / RECORD
    file.write_text(file.read_text().replace("of the former code", ""))
    code.edit_training()
    code.edit_evaluation()
    released = len(driver.jobs)
    assert ablate.main(command(bench, tmp_path, "--accept-other-code")) == 0
    assert [job.unit.key for job in driver.jobs[released:]] == [unit.key]


@pytest.mark.slow
def test_accepted_units_stay_as_they_are_and_the_report_names_both_sources(bench, tmp_path, driver, code, capsys):
    driver.becomes = lambda unit: "failed" if unit.stage == "separate" else "finished"
    assert ablate.main(command(bench, tmp_path)) == 1
    report = next((tmp_path / "storage" / "studies").glob("*/report/report.md"))
    assert "training code" not in report.read_text()
    old, before = source_identity()["training"], files(tmp_path / "storage" / "units")
    code.edit_training()
    driver.becomes = lambda unit: "finished"
    assert ablate.main(command(bench, tmp_path, "--accept-other-code")) == 0
    assert f"{UNITS} of {UNITS} units finished, {UNITS - 3} of them before this call" in capsys.readouterr().out
    after = files(tmp_path / "storage" / "units")
    assert all(after[file] == content for file, content in before.items() if file.name == RECORD)
    text = report.read_text()
    assert "differ in training code" in text
    assert old in text and source_identity()["training"] in text
    assert {job.other_code for job in driver.jobs[-3:]} == {"accept"}


@pytest.mark.slow
def test_retrain_releases_all_units_of_other_code_and_then_nothing_is_refused(bench, tmp_path, driver, code, capsys):
    assert ablate.main(command(bench, tmp_path)) == 0
    code.edit_training()
    released = len(driver.jobs)
    assert ablate.main(command(bench, tmp_path, "--retrain")) == 0
    again = driver.jobs[released:]
    assert len(again) == UNITS and {job.other_code for job in again} == {"retrain"}
    capsys.readouterr()
    assert ablate.main(command(bench, tmp_path)) == 0
    assert f"{UNITS} of them before this call" in capsys.readouterr().out
    assert len(driver.jobs) == released + UNITS


def test_both_ways_out_at_once_are_a_usage_error(bench, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        ablate.main(command(bench, tmp_path, "--retrain", "--accept-other-code"))
    assert ended.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.slow
def test_checkpoints_of_other_code_are_refused_too(bench, tmp_path, driver, code, capsys):
    unit = next(iter(plan_of(bench).units.values()))
    folder = Ledger.open(str(tmp_path / "storage")).folder(unit)
    (folder / "checkpoints" / "step-00000005").mkdir(parents=True)
    (folder / "source.json").write_text(json.dumps({"training": [source_identity()["training"]]}))
    assert ablate.main(command(bench, tmp_path, "--plan")) == 0
    assert "other code" not in capsys.readouterr().out
    code.edit_training()
    assert ablate.main(command(bench, tmp_path)) == 2
    assert "1 unfinished unit with checkpoints was trained by other code" in capsys.readouterr().err
    assert driver.started == 0
    assert ablate.main(command(bench, tmp_path, "--accept-other-code")) == 0


@pytest.mark.slow
def test_a_plan_counts_units_of_other_code_without_refusing(bench, tmp_path, driver, code, capsys):
    assert ablate.main(command(bench, tmp_path)) == 0
    code.edit_training()
    capsys.readouterr()
    assert ablate.main(command(bench, tmp_path, "--plan")) == 0
    printed = capsys.readouterr().out
    assert f"{UNITS} finished units (commit unknown) were trained by other code" in printed
    assert "run with --accept-other-code or --retrain" in printed
    assert f"{UNITS} done already" in printed
    assert ablate.main(command(bench, tmp_path, "--plan", "--retrain")) == 0
    assert "0 done already" in capsys.readouterr().out


@pytest.mark.slow
def test_a_change_of_the_metrics_releases_units_to_be_measured_and_says_how_many(bench, tmp_path, driver, code, capsys):
    assert ablate.main(command(bench, tmp_path)) == 0
    code.edit_evaluation()
    capsys.readouterr()
    assert ablate.main(command(bench, tmp_path, "--plan")) == 0
    assert f"of these {UNITS} units are measured again from kept weights, without training" in capsys.readouterr().out
    released = len(driver.jobs)
    assert ablate.main(command(bench, tmp_path)) == 0
    printed = capsys.readouterr().out
    assert f"{UNITS} units were measured again from kept weights, without training" in printed
    assert len(driver.jobs) == released + UNITS


@pytest.mark.slow
def test_without_weights_the_metrics_of_other_code_stay_and_the_end_says_so(bench, tmp_path, driver, code, capsys):
    assert ablate.main(command(bench, tmp_path)) == 0
    for file in (tmp_path / "storage" / "units").glob("*/best/*/state.json"):
        file.unlink()
    code.edit_evaluation()
    before = files(tmp_path / "storage" / "units")
    capsys.readouterr()
    assert ablate.main(command(bench, tmp_path)) == 0
    printed = capsys.readouterr().out
    assert f"{UNITS} units keep metrics that other code has measured, since the weights are gone" in printed
    assert driver.started == 1 and files(tmp_path / "storage" / "units") == before


SPACE = """
from search_spaces.space import Choice, Space

SPACE = Space("depth", "?", {"dropout": Choice((0.0, 0.1))}, trials=1, objective="validation/score")
"""


@pytest.mark.slow
def test_a_search_refuses_trials_of_other_code(bench, tmp_path, code, monkeypatch, capsys):
    from orchestrator.execution import driver
    from tests.support.plans import finish

    FakeDriver.install(monkeypatch)
    (tmp_path / "space.py").write_text(SPACE)

    def execute(graph, *more, footprints):
        while (unit := graph.next()) is not None:
            record = finish(graph.ledger, unit)
            graph.ledger.write(unit, type(record)(**{**vars(record), "metrics": {"validation/score": 1.0}}))
            graph.finished(unit.key)

    monkeypatch.setattr(driver, "execute", execute)
    monkeypatch.setenv("UPS_CACHE", str(bench.folder / "search-cache"))
    arguments = [str(tmp_path / "space.py"), "--storage", str(tmp_path / "storage")]
    assert search.main(arguments) == 0
    code.edit_training()
    assert search.main(arguments) == 2
    assert "1 finished unit (commit unknown) was trained by other code" in capsys.readouterr().err
    assert search.main([*arguments, "--accept-other-code"]) == 0
