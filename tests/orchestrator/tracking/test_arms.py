"""A run an arm in MLflow: means over seeds, which runs lie below it, and what earlier versions have mirrored."""

import getpass
import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.planning.plan_file import PlanFile
from orchestrator.project import Objectives
from orchestrator.record import Record
from orchestrator.report import build, files
from orchestrator.report.sources import outcomes_from, outcomes_from_tracking
from orchestrator.search.plan import SearchPlan
from orchestrator.search.resolve_space import SearchInputs, search_content
from orchestrator.tracking import mirror, mlflow_store, pages, schema
from orchestrator.tracking.arms import arm_health, arm_params, arm_status, arm_values, arms_of, differing_options
from orchestrator.tracking.client import EXPERIMENT
from orchestrator.tracking.read import fetch
from orchestrator.tracking.uri import default_uri, page_address
from search_spaces import find_study
from search_spaces.space import Range, Space
from search_spaces.study import Claim, Row
from tests.orchestrator.tracking import test_tracking as tracking
from tests.orchestrator.tracking.test_tracking import (
    Client,
    Server,
    assert_below_arms,
    client_of,
    datasets_of,
    finish,
    finished,
    first_unit,
    kill,
    plan_of,
    run_of,
    runs_of,
    study,
    synchronise,
    until,
)
from tests.support import plans
from ups_model.config.presets import preset
from ups_model.evaluation.health import TaskHealth
from ups_model.evaluation.metric_names import OUTCOMES
from ups_model.evaluation.outcomes import save_outcomes

pytest.importorskip("mlflow")

FIRST = study("first", (Row("joint", training="joint"), Row("x", {"n_bins": 12}, "joint")))
SECOND = study("second", (Row("together", training="joint"), Row("y", {"n_bins": 8}, "joint")))


def calls_of_an_unchanged_sync(ledger, plan, content, monkeypatch):
    connect, clients = mlflow_store.connect, []
    with monkeypatch.context() as patched:
        patched.setattr(mlflow_store, "connect", lambda uri: clients.append(Client(connect(uri))) or clients[-1])
        assert synchronise(ledger, plan, content) == 0
    return Counter(clients[0].calls)


def write_outcomes(ledger, unit, arrays=None):
    """Outcomes by clip, and the record that has their digest."""
    arrays = arrays or {"ar3d/synthetic_ntu25/rank": np.arange(12) % 2}
    ledger.folder(unit).mkdir(parents=True, exist_ok=True)
    record = replace(finished(unit), outcomes=save_outcomes(ledger.folder(unit) / OUTCOMES, arrays))
    ledger.write(unit, record)
    return record


def parent_of(uri, unit):
    return run_of(uri, unit).data.tags["mlflow.parentRunId"]


def study_run(uri, plan):
    (run,) = [run for run in runs_of(uri)[1] if run.data.tags["ups.plan"] == plan.name]
    return run


# --- what an arm is, without MLflow


def test_arms_have_the_units_that_each_task_is_measured_on():
    plan = plans.plan_of(find_study("tables_7_9"), seeds=2)
    arms = arms_of(plan)
    assert list(arms) == [arm.name for arm in plan.arms]
    assert set.union(*(arm.own for arm in arms.values())) == set(plan.units)
    assert sum(len(arm.own) for arm in arms.values()) == len(plan.units), "a unit lies below one arm"
    base = arms["base"]
    assert {plan.units[key].task for key in base.measured["pe"]} == {"pe"} and len(base.measured["pe"]) == 2
    assert base.training == "fine-tuned" and "seed" not in base.config
    assert any(row.endswith(": 3") for row in base.rows), "the base is a row of the table of depths"


def test_an_arms_parameters_are_those_in_which_arms_differ():
    arms = arms_of(plans.plan_of(find_study("tables_7_9")))
    options = differing_options(arms.values())
    assert options == ["model.blocks_per_layer", "model.encoder_layers", "model.routing"]
    assert arm_params(arms["encoder_layers=1"], options) == {
        "model.blocks_per_layer": "2",
        "model.encoder_layers": "1",
        "model.routing": "true",
        "arm": "encoder_layers=1",
        "training": "fine-tuned",
    }


