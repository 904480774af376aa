"""python -m orchestrator.storage export|import: the same file for the same ledger, merged without losing anything."""

import gzip
import io
import json
import random
import tarfile
import zlib
from dataclasses import replace

import pytest

from orchestrator.planning.plan_file import PlanFile
from orchestrator.record import Record
from orchestrator.report import build, write_report
from orchestrator.report.sources import open_study
from orchestrator.scheduling.task_graph import State
from orchestrator.storage import archive, search_journal
from orchestrator.storage.__main__ import main
from orchestrator.storage.ledger import FAILURE, IMPORTED, PROGRESS, RECORD, Ledger
from orchestrator.storage.portable import portable
from orchestrator.storage.search_journal import search_place
from orchestrator.storage.usage import usage
from orchestrator.worker.run_unit import run_unit
from tests.orchestrator.worker import test_run_unit
from tests.support.plans import graph_of, plan_of, small_study
from ups_model.evaluation.metric_names import OUTCOMES

HOME = "/home/ada/some work/ups"
TRACEBACK = (
    f'Traceback (most recent call last):\n  File "{HOME}/orchestrator/worker.py", line 7, in _train\n'
    "FileNotFoundError: [Errno 2] No such file or directory: '/data/private/ntu/clips.npz' (see /var/log/ups.log)"
)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.cluster)])
def address(request, tmp_path, monkeypatch):
    """An empty storage of each kind to import into."""
    if request.param == "folder":
        yield str(tmp_path / "other")
        return
    pytest.importorskip("moto", reason="needs moto[s3,server] for an object store")
    pytest.importorskip("boto3", reason="needs boto3 for an object store")
    from tests.support.storage_server import store_server

    monkeypatch.setenv("UPS_SCRATCH", str(tmp_path / "scratch"))
    with store_server() as server:
        yield f"s3://{server.new_bucket()}/p"


@pytest.fixture
def source(tmp_path):
    """A storage with two studies: finished, failed and unfinished units."""
    ledger = Ledger.open(str(tmp_path / "source"))
    plan = plan_of(small_study(), seeds=2)
    fill(ledger, plan)
    other = plan_of(small_study(name="other"), changes={"n_bins": 8})
    ledger.save_plan(PlanFile.of(other, "python -m orchestrator.ablate other", {}))
    finish(ledger, next(iter(other.units.values())), 1.0)
    journal = ledger.root / "searches" / "rate-tiny-01234567" / "journal.log"
    journal.parent.mkdir(parents=True)
    journal.write_text('{"op_code": 0}\n')
    return ledger


def fill(ledger, plan):
    """All units but two finished; of these one failed, one began."""
    ledger.save_plan(PlanFile.of(plan, "python -m orchestrator.ablate small", {}))
    *done, failed, begun = plan.units.values()
    for place, unit in enumerate(done):
        finish(ledger, unit, 50 + place / 3)
    write_progress(ledger, failed)
    ledger.write(failed, Record(failed.key, "failed", error=TRACEBACK, about={"ended": 5.0, "host": "a"}))
    write_progress(ledger, begun)


def finish(ledger, unit, value, **about):
    write_progress(ledger, unit)
    (ledger.folder(unit) / OUTCOMES).write_bytes(b"PK outcomes of " + unit.key.encode())
    (ledger.folder(unit) / "best" / "step-1").mkdir(parents=True)
    (ledger.folder(unit) / "best" / "step-1" / "model.safetensors").write_bytes(b"weights")
    (ledger.folder(unit) / "best" / "step-1" / "state.json").write_text("{}")
    (ledger.folder(unit) / "log.txt").write_text("a log")
    metrics = {"test/ar3d/top1": value, "test/pe/mpjpe_mm": 2 * value, "validation/score": 1.0}
    about = {"parameters": 9, "commit": "c0ffee", "started": 1.0, "ended": 4.0, "train_seconds": 3.0} | about
    ledger.write(unit, Record(unit.key, "finished", metrics, {"pe": [0, 1]}, about, "best/step-1"))


