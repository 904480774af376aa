"""What holds for every storage, a folder and an object store alike."""

import os
from pathlib import Path

import pytest

from orchestrator.planning.plan_file import PlanFile
from orchestrator.record import Record
from orchestrator.storage import ClaimLost, parse_address
from orchestrator.storage.backends.local import FolderStorage
from orchestrator.storage.ledger import FAILURE, RECORD, Ledger
from tests.support.plans import plan_of, small_study

pytest.importorskip("moto", reason="needs moto[s3,server] for an object store")
pytest.importorskip("boto3", reason="needs boto3 for an object store")

from orchestrator.storage.backends.s3 import S3Storage
from tests.support.storage_server import store_server

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def server():
    with store_server() as store:
        yield store


@pytest.fixture(params=["folder", "s3"])
def storage(request, server, tmp_path, monkeypatch):
    monkeypatch.setenv("UPS_SCRATCH", str(tmp_path / "scratch"))
    made = FolderStorage(tmp_path / "storage") if request.param == "folder" else S3Storage(server.address())
    made.check(create=True)
    return made


@pytest.fixture
def ledger(storage):
    return Ledger(storage)


@pytest.fixture
def units():
    return list(plan_of(small_study()).units.values())


def test_contents_come_back_by_name_and_by_listing(storage):
    for name, content in (("units/a/record.json", b"one"), ("units/a/best/s/x", b"\x00" * 1000), ("units/b/log", b"")):
        storage.write(name, content)
        assert storage.read(name) == content
    storage.write("units/a/record.json", b"other")
    assert storage.read("units/a/record.json") == b"other"
    assert {entry.name: entry.size for entry in storage.entries("units")} == {
        "units/a/record.json": 5, "units/a/best/s/x": 1000, "units/b/log": 0,
    }  # fmt: skip
    assert [entry.name for entry in storage.entries("units/b")] == ["units/b/log"]
    assert storage.children("units") == ["a", "b"]
    assert storage.children("nothing") == []


def test_what_is_not_there_is_said_so_and_may_be_deleted(storage, tmp_path):
    with pytest.raises(FileNotFoundError):
        storage.read("units/none/record.json")
    with pytest.raises(FileNotFoundError):
        storage.fetch("units/none/record.json", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert storage.look("units/none/record.json") is None
    storage.delete("units/none/record.json")
    storage.remove("units/none/checkpoints/step-00000001")


def test_a_tag_changes_with_the_content_and_age_counts_from_the_write(storage):
    storage.write("units/a/progress.jsonl", b"one")
    one = storage.look("units/a/progress.jsonl")
    assert one.tag == storage.look("units/a/progress.jsonl").tag and 0 <= one.age < 60
    storage.write("units/a/progress.jsonl", b"one two")
    assert storage.look("units/a/progress.jsonl").tag != one.tag


def test_a_removed_checkpoint_leaves_nothing_of_it(storage):
    for name in ("model.safetensors", "state.json"):
        storage.write(f"units/a/checkpoints/step-00000001/{name}", b"{}")
        storage.write(f"units/a/checkpoints/step-00000002/{name}", b"{}")
    storage.remove("units/a/checkpoints/step-00000001")
    assert {entry.name.split("/")[3] for entry in storage.entries("units/a")} == {"step-00000002"}


def test_records_come_back_and_a_failure_never_replaces_one(ledger, units):
    unit = units[0]
    failed = Record(unit.key, "failed", error="Traceback ...")
    assert ledger.record(unit) is None
    ledger.write(unit, failed)
    assert ledger.record(unit) == failed and ledger.finished(unit) is None and ledger.done(unit) is None
    done = Record(unit.key, "finished", {"test/score": 1 / 3}, {"pe": [0]}, {"commit": "abc"}, "best/step-00000001")
    ledger.write(unit, done)
    ledger.write(unit, failed)
    assert ledger.record(unit) == ledger.finished(unit) == ledger.done(unit) == ledger.read([unit])[unit.key] == done
    assert 0 <= ledger.written(unit) < 60 and ledger.written(units[1]) is None


def test_records_of_many_units_are_those_of_each(ledger, units):
    for unit in units[:3]:
        ledger.write(unit, Record(unit.key, "finished", {"test/score": 1.0}))
    ledger.write(units[3], Record(units[3].key, "failed", error="no"))
    records = ledger.read(units)
    assert list(records) == [unit.key for unit in units]
    assert records == {unit.key: ledger.record(unit) for unit in units}
    assert [record.status for record in records.values() if record] == ["finished"] * 3 + ["failed"]


def test_a_remembered_record_is_asked_for_once(ledger, units, monkeypatch):
    ledger.write(units[0], Record(units[0].key, "finished", {"test/score": 1.0}))
    with ledger.remembering(units):
        monkeypatch.setattr(type(ledger.storage), "read", None)
        assert ledger.finished(units[0]).metrics == {"test/score": 1.0}
        assert ledger.record(units[1]) is None
        monkeypatch.undo()
    ledger.write(units[1], Record(units[1].key, "failed", error="later"))
    assert ledger.record(units[1]).error == "later"


def test_a_storage_that_does_not_answer_is_no_reason_to_train(ledger, units, monkeypatch, caplog):
    ledger.write(units[0], Record(units[0].key, "finished", {"test/score": 1.0}))

    def broken(self, name):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(ledger.storage), "read", broken)
    for ask in (lambda: ledger.done(units[0]), lambda: ledger.read(units)):
        with pytest.raises(OSError, match="Input/output"):
            ask()
    assert ledger.record(units[0]) is None and "can't be read" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
