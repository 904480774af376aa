"""Holding a unit on an object store: one at a time, free soon after its holder is gone, and no holder that doesn't know
that it lost it."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("moto", reason="needs moto[s3,server] for an object store")
pytest.importorskip("boto3", reason="needs boto3 for an object store")

from orchestrator.storage import ClaimLost
from orchestrator.storage.backends import base, lease
from orchestrator.storage.backends.base import has_ended, holder
from orchestrator.storage.backends.lease import LeaseTimes
from orchestrator.storage.backends.s3 import S3Storage
from tests.support.drivers import wait_until
from tests.support.storage_server import store_server

pytestmark = pytest.mark.cluster
PLACE = "units/joint-seed0-0123456789abcdef"
SHORT = LeaseTimes(beat=0.5, stale=7.0, margin=3.0)
"""A store's times are whole seconds, so that ages are off by up to one."""


@pytest.fixture(scope="module")
def server():
    with store_server() as store:
        yield store


@pytest.fixture
def address(server):
    return server.address()


@pytest.fixture
def storage(address):
    return S3Storage(address, SHORT)


def elsewhere(storage, number, released=False):
    """What a holder on another machine has left."""
    owner = {"host": "another", "pid": 1, "time": time.time(), "process": None}
    assert storage.create(f"{PLACE}/claims/{number:08d}.json", json.dumps(owner).encode())
    storage.write(f"{PLACE}/claims/{number:08d}.beat", json.dumps(owner | {"released": released}).encode())


def made(storage):
    """Numbers of all holds so far."""
    names = [entry.name.rsplit("/", 1)[-1] for entry in storage.entries(f"{PLACE}/claims")]
    return sorted(int(name.removesuffix(".json")) for name in names if name.endswith(".json"))


def test_holds_are_numbered_without_a_gap(storage):
    for number in range(1, 7):
        with storage.claim(PLACE) as claim:
            assert claim.number == number
    assert made(storage) == [1, 2, 3, 4, 5, 6]


def test_the_newest_hold_is_found_without_the_hint_and_without_a_listing(storage, monkeypatch):
    for number in range(1, 12):
        elsewhere(storage, number, released=True)
        storage.delete(f"{PLACE}/claims/newest")
        monkeypatch.setattr(S3Storage, "entries", None)
        assert lease.newest(storage, PLACE) == number
        monkeypatch.undo()
    storage.write(f"{PLACE}/claims/newest", b"3")  # An old one, that was on its way for long.
    assert lease.newest(storage, PLACE) == 11
    storage.write(f"{PLACE}/claims/newest", b"nonsense")
    assert lease.newest(storage, PLACE) == 11


def test_a_hold_is_renewed_and_stays_while_its_holder_lives(storage):
    other = S3Storage.__new__(S3Storage)
    other.__dict__.update(storage.__dict__)
    with storage.claim(PLACE) as claim:
        end = time.monotonic() + SHORT.stale + 2
        while time.monotonic() < end:
            assert other.claimed(PLACE)
            time.sleep(0.2)
        assert not claim.lost()


def test_a_stale_hold_of_another_machine_is_taken_over(storage):
    elsewhere(storage, 1)
    assert storage.claimed(PLACE)
    with storage.claim(PLACE) as claim:
        assert not claim
    wait_until(lambda: not storage.claimed(PLACE), timeout=SHORT.stale + 5)
    with storage.claim(PLACE) as claim:
        assert claim and claim.number == 2
        assert storage.owner(PLACE)["host"] == socket.gethostname()