def write_progress(ledger, unit):
    ledger.folder(unit).mkdir(parents=True, exist_ok=True)
    (ledger.folder(unit) / PROGRESS).write_text('{"step": 1, "train/pe_loss": 0.5, "time": 2.0}\n')


def command(capsys, *arguments):
    status = main([*map(str, arguments)])
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return status, output.out + output.err


def export(ledger, file, capsys, *more):
    status, text = command(capsys, "export", file, "--storage", ledger.address, *more)
    assert status == 0, text
    return file


def contents(ledger):
    """Every file of a ledger but those of claims."""
    names = [entry.name for entry in ledger.storage.entries("")]
    skipped = (".claim", "owner.json", ".lock")
    return {name: ledger.storage.read(name) for name in names if "/claims/" not in name and not name.endswith(skipped)}


def entries(file):
    with tarfile.open(file) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_an_export_has_records_and_no_weights_logs_claims_or_paths(source, tmp_path, capsys):
    unit = next(iter(plan_of(small_study(), seeds=2).units.values()))
    with source.claim(unit):
        file = export(source, tmp_path / "ledger.tar.gz", capsys)
    exported = entries(file)
    plans = source.studies()
    assert {name for name in exported if not name.startswith("units/")} == {
        "ledger.json",
        "searches/rate-tiny-01234567/journal.log",
        *(f"studies/{name}/plan.json" for name in plans),
    }
    assert {name.rsplit("/", 1)[1] for name in exported if name.startswith("units/")} == {
        RECORD, FAILURE, OUTCOMES, PROGRESS
    }  # fmt: skip
    finished = [name for name in exported if name.endswith(RECORD)]
    assert len(finished) == len(plan_of(small_study(), seeds=2).units) - 2 + 1
    assert all(exported[name] == source.storage.read(name) for name in finished), (
        "a record without paths is kept as it is"
    )
    (failure,) = (content.decode() for name, content in exported.items() if name.endswith(FAILURE))
    assert 'File \\"PATH/worker.py\\", line 7' in failure and "'PATH/clips.npz' (see PATH/ups.log)" in failure
    assert not any(b"/home" in content or b"/data" in content for content in exported.values())
    assert file.stat().st_size < 20_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/models/roberta", "PATH/roberta"),
        ("text_model=/models/roberta base", "text_model=PATH/roberta base"),
        ("sqlite:////srv/a/mlflow.db", "sqlite:///PATH/mlflow.db"),
        ("file:///srv/a/mlflow.db", "file://PATH/mlflow.db"),
        ("test/ar3d/top1, 20 / 40 / 60 %, a//b, and/or", None),
        ("s3://bucket/some/prefix https://host:5000/a/b", None),
        ("orchestrator/worker/run_unit.py ./a/b ../a/b ~/a/b", None),
    ],
)
def test_absolute_paths_alone_are_shortened(text, expected):
    content = json.dumps({"a": [text]}).encode()
    assert json.loads(portable(content)) == {"a": [expected or text]}
    assert expected or portable(content) == content


def test_the_same_ledger_makes_the_same_bytes_wherever_it_lies(source, tmp_path, capsys, address):
    file = export(source, tmp_path / "ledger.tar.gz", capsys)
    first = file.read_bytes()
    assert first[3:8] == bytes(5), "gzip's header has neither a name nor a time"
    assert export(source, tmp_path / "again", capsys).read_bytes() == first
    assert command(capsys, "import", file, "--storage", address)[0] == 0
    assert export(Ledger.at(address), tmp_path / "of the import", capsys).read_bytes() == first
    with tarfile.open(file) as tar:
        assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in tar} == {
            (0, 0, 0, "", 0o644)
        }