def test_a_damaged_record_counts_as_not_done(ledger, units, content, caplog):
    ledger.storage.write(f"units/{units[0].folder}/{RECORD}", content)
    assert ledger.done(units[0]) is None
    assert RECORD in caplog.text


def test_one_holds_a_unit_and_lets_go(ledger, units):
    unit = units[0]
    assert not ledger.claimed(unit)
    with ledger.claim(unit) as claim:
        assert claim and not claim.lost() and ledger.claimed(unit)
        claim.check()
        claim.confirm()
        with ledger.claim(unit) as other:
            assert not other
        assert ledger.owner(unit) == f"process {os.getpid()} on {os.uname().nodename}"
        with ledger.claim(units[1]) as elsewhere:
            assert elsewhere
    assert not ledger.claimed(unit)
    with ledger.claim(unit) as claim:
        assert claim


def test_a_claim_ends_when_the_work_raises(ledger, units):
    with pytest.raises(RuntimeError), ledger.claim(units[0]):
        raise RuntimeError
    assert not ledger.claimed(units[0])


def test_a_plan_comes_back_and_a_report_is_where_others_find_it(ledger, tmp_path, caplog):
    plan = plan_of(small_study())
    plan_file = PlanFile.of(plan, "a command", {"steps": "8"})
    ledger.save_plan(plan_file)
    assert ledger.studies() == ledger.studies(plan.name) == {plan.name: plan_file}
    ledger.storage.write(f"studies/{plan.name}/plan.json", b"{")
    assert ledger.studies() == {} and plan.name in caplog.text
    out = ledger.report_folder(plan) if ledger.root is not None else tmp_path / "out"
    (out / "tables").mkdir(parents=True)
    (out / "report.md").write_text("# Report")
    (out / "tables" / "a.svg").write_text("<svg/>")
    where = ledger.publish_report(plan, [out / "report.md", out / "tables" / "a.svg"], out)
    assert ledger.storage.read(f"studies/{plan.name}/report/tables/a.svg") == b"<svg/>"
    assert (where == "") == (ledger.root is not None)
    if ledger.root is None:
        ledger.storage.write(f"studies/{plan.name}/report/mine.txt", b"my own")
        ledger.publish_report(plan, [out / "report.md"], out)
        names = {Path(entry.name).name for entry in ledger.storage.entries(f"studies/{plan.name}/report")}
        assert names == {"report.md", "report.sha256", "mine.txt"}


def test_progress_is_read_where_it_is(ledger, units):
    assert ledger.progress(units[0]) == [] and ledger.progress_tag(units[0]) == ""
    ledger.storage.write(f"units/{units[0].folder}/progress.jsonl", b'{"step": 1, "time": 2.0}\n{"st')
    assert ledger.progress(units[0]) == [{"step": 1, "time": 2.0}]
    assert ledger.progress_tag(units[0])


def test_a_ledger_is_found_again_by_its_address(ledger, units):
    ledger.write(units[0], Record(units[0].key, "finished", {"test/score": 1.0}))
    assert Ledger.at(ledger.address).finished(units[0]) == ledger.finished(units[0])
    assert Ledger.open(ledger.address, create=False).finished(units[0]) is not None
    assert ledger.where(units[0], FAILURE) == f"{ledger.address}/units/{units[0].folder}/{FAILURE}"


def test_checking_leaves_nothing_behind(storage):
    assert list(storage.entries("")) == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://KEY:hunter2@bucket/x", "keys don't belong in an address"),
        ("s3://hunter2@bucket", "keys don't belong in an address"),
        ("gs://hunter2/x", "gs:// is not supported"),
        ("az://hunter2@account/x", "az:// is not supported"),
        ("https://hunter2@host/bucket", "https:// is not supported"),
        ("s3:///prefix", "no name of a bucket"),
        ("s3://B/prefix", "no name of a bucket"),
        ("s3://bucket/a/../b", "a prefix has plain names"),
        ("s3://bucket/a?b=c", "a prefix has plain names"),
    ],
)
def test_an_address_that_can_t_be_used_is_refused_and_no_key_repeated(address, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_address(address)
    assert "hunter2" not in str(caught.value) and "--storage" in str(caught.value)


def test_equal_addresses_are_one():
    assert str(parse_address("s3://bucket//a/b/")) == str(parse_address("s3://bucket/a/b")) == "s3://bucket/a/b"
    assert str(parse_address("s3://bucket")) == "s3://bucket"


def test_losing_a_claim_is_an_error_of_storage():
    """So that whatever waits for a lost mount treats it alike."""
    assert issubclass(ClaimLost, OSError)
