"""The ledger: records whole or not at all, one holder of a unit at a time, nobody waits for the dead."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from orchestrator.ledger import CLAIM, FAILURE, RECORD, Ledger, Record, write_whole
from tests.plans import finish, new_ledger, plan_of, small_study


@pytest.fixture
def unit():
    return next(iter(plan_of(small_study()).units.values()))


@pytest.fixture
def ledger(tmp_path):
    return new_ledger(tmp_path)


def test_a_record_comes_back_as_written(ledger, unit):
    record = Record(unit.key, "finished", {"test/ar3d/top1": 1 / 3}, {"pe": [0, 1]}, {"commit": "abc"}, "best/step-1")
    ledger.write(unit, record)
    assert ledger.record(unit) == record == ledger.finished(unit)
    assert json.loads((ledger.folder(unit) / RECORD).read_text())["metrics"] == {"test/ar3d/top1": 1 / 3}


def test_a_failure_is_a_record_that_a_later_success_replaces_and_never_the_other_way(ledger, unit):
    failed = Record(unit.key, "failed", error="Traceback ...")
    ledger.write(unit, failed)
    assert ledger.record(unit) == failed
    assert ledger.finished(unit) is None
    done = finish(ledger, unit, **{"ar3d/top1": 50.0})
    assert ledger.record(unit) == done
    assert not (ledger.folder(unit) / FAILURE).exists()
    ledger.write(unit, failed)
    assert ledger.record(unit) == done


@pytest.mark.parametrize("text", ["", "{", '{"key": "x"}', "[]", '{"key": "KEY", "status": "half"}'])
def test_what_is_no_whole_record_counts_as_not_done(ledger, unit, text, caplog):
    finish(ledger, unit)
    (ledger.folder(unit) / RECORD).write_text(text.replace("KEY", unit.key))
    assert ledger.record(unit) is None
    assert RECORD in caplog.text


def test_a_record_of_another_unit_is_not_taken(ledger, unit, caplog):
    finish(ledger, unit)
    file = ledger.folder(unit) / RECORD
    file.write_text(file.read_text().replace(unit.key, "0" * 16))
    assert ledger.record(unit) is None
    assert "another unit" in caplog.text


def _write_for_ever(file):
    while True:
        for value in ("a" * 200_000, "b" * 200_000):
            write_whole(file, json.dumps(value))


def test_a_file_is_whole_whenever_its_writer_is_killed(tmp_path):
    file = tmp_path / "file.json"
    for _ in range(8):
        process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(file,))
        process.start()
        while not file.exists():
            time.sleep(0.01)
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert json.loads(file.read_text()) in ("a" * 200_000, "b" * 200_000)


def _hold(storage, unit, ready, seconds):
    with Ledger.open(storage).claim(unit) as held:
        ready.put(bool(held))
        time.sleep(seconds)


def test_a_unit_has_one_holder_and_is_free_when_that_is_killed(ledger, unit):
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    process = context.Process(target=_hold, args=(str(ledger.root), unit, ready, 60))
    process.start()
    assert ready.get(timeout=60) is True
    assert ledger.claimed(unit)
    with ledger.claim(unit) as held:
        assert not held
    assert str(process.pid) in ledger.owner(unit)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not ledger.claimed(unit)
    with ledger.claim(unit) as held:
        assert held
        with ledger.claim(unit) as again:  # The same process, another attempt: a reused worker must not pass either.
            assert not again
    assert not ledger.claimed(unit)


def test_a_claim_ends_when_the_work_raises(ledger, unit):
    with pytest.raises(RuntimeError), ledger.claim(unit):
        raise RuntimeError
    assert not ledger.claimed(unit)
    assert (ledger.folder(unit) / CLAIM).exists()


def test_storage_that_can_t_be_used_is_one_clear_line(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for storage, message in (
        (str(file / "below"), "cannot be written to"),
        ("/proc/nothing/here", "cannot be written to"),
        ("gs://bucket/folder", "gs:// is not supported"),
        ("az://account/folder", "az:// is not supported"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            Ledger.open(storage)
        assert f"--storage {storage.split('bucket')[0].split('account')[0]}" in str(caught.value)
    with pytest.raises(ValueError, match="no study has been run there"):
        Ledger.open(str(tmp_path / "nowhere"), create=False)
    assert not (tmp_path / "nowhere").exists()


def test_a_file_address_is_a_path(tmp_path):
    assert Ledger.open(f"file://{tmp_path}/x").root == tmp_path / "x"


def test_weights_are_looked_for_where_the_storage_is_now(ledger, unit, tmp_path):
    record = finish(ledger, unit)
    assert ledger.has_weights(unit, record)
    ledger.root.rename(tmp_path / "moved")
    moved = Ledger.open(str(tmp_path / "moved"))
    assert moved.has_weights(unit, moved.finished(unit))


def test_a_saved_plan_comes_back_and_a_damaged_one_is_named(ledger, caplog):
    plan = plan_of(small_study())
    ledger.save_plan(plan, {"study": "small"})
    assert ledger.studies() == {plan.name: {"study": "small"}}
    (ledger.study(plan) / "plan.json").write_text("{")
    assert ledger.studies() == {}
    assert plan.name in caplog.text