def test_an_export_of_a_study_has_its_plan_and_its_units_alone(source, tmp_path, capsys):
    (other,) = (name for name, plan in source.studies().items() if plan.study == "other")
    for name in ("other", other):
        names = entries(export(source, tmp_path / "one", capsys, "--study", name))
        assert [one for one in names if one.startswith(("studies/", "searches/"))] == [f"studies/{other}/plan.json"]
        assert {one.split("/")[1] for one in names if one.startswith("units/")} <= {
            unit.folder for unit in source.studies()[other].units.values()
        }
    both = entries(export(source, tmp_path / "both", capsys, "--study", "other", "--study", "small"))
    assert both.keys() == {name for name in entries(export(source, tmp_path / "all", capsys)) if "searches" not in name}
    status, text = command(capsys, "export", tmp_path / "x", "--storage", source.address, "--study", "absent")
    assert status == 2 and "--study absent: no such study" in text and other in text
    assert not (tmp_path / "x").exists()


def test_an_export_that_fails_leaves_the_file_as_it_was(source, tmp_path, capsys, monkeypatch):
    file = export(source, tmp_path / "ledger.tar.gz", capsys)
    before = file.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "_add", full)
    status, text = command(capsys, "export", file, "--storage", source.address)
    assert status == 2 and "No space left" in text
    assert file.read_bytes() == before and sorted(path.name for path in tmp_path.iterdir()) == [file.name, "source"]


def test_a_record_that_can_not_be_read_is_left_out_and_named(source, tmp_path, capsys):
    (folder, *_) = (name.split("/")[1] for name in contents(source) if name.endswith(RECORD))
    (source.root / "units" / folder / RECORD).write_text("{")
    status, text = command(capsys, "export", tmp_path / "file", "--storage", source.address)
    assert status == 1 and f"left out: {source.root}/units/{folder}/{RECORD}: not JSON" in text
    assert not any(folder in name for name in entries(tmp_path / "file"))


def test_an_import_brings_the_ledger_and_the_second_one_changes_nothing(source, tmp_path, capsys, address):
    file = export(source, tmp_path / "ledger.tar.gz", capsys)
    status, text = command(capsys, "import", file, "--storage", address)
    ledger, plan = Ledger.at(address), plan_of(small_study(), seeds=2)
    units = sum(name.endswith((RECORD, FAILURE)) for name in contents(ledger))
    assert status == 0 and f"{file}: {units} units added" in text and "3 plans and searches written" in text
    assert ledger.studies() == source.studies()
    *done, failed, begun = plan.units.values()
    assert all(ledger.record(unit) == source.record(unit) for unit in done)
    assert all(ledger.progress(unit) == source.progress(unit) for unit in (*done, failed))
    assert ledger.record(failed).status == "failed" and ledger.record(begun) is None
    assert ledger.storage.read(f"units/{done[0].folder}/{OUTCOMES}").endswith(done[0].key.encode())
    assert usage(ledger).kinds["other"] == 0
    before = contents(ledger)
    status, text = command(capsys, "import", file, file, "--storage", address)
    assert status == 0 and text == f"{file}: nothing to add, {units} units are there already\n"
    assert contents(ledger) == before


def test_verify_knows_a_record_that_came_without_weights(source, tmp_path, capsys, address):
    export(source, tmp_path / "file", capsys)
    command(capsys, "import", tmp_path / "file", "--storage", address)
    status, text = command(capsys, "verify", "--storage", address)
    ledger = Ledger.at(address)
    finished = [name for name in contents(ledger) if name.endswith(RECORD)]
    assert status == 0 and f"0 damaged; {len(finished)} records without weights (imported)" in text
    # One that was trained here since then, and has lost its weights, is damaged.
    record = json.loads(ledger.storage.read(finished[0]))
    ledger.storage.write(finished[0], json.dumps(record | {"about": {"ended": 9.0}}).encode())
    status, text = command(capsys, "verify", "--storage", address)
    assert status == 1 and "1 damaged" in text and f"{len(finished) - 1} records without weights" in text


