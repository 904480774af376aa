"""python -m orchestrator.storage: how full, what can go, what is damaged; a cleaned unit stays done."""

import json
import shutil
import time
from dataclasses import replace

import pytest

pytest.importorskip("moto", reason="needs moto[s3,server] for an object store")
pytest.importorskip("boto3", reason="needs boto3 for an object store")

import boto3

import ups_model.training.run
from orchestrator.planning.plan_file import PlanFile
from orchestrator.storage.__main__ import main
from orchestrator.storage.ledger import RECORD, Ledger
from orchestrator.storage.usage import KINDS, bytes_text, kind_of, usage
from orchestrator.worker.run_unit import run_unit
from tests.orchestrator.worker.test_run_unit import job_of, pick, plan_of
from tests.support.plans import graph_of
from tests.support.storage_server import store_server

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def server():
    with store_server() as store:
        yield store


@pytest.fixture(scope="module")
def plan(bench):
    return plan_of(bench)


@pytest.fixture(scope="module")
def trained(bench, plan, tmp_path_factory):
    """A folder with a joint unit and one fine-tuned from it, both finished."""
    folder = tmp_path_factory.mktemp("trained") / "storage"
    for unit in units_of(plan):
        assert run_unit(job_of(bench, plan, unit, folder), lambda: False).status == "finished"
    Ledger(folder).save_plan(PlanFile.of(plan, "python -m orchestrator.ablate toy", {}))
    return folder


def units_of(plan):
    child = pick(plan, "finetune", "pe")
    return plan.units[child.parent], child


@pytest.fixture(params=["folder", "s3"])
def address(request, trained, server, tmp_path, monkeypatch):
    """Storage of each kind with the trained units."""
    monkeypatch.setenv("UPS_SCRATCH", str(tmp_path / "scratch"))
    if request.param == "folder":
        shutil.copytree(trained, tmp_path / "storage")
        return str(tmp_path / "storage")
    bucket = server.new_bucket()
    for file in trained.rglob("*"):
        if file.is_file() and file.name not in (".claim", "owner.json"):
            boto3.client("s3").upload_file(str(file), bucket, f"p/{file.relative_to(trained).as_posix()}")
    return f"s3://{bucket}/p"


def command(capsys, *arguments):
    status = main([*arguments])
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return status, output.out + output.err


def names(ledger):
    return {entry.name for entry in ledger.storage.entries("")}


def refuse_to_train(monkeypatch):
    def step(*args):
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr(ups_model.training.run, "sequence_loss", step)


