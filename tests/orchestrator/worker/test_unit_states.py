"""What a unit's folder may hold between two calls, and what the next one makes of it; trained by a stub."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace

import pytest

from orchestrator.record import Record
from orchestrator.scheduling.task_graph import State, TaskGraph
from orchestrator.storage import gc, merge, studies, verify
from orchestrator.storage.archive import export_ledger
from orchestrator.storage.backends import local
from orchestrator.storage.ledger import Ledger
from orchestrator.storage.source_check import SourceCheck, needs_measuring, training_code
from orchestrator.worker import run_unit as worker
from orchestrator.worker.job import Rung
from orchestrator.worker.run_unit import run_unit
from tests.support.plans import new_ledger
from tests.support.stub_project import STEPS, STUB, Stub, job, stop_before, unit
from ups_model.training import run_folder

NEVER = lambda: False  # noqa: E731
UNIT, CHILD = unit(0), unit(1, unit(0).key)


@pytest.fixture
def stub(monkeypatch):
    """Fresh, and on a machine that it names."""
    vars(STUB).update(vars(Stub()))
    monkeypatch.setattr(worker, "_about", lambda job, started: about(STUB))
    monkeypatch.setattr(worker, "sampler", lambda file: lambda step, values: None)
    return STUB


def about(stub):
    return {"commit": "c", "host": stub.machine, "started": 1.0, "ended": 2.0}


@pytest.fixture
def ledger(tmp_path):
    return new_ledger(tmp_path)


def run(ledger, one=UNIT, should_stop=NEVER, **more):
    return run_unit(job(ledger.root, one, **more), should_stop)


@pytest.fixture
def retrained(ledger, stub):
    """Trained by T1; then by T2, which was stopped when it had chosen weights of the same name."""
    assert run(ledger).status == "finished"
    stub.training = "T2"
    assert run(ledger, should_stop=stop_before(9), other_code="retrain").status == "stopped"
    return ledger


def test_weights_of_an_interrupted_retraining_are_never_taken_for_those_of_the_old_record(retrained, stub):
    stub.training = "T1"  # The change of the code is taken back, and no flag is given.
    assert training_code(retrained.finished(UNIT)) == "T1" and not retrained.finished(UNIT).checkpoint
    both = {one.key: one for one in (UNIT, CHILD)}
    graph = TaskGraph(both, retrained, check=SourceCheck(retrained))
    assert graph.state[UNIT.key] is State.WAITING and UNIT.key in graph.remade
    outcome = run_unit(replace(job(retrained.root, CHILD), parent=UNIT), NEVER)
    assert outcome.status == "parent_unreadable" and not stub.parents
    refused = run(retrained, remake=True)
    assert refused.status == "failed" and "trained by other code (T2" in refused.error
    assert run(retrained, remake=True, other_code="retrain").status == "finished"
    assert run_unit(replace(job(retrained.root, CHILD), parent=UNIT), NEVER).status == "finished"
    assert stub.parents == ["T1"]


def test_the_record_of_what_is_trained_again_is_kept_whole_under_another_name(retrained, stub):
    (aside,) = retrained.folder(UNIT).glob("record-T1*.json")
    assert Record.from_json(aside.read_text()).checkpoint == "best/step-00000004"
    assert run(retrained, should_stop=stop_before(9), other_code="retrain").status == "finished"
    assert training_code(retrained.finished(UNIT)) == "T2"
    assert len(list(retrained.folder(UNIT).glob("record-T1*.json"))) == 1


def test_gc_keeps_the_checkpoints_of_a_unit_that_is_being_trained_again(retrained, stub):
    there = sorted((retrained.folder(UNIT) / "checkpoints").iterdir())
    swept = gc.sweep_unit(retrained, UNIT.folder, 0.0, False)
    assert there and sorted((retrained.folder(UNIT) / "checkpoints").iterdir()) == there and not swept.removed
    stub.steps_run.clear()
    assert run(retrained, other_code="retrain").status == "finished"
    assert stub.steps_run == [10]


def test_verify_finds_nothing_damaged_while_a_unit_is_trained_again(retrained):
    assert verify.verify_unit(retrained, UNIT.folder).damages == ()


def test_verify_names_what_can_not_be_read_and_goes_on(ledger, stub, monkeypatch):
    assert run(ledger).status == "finished"
    plain = run_folder._sha256

    def away(file):
        if "best" in file.parts:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return plain(file)

    monkeypatch.setattr(run_folder, "_sha256", away)
    found = verify.verify_unit(ledger, UNIT.folder)
    (damage,) = found.damages
    assert damage.name.endswith("best/step-00000004") and "Input/output error" in damage.what
    assert "delete it" in damage.then and found.checkpoints >= 1


@pytest.mark.parametrize("before", [7, 11])
def test_a_read_that_fails_once_deletes_no_checkpoint_and_trains_nothing_again(before, ledger, stub, monkeypatch):
    assert run(ledger, should_stop=stop_before(before)).status in ("stopped", "finished")
    folder = ledger.folder(UNIT)
    there, plain, trained = sorted(folder.glob("*/step-*")), run_folder._sha256, len(stub.steps_run)

    def away(file):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(file))

    monkeypatch.setattr(run_folder, "_sha256", away)
    with pytest.raises(OSError, match="Stale"):
        run(ledger, remake=True)
    monkeypatch.setattr(run_folder, "_sha256", plain)
    assert sorted(folder.glob("*/step-*")) == there
    assert run(ledger, remake=True).status == "finished"
    assert stub.steps_run == list(range(1, STEPS + 1)) and len(stub.steps_run) - trained == max(0, STEPS - before)


def test_a_stopped_run_names_the_code_that_measured_it_in_the_end(ledger, stub):
    assert run(ledger, should_stop=stop_before(5)).status == "stopped"
    stub.evaluation = "E2"
    assert run(ledger).status == "finished"
    assert ledger.finished(UNIT).about["source"]["evaluation"] == "E2"
    stub.evaluation = "E1"
    assert needs_measuring(ledger.finished(UNIT))


def test_weights_made_again_after_a_stop_name_the_machine_that_made_them(ledger, stub):
    assert run(ledger).status == "finished"
    for group in ("best", "checkpoints"):
        shutil.rmtree(ledger.folder(UNIT) / group)
    stub.machine = "machine B"
    assert run(ledger, should_stop=stop_before(3), remake=True).status == "stopped"
    assert run(ledger, remake=True).status == "finished"
    made = ledger.finished(UNIT).about
    assert (made["host"], made["device"]) == ("machine B", "machine B") and "tested" not in made


def exported(tmp_path, name, prepare):
    """A ledger's export, after something was done to it."""
    other = Ledger.open(str(tmp_path / name))
    prepare(other)
    export_ledger(other, tmp_path / f"{name}.tar.gz")
    return tmp_path / f"{name}.tar.gz"