def test_parts_of_a_ledger_make_the_same_ledger_in_any_order(source, tmp_path, capsys):
    """Each part lacks some units, has others as failures, some without outcomes, and a smaller plan."""
    plan, wider = plan_of(small_study(), seeds=2), plan_of(small_study(), seeds=3)
    draw = random.Random(0)
    files = []
    for part in range(3):
        ledger = Ledger.open(str(tmp_path / f"part{part}"))
        chosen = (plan, wider, plan)[part]
        ledger.save_plan(PlanFile.of(chosen, "python -m orchestrator.ablate small", {}))
        for place, unit in enumerate(plan.units.values()):
            match draw.choice(["finished", "failed", "nothing", "bare"]):
                case "nothing":
                    continue
                case "failed":
                    write_progress(ledger, unit)
                    ledger.write(unit, Record(unit.key, "failed", error=f"part {part}", about={"ended": float(part)}))
                case kind:
                    finish(ledger, unit, 50 + place)
                    if kind == "bare":
                        (ledger.folder(unit) / OUTCOMES).unlink()
        files.append(export(ledger, tmp_path / f"{part}.tar.gz", capsys))
    merged = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1)):
        storage = tmp_path / "".join(map(str, order))
        assert command(capsys, "import", *(files[part] for part in order), "--storage", storage)[0] == 0
        merged.append(contents(Ledger(storage)))
    assert all(one == merged[0] for one in merged)
    assert len(json.loads(merged[0][f"studies/{plan.name}/plan.json"])["units"]) == len(wider.units)
    assert any(name.endswith(FAILURE) for name in merged[0]) and any(name.endswith(OUTCOMES) for name in merged[0])


def one_unit(tmp_path, capsys, name, value=None, **record):
    """An archive of one unit, finished with a value or failed."""
    unit = next(iter(plan_of(small_study()).units.values()))
    ledger = Ledger.open(str(tmp_path / name))
    if value is not None:
        finish(ledger, unit, value)
    else:
        ledger.write(unit, Record(unit.key, "failed", error=name, **record))
    return unit, ledger, export(ledger, tmp_path / f"{name}.tar.gz", capsys)


def test_a_finished_record_is_never_replaced_by_a_failure_and_replaces_one(tmp_path, capsys):
    unit, done, finished = one_unit(tmp_path, capsys, "finished", 50.0)
    _, broken, failed = one_unit(tmp_path, capsys, "failed")
    record = done.finished(unit)
    assert command(capsys, "import", failed, "--storage", done.address)[0] == 0
    assert done.record(unit) == record and not (done.folder(unit) / FAILURE).exists()
    status, text = command(capsys, "import", finished, "--storage", broken.address)
    assert status == 0 and "0 units added" in text and "1 brought up to date" in text
    assert broken.record(unit) == record and not (broken.folder(unit) / FAILURE).exists()


def test_two_finished_records_that_differ_are_a_conflict_and_the_present_one_stays(tmp_path, capsys):
    unit, here, _ = one_unit(tmp_path, capsys, "here", 50.0)
    _, _, there = one_unit(tmp_path, capsys, "there", 51.0)
    before = contents(here)
    status, text = command(capsys, "import", there, "--storage", here.address)
    assert status == 1 and "1 in conflict" in text
    assert f"conflict: {unit.folder}: " in text and "test/ar3d/top1 and 1 more differ" in text
    assert f"50.0 here and 51.0 in {there}; the record here is kept" in text
    assert contents(here) == before


def test_equal_metrics_of_another_training_are_no_conflict_and_measured_further_counts(tmp_path, capsys):
    unit, here, _ = one_unit(tmp_path, capsys, "here", 50.0)
    record = here.finished(unit)
    again = Ledger.open(str(tmp_path / "again"))
    again.write(unit, replace(record, about={"ended": 9.0}))
    file = export(again, tmp_path / "again.tar.gz", capsys)
    status, text = command(capsys, "import", file, "--storage", here.address)
    assert status == 0 and "nothing to add" in text and here.finished(unit) == record
    # A search leaves the test split alone; who has it measured knows more.
    untested = replace(record, metrics={"validation/score": 1.0})
    again.write(unit, untested)
    file = export(again, tmp_path / "untested.tar.gz", capsys)
    assert "nothing to add" in command(capsys, "import", file, "--storage", here.address)[1]
    tested = export(here, tmp_path / "tested.tar.gz", capsys)
    assert command(capsys, "import", tested, "--storage", again.address)[0] == 0
    assert again.finished(unit) == record