def spoil(ledger, name):
    content = bytearray(ledger.storage.read(name))
    content[len(content) // 2] ^= 1
    ledger.storage.write(name, bytes(content))


def test_a_finished_unit_keeps_one_checkpoint_to_resume_from(trained, plan):
    for unit in units_of(plan):
        checkpoints = [path.name for path in (trained / "units" / unit.folder / "checkpoints").iterdir()]
        assert checkpoints == [f"step-{unit.config.optim.steps:08d}"]


def test_du_counts_every_byte_once(address, capsys, plan):
    ledger = Ledger.at(address)
    used = usage(ledger)
    assert used.total == sum(entry.size for entry in ledger.storage.entries(""))
    assert (
        used.kinds["other"] == 0 and used.kinds["chosen weights"] > 0 and used.kinds["checkpoints to resume from"] > 0
    )
    resume = sum(entry.size for entry in ledger.storage.entries("") if "/checkpoints/" in entry.name)
    assert used.kinds["checkpoints to resume from"] == resume > 0
    assert used.studies[plan.name].total() == used.total  # Nothing here is of no study.
    status, text = command(capsys, "du", "--storage", address)
    assert status == 0 and f"{bytes_text(resume)}  checkpoints to resume from" in text
    assert all(unit.folder in text for unit in units_of(plan))


def test_gc_says_first_and_deletes_checkpoints_of_finished_units_alone(address, capsys, plan):
    ledger = Ledger.at(address)
    before = names(ledger)
    status, text = command(capsys, "gc", "--storage", address, "--dry-run")
    assert status == 0 and text.count("would delete") == 2 and "2 checkpoints and leftovers" in text
    assert names(ledger) == before
    status, text = command(capsys, "gc", "--storage", address)
    assert status == 0 and text.count("\ndeleted") + text.startswith("deleted") == 2
    gone = before - names(ledger)
    assert gone and all("/checkpoints/step-" in name for name in gone)
    assert not [name for name in names(ledger) if "/checkpoints/" in name]
    assert command(capsys, "gc", "--storage", address)[1].startswith("0 checkpoints and leftovers")
    assert command(capsys, "verify", "--storage", address)[0] == 0


def test_a_cleaned_unit_is_done_and_a_parent_and_never_trained_again(address, bench, plan, capsys, monkeypatch):
    assert command(capsys, "gc", "--storage", address)[0] == 0
    ledger, (parent, child) = Ledger.at(address), units_of(plan)
    graph = graph_of(plan, ledger)
    assert {parent.key, child.key} <= graph.done_before
    sibling = next(unit for unit in plan.units.values() if unit.parent == parent.key and unit.key != child.key)
    assert run_unit(job_of(bench, plan, sibling, address), lambda: False).status == "finished"
    record = ledger.finished(parent)
    refuse_to_train(monkeypatch)
    assert run_unit(job_of(bench, plan, parent, address), lambda: False).status == "finished"
    # Nor if its record is lost: its result and its weights are there.
    ledger.storage.delete(f"units/{parent.folder}/{RECORD}")
    assert run_unit(job_of(bench, plan, parent, address), lambda: False).status == "finished"
    assert ledger.finished(parent).metrics == record.metrics


def test_a_cleaned_unit_with_damaged_weights_is_trained_again_when_a_child_needs_it(address, bench, plan, capsys):
    assert command(capsys, "gc", "--storage", address)[0] == 0
    ledger, (parent, child) = Ledger.at(address), units_of(plan)
    record = ledger.finished(parent)
    spoil(ledger, f"units/{parent.folder}/{record.checkpoint}/model.safetensors")
    ledger.storage.delete(f"units/{child.folder}/{RECORD}")
    for name in [name for name in names(ledger) if name.startswith(f"units/{child.folder}/")]:
        ledger.storage.delete(name)
    outcome = run_unit(job_of(bench, plan, child, address), lambda: False)
    assert outcome.status == "parent_unreadable"
    assert run_unit(job_of(bench, plan, parent, address), lambda: False).status == "finished"
    assert ledger.finished(parent).metrics == record.metrics  # Every step depends on (seed, step) alone.
    assert run_unit(job_of(bench, plan, child, address), lambda: False).status == "finished"


def test_gc_leaves_checkpoints_of_a_unit_whose_weights_are_damaged(address, capsys, plan):
    ledger, (parent, child) = Ledger.at(address), units_of(plan)
    spoil(ledger, f"units/{parent.folder}/{ledger.finished(parent).checkpoint}/model.safetensors")
    before = names(ledger)
    status, text = command(capsys, "gc", "--storage", address)
    assert status == 0 and f"{parent.folder}: its chosen weights can't be read, so its checkpoints stay" in text
    assert {name.split("/")[1] for name in before - names(ledger)} == {child.folder}


def test_gc_leaves_a_unit_that_is_held(address, capsys, plan):
    ledger, (parent, child) = Ledger.at(address), units_of(plan)
    with ledger.claim(parent):
        before = names(ledger)
        status, text = command(capsys, "gc", "--storage", address, "--older-than", "0")
        assert status == 0 and f"{parent.folder}: held by a process" in text
        assert {name.split("/")[1] for name in before - names(ledger)} == {child.folder}


@pytest.mark.parametrize("missing", ["record", "test"])
def test_gc_leaves_what_a_unit_that_is_not_done_goes_on_from(address, capsys, plan, missing):
    ledger, (parent, _) = Ledger.at(address), units_of(plan)
    file = f"units/{parent.folder}/{RECORD}"
    if missing == "record":
        ledger.storage.delete(file)
    else:  # As a search leaves it.
        ledger.storage.write(file, ledger.storage.read(file).replace(b'"test/', b'"validation/'))
    assert command(capsys, "gc", "--storage", address)[0] == 0
    assert [name for name in names(ledger) if name.startswith(f"units/{parent.folder}/checkpoints/")]


def test_leftovers_go_when_they_are_old_enough(address, capsys, plan):
    ledger, (parent, _) = Ledger.at(address), units_of(plan)
    half = f"units/{parent.folder}/best/step-00000001/model.safetensors"
    ledger.storage.write(half, b"half")
    if ledger.root is None:
        client = boto3.client("s3")
        client.create_multipart_upload(Bucket=ledger.storage.bucket, Key=f"p/units/{parent.folder}/best/x")
    else:
        (ledger.root / "units" / parent.folder / f".record.json-{'0' * 32}").write_text("{")
    before = names(ledger)
    status, text = command(capsys, "gc", "--storage", address)
    assert status == 0 and half in names(ledger) and "half a checkpoint" not in text
    # Of uploads, moto says that all were begun in 2010.
    assert ("left by a writer that was killed" in text) == (ledger.root is None)
    time.sleep(2.1)  # A store's ages are whole seconds.
    status, more = command(capsys, "gc", "--storage", address, "--older-than", "0")
    assert status == 0 and "half a checkpoint" in more and "left by a writer that was killed" in text + more
    assert half not in names(ledger) and list(ledger.storage.leftovers("units")) == []
    assert before - names(ledger) >= {half}
    assert command(capsys, "verify", "--storage", address)[0] == 0


@pytest.mark.parametrize(
    ("damage", "then"),
    [
        ("weights", "makes them again, from step-"),
        ("record", "makes it again from result.json, without training"),
        ("another's record", "makes it again from result.json, without training"),
        ("checkpoint", "nothing: the unit is finished"),
        ("plan", "the study's ablate command writes it again"),
        ("no weights", "makes them again, from step-"),
    ],
)
def test_verify_finds_every_damage_and_says_what_becomes_of_it(address, capsys, plan, damage, then):
    ledger, (parent, child) = Ledger.at(address), units_of(plan)
    assert command(capsys, "verify", "--storage", address)[0] == 0
    place, record = f"units/{parent.folder}", ledger.finished(parent)
    (resume,) = {name.rsplit("/", 1)[0] for name in names(ledger) if name.startswith(f"{place}/checkpoints/")}
    if damage == "weights":
        spoil(ledger, name := f"{place}/{record.checkpoint}/model.safetensors")
    elif damage == "no weights":
        ledger.storage.remove(name := f"{place}/{record.checkpoint}")
    elif damage == "record":
        ledger.storage.write(name := f"{place}/{RECORD}", b"{")
    elif damage == "another's record":
        ledger.storage.write(name := f"{place}/{RECORD}", ledger.storage.read(f"units/{child.folder}/{RECORD}"))
    elif damage == "checkpoint":
        spoil(ledger, name := f"{resume}/optimizer.safetensors")
    else:
        ledger.storage.write(name := f"studies/{plan.name}/plan.json", b"[]")
    status, text = command(capsys, "verify", "--storage", address)
    assert status == 1 and then in text and "1 damaged" in text
    assert (
        ledger.storage.where(name.rsplit("/", 1)[0] if "weights" in damage or damage == "checkpoint" else name) in text
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("du", "--storage", "/nowhere/at/all"), "no study has been run there"),
        (("verify", "--storage", "gs://bucket"), "gs:// is not supported"),
        (("gc", "--older-than", "-1"), "--older-than must be 0 or more hours"),
        (("gc", "--older-than", "nan"), "--older-than must be 0 or more hours"),
        (("du", "--dry-run"), "--dry-run is for gc"),
    ],
)
def test_what_can_t_be_done_is_one_line_and_status_2(capsys, arguments, message):
    status, text = command(capsys, *arguments)
    assert status == 2 and message in text and text.startswith("error: ") and text.count("\n") == 1