def test_a_record_imported_while_a_study_runs_is_not_trained(ledger, stub, tmp_path):
    finished = exported(tmp_path, "elsewhere", run)
    graph = TaskGraph({UNIT.key: UNIT}, ledger)
    assert graph.next() is UNIT
    merge.import_archives(str(ledger.root), [finished])
    stub.steps_run.clear()
    assert run(ledger, remake=UNIT.key in graph.remade).status == "finished" and not stub.steps_run
    assert merge.came_without_weights(ledger.storage, UNIT.folder)
    # A unit that starts from it does need them.
    outcome = run_unit(replace(job(ledger.root, CHILD), parent=UNIT), NEVER)
    assert outcome.status == "parent_unreadable"
    assert run(ledger, remake=True).status == "finished" and len(stub.steps_run) == STEPS


def test_an_imported_failure_leaves_the_progress_of_a_begun_unit(ledger, stub, tmp_path):
    def fail(other):
        other.write(UNIT, Record(UNIT.key, "failed", error="out of luck", about={"ended": 1.0}))
        (other.folder(UNIT) / "progress.jsonl").write_text('{"step": 1, "time": 1}\n')

    rung = Rung(6, "validation/stub/m")
    paused = run(ledger, rung=rung)
    assert (paused.status, paused.value) == ("paused", 6.0)
    merge.import_archives(str(ledger.root), [exported(tmp_path, "elsewhere", fail)])
    assert ledger.record(UNIT).error == "out of luck"
    stub.steps_run.clear()
    assert run(ledger, rung=rung) == paused and not stub.steps_run
    assert [row["step"] for row in ledger.progress(UNIT)] == [1, 2, 3, 4, 5, 6]