def test_a_unit_that_a_process_holds_is_left_alone_and_named(tmp_path, capsys, address):
    unit, _, file = one_unit(tmp_path, capsys, "source", 50.0)
    ledger = Ledger.open(address)
    with ledger.claim(unit) as held:
        assert held
        status, text = command(capsys, "import", file, "--storage", address)
        assert status == 1 and f"{unit.folder}: held by a process" in text and ledger.record(unit) is None
    status, text = command(capsys, "import", file, "--storage", address)
    assert status == 0 and "1 units added" in text and ledger.finished(unit) is not None


def test_of_two_plans_the_one_with_all_units_of_the_other_and_more_is_kept(tmp_path, capsys):
    def stored(name, plan, command_line="python -m orchestrator.ablate small"):
        ledger = Ledger.open(str(tmp_path / name))
        ledger.save_plan(PlanFile.of(plan, command_line, {}))
        return ledger, export(ledger, tmp_path / f"{name}.tar.gz", capsys)

    one, two = plan_of(small_study(), 1), plan_of(small_study(), 2)
    small, of_small = stored("small", one)
    large, of_large = stored("large", two)
    before = contents(large)
    status, text = command(capsys, "import", of_small, "--storage", large.address)
    assert status == 0 and "the one here is kept; it has all units" in text and contents(large) == before
    status, text = command(capsys, "import", of_large, "--storage", small.address)
    assert status == 0 and f"replaced by the imported one, with {len(two.units) - len(one.units)} more units" in text
    assert contents(small) == before
    # Of other units each: the present one, with the way out.
    content = json.loads(before[f"studies/{two.name}/plan.json"])
    units = list(content["units"].items())
    content["units"] = dict(units[:3])
    large.storage.write(f"studies/{two.name}/plan.json", json.dumps(content).encode())
    few = contents(large)
    reverse = {
        **content,
        "units": dict(list(json.loads(before[f"studies/{two.name}/plan.json"])["units"].items())[2:6]),
    }
    small.storage.write(f"studies/{two.name}/plan.json", json.dumps(reverse).encode())
    file = export(small, tmp_path / "others.tar.gz", capsys)
    status, text = command(capsys, "import", file, "--storage", large.address)
    assert status == 0 and "it lacks 3 units of the imported one and has 2 others" in text and contents(large) == few


def test_a_journal_only_grows(source, tmp_path, capsys, monkeypatch):
    file = export(source, tmp_path / "short", capsys)
    journal = "searches/rate-tiny-01234567/journal.log"
    longer = source.storage.read(journal) + b'{"op_code": 4}\n'
    source.storage.write(journal, longer)
    long = export(source, tmp_path / "long", capsys)
    other = Ledger(tmp_path / "other")
    for one in (file, long, file):
        assert command(capsys, "import", one, "--storage", other.address)[0] == 0
    assert other.storage.read(journal) == longer
    other.storage.write(journal, b'{"op_code": 9}\n')
    status, text = command(capsys, "import", long, "--storage", other.address)
    assert status == 0 and "the trials here are kept" in text and other.storage.read(journal) == b'{"op_code": 9}\n'
    other.storage.delete(journal)
    place = search_place(other.storage, "rate-tiny-01234567", tmp_path)
    monkeypatch.setattr(search_journal, "TRANSACTION_TIMEOUT_SECONDS", 0.1)
    with place.transaction():
        status, text = command(capsys, "import", long, "--storage", other.address)
    assert status == 1 and "another process has held the journal of rate-tiny-01234567" in text
    assert not (other.root / journal).exists()


GOOD = "units/joint-seed0-0123456789abcdef"
GOOD_RECORD = Record("0123456789abcdef", "finished", {"test/ar3d/top1": 1.0}, checkpoint="best/step-1")


def packed(tmp_path, *members, header=b'{"format": 1}'):
    """An archive of these entries: (name, content) or TarInfo."""
    file = tmp_path / "made.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        for member in ((("ledger.json", header),) if header else ()) + members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                name, content = member
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return file