def test_an_arms_values_are_of_the_units_that_its_tables_measure():
    plan, _ = plan_of(seeds=3)
    arm = arms_of(plan)["separate"]
    records = {}
    for unit in plan.units.values():
        metrics = {"test/ar3d/top1": 50.0 + unit.seed, "test/pe/mpjpe_mm": 80.0 + unit.seed, "test/ar3d/clips": 9.0}
        records[unit.key] = Record(unit.key, "failed" if unit.seed == 2 else "finished", metrics)
    assert arm_values(arm, records) == {
        "best/test/ar3d/top1": 50.5,
        "best/test/ar3d/top1/seeds": 2.0,
        "best/test/ar3d/top1/sd": pytest.approx(0.5**0.5),
        "best/test/pe/mpjpe_mm": 80.5,
        "best/test/pe/mpjpe_mm/seeds": 2.0,
        "best/test/pe/mpjpe_mm/sd": pytest.approx(0.5**0.5),
    }
    one = {key: record for key, record in records.items() if plan.units[key].seed == 0}
    assert not any(name.endswith("/sd") for name in arm_values(arm, one)), "one seed has no spread"
    assert arm_values(arm, {}) == {}


def test_an_arms_health_is_that_of_its_measured_runs_judged_together():
    plan, _ = plan_of(seeds=3)
    arm = arms_of(plan)["separate"]
    ends = {("pe", 0): 60.0, ("pe", 1): 61.0, ("pe", 2): 230.0, ("ar3d", 0): 90.0, ("ar3d", 1): 90.0}
    records = {}
    for unit in plan.units.values():
        if (end := ends.get((unit.task, unit.seed))) is not None:
            metric, trivial = ("pe/mpjpe_mm", 240.0) if unit.task == "pe" else ("ar3d/top1", 10.0)
            health = {unit.task: TaskHealth(metric, trivial, ((1, end), (2, end))).to_plain()}
            records[unit.key] = Record(unit.key, "finished", {}, health=health)
    assert arm_health(arm, records) == "ar3d 2 converged; pe 1 collapsed, 2 converged"
    assert arm_health(arm, {}) == ""


@pytest.mark.parametrize(
    ("states", "current", "last", "status"),
    [
        (["FINISHED", "RUNNING"], "FAILED", True, "RUNNING"),
        (["FINISHED", "FINISHED"], "RUNNING", False, "FINISHED"),
        (["FINISHED", "FAILED"], "RUNNING", False, "FAILED"),
        (["FINISHED", "FAILED", ""], "RUNNING", False, "RUNNING"),
        (["FINISHED", "FAILED", ""], "RUNNING", True, "FAILED"),
        (["FINISHED", "KILLED"], "RUNNING", True, "KILLED"),
        (["FINISHED", "KILLED"], "KILLED", False, "KILLED"),
        (["FINISHED", ""], "RUNNING", True, "KILLED"),
    ],
)
def test_an_arms_status_is_that_of_its_units(states, current, last, status):
    assert arm_status(states, current, last) == status


def test_the_view_of_arms_is_a_tag_that_mlflow_takes():
    plan = plans.plan_of(find_study("paper_tables"))
    view = json.loads(pages.arms_view(plan, {}, differing_options(arms_of(plan).values()), []))
    assert view["searchFilter"] == f"tags.`ups.arm_run` LIKE '{plan.name}/%'"
    assert {"params.`model.encoder_layers`", "tags.`ups.health`"} <= set(view["selectedColumns"])
    assert view["columnOrder"][-len(view["selectedColumns"]) :] == view["selectedColumns"]
    text = pages.arms_view(plan, {}, [f"an.option.with.a.long.name_{number}" for number in range(99)], [])
    assert len(text) <= schema.TAG_LENGTH and "`training`" in text


# --- in MLflow


def test_a_studys_run_describes_it_with_links(ledger):
    claim = Claim("Joint training helps", "kinds", "joint", "separate", "ar3d/top1", "superior")
    plan, content = plan_of(replace(study(), claims=(claim,)))
    uri = default_uri(ledger)
    finish(ledger, first_unit(plan))
    synchronise(ledger, plan, content)
    run = study_run(uri, plan)
    experiment, note = run.info.experiment_id, run.data.tags["mlflow.note.content"]
    for part in (
        "Does it help?",
        "- Joint training helps",
        f"(#/experiments/{experiment}/runs?viewStateShareKey={plan.name})",
        f"(#/experiments/{experiment}/runs/{run.info.run_id}/artifacts/report/report.html)",
    ):
        assert part in note
    client_of(uri).set_tag(run.info.run_id, "mlflow.note.content", "mine")
    synchronise(ledger, plan, content)
    assert study_run(uri, plan).data.tags["mlflow.note.content"] == "mine", "what people write stays"
    extended, extended_content = plan_of(replace(study(), claims=(claim,)), seeds=2)
    synchronise(ledger, extended, extended_content)
    assert study_run(uri, plan).data.tags["mlflow.note.content"] == note


