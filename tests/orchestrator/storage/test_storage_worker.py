"""A unit that is trained on an object store: it loses its hold, its store goes away and comes back, it is done once."""

import time
from contextlib import ExitStack
from dataclasses import replace

import pytest

pytest.importorskip("moto", reason="needs moto[s3,server] for an object store")
pytest.importorskip("boto3", reason="needs boto3 for an object store")

from orchestrator.storage.backends import s3
from orchestrator.storage.backends.lease import LeaseTimes
from orchestrator.storage.ledger import Ledger
from orchestrator.worker.run_unit import run_unit
from tests.orchestrator.worker.test_run_unit import job_of, pick, plan_of
from tests.support.drivers import wait_until
from tests.support.runs import assert_same_tensors, stop_at, weights
from tests.support.source_copy import SourceCopy
from tests.support.storage_server import store_server
from ups_model import source
from ups_model.source import source_identity

pytestmark = pytest.mark.cluster
NEVER = lambda: False  # noqa: E731


@pytest.fixture(scope="module")
def server():
    with store_server() as store:
        yield store


@pytest.fixture
def plan(bench):
    return plan_of(bench)


@pytest.fixture
def address(server, tmp_path, monkeypatch):
    monkeypatch.setenv("UPS_SCRATCH", str(tmp_path / "scratch"))
    return f"s3://{server.new_bucket()}/x"


def writes(server, since=0):
    return [line for line in server.requests[since:] if line.startswith(("PUT", "POST", "DELETE"))]


def test_a_unit_ends_as_on_a_folder_and_leaves_the_same_files(bench, plan, address, tmp_path):
    unit = pick(plan, "joint")
    remote, local = Ledger.at(address), Ledger(tmp_path / "folder")
    for storage in (address, tmp_path / "folder"):
        assert run_unit(job_of(bench, plan, unit, storage), NEVER).status == "finished"
    one, two = remote.finished(unit), local.finished(unit)
    assert (one.metrics, one.routes, one.checkpoint) == (two.metrics, two.routes, two.checkpoint)
    assert_same_tensors(weights(remote.weights(unit, one)), weights(local.weights(unit, two)))
    names = [
        {entry.name.split("/", 2)[2] for entry in ledger.storage.entries(f"units/{unit.folder}")}
        for ledger in (remote, local)
    ]
    own = {name for name in names[0] if name.startswith("claims/")} | {"manifest.json"}
    assert names[0] - own == names[1] - {".claim", "owner.json"}
    assert [row["step"] for row in remote.progress(unit)] == [row["step"] for row in local.progress(unit)]
    assert list((tmp_path / "scratch").rglob("checkpoints")) == []


def test_a_stopped_unit_goes_on_elsewhere_and_ends_as_if_never_stopped(bench, plan, address, tmp_path, monkeypatch):
    unit, ledger = pick(plan, "joint"), Ledger.at(address)
    assert run_unit(job_of(bench, plan, unit, address), stop_at(5)).status == "stopped"
    monkeypatch.setenv("UPS_SCRATCH", str(tmp_path / "another machine"))
    assert run_unit(job_of(bench, plan, unit, address), NEVER).status == "finished"
    log = ledger.storage.read(f"units/{unit.folder}/log.txt").decode()
    assert "resuming at step 5 of 12" in log and log.count("training ") == 1
    assert run_unit(job_of(bench, plan, unit, tmp_path / "whole"), NEVER).status == "finished"
    whole = Ledger(tmp_path / "whole")
    assert ledger.finished(unit).metrics == whole.finished(unit).metrics
    assert_same_tensors(
        weights(ledger.weights(unit, ledger.finished(unit))), weights(whole.weights(unit, whole.finished(unit)))
    )


def test_a_unit_that_lost_its_hold_stops_by_itself_and_writes_nothing_more(bench, plan, address, server, monkeypatch):
    monkeypatch.setattr(s3, "LeaseTimes", lambda: LeaseTimes(beat=0.5, stale=7.0, margin=3.0))
    unit, ledger = pick(plan, "joint"), Ledger.at(address)
    steps, since = [0], [0]

    with ExitStack() as from_then_on:

        def slow():
            """The eighth step lasts longer than a hold without renewal."""
            steps[0] += 1
            if steps[0] == 8:
                from_then_on.enter_context(server.refusing(r"^PUT .*\.beat", 503))
                time.sleep(6)
                since[0] = len(server.requests)
            return False

        outcome = run_unit(job_of(bench, plan, unit, address), slow)
    assert outcome.status == "busy" and "lost its lease" in outcome.error
    assert steps[0] <= 9 and ledger.record(unit) is None
    assert writes(server, since[0]) == []
    wait_until(lambda: not ledger.claimed(unit))
    assert run_unit(job_of(bench, plan, unit, address), NEVER).status == "finished"
    assert "resuming at step" in ledger.storage.read(f"units/{unit.folder}/log.txt").decode()