def entry_of(name, kind, target=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def record_with(**changes):
    plain = json.loads(GOOD_RECORD.to_json()) | changes
    return json.dumps(plain).encode()


RECORD_ENTRY = (f"{GOOD}/record.json", GOOD_RECORD.to_json().encode())
BAD_PLAN = {"study": "a", "units": {"0123456789abcdef": {"folder": "../../elsewhere-0123456789abcdef"}}}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([RECORD_ENTRY, ("../outside", b"x")], "entry '../outside': the name leads out of the storage"),
        ([RECORD_ENTRY, ("units/../../outside/record.json", b"x")], "leads out of the storage"),
        ([RECORD_ENTRY, ("/etc/cron.d/x", b"x")], "entry '/etc/cron.d/x': an absolute name"),
        ([RECORD_ENTRY, (f"{GOOD}/best/step-1/model.safetensors", b"x")], "no name that an export has"),
        ([RECORD_ENTRY, (f"{GOOD}/.claim", b"x")], "no name that an export has"),
        ([RECORD_ENTRY, ("units/a\\..\\b-0123456789abcdef/record.json", b"x")], "no name that an export has"),
        ([entry_of(f"{GOOD}/record.json", tarfile.SYMTYPE, "/etc/passwd")], "record.json': it is a link"),
        ([entry_of(f"{GOOD}/record.json", tarfile.LNKTYPE, "ledger.json")], "it is a link"),
        ([entry_of(GOOD, tarfile.DIRTYPE)], "it is a link, a folder or a device"),
        ([entry_of(f"{GOOD}/record.json", tarfile.FIFOTYPE)], "it is a link, a folder or a device"),
        ([RECORD_ENTRY, RECORD_ENTRY], f"entry '{GOOD}/record.json': it is there twice"),
        ([RECORD_ENTRY, ("searches/a/journal.log", b"")], "out of order"),
        ([(f"{GOOD}/record.json", b"{")], f"entry '{GOOD}/record.json': not JSON"),
        ([(f"{GOOD}/record.json", b"\xff\xfe")], "not JSON"),
        ([(f"{GOOD}/record.json", b"[" * 100_000)], "not JSON"),
        ([(f"{GOOD}/record.json", b'{"key": "x"}')], "not a record"),
        ([(f"{GOOD}/record.json", record_with(key="f" * 16))], "it is the record of another unit"),
        ([(f"{GOOD}/record.json", record_with(status="failed"))], "its status is 'failed'"),
        ([(f"{GOOD}/record.json", record_with(checkpoint="../../x"))], "checkpoint must be a folder in best/"),
        ([(f"{GOOD}/record.json", record_with(metrics={"a": float("nan")}))], "not JSON"),
        ([(f"{GOOD}/record.json", record_with(metrics={"a": "1"}))], "metrics must be finite numbers"),
        ([(f"{GOOD}/record.json", record_with(health=[]))], "health must be an object"),
        ([(f"{GOOD}/record.json", record_with(health={"pe": {"metric": "pe/mpjpe_mm"}}))], "not the health of a task"),
        ([(f"{GOOD}/record.json", record_with(outcomes=5))], "outcomes a text"),
        (
            [(f"{GOOD}/outcomes.npz", b"other"), (f"{GOOD}/record.json", record_with(outcomes="0" * 64))],
            "outcomes.npz': not the outcomes that record.json has the digest of",
        ),
        ([(f"{GOOD}/record.json", record_with(about={"ended": "1"}))], "about.ended must be a number"),
        ([(f"{GOOD}/progress.jsonl", b"")], "needs either record.json or failure.json"),
        ([(f"{GOOD}/failure.json", b"{}"), RECORD_ENTRY], "needs either record.json or failure.json"),
        ([(f"{GOOD}/progress.jsonl", b"\xff"), RECORD_ENTRY], "progress.jsonl"),
        ([("studies/a/plan.json", b"[]"), RECORD_ENTRY], "entry 'studies/a/plan.json': it is not a plan"),
        ([("studies/a/plan.json", json.dumps(BAD_PLAN).encode()), RECORD_ENTRY], "elsewhere-0123456789abcdef'"),
    ],
)
def test_an_archive_with_anything_else_in_it_is_refused_before_anything_is_written(tmp_path, capsys, members, message):
    good = packed(tmp_path, RECORD_ENTRY).rename(tmp_path / "good.tar.gz")
    file = packed(tmp_path, *members)
    status, text = command(capsys, "import", good, file, "--storage", tmp_path / "storage")
    assert status == 2 and text.startswith(f"error: {file}: ") and message in text and text.count("\n") == 1
    assert "nothing was imported" in text and not (tmp_path / "storage").exists()
    assert command(capsys, "import", good, "--storage", tmp_path / "storage")[0] == 0