def test_every_file_of_a_trained_unit_has_a_kind(trained):
    kinds = {kind_of(file.relative_to(trained).as_posix()) for file in trained.rglob("*") if file.is_file()}
    assert kinds <= set(KINDS) - {"other", "leftovers"}
    assert kind_of("units/a-b/best/.step-00000001-" + "0" * 32 + "/x") == "leftovers"
    assert kind_of("notes.txt") == "other"


def add_study(ledger, plan, name, units):
    """Another study on these units."""
    planned = PlanFile.of(plan, "python -m orchestrator.ablate other", {})
    own = {unit.key: planned.units[unit.key] for unit in units}
    ledger.save_plan(replace(planned, name=name, units=own, tables=(), claims=()))


def add_search(ledger, name, units, table=True):
    ledger.storage.write(f"searches/{name}/journal.log", b"")
    if table:
        text = "trial,state,units\n0,complete," + " ".join(unit.key for unit in units) + "\n1,failed,\n"
        ledger.storage.write(f"searches/{name}/trials.csv", text.encode())


def test_list_says_how_far_each_study_and_search_is(address, capsys, plan):
    ledger = Ledger.at(address)
    add_search(ledger, "rates-tiny-12345678", units_of(plan)[:1])
    add_search(ledger, "begun-tiny-12345678", (), table=False)
    status, text = command(capsys, "list", "--storage", address)
    lines = [line.split() for line in text.splitlines()]
    assert status == 0 and [line[:2] for line in lines] == [
        ["study", plan.name], ["search", "begun-tiny-12345678"], ["search", "rates-tiny-12345678"],
    ]  # fmt: skip
    assert " ".join(lines[0][2:]) == f"{len(plan.units)} units: 2 finished, {len(plan.units) - 2} open"
    assert " ".join(lines[1][2:]) == "no table of all trials: it has not ended, or was imported"
    assert " ".join(lines[2][2:]) == "2 trials: 1 complete, 1 failed"