def test_age_is_judged_by_the_store_s_clock_and_not_by_this_machine_s(storage, address):
    program = (
        "import time\n"
        "time.time = lambda: 4e9\n"
        "from orchestrator.storage.backends.address import S3Address\n"
        "from orchestrator.storage.backends.lease import LeaseTimes\n"
        "from orchestrator.storage.backends.s3 import S3Storage\n"
        f"storage = S3Storage({address!r}, LeaseTimes(stale=3600))\n"
        f"print(storage.claimed({PLACE!r}), storage.look('{PLACE}/claims/00000001.beat').age < 600)\n"
    )
    elsewhere(storage, 1)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def race(count, begin):
    """How many of so many that begin at once hold the place; all keep what they have until the end."""
    ready, results, over = threading.Barrier(count), [], threading.Event()

    def run():
        ready.wait()
        with begin() as claim:
            results.append(bool(claim))
            over.wait(30)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(results) == count, timeout=30)
    over.set()
    for thread in threads:
        thread.join()
    return sum(results)


@pytest.mark.parametrize("before", ["nobody", "released", "stale"])
def test_of_those_that_race_exactly_one_wins(storage, address, before):
    if before != "nobody":
        elsewhere(storage, 1, released=before == "released")
    if before == "stale":
        wait_until(lambda: not storage.claimed(PLACE), timeout=SHORT.stale + 5)
    own = [S3Storage(address, SHORT) for _ in range(6)]
    assert race(6, lambda: own.pop().claim(PLACE)) == 1
    assert made(storage) == ([1] if before == "nobody" else [1, 2])


def test_of_those_that_saw_the_same_end_exactly_one_wins(storage):
    """The worst moment: all have looked before any has created."""
    elsewhere(storage, 1, released=True)
    looked = threading.Barrier(4)
    assert race(4, lambda: lease.lease(storage, PLACE, SHORT, before=lambda number: looked.wait(20))) == 1
    assert made(storage) == [1, 2]


def _claim_and_tell(address, ready, results):
    storage = S3Storage(address, SHORT)
    ready.wait()
    with storage.claim(PLACE) as claim:
        results.put((os.getpid(), bool(claim)))
        time.sleep(60)


def test_processes_race_and_a_killed_winner_is_replaced_at_once_on_its_own_machine(storage, address):
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_claim_and_tell, args=(address, ready, results)) for _ in range(3)]
    try:
        for process in processes:
            process.start()
        told = dict(results.get(timeout=60) for _ in processes)
        assert sorted(told.values()) == [False, False, True]
        (winner,) = [pid for pid, held in told.items() if held]
        assert storage.claimed(PLACE) and storage.owner(PLACE)["pid"] == winner
        os.kill(winner, signal.SIGKILL)
        next(process for process in processes if process.pid == winner).join()
        assert not storage.claimed(PLACE)  # Without waiting until it is stale: its process is known to be gone.
        with storage.claim(PLACE) as claim:
            assert claim.number == 2
    finally:
        for process in processes:
            process.kill()
            process.join()


def test_a_holder_that_cannot_renew_stops_before_others_may_begin(server, storage, address):
    other, beat = S3Storage(address, SHORT), f"{PLACE}/claims/00000001.beat"
    with storage.claim(PLACE) as claim:
        with server.refusing(r"^PUT .*\.beat", 503):
            began, last = time.monotonic(), storage.look(beat)
            wait_until(claim.lost, timeout=SHORT.stale)
            assert time.monotonic() - began <= SHORT.stale - SHORT.margin + 0.5
            assert other.claimed(PLACE)  # Nobody may have it yet.
            with pytest.raises(ClaimLost, match="lost its lease"):
                claim.check()
        time.sleep(3 * SHORT.beat)
        assert claim.lost()  # Also after the store is back: somebody may have seen it stale.
        wait_until(lambda: not other.claimed(PLACE), timeout=SHORT.stale + 5)
        with other.claim(PLACE) as taken:
            assert taken.number == 2
    now = storage.look(beat)
    assert (now and now.tag) == (last and last.tag), "it wrote nothing after it had lost its hold"