def test_outcomes_that_are_not_the_records_are_named_and_left_out(tmp_path, capsys):
    ledger = Ledger(tmp_path / "storage")
    unit = next(iter(plan_of(small_study()).units.values()))
    finish(ledger, unit, 1.0)
    ledger.write(
        unit, Record(unit.key, "finished", {"test/ar3d/top1": 1.0}, checkpoint="best/step-1", outcomes="0" * 64)
    )
    status, text = command(capsys, "export", tmp_path / "a.tar.gz", "--storage", ledger.root)
    assert status == 1 and "outcomes.npz: not the outcomes of its record" in text
    assert command(capsys, "import", tmp_path / "a.tar.gz", "--storage", tmp_path / "other")[0] == 0
    there = {file.name for file in (tmp_path / "other" / "units" / unit.folder).iterdir()}
    assert {RECORD, PROGRESS, IMPORTED} <= there and OUTCOMES not in there


def test_sizes_that_no_export_has_are_refused_without_being_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(archive, "MAX_ENTRY_BYTES", 1000)
    file = packed(tmp_path, (f"{GOOD}/progress.jsonl", b" " * 1001), RECORD_ENTRY)
    status, text = command(capsys, "import", file, "--storage", tmp_path / "storage")
    assert status == 2 and f"entry '{GOOD}/progress.jsonl': 1,001 bytes, where 1,000 are the most" in text
    # A header that says it is long, which tarfile would read whole before it shows an entry.
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 2**40
    file.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024))
    status, text = command(capsys, "import", file, "--storage", tmp_path / "storage")
    assert status == 2 and "a header of 1,099,511,627,776 bytes" in text
    assert not (tmp_path / "storage").exists()


def unpacks_to(packed, expected):
    try:
        return gzip.decompress(packed) == expected
    except (OSError, EOFError, zlib.error):
        return False


def test_an_archive_cut_or_changed_anywhere_is_refused(source, tmp_path, capsys):
    whole = export(source, tmp_path / "whole.tar.gz", capsys).read_bytes()
    file, draw = tmp_path / "damaged.tar.gz", random.Random(0)
    damaged = [whole[: draw.randrange(len(whole))] for _ in range(20)]
    for _ in range(40):
        content = bytearray(whole)
        content[draw.randrange(12, len(whole))] ^= 1 << draw.randrange(8)
        if not unpacks_to(bytes(content), gzip.decompress(whole)):  # Some bits of a Huffman table mean nothing.
            damaged.append(bytes(content))
    assert len(damaged) > 50
    for content in damaged:
        file.write_bytes(content)
        status, text = command(capsys, "import", file, "--storage", tmp_path / "storage")
        assert status == 2 and text.startswith(f"error: {file}: ") and text.count("\n") == 1, text
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import", "FILE"), "can't be read"),
        (("import", "TEXT"), "not a file that orchestrator.storage export wrote"),
        (("import", "FUTURE"), "this version reads format 1"),
        (("import", "TAR"), "not a file that orchestrator.storage export wrote (it begins with 'a.txt'"),
        (("import",), "import reads a FILE"),
        (("export",), "export writes one FILE, got 0"),
        (("export", "a", "b"), "export writes one FILE, got 2"),
        (("export", "STORAGE"), "is a folder; name a file"),
        (("export", "nowhere/at/all"), "can't be written"),
        (("du", "FILE"), "du takes no FILE"),
        (("import", "FILE", "--study", "a"), "--study is for export"),
        (("export", "FILE", "--dry-run"), "--dry-run is for gc"),
    ],
)
def test_what_can_t_be_done_is_one_line_and_status_2(tmp_path, capsys, arguments, message, source):
    (tmp_path / "text").write_text("hello")
    packed(tmp_path, ("a.txt", b"x"), header=None).rename(tmp_path / "tar")
    packed(tmp_path, header=b'{"format": 2}').rename(tmp_path / "future")
    names = {"FILE": "none", "TEXT": "text", "FUTURE": "future", "TAR": "tar", "STORAGE": "source"}
    words = [tmp_path / names[one] if one in names else one for one in arguments]
    status, text = command(capsys, *words, "--storage", source.address)
    assert status == 2 and message in text and text.startswith("error: ") and text.count("\n") == 1


