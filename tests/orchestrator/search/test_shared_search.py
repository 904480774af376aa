"""Several processes run one search: how many trials there are, who trains them, and what becomes of the dead."""

from __future__ import annotations

import random
import re
from collections import Counter
from contextlib import ExitStack

import pytest
from filelock import FileLock
from optuna.trial import TrialState

from orchestrator.scheduling.task_graph import State
from orchestrator.search.journal import Journal
from orchestrator.search.resolve_space import check_dimensions
from orchestrator.search.trial_queue import TrialQueue
from orchestrator.storage import search_journal
from orchestrator.storage.ledger import Ledger
from orchestrator.storage.search_journal import JOURNAL, search_place
from tests.support.drivers import PATIENCE, records
from tests.support.searches import finish, in_journal, plan_of, search_bench, small_space

TRIALS = 17


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return search_bench(tmp_path_factory)


class Peer:
    """A driver with room for some units; its workers hold their units as real ones do."""

    def __init__(self, folder, trained, slots=2, trials=TRIALS, seeds=1, store=None):
        space = small_space()
        self.plan, self.slots, self.trained = plan_of(space, seeds), slots, trained
        self.ledger = Ledger.open(store or str(folder))
        place = search_place(self.ledger.storage, self.plan.name, folder)
        place.folder.mkdir(parents=True, exist_ok=True)
        dimensions = check_dimensions(space, self.plan.base, [])
        self.book = Journal(place.hold(), self.plan.name, space, dimensions, self.plan.start, place)
        self.graph = TrialQueue(self.plan, self.ledger, self.book, trials)
        self.running = {}

    def start(self):
        """Fill a slot, if there is a unit for it."""
        if len(self.running) < self.slots and (unit := self.graph.next()):
            held = ExitStack()
            if not held.enter_context(self.ledger.claim(unit)):
                held.close()
                self.graph.busy(unit.key)
            elif self.ledger.finished(unit) is not None:
                held.close()
                self.graph.finished(unit.key)
            else:
                self.running[unit.key] = held
                self.trained.append(unit.key)

    def end(self, key, error=""):
        """A unit that runs ends."""
        if not error:
            finish(self.ledger, self.graph.units[key])
        self.running.pop(key).close()
        if error:
            self.graph.failed(key, error)
        else:
            self.graph.finished(key)

    def step(self, luck):
        """What a driver may do next."""
        choice = luck.randrange(3)
        if choice == 0:
            self.start()
        elif choice == 1 and self.running:
            self.end(luck.choice(sorted(self.running)))
        else:
            self.graph.look_elsewhere()

    def die(self):
        """Its units are let go of, as the leases of a dead process are."""
        for held in self.running.values():
            held.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_peers_share_a_search_of_exactly_so_many_trials_and_train_no_unit_twice(tmp_path, seed):
    trained, luck = [], random.Random(seed)
    peers = [Peer(tmp_path, trained, seeds=1 + seed % 2) for _ in range(3)]
    share = [0, 0, 0]
    for _ in range(20_000):
        if all(peer.graph.complete for peer in peers):
            break
        place = luck.randrange(3)
        before = len(trained)
        peers[place].step(luck)
        share[place] += len(trained) - before
    assert all(peer.graph.complete for peer in peers)
    assert len(trained) == len(set(trained)) == TRIALS * peers[0].plan.seeds
    assert min(share) > 0, "each has trained some"
    outcomes = []
    for peer in peers:
        peer.book.read()
        assert peer.graph.whole
        outcomes.append([(trial.params, trial.value) for trial in peer.book.trials])
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert len({str(params) for params, _ in outcomes[0]}) == TRIALS
    file = tmp_path / "searches" / peers[0].plan.name / JOURNAL
    assert [state for state, _ in in_journal(file)] == ["COMPLETE"] * TRIALS, "each was begun and judged once"


def test_what_a_dead_peer_held_is_trained_by_the_other(tmp_path):
    trained, luck = [], random.Random(7)
    one, other = Peer(tmp_path, trained), Peer(tmp_path, trained)
    one.start()
    one.start()
    other.graph.look_elsewhere()
    assert [other.graph.state[key] for key in one.running] == [State.ELSEWHERE] * 2
    with one.book._file.open("ab") as stream:
        stream.write(b'{"op_code":4,"worker')  # It died in the middle of a line.
    one.die()
    while not other.graph.complete:
        other.step(luck)
    assert len(other.book.trials) == TRIALS and other.graph.whole
    assert sorted(trained[:2]) == sorted(set(trained[:2]) & set(trained[2:])), "both were begun again"
    assert len(trained) == TRIALS + 2