def test_delete_removes_a_study_and_the_units_that_nothing_else_uses(address, capsys, plan):
    ledger, (parent, child) = Ledger.at(address), units_of(plan)
    add_study(ledger, plan, "other-tiny-12345678", [parent])
    before = names(ledger)
    status, text = command(capsys, "delete", "--study", plan.name, "--storage", address, "--dry-run")
    assert status == 0 and f"{plan.name}: it and 1 unit would be deleted; 1 that others use stay" in text
    assert names(ledger) == before
    status, text = command(capsys, "delete", "--study", plan.name, "--storage", address)
    assert status == 0 and "it and 1 unit were deleted; 1 that others use stay" in text
    left = {name for name in names(ledger) if "/claims/" not in name}
    assert left < before and not any(child.folder in name or plan.name in name for name in left)
    assert {name for name in before if parent.folder in name and "/claims/" not in name} <= left
    status, text = command(capsys, "verify", "--storage", address)
    assert status == 0, text
    status, text = command(capsys, "delete", "--study", plan.name, "--storage", address)
    assert status == 2 and "it has other-tiny-12345678" in text


def test_delete_keeps_what_a_search_uses_and_refuses_where_that_is_unknown(address, capsys, plan):
    ledger, (parent, child) = Ledger.at(address), units_of(plan)
    add_search(ledger, "rates-tiny-12345678", [child])
    add_search(ledger, "begun-tiny-12345678", (), table=False)
    before = names(ledger)
    status, text = command(capsys, "delete", "--study", plan.name, "--storage", address)
    assert status == 2 and "units of the search begun-tiny-12345678 are not known" in text and names(ledger) == before
    ledger.storage.remove("searches/begun-tiny-12345678")
    assert command(capsys, "delete", "--study", plan.name, "--storage", address)[0] == 0
    assert ledger.finished(child) is not None and ledger.finished(parent) is None
    assert command(capsys, "delete", "--study", "rates-tiny-12345678", "--storage", address)[0] == 0
    assert all("/claims/" in name for name in names(ledger) if name.startswith(("units/", "studies/", "searches/")))