@pytest.mark.slow
def test_the_report_of_an_imported_ledger_is_the_same_byte_for_byte(source, tmp_path, capsys):
    failed = list(plan_of(small_study(), seeds=2).units.values())[-2]
    source.write(failed, Record(failed.key, "failed", error="ValueError: a report shows this"))
    file = export(source, tmp_path / "file", capsys)
    command(capsys, "import", file, "--storage", tmp_path / "other")
    written = []
    for ledger in (source, Ledger(tmp_path / "other")):
        opened = open_study("small", ledger, None)
        assert build(opened.plan, opened.records)
        out = tmp_path / f"report-{ledger.root.name}"
        write_report(build(opened.plan, opened.records), out)
        written.append({path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert written[0] == written[1] and "cells.csv" in written[0]


@pytest.mark.slow
def test_imported_units_are_done_and_a_parent_without_weights_is_made_again_for_a_child(
    source, tmp_path, capsys, caplog
):
    plan = plan_of(small_study(), seeds=2)
    command(capsys, "import", export(source, tmp_path / "file", capsys), "--storage", tmp_path / "other")
    ledger = Ledger(tmp_path / "other")
    graph = graph_of(plan, ledger)
    *done, failed, begun = plan.units.values()
    parents = {unit.parent for unit in (failed, begun)} - {""}
    assert parents and graph.done_before == {unit.key for unit in done} - parents
    assert {key for key, state in graph.state.items() if state is State.WAITING} == parents | {failed.key, begun.key}
    assert "its weights are not on the storage; making them again" in caplog.text
    assert graph.next().key in parents
    for unit in (failed, begun):
        finish(ledger, unit, 1.0)
    assert graph_of(plan, ledger).complete


@pytest.mark.slow
def test_a_child_trained_from_an_imported_parent_is_the_one_trained_from_the_parent_itself(bench, tmp_path, capsys):
    plan = test_run_unit.plan_of(bench)
    child = test_run_unit.pick(plan, "finetune", "pe")
    parent = plan.units[child.parent]
    here, there = tmp_path / "here", tmp_path / "there"

    def run(unit, storage):
        return run_unit(test_run_unit.job_of(bench, plan, unit, storage), lambda: False).status

    assert [run(parent, here), run(child, here)] == ["finished"] * 2
    ledger = Ledger(here)
    expected = ledger.finished(child)
    made = ledger.finished(parent)
    archive_file = tmp_path / "ledger.tar.gz"
    assert main(["export", str(archive_file), "--storage", str(here)]) == 0
    assert main(["import", str(archive_file), "--storage", str(there)]) == 0
    ledger = Ledger(there)
    ledger.storage.delete(f"units/{child.folder}/{RECORD}")
    assert run(child, there) == "parent_unreadable"
    assert run(parent, there) == "finished"
    assert run(child, there) == "finished"
    assert ledger.finished(parent).metrics == made.metrics and ledger.finished(child).metrics == expected.metrics
    assert (ledger.folder(parent) / IMPORTED).exists()
    capsys.readouterr()
    status, text = command(capsys, "verify", "--storage", there)
    assert status == 0 and "without weights" not in text, "the weights are there again"
