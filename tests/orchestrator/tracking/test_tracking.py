"""The mirror in MLflow: real MLflow on sqlite, and one real server. What it holds is read by MLflow's own client."""

import json
import logging
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli.session import not_mirrored
from orchestrator.planning.plan import make_plan
from orchestrator.planning.plan_file import PlanFile
from orchestrator.planning.resolve import resolve
from orchestrator.project import DataFacts
from orchestrator.record import Record
from orchestrator.report import build, files
from orchestrator.report.sources import outcomes_from, outcomes_from_tracking
from orchestrator.storage.ledger import Ledger
from orchestrator.tracking import mirror, mlflow_store, pages
from orchestrator.tracking import schema as mirrored
from orchestrator.tracking.client import _SETTINGS, DRAFT, EXPERIMENT, check, make_database
from orchestrator.tracking.read import fetch, outcomes_reader
from orchestrator.tracking.uri import database_file, default_uri, shown, ui_command
from search_spaces.columns import AR3D, MPJPE
from search_spaces.study import Claim, Column, Row, Study, Table
from tests.support.drivers import wait_until
from ups_model.evaluation.metric_names import OUTCOMES
from ups_model.evaluation.outcomes import save_outcomes

pytest.importorskip("mlflow")

FACTS = {
    name: DataFacts(f"fingerprint of {name}", True, name, 10)
    for name in ("synthetic_ntu25", "synthetic_h36m17", "synthetic_openpose18")
}
STEPS = (10, 20, 30)
ROWS = (Row("joint", training="joint"), Row("separate", training="separate"))


def study(name="little", rows=ROWS, columns=(AR3D, MPJPE)):
    table = Table("kinds", "Kinds of training", "Training", tuple(columns), tuple(rows), baseline=rows[0].label)
    return Study(name, "Does it help?", "Yes.", (table,), {"steps": 48})


def plan_of(what=None, seeds=1):
    plan = make_plan(resolve(what or study(), "tiny", {}), seeds, FACTS, "text")
    return plan, PlanFile.of(plan, "python -m orchestrator.ablate little", {}).to_plain()


def rows_of(steps=STEPS, began=1000.0):
    rows = []
    for step in steps:
        rows.append({"step": step, "train/pe_loss": 1 / step, "learning_rate": 0.1, "time": began + step})
        rows.append({"step": step, "validation/eap/top1@0.2": 2.0 * step, "time": began + step + 0.5})
    return rows