def test_delete_refuses_where_a_search_has_begun_trials_since_its_table(address, capsys, plan):
    ledger, (_, child) = Ledger.at(address), units_of(plan)
    add_search(ledger, "rates-tiny-12345678", [child])
    lines = [json.dumps({"op_code": 4, "user_attrs": {"trial": number}}) for number in (0, 1, 1, 2)]
    ledger.storage.write("searches/rates-tiny-12345678/journal.log", "\n".join(lines).encode())
    before = names(ledger)
    status, text = command(capsys, "delete", "--study", plan.name, "--storage", address)
    assert status == 2 and "units of the search rates-tiny-12345678 are not known" in text and names(ledger) == before


def test_delete_of_several_removes_none_where_one_is_refused(address, capsys, plan):
    before = names(Ledger.at(address))
    status, text = command(capsys, "delete", "--study", plan.name, "--study", "typo", "--storage", address)
    assert status == 2 and "has no 'typo'" in text and names(Ledger.at(address)) == before
    status, text = command(capsys, "delete", "--study", plan.name, "--study", plan.name, "--storage", address)
    assert status == 0 and text.count("were deleted") == 1


def test_a_unit_that_was_deleted_can_be_claimed_by_one_process_at_a_time(address, capsys, plan):
    ledger, (_, child) = Ledger.at(address), units_of(plan)
    for _ in range(3):  # Of several claims the newest is found from the first.
        with ledger.claim(child) as claim:
            assert claim
    assert command(capsys, "delete", "--study", plan.name, "--storage", address)[0] == 0
    with ledger.claim(child) as claim, Ledger.at(address).claim(child) as other:
        assert claim and not other
        claim.check()


def test_delete_leaves_everything_where_a_process_holds_one_of_the_units(address, capsys, plan):
    ledger, (_, child) = Ledger.at(address), units_of(plan)
    with Ledger.at(address).claim(child) as claim:
        assert claim
        before = {name for name in names(ledger) if "/claims/" not in name}
        status, text = command(capsys, "delete", "--study", plan.name, "--storage", address)
        assert status == 1 and f"a process holds {child.folder}; stop it and call again" in text
        assert {name for name in names(ledger) if "/claims/" not in name} == before
    assert command(capsys, "delete", "--study", plan.name, "--storage", address)[0] == 0


def test_delete_that_stops_in_the_middle_goes_on_with_the_next_call(address, capsys, plan, monkeypatch):
    ledger, calls = Ledger.at(address), []
    delete = type(ledger.storage).delete

    def failing(self, name):
        calls.append(name)
        if len(calls) > 2:
            raise OSError("the storage went away")
        delete(self, name)

    with monkeypatch.context() as patched:
        patched.setattr(type(ledger.storage), "delete", failing)
        assert command(capsys, "delete", "--study", plan.name, "--storage", address)[0] == 2
    assert calls[0].endswith("record.json"), "half a unit is none"
    assert plan.name in ledger.studies()
    assert command(capsys, "delete", "--study", plan.name, "--storage", address)[0] == 0
    assert all("/claims/" in name for name in names(ledger) if name.startswith(("units/", "studies/")))


def test_delete_refuses_where_another_study_cannot_be_read(address, capsys, plan):
    ledger = Ledger.at(address)
    ledger.storage.write("studies/torn-tiny-12345678/plan.json", b"{")
    before = names(ledger)
    status, text = command(capsys, "delete", "--study", plan.name, "--storage", address)
    assert status == 2 and "the plan of torn-tiny-12345678 can't be read" in text and names(ledger) == before


def test_delete_needs_a_name(address, capsys):
    status, text = command(capsys, "delete", "--storage", address)
    assert status == 2 and "delete needs --study NAME" in text