def test_a_units_run_has_its_data_health_commit_and_user(ledger):
    plan, content = plan_of()
    uri, unit = default_uri(ledger), next(unit for unit in plan.units.values() if unit.task == "pe")
    other = next(unit for unit in plan.units.values() if unit.task == "ar3d")
    health = {"pe": {"metric": "pe/mpjpe_mm", "trivial": 200.0, "curve": [[10, 100.0], [20, 50.0], [30, 49.0]]}}
    record = finished(unit)
    about = {**record.about, "commit": "0123456789ab-dirty"}
    ledger.write(unit, replace(record, health=health, about=about, metrics={"test/pe/mpjpe_mm": 49.0}))
    ledger.write(other, replace(finished(other), about={"user": "ada"}, metrics={"validation/ar3d/top1": 9.0}))
    synchronise(ledger, plan, content)
    run = run_of(uri, unit)
    arm = client_of(uri).get_run(run.data.tags["mlflow.parentRunId"])
    assert arm.data.tags["ups.health"] == "pe 1 converged"
    digest = "fingerprint of synthetic_h36m17"[:12]
    assert datasets_of(run) == [
        ("synthetic_h36m17", digest, "training"),
        ("synthetic_h36m17", f"{digest}-test", "test"),
    ]
    (source,) = {(one.dataset.source_type, one.dataset.source) for one in run.inputs.dataset_inputs}
    assert source == ("local", '{"uri": "synthetic_h36m17"}')
    tags = run.data.tags
    assert tags["ups.health.pe"] == "converged"
    assert tags["mlflow.source.git.commit"] == "0123456789ab" and tags["ups.commit"] == "0123456789ab-dirty"
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == ("orchestrator.ablate", "LOCAL")
    assert tags["mlflow.user"] == getpass.getuser()
    assert run_of(uri, other).data.tags["mlflow.user"] == "ada"
    assert [context for *_, context in datasets_of(run_of(uri, other))] == ["training"], "it was not tested"


@pytest.mark.slow
def test_a_trial_of_a_search_is_an_arm(ledger):
    space = Space("little", "?", {"dropout": Range(0, 0.4)}, trials=2)
    plan = SearchPlan(space, "tiny", preset("tiny"), 2, tracking.FACTS, "text")
    plan.units = {unit.key: unit for value in (0.1, 0.2) for unit in plan.units_of({"model.dropout": value})}
    content = search_content(SearchInputs(plan, 2, space.dimensions, None, Objectives("", {}), {}, {}, {}), "a command")
    for place, unit in enumerate(plan.units.values()):
        metrics = {"validation/ar3d/top1": 50.0 + place, "validation/score": 10.0 + place}
        ledger.write(unit, Record(unit.key, "finished", metrics))
    assert synchronise(ledger, plan, content) == 0
    uri = default_uri(ledger)
    assert_below_arms(uri, plan)
    arm = tracking.arms_of(uri, plan)["dropout=0.1"]
    assert arm.data.metrics["best/validation/ar3d/top1"] == 50.5
    assert arm.data.metrics["best/validation/score"] == 10.5
    tags = client_of(uri).get_experiment_by_name(EXPERIMENT).tags
    view = json.loads(tags[f"mlflow.sharedViewState.{plan.name}"])
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`best/validation/score`", False)
    assert view["selectedColumns"][0] == view["orderByKey"] and "params.`model.dropout`" in view["selectedColumns"]
    assert arm.data.params == {"arm": "dropout=0.1", "model.dropout": "0.1", "training": "joint"}
    (run,) = runs_of(uri)[1]
    assert "search.md" in run.data.tags["mlflow.note.content"]
    assert "ups.front" not in arm.data.tags
    assert synchronise(ledger, plan, content | {"front": ["dropout=0.2"]}) == 0
    marks = {name: run.data.tags["ups.front"] for name, run in tracking.arms_of(uri, plan).items()}
    assert marks == {"dropout=0.1": "no", "dropout=0.2": "yes"}