def write_progress(ledger, unit, rows):
    ledger.folder(unit).mkdir(parents=True, exist_ok=True)
    (ledger.folder(unit) / "progress.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def finished(unit, value=50.0):
    metrics = {"test/ar3d/top1": value, "test/pe/mpjpe_mm": 2 * value, "test/eap/top1@0.2": 7.0}
    about = {"train_seconds": 3.5, "parameters": 9, "peak_memory_mb": 321.5, "commit": "c0ffee", "chosen_step": 30}
    return Record(
        unit.key, "finished", metrics, {"pe": [0, 1]}, about | {"started": 1000.0, "ended": 2000.0}, "best/30"
    )


def failed(unit):
    return Record(unit.key, "failed", error="Traceback\n" + "x" * 20_000 + "\nValueError: loss is not finite")


def finish(ledger, unit, value=50.0):
    write_progress(ledger, unit, rows_of())
    ledger.write(unit, finished(unit, value))


def synchronise(ledger, plan, content, notes=(), outcome="finished", report=None, uri=None):
    started = mirror.Mirror(ledger, plan, content, uri or default_uri(ledger))
    started.start()
    for key, state in notes:
        started.note(key, state)
    return started.close(outcome, report, 60)


def client_of(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs_of(uri, experiment=EXPERIMENT):
    client = client_of(uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], max_results=1000)
    return [run for run in runs if "ups.key" in run.data.tags], [run for run in runs if "ups.plan" in run.data.tags]


def arms_of(uri, plan=None):
    """Runs of arms by name; of one plan, or of all."""
    client = client_of(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    condition = f"tags.`ups.arm_run` LIKE '{plan.name if plan else ''}%'"
    runs = client.search_runs([experiment], condition, max_results=1000)
    arms = {run.data.tags["ups.arm"]: run for run in runs}
    assert plan is None or len(arms) == len(runs)
    return arms


def assert_below_arms(uri, plan, status="FINISHED"):
    """One run an arm below the study's, with its units' below it."""
    (study_run,) = [run for run in runs_of(uri)[1] if run.data.tags["ups.plan"] == plan.name]
    arms = arms_of(uri, plan)
    assert set(arms) == {unit.arm for unit in plan.units.values()}
    assert {run.data.tags["mlflow.parentRunId"] for run in arms.values()} == {study_run.info.run_id}
    assert {run.info.status for run in arms.values()} == {status}
    for unit in plan.units.values():
        tags = run_of(uri, unit).data.tags
        assert tags["mlflow.parentRunId"] == arms[unit.arm].info.run_id
        assert tags["ups.arm_of_unit"] == arms[unit.arm].data.tags["ups.arm_run"]


def datasets_of(run):
    """(name, digest, context) of the data sets of a run."""
    inputs = run.inputs.dataset_inputs
    return sorted((one.dataset.name, one.dataset.digest, tag.value) for one in inputs for tag in one.tags)


def run_of(uri, unit):
    (run,) = [run for run in runs_of(uri)[0] if run.data.tags["ups.key"] == unit.key]
    return run


def steps_of(uri, run, metric="train/pe_loss"):
    return sorted(metric.step for metric in client_of(uri).get_metric_history(run.info.run_id, metric))


def first_unit(plan):
    return next(iter(plan.units.values()))


def until(true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)


def kill(started):
    """Let a mirror die as a process does, without a last word."""
    started._deadline = 0.0
    started._closing = ("stopped", None)
    started._wake.set()
    started._thread.join(30)


class Client:
    """An MLflow client that counts calls, and dies at one of them: before it has its effect, after it, or between the
    points and the tags of one `log_batch`."""

    def __init__(self, client, last=None, when="before", error=SystemExit):
        self.client, self.calls, self.last, self.when, self.error = client, [], last, when, error

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append(name)
            if len(self.calls) == self.last:
                if self.when == "after":
                    getattr(self.client, name)(*arguments, **options)
                elif self.when == "between":
                    assert name == "log_batch" and arguments[1] and arguments[3]
                    self.client.log_batch(*arguments[:2])
                raise self.error
            return getattr(self.client, name)(*arguments, **options)

        return call


@pytest.mark.slow
def test_three_mirrors_of_one_ledger_leave_one_run_a_unit(ledger):
    plan, content = plan_of(seeds=2)
    for unit in plan.units.values():
        finish(ledger, unit)
    uri = default_uri(ledger)
    for _ in range(3):
        assert synchronise(ledger, plan, content) == 0
    units, studies = runs_of(uri)
    assert Counter(run.data.tags["ups.key"] for run in units) == Counter(dict.fromkeys(plan.units, 1))
    assert [run.data.tags["ups.plan"] for run in studies] == [plan.name]
    assert {run.info.status for run in (*units, *studies)} == {"FINISHED"}
    arms = arms_of(uri, plan)
    assert {run.data.tags["mlflow.parentRunId"] for run in arms.values()} == {studies[0].info.run_id}
    for run in units:
        assert run.data.tags["mlflow.parentRunId"] == arms[run.data.tags["ups.arm"]].info.run_id
    for run in units:
        assert steps_of(uri, run) == list(STEPS)
        assert steps_of(uri, run, "validation/eap/top1_at_0.2") == list(STEPS)


def test_a_run_tells_what_the_unit_is_and_what_came_of_it(ledger):
    plan, content = plan_of()
    unit = next(unit for unit in plan.units.values() if unit.task == "pe")
    finish(ledger, unit)
    synchronise(ledger, plan, content)
    uri = default_uri(ledger)
    run = run_of(uri, unit)
    assert run.info.run_name == "separate pe s0"
    assert (run.info.start_time, run.info.end_time) == (1_000_000, 2_000_000)
    expected = {
        "arm": "separate",
        "seed": "0",
        "stage": "separate",
        "task": "pe",
        "optim.steps": "12",
        "data.pe.frames": "9",
    }
    assert expected.items() <= run.data.params.items()
    assert run.data.params["optim.cycle"] == '["pe"]'
    assert run.data.metrics["best/test/pe/mpjpe_mm"] == 100.0
    assert run.data.metrics["best/test/eap/top1_at_0.2"] == 7.0
    assert run.data.metrics["train/pe_loss"] == pytest.approx(1 / 30)
    assert {run.data.metrics[name] for name in ("train_seconds", "parameters", "peak_memory_mb")} == {3.5, 9.0, 321.5}
    tags = run.data.tags
    assert (tags["ups.arm"], tags["ups.task"], tags["ups.commit"]) == ("separate", "pe", "c0ffee")
    assert tags["ups.storage_folder"] == unit.folder
    assert tags["ups.data.synthetic_h36m17"] == "fingerprint of synthetic_h36m17"
    assert "synthetic_h36m17" in tags["ups.synthetic_data"]
    assert json.loads(tags["ups.routes"]) == {"pe": [0, 1]}
    history = client_of(uri).get_metric_history(run.info.run_id, "train/pe_loss")
    assert {metric.timestamp for metric in history} == {1_010_000, 1_020_000, 1_030_000}


def test_a_studys_run_has_means_over_seeds_with_their_spread_and_the_report(ledger, tmp_path):
    plan, content = plan_of(seeds=2)
    for unit in plan.units.values():
        if unit.stage == "joint":
            finish(ledger, unit, 50.0 if unit.seed == 0 else 53.0)
    report = tmp_path / "report"
    (report / "figures").mkdir(parents=True)
    (report / "report.md").write_text("the report")
    (report / "figures" / "a.svg").write_text("a figure")
    assert synchronise(ledger, plan, content, outcome="failed", report=report) == 0
    uri = default_uri(ledger)
    (run,) = runs_of(uri)[1]
    assert run.info.status == "FAILED"
    assert not any(name.startswith("arm/") for name in run.data.metrics)
    arms = arms_of(uri, plan)
    assert set(arms) == {"joint"}, "none of the other arm has begun"
    assert arms["joint"].info.status == "FINISHED"
    metrics = arms["joint"].data.metrics
    assert metrics["best/test/ar3d/top1"] == 51.5
    assert metrics["best/test/ar3d/top1/seeds"] == 2
    assert metrics["best/test/ar3d/top1/sd"] == pytest.approx(4.5**0.5)
    left = len(plan.units) - 2
    assert [run.data.metrics[f"units/{state}"] for state in ("finished", "failed", "left")] == [2, 0, left]
    assert "Does it help?" in run.data.tags["mlflow.note.content"]
    assert "Synthetic data" in run.data.tags["mlflow.note.content"]
    folder = Path(client_of(uri).download_artifacts(run.info.run_id, ""))
    assert (folder / "report" / "figures" / "a.svg").read_text() == "a figure"
    assert json.loads((folder / "plan.json").read_text()) == json.loads(json.dumps(content))


def test_artifacts_of_the_default_store_lie_in_the_storage(ledger, tmp_path):
    plan, content = plan_of()
    finish(ledger, first_unit(plan))
    synchronise(ledger, plan, content)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a storage"]
    assert len(list((ledger.root / "mlartifacts").rglob("record.json"))) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("last", "name", "when"),
    [
        (2, "create_experiment", "after"),
        (5, "create_run", "before"),
        (5, "create_run", "after"),
        (6, "log_artifact", "after"),
        (9, "create_run", "after"),
        (11, "create_run", "before"),
        (13, "create_run", "after"),
        (15, "create_run", "before"),
        (16, "log_batch", "between"),
        (17, "log_batch", "before"),
        (18, "log_inputs", "after"),
        (19, "set_terminated", "after"),
        (20, "log_artifact", "before"),
        (20, "log_artifact", "after"),
        (22, "log_batch", "between"),
        (23, "log_batch", "after"),
        (25, "log_batch", "before"),
        (25, "log_batch", "after"),
        (26, "set_terminated", "after"),
        (28, "set_experiment_tag", "before"),
    ],
)
def test_a_mirror_killed_at_any_call_leaves_no_duplicate_and_no_gap(ledger, monkeypatch, last, name, when):
    plan, content = plan_of(study(rows=(Row("joint", training="joint"), Row("none", {"routing": False}, "joint"))))
    one, other = plan.units.values()
    finish(ledger, one)
    write_progress(ledger, other, rows_of())
    connect, clients = mlflow_store.connect, []
    monkeypatch.setattr(
        mlflow_store, "connect", lambda uri: clients.append(Client(connect(uri), last, when)) or clients[-1]
    )
    started = mirror.Mirror(ledger, plan, content, default_uri(ledger))
    started.note(other.key, "running")
    started.start()
    started._thread.join(30)
    assert len(clients[0].calls) == last and clients[0].calls[-1] == name, clients[0].calls
    monkeypatch.undo()
    # Meanwhile the unit has gone on from its checkpoint at step 10, and has its later steps again.
    write_progress(ledger, other, [*rows_of((10,)), *rows_of((20, 30, 40), began=5000.0)])
    assert synchronise(ledger, plan, content, [(other.key, "running")], outcome="stopped") == 0
    ledger.write(other, finished(other))
    assert synchronise(ledger, plan, content, [(other.key, "finished")]) == 0
    uri = default_uri(ledger)
    units, studies = runs_of(uri)
    assert sorted(run.data.tags["ups.key"] for run in units) == sorted(plan.units)
    assert {run.info.status for run in (*units, *studies)} == {"FINISHED"} and len(studies) == 1
    for unit, steps in ((one, [10, 20, 30]), (other, [10, 20, 30, 40])):
        assert steps_of(uri, run_of(uri, unit)) == steps
        assert steps_of(uri, run_of(uri, unit), "validation/eap/top1_at_0.2") == steps
        assert steps_of(uri, run_of(uri, unit), "best/test/ar3d/top1") == [30]
        assert run_of(uri, unit).data.params["arm"] == unit.arm
        assert len(datasets_of(run_of(uri, unit))) == 5
    assert_below_arms(uri, plan)
    ((_, records),) = fetch(uri, None)
    assert {key: record.to_json() for key, record in records.items()} == {
        unit.key: finished(unit).to_json() for unit in (one, other)
    }


@pytest.mark.parametrize("last", [5, 9, 13, 16, 18, 20, 21, 27, 28, 29])
def test_a_call_whose_answer_is_lost_is_repeated_without_a_trace(ledger, monkeypatch, last):
    plan, content = plan_of(study(rows=(Row("joint", training="joint"), Row("none", {"routing": False}, "joint"))))
    for unit in plan.units.values():
        finish(ledger, unit)
    connect, clients = mlflow_store.connect, []
    monkeypatch.setattr(mirror, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(
        mlflow_store,
        "connect",
        lambda uri: clients.append(Client(connect(uri), last, "after", TimeoutError)) or clients[-1],
    )
    uri = default_uri(ledger)
    started = mirror.Mirror(ledger, plan, content, uri)
    started.start()
    until(lambda: len(started._settled) == 2)
    assert started.close("finished", None, 60) == 0
    assert len(clients) == 1 and len(clients[0].calls) > last
    monkeypatch.undo()
    units, studies = runs_of(uri)
    assert sorted(run.data.tags["ups.key"] for run in units) == sorted(plan.units) and len(studies) == 1
    assert all(steps_of(uri, run) == list(STEPS) for run in units)
    assert all(steps_of(uri, run, "best/test/ar3d/top1") == [30] for run in units)
    assert_below_arms(uri, plan)
    ((_, records),) = fetch(uri, None)
    assert all(records[unit.key].to_json() == ledger.record(unit).to_json() for unit in plan.units.values())


def test_progress_arrives_while_a_unit_runs_and_a_line_of_validation_at_a_step_of_training(ledger, monkeypatch):
    monkeypatch.setattr(mirror, "POLL_SECONDS", 0.1)
    plan, content = plan_of()
    unit, uri = first_unit(plan), default_uri(ledger)
    rows = rows_of()
    write_progress(ledger, unit, rows[:5])
    started = mirror.Mirror(ledger, plan, content, uri)
    started.start()
    started.note(unit.key, "running")
    until(
        lambda: started._store and unit.key in started._store.units and "ups.synced_step" in run_of(uri, unit).data.tags
    )
    assert steps_of(uri, run_of(uri, unit), "validation/eap/top1_at_0.2") == [10, 20]
    assert run_of(uri, unit).info.status == "RUNNING"
    write_progress(ledger, unit, rows)
    until(lambda: steps_of(uri, run_of(uri, unit), "validation/eap/top1_at_0.2") == [10, 20, 30])
    # Resumed at step 10: the same steps come again, at another time.
    write_progress(ledger, unit, [*rows_of((10,)), *rows_of((20, 30, 40), began=5000.0)])
    until(lambda: steps_of(uri, run_of(uri, unit)) == [10, 20, 30, 40])
    started.note(unit.key, "stopped")
    assert started.close("stopped", None, 60) == 0
    assert run_of(uri, unit).info.status == "KILLED"


@pytest.mark.slow
def test_runs_of_a_killed_driver_do_not_stay_running(ledger):
    plan, content = plan_of(seeds=3)
    (done, broken, cut), held = list(plan.units.values())[:3], list(plan.units.values())[3]
    uri = default_uri(ledger)
    started = mirror.Mirror(ledger, plan, content, uri)
    started.start()
    for unit in (done, broken, cut, held):
        write_progress(ledger, unit, rows_of())
        started.note(unit.key, "running")
    until(lambda: started._store and len(started._store.units) == 4 and not started._due)
    kill(started)
    assert {run.info.status for runs in runs_of(uri) for run in runs} == {"RUNNING"}
    ledger.write(done, finished(done))
    ledger.write(broken, failed(broken))
    with ledger.claim(held) as is_held:  # By another driver, as far as the mirror can see.
        assert is_held
        assert synchronise(ledger, plan, content) == 0
        status = {run.data.tags["ups.key"]: run.info.status for run in runs_of(uri)[0]}
        assert status == {done.key: "FINISHED", broken.key: "FAILED", cut.key: "KILLED", held.key: "RUNNING"}
        assert runs_of(uri)[1][0].info.status == "FINISHED"
    assert synchronise(ledger, plan, content) == 0
    assert run_of(uri, held).info.status == "KILLED"


@pytest.mark.slow
def test_a_failed_unit_that_is_tried_again_shows_each_state_in_one_run(ledger):
    plan, content = plan_of()
    unit, uri = first_unit(plan), default_uri(ledger)
    write_progress(ledger, unit, rows_of((10,)))
    ledger.write(unit, failed(unit))
    assert synchronise(ledger, plan, content, [(unit.key, "failed")], outcome="failed") == 0
    run = run_of(uri, unit)
    assert run.info.status == "FAILED"
    assert run.data.tags["ups.error"].endswith("ValueError: loss is not finite")
    ((_, records),) = fetch(uri, None)
    assert records[unit.key].to_json() == ledger.record(unit).to_json()

    started = mirror.Mirror(ledger, plan, content, uri)
    started.start()
    started.note(unit.key, "running")
    until(lambda: run_of(uri, unit).info.status == "RUNNING")
    started.note(unit.key, "stopped")
    assert started.close("stopped", None, 60) == 0
    assert run_of(uri, unit).info.status == "KILLED"
    assert synchronise(ledger, plan, content) == 0
    assert run_of(uri, unit).info.status == "KILLED"

    finish(ledger, unit)
    assert synchronise(ledger, plan, content, [(unit.key, "running"), (unit.key, "finished")]) == 0
    run = run_of(uri, unit)
    assert run.info.status == "FINISHED" and "ups.error" not in run.data.tags
    assert steps_of(uri, run) == list(STEPS)


def test_a_failure_whose_record_comes_only_before_the_end_is_mirrored_with_it(ledger):
    plan, content = plan_of()
    unit, uri = first_unit(plan), default_uri(ledger)
    started = mirror.Mirror(ledger, plan, content, uri)
    started.start()
    started.note(unit.key, "failed")
    until(lambda: started._store and unit.key in started._store.units and run_of(uri, unit).info.status == "FAILED")
    ledger.write(unit, failed(unit))
    assert started.close("failed", None, 60) == 0
    ((_, records),) = fetch(uri, None)
    assert records[unit.key].to_json() == ledger.record(unit).to_json()


def test_a_unit_that_another_driver_turns_out_to_hold_keeps_running(ledger):
    plan, content = plan_of()
    unit, uri = first_unit(plan), default_uri(ledger)
    with ledger.claim(unit):
        assert synchronise(ledger, plan, content, [(unit.key, "running"), (unit.key, "elsewhere")]) == 0
        assert runs_of(uri)[0] == []
        started = mirror.Mirror(ledger, plan, content, uri)
        started.start()
        started.note(unit.key, "running")
        until(
            lambda: started._store and unit.key in started._store.units and run_of(uri, unit).info.status == "RUNNING"
        )
        started.note(unit.key, "elsewhere")
        assert started.close("finished", None, 60) == 0
        assert run_of(uri, unit).info.status == "RUNNING"


@pytest.mark.slow
def test_fetch_gives_the_ledgers_records_byte_for_byte_from_mlflow_alone(ledger, tmp_path):
    plan, content = plan_of(seeds=2)
    *done, left = plan.units.values()
    for place, unit in enumerate(done):
        finish(ledger, unit, 50 + place / 3)
    extended, extended_content = plan_of(seeds=3)
    synchronise(ledger, plan, content)
    other, other_content = plan_of(study("other"))
    synchronise(ledger, other, other_content)
    uri = default_uri(ledger)
    texts = {unit.key: (ledger.folder(unit) / "record.json").read_text() for unit in done}
    shutil.rmtree(ledger.root / "units")
    shutil.rmtree(ledger.root / "studies")
    assert [plan_file.name for plan_file, _ in fetch(uri, None)] == sorted([plan.name, other.name])
    for name in ("little", plan.name):
        ((plan_file, records),) = fetch(uri, name)
        assert plan_file.to_plain() == content
        assert set(records) == set(plan.units)
        assert records.pop(left.key) is None
        assert {key: record.to_json() for key, record in records.items()} == texts
    synchronise(ledger, extended, extended_content)
    ((plan_file, records),) = fetch(uri, "little")
    assert plan_file.seeds == 3 and set(records) == set(extended.units), "an extended study goes on in the same run"
    with pytest.raises(ValueError, match=r"no study absent; it has little, other$"):
        fetch(uri, "absent")
    with pytest.raises(ValueError, match=r"there is no such file; run orchestrator.ablate first$"):
        fetch(f"sqlite:///{tmp_path}/absent.db", None)
    assert not (tmp_path / "absent.db").exists()
    with pytest.raises(ValueError, match=r"^--tracking-uri http://127.0.0.1:9: can't be read \([^\n]*$"):
        fetch("http://127.0.0.1:9", None)


def test_the_experiment_opens_on_runs_an_older_one_too(ledger):
    uri = default_uri(ledger)
    client = client_of(uri)
    client.create_experiment(EXPERIMENT)
    for _ in range(2):
        plan, content = plan_of()
        assert synchronise(ledger, plan, content) == 0
        assert client.get_experiment_by_name(EXPERIMENT).tags["mlflow.experimentKind"] == "custom_model_development"


@pytest.mark.slow
def test_claims_about_new_subjects_are_the_same_from_mlflow_alone(ledger):
    claim = Claim("Joint training helps", "kinds", "joint", "separate", "ar3d/top1", "superior")
    plan, content = plan_of(replace(study(), claims=(claim,)), seeds=2)
    for place, unit in enumerate(plan.units.values()):
        rank = np.arange(12) % (2 + place)
        clip = np.arange(12)
        named = {"clip": clip, "label": clip, "subject": clip % 6, "rank": rank, "predicted": clip, "margin": rank}
        arrays = {f"ar3d/synthetic_ntu25/{name}": array for name, array in named.items()}
        ledger.folder(unit).mkdir(parents=True)
        digest = save_outcomes(ledger.folder(unit) / OUTCOMES, arrays)
        ledger.write(unit, replace(finished(unit, 50.0 + place), outcomes=digest))
    plan_file = PlanFile.of(plan, content["command"], {})
    ledger.save_plan(plan_file)
    uri = default_uri(ledger)
    assert synchronise(ledger, plan, content) == 0
    records = ledger.read(plan.units.values())
    from_storage = build(plan_file, records, outcomes_from(ledger, plan_file, records))
    assert from_storage.claims[0].new_subjects.subjects == 6
    ((fetched, fetched_records),) = fetch(uri, None)
    assert files(build(fetched, fetched_records, outcomes_from_tracking(uri, fetched_records))) == files(from_storage)


@pytest.mark.slow
def test_metrics_of_classes_whose_names_mlflow_would_make_alike_have_a_value_each(ledger):
    left, right = "pe/mpjpe_mm/wave (left)", "pe/mpjpe_mm/wave [left]"
    columns = tuple(Column(name, name, "mm", False) for name in (left, right))
    plan, content = plan_of(study(columns=(AR3D, *columns)))
    for unit in plan.units.values():
        write_progress(ledger, unit, [{"step": 10, f"validation/{left}": 3.0, f"validation/{right}": 4.0}])
        record = finished(unit)
        ledger.write(unit, replace(record, metrics=record.metrics | {f"test/{left}": 1.0, f"test/{right}": 2.0}))
    plan_file = PlanFile.of(plan, content["command"], {})
    ledger.save_plan(plan_file)
    uri = default_uri(ledger)
    assert synchronise(ledger, plan, content) == 0
    alike = re.compile(r"(validation|best/test)/pe/mpjpe_mm/wave _left_-[0-9a-f]{16}$")
    for run in (run_of(uri, first_unit(plan)), arms_of(uri, plan)["joint"]):
        values = sorted(value for name, value in run.data.metrics.items() if alike.match(name))
        assert values in ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0])
        assert "best/test/pe/mpjpe_mm/wave _left_" not in run.data.metrics
        assert run.data.metrics["best/test/ar3d/top1"] == 50.0, "other names stay"
    (columns_of_view,) = [
        json.loads(value)["selectedColumns"]
        for name, value in client_of(uri).get_experiment_by_name(EXPERIMENT).tags.items()
        if name.startswith(pages.VIEW)
    ]
    shown = {name[len("metrics.`") : -1] for name in columns_of_view if "wave" in name and "/sd" not in name}
    assert len(shown) == 2 and shown < arms_of(uri, plan)["joint"].data.metrics.keys()
    records = ledger.read(plan.units.values())
    ((fetched, fetched_records),) = fetch(uri, None)
    assert files(build(fetched, fetched_records)) == files(build(plan_file, records))