def test_a_record_that_measured_nothing_gives_way_to_no_other_training(ledger, stub, tmp_path):
    ours, theirs = (
        Record(UNIT.key, "finished", metrics, about={"started": started}, checkpoint="best/step-1")
        for metrics, started in (({}, 1.0), ({"test/stub/m": 1.0}, 2.0))
    )
    ledger.write(UNIT, ours)
    merge.import_archives(str(ledger.root), [exported(tmp_path, "other", lambda other: other.write(UNIT, theirs))])
    assert ledger.record(UNIT).about["started"] == 1.0
    same = replace(theirs, about={"started": 1.0})
    merge.import_archives(str(ledger.root), [exported(tmp_path, "same", lambda other: other.write(UNIT, same))])
    assert ledger.record(UNIT).metrics == {"test/stub/m": 1.0}


def test_a_run_that_begins_again_has_each_step_once_in_its_progress(ledger, stub):
    stub.dies_before = 2
    with pytest.raises(KeyboardInterrupt):
        run(ledger)
    assert [row["step"] for row in ledger.progress(UNIT)] == [1]
    stub.dies_before = 0
    assert run(ledger).status == "finished"
    assert [row["step"] for row in ledger.progress(UNIT)] == list(range(1, STEPS + 1))


def test_nobody_takes_a_unit_between_the_deletion_of_its_files_and_of_its_folder(ledger, stub, monkeypatch):
    assert run(ledger).status == "finished"
    plain, claims = local.FolderStorage.remove, []

    def remove(self, place):
        with Ledger(ledger.root).claim(UNIT) as claim:
            claims.append(bool(claim))
        plain(self, place)

    monkeypatch.setattr(local.FolderStorage, "remove", remove)
    assert studies._remove_unit(ledger, UNIT.folder)
    assert claims == [False] and not ledger.folder(UNIT).exists()


def test_of_two_drivers_one_trains_what_their_units_have_in_common(ledger, stub):
    """Two units of one training that are measured in different ways: whoever comes second takes the weights."""
    first, second = replace(UNIT, training_key="t" * 16), replace(unit(2), training_key="t" * 16)
    theirs, outcomes = TaskGraph({second.key: second}, Ledger(ledger.root)), []

    def meanwhile():
        if not outcomes:
            assert theirs.next() is second
            outcomes.append(run(ledger, second))
            theirs.busy(second.key)
            assert not theirs.look_elsewhere() and theirs.next() is None, "it waits, and is not tried again"
            assert not ledger.claimed(second) and ledger.claimed(first)
        return False

    assert run(ledger, first, meanwhile).status == "finished"
    (refused,) = outcomes
    assert refused.status == "busy" and f"is held by process {os.getpid()}" in refused.error
    theirs.look_elsewhere()
    assert theirs.next() is second
    assert run(ledger, second).status == "finished"
    assert stub.steps_run == list(range(1, STEPS + 1)), "trained once"
    assert ledger.finished(second).about["trained_by"] == first.key


def test_a_lock_of_a_file_that_was_deleted_meanwhile_is_none(ledger, stub, monkeypatch):
    assert run(ledger).status == "finished"
    plain = local._lock

    def lock(folder):
        got = plain(folder)
        shutil.rmtree(folder)  # As a deletion that ended between the opening of the file and its locking.
        return got

    monkeypatch.setattr(local, "_lock", lock)
    with ledger.claim(UNIT) as claim:
        assert not claim
    monkeypatch.setattr(local, "_lock", plain)
    with ledger.claim(UNIT) as claim:
        assert claim


def test_gc_finds_what_a_killed_delete_left(ledger, stub, monkeypatch):
    assert run(ledger).status == "finished"
    plain = local._remove

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "_remove", killed)
    with pytest.raises(KeyboardInterrupt):
        studies._remove_unit(ledger, UNIT.folder)
    monkeypatch.setattr(local, "_remove", plain)
    assert len(list((ledger.root / "units").iterdir())) == 1 and not ledger.storage.children("units")
    assert not gc.sweep_rest(ledger, 3600.0, False).removed, "it is young"
    (gone,) = gc.sweep_rest(ledger, 0.0, False).removed
    assert UNIT.folder in gone.name and not list((ledger.root / "units").iterdir())