@pytest.mark.slow
def test_an_arm_runs_while_one_of_its_units_does(ledger, monkeypatch):
    monkeypatch.setattr(mirror, "POLL_SECONDS", 0.1)
    plan, content = plan_of(FIRST, seeds=2)
    (one, two), uri = [unit for unit in plan.units.values() if unit.arm == "joint"], default_uri(ledger)

    def status():
        return tracking.arms_of(uri, plan)["joint"].info.status

    started = mirror.Mirror(ledger, plan, content, uri)
    started.start()
    started.note(one.key, "running")
    until(lambda: started._store and one.key in started._store.units)
    finish(ledger, one)
    started.note(one.key, "finished")
    until(lambda: "best/test/ar3d/top1" in tracking.arms_of(uri, plan)["joint"].data.metrics)
    assert status() == "RUNNING", "its second seed is to come"
    started.note(two.key, "running")
    until(lambda: two.key in started._store.units)
    started.note(two.key, "failed")
    until(lambda: status() == "FAILED")
    kill(started)
    finish(ledger, two, 53.0)
    assert synchronise(ledger, plan, content) == 0
    arm = tracking.arms_of(uri, plan)["joint"]
    assert arm.info.status == "FINISHED" and arm.info.end_time == 2_000_000
    assert arm.data.metrics["best/test/ar3d/top1"] == 51.5
    history = client_of(uri).get_metric_history(arm.info.run_id, "best/test/ar3d/top1")
    assert {point.step for point in history} == {0}, "MLflow draws a bar"


def studies_with_a_unit_in_common():
    """Two plans with their contents, and the unit."""
    first, second = plan_of(FIRST), plan_of(SECOND)
    (shared,) = set(first[0].units) & set(second[0].units)
    return first, second, first[0].units[shared]


@pytest.mark.slow
def test_a_unit_of_two_studies_stays_below_the_arm_of_the_first(ledger):
    (first, first_content), (second, second_content), unit = studies_with_a_unit_in_common()
    uri = default_uri(ledger)
    for plan in (first, second):
        for one in plan.units.values():
            finish(ledger, one)
    for _ in range(2):
        synchronise(ledger, first, first_content)
        synchronise(ledger, second, second_content)
    assert_below_arms(uri, first)
    arms = tracking.arms_of(uri, second)
    assert parent_of(uri, unit) == tracking.arms_of(uri, first)["joint"].info.run_id
    assert set(arms) == {"joint", "n_bins=8, joint"}
    assert arms["joint"].data.metrics["best/test/ar3d/top1"] == 50.0, "an arm without a unit below it has means"
    assert arms["joint"].info.status == "FINISHED"


def test_a_unit_whose_arm_was_deleted_moves_below_the_new_one(ledger):
    plan, content = plan_of(FIRST)
    for unit in plan.units.values():
        finish(ledger, unit)
    uri = default_uri(ledger)
    synchronise(ledger, plan, content)
    client_of(uri).delete_run(tracking.arms_of(uri, plan)["joint"].info.run_id)
    assert synchronise(ledger, plan, content) == 0
    assert_below_arms(uri, plan)


def test_an_arm_that_is_deleted_while_a_study_runs_is_made_again_above_its_units(ledger, monkeypatch):
    monkeypatch.setattr(mirror, "POLL_SECONDS", 0.1)
    plan, content = plan_of(FIRST, seeds=2)
    (one, two), uri = [unit for unit in plan.units.values() if unit.arm == "joint"], default_uri(ledger)
    finish(ledger, one)
    started = mirror.Mirror(ledger, plan, content, uri)
    started.start()
    until(lambda: one.key in started._settled)
    before = parent_of(uri, one)
    client_of(uri).delete_run(before)  # As another driver does that shares no lock and made the same run earlier.
    finish(ledger, two)
    started.note(two.key, "finished")
    until(lambda: parent_of(uri, one) != before and two.key in started._settled)
    assert started.close("stopped", None, 60) == 0
    assert tracking.arms_of(uri, plan)["joint"].info.run_id == parent_of(uri, one) == parent_of(uri, two)


# --- what an earlier version has mirrored