@pytest.mark.slow
def test_a_report_says_what_has_been_deleted_in_mlflow_and_how_it_comes_back(ledger):
    plan, content = plan_of()
    finish(ledger, first_unit(plan))
    uri = default_uri(ledger)
    with pytest.raises(ValueError, match="no study; nothing has been mirrored there"):
        fetch(uri, None)
    assert synchronise(ledger, plan, content) == 0
    client, (study_run,) = client_of(uri), runs_of(uri)[1]
    client.delete_run(study_run.info.run_id)
    with pytest.raises(ValueError, match=f"the run '{plan.name}' has been deleted in MLflow") as refusal:
        fetch(uri, None)
    restore(uri, str(refusal.value))
    assert len(fetch(uri, None)) == 1
    client.delete_experiment(client.get_experiment_by_name(EXPERIMENT).experiment_id)
    with pytest.raises(ValueError, match=f"experiment '{EXPERIMENT}' has been deleted in MLflow") as refusal:
        fetch(uri, None)
    restore(uri, str(refusal.value))
    assert len(fetch(uri, None)) == 1


def restore(uri, message):
    """Run the command that a message names."""
    command = re.search(r"MLFLOW_TRACKING_URI=\.\.\. mlflow (.*), or report", message)[1].split()
    subprocess.run(
        [sys.executable, "-m", "mlflow", *command], check=True, env=os.environ | {"MLFLOW_TRACKING_URI": uri}
    )


