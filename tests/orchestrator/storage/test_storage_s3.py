"""Checkpoints on an object store: never half, never older than what is there, whatever is killed or late; and stores
that can't be used are refused before anything starts."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

pytest.importorskip("moto", reason="needs moto[s3,server] for an object store")
pytest.importorskip("boto3", reason="needs boto3 for an object store")

from orchestrator.storage import Claim, ClaimLost, parse_address, storage_at
from orchestrator.storage.backends import s3 as s3_module
from orchestrator.storage.backends.s3 import S3Storage
from orchestrator.storage.backends.workspace import MANIFEST, scratch_base
from orchestrator.storage.ledger import Ledger, Place
from tests.support.drivers import ROOT, wait_until
from tests.support.storage_server import SETTINGS, store_server
from ups_model.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from ups_model.training.run_folder import prune_checkpoints

pytestmark = pytest.mark.cluster
PLACE = "units/joint-seed0-0123456789abcdef"


@pytest.fixture(scope="module")
def server():
    with store_server() as store:
        yield store


@pytest.fixture(autouse=True)
def own_scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("UPS_SCRATCH", str(tmp_path / "scratch"))


@pytest.fixture
def storage(server):
    return S3Storage(server.address())


class Late(S3Storage):
    """One whose listings know of nothing."""

    def entries(self, place):
        return iter(())


class Lost(Claim):
    def __init__(self):
        super().__init__(True)
        self.is_lost = False

    def lost(self):
        return self.is_lost


def checkpoint(folder, step, value=None, group="checkpoints"):
    """As training makes them."""
    tensors = {"model": {"w": torch.full((64,), float(value if value is not None else step))}}
    if group == "checkpoints":
        tensors["optimizer"] = {"0.step": torch.tensor([float(step)])}
    return save_checkpoint(folder / group, step, tensors, {"key": "0123456789abcdef", "best": None})


def train(storage, *steps, claim=None):
    """A unit that makes these checkpoints, two of which are kept."""
    with storage.workspace(PLACE, claim or Claim(True)) as work:
        for step in steps:
            (work.folder / "progress.jsonl").write_text("".join(f'{{"step": {one}}}\n' for one in range(1, step + 1)))
            checkpoint(work.folder, step)
            prune_checkpoints(work.folder / "checkpoints", 2)
            work.save()


def newest(storage):
    """Step and value of what a new process begins from; None where it begins anew."""
    with storage.workspace(PLACE, Claim(True)) as work:
        newest = newest_checkpoint(work.folder / "checkpoints")
        if newest is None:
            return None
        _, tensors, state = newest
        return state["step"], tensors["model"]["w"][0].item()


def steps_there(storage):
    return sorted({entry.name.split("/")[3] for entry in storage.entries(f"{PLACE}/checkpoints")})


def test_a_new_process_begins_from_the_newest_checkpoint_and_older_ones_are_deleted(storage):
    assert newest(storage) is None
    train(storage, 1, 2, 3, 4)
    assert newest(storage) == (4, 4.0)
    assert steps_there(storage) == ["step-00000003", "step-00000004"]
    assert json.loads(storage.read(f"{PLACE}/{MANIFEST}"))["checkpoints"] == steps_there(storage)
    with storage.workspace(PLACE, Claim(True)) as work:
        assert (work.folder / "progress.jsonl").read_text().count("\n") == 4


def test_the_state_that_names_the_hashes_is_sent_last_and_deleted_first(server, storage):
    begun = len(server.requests)
    train(storage, 1, 2, 3)
    lines = [line.split("?")[0] for line in server.requests[begun:] if line.startswith(("PUT", "DELETE"))]
    of = lambda step: [line for line in lines if f"step-0000000{step}/" in line]  # noqa: E731
    names = [(line.split()[0], line.rsplit("/", 1)[-1]) for line in of(1)]
    assert names == [
        ("PUT", "model.safetensors"), ("PUT", "optimizer.safetensors"), ("PUT", "state.json"),
        ("DELETE", "state.json"), ("DELETE", "model.safetensors"), ("DELETE", "optimizer.safetensors"),
    ]  # fmt: skip
    assert lines.index(of(1)[3]) > lines.index(of(3)[2]), "an older one goes after the newer one is whole"
    progress = [index for index, line in enumerate(lines) if line.endswith("progress.jsonl")]
    assert progress[0] < lines.index(of(1)[2]), "no checkpoint without the progress up to it"


@pytest.mark.parametrize("late", [False, True], ids=["listed", "not listed yet"])
def test_a_checkpoint_that_no_listing_shows_is_found_by_the_manifest(server, late):
    address = server.address()
    train(S3Storage(address), 1, 2, 3)
    assert newest((Late if late else S3Storage)(address)) == (3, 3.0)


def test_with_late_listings_training_goes_on_and_deletes_what_it_should(server):
    address = server.address()
    train(Late(address), 1, 2, 3)
    train(Late(address), 4, 5)
    assert newest(Late(address)) == (5, 5.0)
    assert steps_there(S3Storage(address)) == ["step-00000004", "step-00000005"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", MANIFEST])
def test_an_upload_that_fails_in_the_middle_leaves_a_checkpoint_to_begin_from(server, storage, name, monkeypatch):
    monkeypatch.setattr(s3_module, "TRIES", 1)
    storage = S3Storage(parse_address(storage.address))
    train(storage, 1, 2)
    pattern = rf"^PUT .*{'step-00000003/' if name != MANIFEST else ''}{name}"
    with server.refusing(pattern), pytest.raises(OSError):
        train(storage, 3)
    assert newest(storage) == ((3, 3.0) if name == MANIFEST else (2, 2.0))
    train(storage, 3)
    assert newest(storage) == (3, 3.0)


def test_a_process_killed_in_the_middle_of_an_upload_leaves_the_older_checkpoint(server, storage):
    train(storage, 1, 2)
    program = (
        "from tests.orchestrator.storage.test_storage_s3 import S3Storage, train\n"
        "from orchestrator.storage import parse_address\n"
        f"train(S3Storage(parse_address({storage.address!r})), 3)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with server.holding(r"^PUT .*step-00000003/state.json") as came:
        process = subprocess.Popen([sys.executable, "-c", program], env=environment, cwd=ROOT)
        try:
            assert came.wait(90)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    assert "step-00000003" in steps_there(storage), "its tensors had arrived"
    left = list(scratch_base().glob("*-*"))
    assert left, "the killed process could not clean up"
    assert newest(storage) == (2, 2.0)
    assert not [path for path in left if path.exists()], "the next one on this machine did"
    train(storage, 3)
    assert newest(storage) == (3, 3.0)


def test_a_checkpoint_that_was_overwritten_half_is_found_by_its_hash_and_the_older_one_used(storage, caplog):
    train(storage, 1, 2)
    file = f"{PLACE}/checkpoints/step-00000002/model.safetensors"
    content = bytearray(storage.read(file))
    content[-1] ^= 1
    storage.write(file, bytes(content))
    assert newest(storage) == (1, 1.0)
    assert "step-00000002 on storage can't be used" in caplog.text
    storage.delete(file)
    assert newest(storage) == (1, 1.0)
    train(storage, 2)
    assert newest(storage) == (2, 2.0)


def test_a_step_made_again_with_other_numbers_replaces_the_old_one_at_no_time_half(server, storage):
    train(storage, 1, 2)
    begun = len(server.requests)
    with storage.workspace(PLACE, Claim(True)) as work:
        checkpoint(work.folder, 2, value=7)
        work.save()
    lines = [line.split("?")[0].split("some/prefix/")[1] for line in server.requests[begun:]
             if line.startswith(("PUT", "DELETE")) and "step-00000002" in line]  # fmt: skip
    assert lines[0] == lines[-1] == f"{PLACE}/checkpoints/step-00000002/state.json"
    assert newest(storage) == (2, 7.0)


def test_the_store_wins_over_whatever_a_machine_still_has(server):
    """A machine that held the unit before has an older scratch folder, and another has gone further since."""
    address = server.address()
    train(S3Storage(address), 1)
    with S3Storage(address).workspace(PLACE, Claim(True)) as old:
        train(S3Storage(address), 2, 3)
        assert newest(S3Storage(address)) == (3, 3.0)
        checkpoint(old.folder, 9)  # Never saved.
    assert newest(S3Storage(address)) == (3, 3.0)


def test_nothing_is_written_after_a_claim_is_lost(server, storage):
    claim = Lost()
    with storage.workspace(PLACE, claim) as work:
        checkpoint(work.folder, 1)
        work.save()
        claim.is_lost = True
        checkpoint(work.folder, 2)
        (work.folder / "log.txt").write_text("more")
        begun = len(server.requests)
        with pytest.raises(ClaimLost):
            work.save()
        work.save_log()
    assert not [line for line in server.requests[begun:] if line.startswith(("PUT", "POST", "DELETE"))]
    assert newest(storage) == (1, 1.0)


def test_a_claim_lost_while_a_file_is_sent_ends_the_sending(server, storage):
    claim = Lost()
    with storage.workspace(PLACE, claim) as work:
        checkpoint(work.folder, 1)
        work.save()
        checkpoint(work.folder, 2)

        def lose():
            claim.is_lost = True
            return 500

        with server.acting(r"^PUT .*step-00000002/model", lose), pytest.raises(OSError):
            work.save()
    assert newest(storage) == (1, 1.0)


def test_a_large_file_is_sent_in_parts_and_comes_back(storage, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_module, "TRANSFER", s3_module.TransferConfig(5 * 2**20, multipart_chunksize=5 * 2**20))
    content = os.urandom(12 * 2**20)
    (tmp_path / "large").write_bytes(content)
    storage.upload(tmp_path / "large", "units/large")
    storage.fetch("units/large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content

    def lost():
        raise ClaimLost("lost")

    with pytest.raises(ClaimLost):
        storage.upload(tmp_path / "large", "units/other", lost)
    assert storage.look("units/other") is None


def test_many_records_are_asked_for_at_once(server, storage):
    """With answers that take their time, one after another would take the sum."""
    seen, most, lock = [0], [0], threading.Lock()

    def slow():
        with lock:
            seen[0] += 1
            most[0] = max(most[0], seen[0])
        threading.Event().wait(0.2)
        with lock:
            seen[0] -= 1
        return 404

    with server.acting(r"^GET .*/units/", slow):
        records = Ledger(storage).read([Place(f"{index:016x}", f"joint-{index:016x}") for index in range(64)])
    assert len(records) == 64 and not any(records.values())
    assert most[0] >= 8


def test_a_passing_fault_of_the_store_is_not_noticed(server, storage):
    faults = [500, 503]
    with server.acting(r"^PUT .*/units/a/record", lambda: faults.pop() if faults else None):
        storage.write("units/a/record.json", b"x")
    assert storage.read("units/a/record.json") == b"x" and not faults


def refusal(address):
    with pytest.raises(ValueError) as caught:
        Ledger.open(address)
    text = str(caught.value)
    assert "\n" not in text and SETTINGS["AWS_SECRET_ACCESS_KEY"] not in text
    return text


def test_a_bucket_that_is_not_there_is_said_so(server):
    assert "there is no bucket nobody-s-bucket; make it first" in refusal("s3://nobody-s-bucket/x")
    with pytest.raises(ValueError, match="there is no bucket"):
        Ledger.open("s3://nobody-s-bucket/x", create=False)


def test_missing_credentials_are_said_so(server, monkeypatch):
    address = f"s3://{server.new_bucket()}/x"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no credentials" in refusal(address)


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_a_missing_permission_is_said_before_anything_starts(server, method):
    address = f"s3://{server.new_bucket()}/x"
    with server.refusing(rf"^{method} /bucket-[^/]*/x/units/.probe", 403):
        assert "no permission" in refusal(address)


def test_a_store_that_creates_twice_is_refused(server):
    address = f"s3://{server.new_bucket()}/x"
    server.honours_conditions = False
    try:
        assert "does not honour If-None-Match" in refusal(address)
    finally:
        server.honours_conditions = True
    assert list(storage_at(address).entries("")) == []


def test_a_store_that_does_not_answer_is_said_so(server, monkeypatch):
    monkeypatch.setattr(s3_module, "TRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "can't be reached" in refusal("s3://some-bucket/x")


def test_a_scratch_folder_of_a_living_process_is_left_alone(storage, tmp_path):
    with storage.workspace(PLACE, Claim(True)) as one:
        checkpoint(one.folder, 1)
        with storage.workspace(PLACE, Claim(True)) as other:
            assert other.folder != one.folder
        load_checkpoint(one.folder / "checkpoints" / "step-00000001")
    wait_until(lambda: not list(scratch_base().iterdir()), timeout=5)