def test_an_upload_that_fails_for_good_is_raised_for_another_try_which_goes_on(
    bench, plan, address, server, monkeypatch
):
    monkeypatch.setattr(s3, "TRIES", 1)
    unit, ledger = pick(plan, "joint"), Ledger.at(address)
    with server.refusing(r"^PUT .*step-00000004/", 500), pytest.raises(OSError, match="step-00000004"):
        run_unit(job_of(bench, plan, unit, address), NEVER)
    assert ledger.record(unit) is None
    log = ledger.storage.read(f"units/{unit.folder}/log.txt").decode()
    assert "Traceback" in log
    assert run_unit(job_of(bench, plan, unit, address), NEVER).status == "finished"
    assert "resuming at step 3" in ledger.storage.read(f"units/{unit.folder}/log.txt").decode()


def test_a_store_that_is_away_gives_no_reason_to_train_a_finished_unit(bench, plan, address, server, monkeypatch):
    monkeypatch.setattr(s3, "TRIES", 1)
    unit = pick(plan, "joint")
    assert run_unit(job_of(bench, plan, unit, address), NEVER).status == "finished"
    since = len(server.requests)
    with server.refusing(r"^GET .*record.json", 503), pytest.raises(OSError):
        run_unit(job_of(bench, plan, unit, address), NEVER)
    assert not [line for line in writes(server, since) if "/claims/" not in line]


def test_a_unit_takes_few_requests(bench, plan, address, server):
    """docs/storage.md says how many, and somebody pays for them."""
    unit = pick(plan, "joint")
    since = len(server.requests)
    assert run_unit(job_of(bench, plan, unit, address), NEVER).status == "finished"
    checkpoints = unit.config.optim.steps  # One a step here.
    requests = [line for line in server.requests[since:] if ".beat" not in line]
    assert len(requests) <= 30 + 10 * checkpoints


def test_a_retrained_unit_leaves_nothing_of_other_code_but_its_record(bench, plan, address, monkeypatch, tmp_path):
    unit, ledger = pick(plan, "separate", "pe"), Ledger.at(address)
    code = SourceCopy.make(tmp_path / "copy", monkeypatch)
    try:
        old = source_identity()["training"]
        assert run_unit(job_of(bench, plan, unit, address), NEVER).status == "finished"
        record = ledger.storage.read(f"units/{unit.folder}/record.json")
        code.edit_training()
        job = replace(job_of(bench, plan, unit, address), other_code="retrain")
        assert run_unit(job, stop_at(1)).status == "stopped"
        names = {entry.name.split("/", 2)[2] for entry in ledger.storage.entries(f"units/{unit.folder}")}
        assert not [name for name in names if name.startswith("best/")]
        assert b'"stopped"' in ledger.storage.read(f"units/{unit.folder}/result.json")
        assert {name.split("/")[1] for name in names if name.startswith("checkpoints/")} == {"step-00000001"}
        assert ledger.storage.read(f"units/{unit.folder}/record-{old}.json") == record
        assert run_unit(job, NEVER).status == "finished"
        assert ledger.finished(unit).about["source"] == source_identity()
    finally:
        source.forget()


def test_weights_on_a_store_are_measured_for_another_unit_without_training(bench, plan, address):
    other = plan_of(bench, **{"evaluation.ratios": "0.5,0.9"})
    old, new, ledger = pick(plan, "separate", "eap"), pick(other, "separate", "eap"), Ledger.at(address)
    assert run_unit(job_of(bench, plan, old, address), NEVER).status == "finished"
    assert run_unit(job_of(bench, other, new, address), NEVER).status == "finished"
    record = ledger.finished(new)
    assert record.about["trained_by"] == old.key and ledger.progress(new) == []
    taken = weights(ledger.weights(new, record))
    assert_same_tensors(taken, weights(ledger.weights(old, ledger.finished(old))))