def test_a_run_without_results_by_clip_is_told_from_a_store_that_does_not_answer(ledger):
    plan, content = plan_of()
    unit = first_unit(plan)
    finish(ledger, unit)
    assert synchronise(ledger, plan, content) == 0
    read = outcomes_reader(default_uri(ledger))
    assert read(unit.key) is None and read("no such unit") is None
    with pytest.raises(ValueError, match=r"--tracking-uri http://127.0.0.1:9: can't be read"):
        outcomes_reader("http://127.0.0.1:9")(unit.key)


def test_a_unit_of_two_studies_has_one_run_with_both_names(ledger):
    first, first_content = plan_of(study("first"))
    second, second_content = plan_of(
        study("second", (Row("together", training="joint"), Row("x", {"n_bins": 8}, "joint")))
    )
    (shared,) = set(first.units) & set(second.units)
    unit, uri = first.units[shared], default_uri(ledger)
    finish(ledger, unit)
    synchronise(ledger, first, first_content)
    assert synchronise(ledger, second, second_content) == 0
    run = run_of(uri, unit)
    assert (run.data.tags["ups.study.first"], run.data.tags["ups.study.second"]) == ("yes", "yes")
    assert {run.data.tags["ups.study"] for run in runs_of(uri)[1]} == {"first", "second"}
    (arm,) = arms_of(uri, first).values()
    assert run.data.tags["mlflow.parentRunId"] == arm.info.run_id
    assert steps_of(uri, run) == list(STEPS)