def mirror_as_before(ledger, plan, content):
    """Runs as earlier versions made them: a run a study with means of its arms, a run a unit directly below it."""
    uri = default_uri(ledger)
    client = client_of(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    beside = (ledger.root / "mlartifacts").as_uri()
    number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT, beside)
    tags = {"ups.plan": plan.name, "ups.study": plan.study.name, "mlflow.note.content": "as it was"}
    parent = client.create_run(number, tags=tags, run_name=plan.name).info.run_id
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
    client.log_text(parent, text, "plan.json")
    client.set_tag(parent, "ups.plan_digest", schema.digest_of(text))
    client.log_metric(parent, "arm/joint/ar3d/top1", 50.0)
    client.set_terminated(parent)
    there = {run.data.tags["ups.key"] for run in runs_of(uri)[0]}
    for unit in plan.units.values():
        record = ledger.record(unit)
        if record is None or unit.key in there:
            continue
        tags = {"mlflow.parentRunId": parent, "ups.key": unit.key, "ups.arm": unit.arm, **schema.study_tag(plan)}
        run = client.create_run(number, start_time=1_000_000, tags=tags, run_name="a unit").info.run_id
        client.log_text(run, record.to_json(), "record.json")
        client.set_tag(run, "ups.mirrored", schema.digest_of(record.to_json()))
        client.set_terminated(run, end_time=2_000_000)


@pytest.mark.slow
def test_runs_of_an_earlier_version_move_below_arms_and_get_what_they_lack(ledger, monkeypatch):
    claim = Claim("Joint training helps", "kinds", "joint", "separate", "ar3d/top1", "superior")
    plan, content = plan_of(replace(study(), claims=(claim,)), seeds=2)
    for place, unit in enumerate(plan.units.values()):
        subjects = {"ar3d/synthetic_ntu25/subject": np.arange(12) % 6}
        write_outcomes(ledger, unit, {"ar3d/synthetic_ntu25/rank": np.arange(12) % (2 + place)} | subjects)
    plan_file, uri = PlanFile.of(plan, content["command"], {}), default_uri(ledger)
    ledger.save_plan(plan_file)
    records = ledger.read(plan.units.values())
    from_storage = files(build(plan_file, records, outcomes_from(ledger, plan_file, records)))
    mirror_as_before(ledger, plan, content)
    ((fetched, fetched_records),) = fetch(uri, None)
    assert fetched.to_plain() == content
    assert {key: record.to_json() for key, record in fetched_records.items()} == {
        key: record.to_json() for key, record in records.items()
    }

    assert synchronise(ledger, plan, content) == 0
    assert_below_arms(uri, plan)
    run = study_run(uri, plan)
    assert run.data.metrics["arm/joint/ar3d/top1"] == 50.0, "MLflow keeps what an earlier version wrote"
    assert run.data.tags["mlflow.note.content"] != "as it was"
    client = client_of(uri)
    for unit in plan.units.values():
        assert datasets_of(run_of(uri, unit))
        assert "outcomes.npz" in {file.path for file in client.list_artifacts(run_of(uri, unit).info.run_id)}
        assert run_of(uri, unit).info.end_time == 2_000_000
    for arm in tracking.arms_of(uri, plan).values():
        assert (arm.info.start_time, arm.info.end_time) == (1_000_000, 2_000_000)
    assert calls_of_an_unchanged_sync(ledger, plan, content, monkeypatch) == {
        "get_experiment_by_name": 1,
        "search_runs": 1,
    }
    ((fetched, fetched_records),) = fetch(uri, None)
    assert files(build(fetched, fetched_records, outcomes_from_tracking(uri, fetched_records))) == from_storage


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("last", [4, 6, 8, 10, 11, 12, 13, 15])
def test_a_move_that_is_killed_is_completed_by_the_next_call(ledger, monkeypatch, last):
    plan, content = plan_of(FIRST)
    for unit in plan.units.values():
        write_outcomes(ledger, unit)
    mirror_as_before(ledger, plan, content)
    connect, uri = mlflow_store.connect, default_uri(ledger)
    with monkeypatch.context() as patched:
        patched.setattr(mlflow_store, "connect", lambda uri: Client(connect(uri), last, "after"))
        started = mirror.Mirror(ledger, plan, content, uri)
        started.start()
        started._thread.join(30)
        assert len(started._store.client.calls) == last
    assert synchronise(ledger, plan, content) == 0
    assert_below_arms(uri, plan)
    for unit in plan.units.values():
        run = run_of(uri, unit)
        assert len(datasets_of(run)) == 5 and run.data.tags["ups.outcomes"] == ledger.record(unit).outcomes
    for arm in tracking.arms_of(uri, plan).values():
        assert arm.data.metrics["best/test/ar3d/top1"] == 50.0