def test_a_trial_that_failed_elsewhere_is_not_tried_again_by_those_that_run(tmp_path):
    trained, luck = [], random.Random(3)
    one, other = Peer(tmp_path, trained, trials=4), Peer(tmp_path, trained, trials=4)
    one.start()
    (key,) = one.running
    other.graph.look_elsewhere()
    one.end(key, "the loss was not finite")
    while not (one.graph.complete and other.graph.complete):
        luck.choice([one, other]).step(luck)
    assert trained.count(key) == 1
    for peer in (one, other):
        peer.book.read()
        assert [trial.state for trial in peer.book.trials] == [TrialState.FAIL, *[TrialState.COMPLETE] * 3]
        assert peer.graph.state[key] is State.FAILED and 0 in peer.graph.reason
    again = Peer(tmp_path, trained, trials=4)
    while not again.graph.complete:
        again.step(luck)
    assert again.graph.whole and trained.count(key) == 2, "the same command tries it again"


def test_suggestions_keep_away_from_trials_that_others_run(tmp_path):
    trained = []
    one, other = Peer(tmp_path, trained, slots=8), Peer(tmp_path, trained, slots=8)
    for _ in range(8):
        one.start()
        other.start()
    assert len({str(trial.params) for trial in other.book.trials}) == len(trained) == 16


def test_a_journal_that_another_process_does_not_let_go_of_stops_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr(search_journal, "TRANSACTION_TIMEOUT_SECONDS", 0.1)
    peer = Peer(tmp_path, [])
    folder = tmp_path / "searches" / peer.plan.name
    with FileLock(folder.with_name(f".{peer.plan.name}.lock")):
        peer.start()
    assert peer.graph.stopping and "has held the journal of" in peer.graph.fault


@pytest.mark.slow
def test_two_commands_share_a_search(bench, tmp_path):
    both = [bench.start(tmp_path, "--trials", "5") for _ in range(2)]
    for driver in both:
        assert driver.process.wait(PATIENCE) == 0, driver.text
        assert "5 of 5 trials complete" in driver.text
    assert len(records(tmp_path)) == 10
    begun = [
        text for file in (tmp_path / "units").glob("*/log.txt") for text in re.findall("training ", file.read_text())
    ]
    assert len(begun) == 10, "each unit was trained once"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An object store, and the address of a storage there."""
    pytest.importorskip("moto", reason="needs moto[s3,server] for an object store")
    pytest.importorskip("boto3", reason="needs boto3 for an object store")
    from tests.support.storage_server import store_server

    monkeypatch.setenv("UPS_SCRATCH", str(tmp_path / "scratch"))
    with store_server() as server:
        yield server, f"s3://{server.new_bucket()}/x"


@pytest.mark.cluster
def test_peers_share_a_search_on_an_object_store(tmp_path, store):
    trained, luck, trials = [], random.Random(1), 9
    peers = [Peer(tmp_path, trained, trials=trials, store=store[1]) for _ in range(3)]
    by_peer = Counter()
    while not all(peer.graph.complete for peer in peers):
        place, before = luck.randrange(3), len(trained)
        peers[place].step(luck)
        by_peer[place] += len(trained) - before
    assert len(trained) == len(set(trained)) == trials and min(by_peer[place] for place in range(3)) > 0
    for peer in peers:
        peer.book.read()
    outcomes = [[(trial.params, trial.value) for trial in peer.book.trials] for peer in peers]
    assert outcomes[0] == outcomes[1] == outcomes[2] and all(value is not None for _, value in outcomes[0])
    (tmp_path / JOURNAL).write_bytes(peers[0].ledger.storage.read(f"searches/{peers[0].plan.name}/{JOURNAL}"))
    assert [state for state, _ in in_journal(tmp_path / JOURNAL)] == ["COMPLETE"] * trials


@pytest.mark.cluster
def test_a_line_that_does_not_reach_the_store_stops_the_search_and_the_next_one_goes_on(tmp_path, store):
    server, address = store
    trained, luck = [], random.Random(0)
    one = Peer(tmp_path, trained, trials=3, store=address)
    one.start()
    with server.refusing(rf"PUT .*{JOURNAL}"):
        one.end(*one.running)
    assert one.graph.stopping and "can't be written" in one.graph.fault
    with pytest.raises(OSError, match="lacks what this process has written; run the command again"):
        one.book.read()
    other = Peer(tmp_path, trained, trials=3, store=address)
    while not other.graph.complete:
        other.step(luck)
    assert other.graph.whole and len(other.book.trials) == 3 and len(trained) == len(set(trained)) == 3


@pytest.mark.cluster
def test_a_lease_on_the_journal_that_nobody_lets_go_of_stops_the_search(tmp_path, store, monkeypatch):
    monkeypatch.setattr(search_journal, "TRANSACTION_TIMEOUT_SECONDS", 0.1)
    peer = Peer(tmp_path, [], store=store[1])
    with peer.ledger.storage.claim(f"searches/{peer.plan.name}") as claim:
        assert claim
        peer.start()
        with pytest.raises(ValueError, match="another process runs the search"):
            search_place(peer.ledger.storage, peer.plan.name, tmp_path).hold(alone=True)
    assert peer.graph.stopping and "has held the journal of" in peer.graph.fault