@pytest.mark.slow
def test_parameters_that_somebody_else_has_set_and_a_deleted_run_stop_nothing(ledger):
    plan, content = plan_of(seeds=2)
    unit, gone, *_ = plan.units.values()
    for each in (unit, gone):
        finish(ledger, each)
    uri = default_uri(ledger)
    client = client_of(uri)
    synchronise(ledger, plan, content)
    run = run_of(uri, unit)
    client.delete_run(run.info.run_id)
    made = client.create_run(run.info.experiment_id, tags={"ups.key": unit.key})
    client.log_param(made.info.run_id, "arm", "another")

    started = mirror.Mirror(ledger, plan, content, uri)
    started.start()
    until(lambda: len(started._settled) == 2)
    client.delete_run(run_of(uri, gone).info.run_id)
    started.note(gone.key, "running")
    until(lambda: [run.info.status for run in runs_of(uri)[0] if run.data.tags["ups.key"] == gone.key] == ["RUNNING"])
    started.note(gone.key, "finished")
    assert started.close("finished", None, 60) == 0
    assert run_of(uri, unit).data.params["arm"] == "another"
    assert run_of(uri, unit).data.params["seed"] == str(unit.seed)
    assert {run_of(uri, each).info.status for each in (unit, gone)} == {"FINISHED"}