@pytest.mark.slow
def test_a_shared_unit_of_an_earlier_version_is_moved_by_the_study_that_it_lies_below(ledger):
    (first, first_content), (second, second_content), unit = studies_with_a_unit_in_common()
    uri = default_uri(ledger)
    for plan in (first, second):
        for one in plan.units.values():
            ledger.write(one, finished(one))
    mirror_as_before(ledger, first, first_content)
    mirror_as_before(ledger, second, second_content)
    before = parent_of(uri, unit)
    assert before == study_run(uri, first).info.run_id
    synchronise(ledger, second, second_content)
    assert parent_of(uri, unit) == before, "it is the other study's to move"
    synchronise(ledger, first, first_content)
    synchronise(ledger, second, second_content)
    assert_below_arms(uri, first)

    client = client_of(uri)  # Somebody has deleted the study that a run without a mark lay below.
    client.delete_tag(run_of(uri, unit).info.run_id, "ups.arm_of_unit")
    client.delete_run(study_run(uri, first).info.run_id)
    for arm in tracking.arms_of(uri, first).values():
        client.delete_run(arm.info.run_id)
    synchronise(ledger, second, second_content)
    assert_below_arms(uri, second)


def test_outcomes_that_come_later_are_uploaded_once(ledger, monkeypatch):
    plan, content = plan_of(FIRST)
    unit, *_ = plan.units.values()
    record = write_outcomes(ledger, unit)
    uri, file = default_uri(ledger), ledger.folder(unit) / "outcomes.npz"
    kept = file.read_bytes()
    file.unlink()  # Imported without.
    assert synchronise(ledger, plan, content) == 0

    def artifacts():
        return {one.path for one in client_of(uri).list_artifacts(run_of(uri, unit).info.run_id)}

    assert "outcomes.npz" not in artifacts() and "ups.outcomes" not in run_of(uri, unit).data.tags
    file.write_bytes(b"of another record")
    assert synchronise(ledger, plan, content) == 0
    assert "outcomes.npz" not in artifacts()
    file.write_bytes(kept)
    assert synchronise(ledger, plan, content) == 0
    assert "outcomes.npz" in artifacts() and run_of(uri, unit).data.tags["ups.outcomes"] == record.outcomes
    calls = calls_of_an_unchanged_sync(ledger, plan, content, monkeypatch)
    assert calls["log_artifact"] == 0 and calls["log_batch"] == 0


# --- MLflow's page


def test_the_address_of_a_page_has_no_password():
    page = "#/experiments/1/runs?viewStateShareKey=a"
    assert page_address("sqlite:////storage/mlflow.db", page) == f"http://127.0.0.1:5000/{page}"
    assert page_address("https://me:secret@host:5000/ml/", page) == f"https://host:5000/ml/{page}"


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.cluster
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser (apt-get install chromium)")
def test_the_printed_address_shows_the_arms_alone(ledger, database, tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder, database)
    plan, content = plan_of(FIRST, seeds=2)
    for unit in plan.units.values():
        finish(ledger, unit, 50.0 + unit.seed)
    try:
        server.start()
        started = mirror.Mirror(ledger, plan, content, server.uri)
        started.start()
        assert started.close("finished", None, 60) == 0
        address = page_address(server.uri, started.arms_page)
        text = page_text(address, tmp_path)
        note = page_text(f"{server.uri}/#/experiments/1/runs/{study_run(server.uri, plan).info.run_id}", tmp_path)
    finally:
        server.kill()
    assert re.search(r">joint<", text)
    for part in ("Training x", "best/test/ar3d/top1", "best/test/ar3d/top1/sd", "50.5", "model.n_bins"):
        assert part in text, part
    assert ">joint s0<" not in text and plan.name in text
    assert f'href="{started.arms_page}"' in note, "a link of the study's description"


def page_text(address: str, folder: Path) -> str:
    """What a browser makes of a page."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=2400,1000"]
    command += [f"--user-data-dir={folder / 'browser'}", "--virtual-time-budget=30000", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
