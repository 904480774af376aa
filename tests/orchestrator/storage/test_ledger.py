"""The ledger: records whole or not at all, one holder of a unit at a time, nobody waits for the dead."""

import ast
import errno
import fcntl
import json
import multiprocessing
import os
import signal
import time
import warnings

import pytest

from orchestrator.planning.plan_file import PlanFile
from orchestrator.record import Record
from orchestrator.storage.ledger import CLAIM, FAILURE, RECORD, Ledger
from tests.support.plans import finish, new_ledger, plan_of, small_study
from ups_model.atomic import write_atomic


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
            write_atomic(file, json.dumps(value))


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "damage",
    [{"metrics": {"test/score": "1"}}, {"about": []}, {"checkpoint": 1}, {"health": {"pe": {}}}, {"status": "done"}],
)
def test_a_record_with_other_types_than_a_unit_leaves_counts_as_none(ledger, unit, damage, caplog):
    record = Record(unit.key, "finished", {"test/score": 1.0}, about={"started": 1.0}, checkpoint="best/step-1")
    ledger.write(unit, record)
    assert ledger.finished(unit) == record
    (ledger.folder(unit) / "record.json").write_text(json.dumps(json.loads(record.to_json()) | damage))
    assert ledger.finished(unit) is None and f"{unit.folder}/record.json can't be read" in caplog.text


def test_a_saved_plan_comes_back_and_a_damaged_one_is_named(ledger, caplog):
    plan = plan_of(small_study())
    plan_file = PlanFile.of(plan, "a command", {"steps": "8"})
    ledger.save_plan(plan_file)
    assert ledger.studies() == {plan.name: plan_file}
    (ledger.study(plan) / "plan.json").write_text("{")
    assert ledger.studies() == {}
    assert plan.name in caplog.text


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_mount_without_locks_is_refused_before_anything_starts(tmp_path, unit, monkeypatch, number):
    Ledger.open(str(tmp_path))

    def flock(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ValueError, match="this mount has no file locks") as caught:
        Ledger.open(str(tmp_path))
    assert "NFS version 4" in str(caught.value) and "s3://" in str(caught.value)
    assert not list((tmp_path / "units").iterdir())
    # A worker whose machine has it mounted otherwise than the driver's: no lock of another kind is taken instead.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(OSError, match="this mount has no file locks"), Ledger(tmp_path).claim(unit):
            raise AssertionError("held without a lock")


def test_a_mount_whose_locks_keep_nobody_out_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *args: None)
    with pytest.raises(ValueError, match="this mount has no file locks"):
        Ledger.open(str(tmp_path))


def unsafe_readers(source):
    """Ways to read a file that can run what is in it, by name."""
    readers = set()
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        readers |= {
            name for name in names if name.split(".")[0] in ("pickle", "cPickle", "dill", "cloudpickle", "joblib")
        }
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            readers |= {name} & {"torch.load", "eval", "exec", "marshal.loads", "shelve.open", "yaml.load"}
            readers |= {
                name for word in node.keywords if word.arg == "allow_pickle" and ast.unparse(word.value) != "False"
            }
    return readers


def test_locks_are_asked_for_as_nfs_gives_them(tmp_path, monkeypatch):
    """flock(2): on NFS "in order to place an exclusive lock, the file must be opened for writing"."""
    flock = fcntl.flock

    def on_nfs(file, operation):
        descriptor = file if isinstance(file, int) else file.fileno()
        if operation & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", on_nfs)
    ledger = Ledger.open(str(tmp_path))
    unit = next(iter(plan_of(small_study()).units.values()))
    with ledger.claim(unit) as held, ledger.claim(unit) as again:
        assert held and not again


@pytest.mark.slow
def test_nothing_that_reads_storage_can_run_what_it_reads(repo_root):
    files = [*(repo_root / "orchestrator").rglob("*.py"), *(repo_root / "ups_model").glob("*.py")]
    assert len(files) > 50
    assert {str(file): readers for file in files if (readers := unsafe_readers(file.read_text()))} == {}


@pytest.mark.parametrize(
    ("source", "reader"),
    [
        ("import pickle", "pickle"),
        ("from cloudpickle import loads", "cloudpickle"),
        ("torch.load(file)", "torch.load"),
        ("np.load(file, allow_pickle=True)", "np.load"),
    ],
)
def test_the_search_for_unsafe_readers_finds_them(source, reader):
    assert reader in unsafe_readers(source)