@pytest.mark.slow
def test_what_is_mirrored_already_costs_few_calls(ledger, monkeypatch):
    plan, content = plan_of(seeds=5)
    for unit in plan.units.values():
        finish(ledger, unit)
    synchronise(ledger, plan, content)
    assert len(plan.units) == 15
    connect, clients = mlflow_store.connect, []
    monkeypatch.setattr(mlflow_store, "connect", lambda uri: clients.append(Client(connect(uri))) or clients[-1])
    assert synchronise(ledger, plan, content) == 0
    assert Counter(clients[0].calls) == {"get_experiment_by_name": 1, "search_runs": 1}


@pytest.mark.slow
def test_a_database_whose_making_was_killed_is_made_anew(ledger):
    """MLflow commits table by table: what is left has some of them, and MLflow refuses to make those again."""
    file = ledger.root / "mlflow.db"
    file.unlink()
    with closing(sqlite3.connect(file)) as made, made:
        made.executescript(
            """CREATE TABLE alembic_version (version_num VARCHAR(32));
            INSERT INTO alembic_version VALUES ('770bee3ae1dd');
            CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY, name TEXT);
            CREATE TABLE spans (trace_id TEXT);"""
        )
    (ledger.root / "mlflow.db-journal").write_bytes(b"of the former file")
    plan, content = plan_of()
    finish(ledger, next(iter(plan.units.values())))
    synchronise(ledger, plan, content)
    assert len(runs_of(default_uri(ledger))[0]) == 1
    assert not (ledger.root / "mlflow.db-journal").exists()


@pytest.mark.slow
def test_a_process_killed_while_it_makes_a_database_leaves_none(ledger, repo_root):
    file, uri = ledger.root / "mlflow.db", default_uri(ledger)
    file.unlink()
    program = f"from orchestrator.tracking.client import make_database; make_database({uri!r})"
    maker = subprocess.Popen([sys.executable, "-c", program], cwd=repo_root, stderr=subprocess.DEVNULL)
    wait_until(lambda: any(one.stat().st_size > 50_000 for one in ledger.root.glob(f"{DRAFT}*/mlflow.db")))
    maker.kill()
    maker.wait()
    assert not file.exists()
    make_database(uri)
    assert file.exists() and not list(ledger.root.glob(f"{DRAFT}*"))
    plan, content = plan_of()
    synchronise(ledger, plan, content)
    assert len(runs_of(uri)[1]) == 1