def test_a_holder_that_was_overtaken_learns_it_when_it_asks(storage):
    with storage.claim(PLACE) as claim:
        elsewhere(storage, 2)  # As after a pause of the whole machine that its clock doesn't know of.
        with pytest.raises(ClaimLost):
            claim.confirm()
        assert claim.lost()
    assert storage.owner(PLACE)["host"] == "another" and storage.claimed(PLACE)


def test_a_process_that_slept_too_long_has_lost_its_hold(address):
    program = (
        "import sys, time\n"
        "from orchestrator.storage.backends.address import S3Address\n"
        "from orchestrator.storage.backends.lease import LeaseTimes\n"
        "from orchestrator.storage.backends.s3 import S3Storage\n"
        f"storage = S3Storage({address!r}, {SHORT!r})\n"
        f"with storage.claim({PLACE!r}) as claim:\n"
        "    print(bool(claim), flush=True)\n"
        "    sys.stdin.readline()\n"
        "    print(claim.lost(), flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "True\n"
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(SHORT.stale - SHORT.margin + 0.5)
        process.stdin.write("\n")
        process.stdin.flush()
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdout.readline() == "True\n"
        process.wait(30)
    finally:
        process.kill()
        process.wait()


def test_a_creation_whose_answer_was_lost_is_ours(storage, monkeypatch):
    """boto3 sends a request again when the answer doesn't come, and the store says that the object exists."""
    name = f"{PLACE}/claims/00000001.json"
    assert storage.create(name, b"mine")
    assert storage.create(name, b"mine")
    assert not storage.create(name, b"another's")
    assert storage.read(name) == b"mine"


def test_a_process_is_known_to_have_ended_only_if_it_ran_here(monkeypatch):
    owner = holder()
    assert not has_ended(owner)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    life = owner["process"]
    assert has_ended(owner | {"pid": gone.pid})
    assert has_ended(owner | {"process": life | {"born": "1"}})  # The number has gone to another process.
    assert not has_ended(owner | {"pid": gone.pid, "host": "another"})
    assert not has_ended(owner | {"pid": gone.pid, "process": life | {"boot": "another"}})
    assert not has_ended(owner | {"pid": gone.pid, "process": life | {"pids": "another"}})
    assert not has_ended(owner | {"pid": gone.pid, "process": None})
    monkeypatch.setattr(base, "restarts_so_far", lambda: 1)  # The call has begun anew, in the same process.
    assert has_ended(owner) and not has_ended(holder())
    assert not has_ended({})


@pytest.mark.parametrize("times", [(15, 90, 80), (5, 8, 0.5), (0, 9, 3)])
def test_durations_that_could_not_hold_are_refused(times):
    with pytest.raises(ValueError, match="beat < stale - margin"):
        LeaseTimes(*times)


def test_a_short_write_is_tried_again_while_the_hold_lasts_and_never_after(server, storage, address):
    with storage.claim(PLACE) as held, server.refusing(r"^PUT .*record.json", 503):
        since = len(server.requests)
        with pytest.raises(ClaimLost):
            # Renewed all the time, so it ends only because the hold is taken from it.
            storage.create(f"{PLACE}/claims/00000002.json", b"{}")
            held.insist(lambda: storage.write(f"{PLACE}/record.json", b"{}"))
        lost = len(server.requests)
        with pytest.raises(ClaimLost):
            held.insist(lambda: storage.write(f"{PLACE}/record.json", b"{}"))
    tried = [request for request in server.requests[since:lost] if "record.json" in request]
    assert len(tried) >= 2
    assert not [request for request in server.requests[lost:] if "record.json" in request]
    assert storage.look(f"{PLACE}/record.json") is None


def test_a_store_that_answers_again_gets_the_write(server, storage):
    failures = iter([503, 503, 503])  # Of a first try and of boto3's own second; of another first.
    with storage.claim(PLACE) as held, server.acting(r"^PUT .*record.json", lambda: next(failures, None)):
        held.insist(lambda: storage.write(f"{PLACE}/record.json", b"here"))
    assert storage.read(f"{PLACE}/record.json") == b"here"