@pytest.mark.slow
def test_two_processes_on_a_new_database_make_no_duplicates_and_both_live(tmp_path, repo_root):
    ledger = Ledger.open(str(tmp_path / "storage"))
    plan, _ = plan_of()
    for unit in plan.units.values():
        finish(ledger, unit)
    program = (
        "import sys, time; from tests.orchestrator.tracking.test_tracking import *\n"
        f"ledger = Ledger.open({str(ledger.root)!r}); plan, content = plan_of()\n"
        "started = mirror.Mirror(ledger, plan, content, default_uri(ledger)); started.start()\n"
        "sys.exit(started.close('finished', None, 120))"
    )
    inherited = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    environment = inherited | {"PYTHONPATH": str(repo_root), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program], cwd=repo_root, env=environment, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert errors == ["", ""], "MLflow's own messages of making tables are kept back"
    units, studies = runs_of(default_uri(ledger))
    assert sorted(run.data.tags["ups.key"] for run in units) == sorted(plan.units) and len(studies) == 1
    assert {tuple(steps_of(default_uri(ledger), run)) for run in units} == {STEPS}
    assert_below_arms(default_uri(ledger), plan)


class Server:
    """A real `mlflow server` on loopback."""

    def __init__(self, folder, database):
        self.folder = folder
        shutil.copy(database, folder / "server.db")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri, self.process = f"http://127.0.0.1:{self.port}", None

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        # Without its processes for scheduled jobs it starts in a third of the time.
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True, env=environment
            )
        until(self.answers, 90)

    def answers(self):
        assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=1).status == 200
        except OSError:
            return False

    def kill(self):
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)


@pytest.fixture
def server(tmp_path, database):
    folder = tmp_path / "server"
    folder.mkdir()
    mlflow_server = Server(folder, database)
    try:
        yield mlflow_server
    finally:
        mlflow_server.kill()


@pytest.mark.slow
def test_a_server_that_goes_away_is_caught_up_with_when_it_is_back_and_at_the_next_run(
    tmp_path, server, caplog, monkeypatch
):
    monkeypatch.setattr(mirror, "MAX_RETRY_SECONDS", 1.0)
    monkeypatch.setattr(mirror, "POLL_SECONDS", 0.5)
    ledger = Ledger.open(str(tmp_path / "storage"))
    plan, content = plan_of()
    one, two, three = plan.units.values()
    check(server.uri)
    assert "is away" in caplog.text, "an absent server is no error"
    caplog.clear()

    server.start()
    started = mirror.Mirror(ledger, plan, content, server.uri)
    started.start()
    write_progress(ledger, one, rows_of((10,)))
    started.note(one.key, "running")
    until(lambda: started._store and one.key in started._store.units and not started._due)
    server.kill()
    for _ in range(20):
        before = time.perf_counter()
        started.note(one.key, "running")
        assert time.perf_counter() - before < 0.05
    finish(ledger, one)
    finish(ledger, two)
    started.note(one.key, "finished")
    started.note(two.key, "finished")
    until(lambda: caplog.records)
    time.sleep(2)  # Some more tries.
    other, other_content = plan_of(study("other"), seeds=2)
    before = time.monotonic()
    assert synchronise(ledger, other, other_content, uri=server.uri) == 2, "two units of it have records"
    assert time.monotonic() - before < 30
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == 2 * [
        f"runs are not mirrored to {server.uri} now"
    ]

    server.start()
    until(lambda: len(started._settled) == 2)
    assert steps_of(server.uri, run_of(server.uri, one)) == list(STEPS)
    until(lambda: len(caplog.records) > 2)
    assert [record.getMessage() for record in caplog.records[2:]] == [f"{server.uri} is back; runs are mirrored again"]
    finish(ledger, three)
    started.note(three.key, "finished")
    assert started.close("finished", None, 60) == 0
    assert synchronise(ledger, other, other_content, uri=server.uri) == 0
    units, studies = runs_of(server.uri)
    assert sorted(run.data.tags["ups.key"] for run in units) == sorted(plan.units)
    assert {run.info.status for run in (*units, *studies)} == {"FINISHED"}
    ((_, records),) = fetch(server.uri, "little")
    assert all(records[unit.key].to_json() == ledger.record(unit).to_json() for unit in (one, two, three))


def test_neither_a_store_that_never_answers_nor_any_error_holds_the_driver_up(ledger, caplog):
    plan, content = plan_of()
    unit = first_unit(plan)
    finish(ledger, unit)
    for_ever = threading.Event()
    stuck = mirror.LedgerMirror(ledger, plan, content, for_ever.wait, "nowhere")
    full = mirror.LedgerMirror(
        ledger, plan, content, lambda: (_ for _ in ()).throw(OSError(28, "No space left")), "full"
    )
    for started in (stuck, full):
        started.start()
        started.note(list(plan.units)[1], "failed")
        before = time.monotonic()
        assert started.close("failed", None, 0.5) == 2
        assert time.monotonic() - before < 5
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "No space left" in caplog.text
    never_started = mirror.LedgerMirror(ledger, plan, content, for_ever.wait, "nowhere")
    assert never_started.close("finished", None, 1) == 1
    for_ever.set()


def test_one_unit_that_can_not_be_written_does_not_hold_up_the_others(ledger, caplog, monkeypatch):
    plan, content = plan_of()
    bad, *good = plan.units.values()
    for unit in plan.units.values():
        finish(ledger, unit)
    put = mlflow_store.MlflowStore.put

    def refuse(self, run, name, text):
        if run.tags.get("ups.key") == bad.key:
            raise OSError(13, "Permission denied")
        put(self, run, name, text)

    monkeypatch.setattr(mlflow_store.MlflowStore, "put", refuse)
    monkeypatch.setattr(mirror, "POLL_SECONDS", 0.1)
    uri = default_uri(ledger)
    started = mirror.Mirror(ledger, plan, content, uri)
    started.start()
    until(lambda: len(started._settled) == len(good))
    assert started.close("finished", None, 60) == 1
    assert "Permission denied" in caplog.text and len(caplog.records) == 1
    ((_, records),) = fetch(uri, None)
    assert records[bad.key] is None and all(records[unit.key] for unit in good)
    assert runs_of(uri)[1][0].info.status == "FINISHED"


def test_each_step_of_each_kind_of_line_is_new_once():
    rows, after = mirrored.new_rows(rows_of(), {"train": 20, "validation": 10})
    assert [(points[0].name, points[0].step) for points in rows] == [
        ("validation/eap/top1_at_0.2", 20),
        ("train/pe_loss", 30),
        ("validation/eap/top1_at_0.2", 30),
    ]
    assert mirrored.parse_synced(mirrored.format_synced(after)) == {"train": 30, "validation": 30}
    assert mirrored.new_rows(rows_of(), after) == ([], after)


def test_system_metrics_have_steps_of_their_own():
    line = {"step": 30, "system/cpu_utilization_percentage": 50.0, "time": 3.0}
    rows, after = mirrored.new_rows([*rows_of(), line], {"train": 30, "validation": 30})
    assert rows == [[mirrored.Point("system/cpu_utilization_percentage", 50.0, 30, 3000)]]
    assert after == {"train": 30, "validation": 30, "system": 30}


def test_numbers_that_are_none_are_left_out():
    rows, _ = mirrored.new_rows([{"step": 1, "train/a": float("nan"), "train/b": 2.0, "time": 3.0}], {})
    assert rows == [[mirrored.Point("train/b", 2.0, 1, 3000)]]


@pytest.mark.parametrize(
    "name", ["eap/top1@0.2", "arm/n_bins=50, routing=False/pe", "a//b/", "x" * 400, "müde: 100 %", "a=b|c"]
)
def test_every_name_is_one_that_mlflow_takes(name):
    from mlflow.utils.validation import _validate_metric, _validate_param_name, _validate_tag_name

    _validate_metric(mirrored.clean(name), 1.0, 0, 0)
    _validate_param_name(mirrored.clean(name))
    _validate_tag_name(mirrored.clean(name))


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        ("ftp://host", "must be http"),
        ("./mlruns", "MLflow keeps no runs in plain folders"),
        ("file:///tmp/mlruns", "MLflow keeps no runs in plain folders"),
        ("http://", "names no host"),
        ("http://host:port", "malformed"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////nonexistent/folder/mlflow.db", "can be written to"),
    ],
)
def test_an_address_that_can_not_work_is_refused_in_one_line(uri, fault):
    with pytest.raises(ValueError, match=rf"^--tracking-uri {uri}: .*{fault}[^\n]*$"):
        check(uri)


@pytest.mark.parametrize("name", ["r?x", "a%20b", "a#b", "spaces and ümläuts", "me:secret@host", "a+b"])
def test_a_storage_of_any_name_keeps_its_database_inside_and_reports_from_it(name, tmp_path, database, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ledger = Ledger.open(str(tmp_path / name))
    shutil.copy(database, ledger.root / "mlflow.db")
    plan, content = plan_of()
    for unit in plan.units.values():
        finish(ledger, unit)
    uri = default_uri(ledger)
    check(uri)
    assert synchronise(ledger, plan, content) == 0
    assert shown(uri) == uri and database_file(uri) == ledger.root / "mlflow.db"
    ((_, records),) = fetch(uri, None)
    assert records == ledger.read(plan.units.values())
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_database_that_can_not_be_written_is_told_at_once_and_the_closing_words_are_true(ledger, caplog, monkeypatch):
    plan, content = plan_of()
    finish(ledger, first_unit(plan))
    (ledger.root / "mlflow.db").write_text("no database, but of some length" * 9)
    uri = default_uri(ledger)
    with pytest.raises(ValueError, match=r"^--tracking-uri [^\n]*file is not a database; give another file[^\n]*$"):
        check(uri)
    started = mirror.Mirror(ledger, plan, content, uri)
    began = time.monotonic()
    started.start()
    assert started.close("finished", None, 60) == 1 and time.monotonic() - began < 20
    assert "mlflow.db: file is not a database" in caplog.text
    assert not_mirrored(1, started.fault) == (
        f"1 unit is not in MLflow ({started.fault}); once that is mended, the same command makes up for it"
    )
    assert not_mirrored(2, "") == "2 units are not in MLflow yet; the same command makes up for it"


def test_a_password_is_never_shown(caplog):
    uri = "http://me:secret@127.0.0.1:9/ml"
    check(uri)
    assert "127.0.0.1:9/ml is away" in caplog.text
    assert "secret" not in caplog.text + ui_command(uri)


def test_the_line_for_people_opens_the_store(ledger):
    uri = default_uri(ledger)
    check(uri)
    assert uri == f"sqlite:///{ledger.root}/mlflow.db"
    assert ui_command(uri) == f"mlflow ui --backend-store-uri '{uri}'"
    assert ui_command("http://host:5000") == "http://host:5000"
