"""Whose fault a failure is, and what follows: for the unit, for its node, for the study."""

from __future__ import annotations

import pytest

from orchestrator.scheduling.dispatcher import (
    MAX_REFUSING_NODES,
    NODE_DEATH_TIMEOUT_SECONDS,
    SPACE_POLL_SECONDS,
    STORAGE_TIMEOUT_SECONDS,
    Broken,
    Dispatcher,
    Hooks,
)
from orchestrator.scheduling.retry import MAX_UNSTARTED, RETRIES
from orchestrator.scheduling.task_graph import State
from tests.support.plans import finish, graph_of, new_ledger, plan_of, small_study


class Stage:
    """A dispatcher with a clock and nodes that a test moves."""

    def __init__(self, folder, nodes=("a", "b", "c"), growing=False, gpus=0.0):
        self.now, self.alive, self.stops, self.storage_fault = 0.0, set(nodes), 0, ""
        self.graph = graph_of(plan_of(small_study()), new_ledger(folder))
        self.told = []
        hooks = Hooks(lambda key, state: self.told.append((key, state)), lambda: None)
        self.dispatcher = Dispatcher(
            self.graph, hooks, lambda unit: gpus, lambda: self.alive, growing, self.stop, lambda: self.now,
            lambda: self.storage_fault,
        )  # fmt: skip

    def stop(self):
        self.stops += 1

    def next(self):
        """The next assignment, which there must be."""
        assignment = self.dispatcher.next()
        assert assignment is not None
        return assignment

    def end(self, key, status, node="a", **more):
        self.dispatcher.ended(key, {"status": status, "node": node, **more})

    def breaks(self, key, kind, node="a"):
        self.dispatcher.broke(key, Broken("it broke", node, kind))

    def breaks_all(self, kind):
        """All that is assigned breaks, minute by minute, until the study ends or far too long."""
        while not self.dispatcher.complete and self.now < 2 * STORAGE_TIMEOUT_SECONDS:
            for assignment in (self.dispatcher.next(), self.dispatcher.next()):
                if assignment is not None:
                    self.breaks(assignment.unit.key, kind, "a")
            self.now += 60


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


def test_a_units_own_failures_are_counted_and_then_it_has_failed(stage):
    key = stage.next().unit.key
    for _ in range(RETRIES):
        stage.breaks(key, "raised", node="")
        assert stage.graph.state[key] is State.WAITING
        assert stage.next().unit.key == key
    stage.breaks(key, "raised", node="")
    assert stage.graph.state[key] is State.FAILED
    assert stage.graph.error[key] == "it broke"


def test_lost_machines_are_not_counted(stage):
    key = stage.next().unit.key
    for _ in range(10 * RETRIES):
        stage.breaks(key, "machine")
        assert stage.next().unit.key == key
    assert stage.graph.state[key] is State.RUNNING


def test_a_dead_process_on_a_dead_node_is_not_the_units_fault(stage):
    key = stage.next().unit.key
    stage.breaks(key, "died", node="a")
    assert stage.graph.state[key] is State.RUNNING, "not decided yet"
    stage.alive.discard("a")
    stage.dispatcher.tick()
    assert stage.graph.state[key] is State.WAITING
    assert stage.dispatcher.failed_on(key) == set()


def test_a_dead_process_on_a_node_that_stays_is_a_try_of_the_unit(stage):
    key = stage.next().unit.key
    stage.breaks(key, "died", node="a")
    stage.now = NODE_DEATH_TIMEOUT_SECONDS - 0.1
    stage.dispatcher.tick()
    assert stage.graph.state[key] is State.RUNNING
    stage.now = NODE_DEATH_TIMEOUT_SECONDS
    stage.dispatcher.tick()
    assert stage.graph.state[key] is State.WAITING
    assert stage.dispatcher.failed_on(key) == {"a"}


def test_processes_that_end_before_they_begin_are_bounded(stage):
    key = stage.next().unit.key
    for _ in range(MAX_UNSTARTED + RETRIES):
        stage.breaks(key, "died", node="")
        assert stage.next().unit.key == key
    stage.breaks(key, "died", node="")
    assert stage.graph.state[key] is State.FAILED


def test_while_the_storage_is_away_neither_units_nor_nodes_are_blamed(stage):
    stage.storage_fault = "no route to the bucket"
    for _ in range(10 * RETRIES):
        for assignment, node in zip([stage.dispatcher.next(), stage.dispatcher.next()], "ab", strict=True):
            stage.breaks(assignment.unit.key, "unreachable", node)
        stage.now += 20
    key = stage.next().unit.key
    assert stage.dispatcher.failed_on(key) == set()
    assert not stage.dispatcher.nodes.avoided
    stage.storage_fault = ""
    stage.now += 20
    stage.breaks(key, "unreachable", "a")
    assert stage.dispatcher.failed_on(key) == {"a"}, "the driver reaches it: something is wrong there"


@pytest.mark.parametrize("between", ["a unit finishes", "nothing finishes"])
def test_a_second_outage_is_waited_for_as_long_as_the_first(stage, between):
    key, other = stage.next().unit.key, stage.next().unit.key
    for _ in range(2):
        stage.storage_fault = "no route to the bucket"
        for _ in range(2 * RETRIES):
            stage.breaks(key, "unreachable")
            stage.now += 20
            assert stage.graph.state[key] is State.WAITING and not stage.dispatcher.failed_on(key)
            assert stage.next().unit.key == key
        stage.storage_fault = ""
        if between == "a unit finishes" and stage.graph.state[other] is not State.FINISHED:
            finish(stage.graph.ledger, stage.graph.units[other])
            stage.end(other, "finished")
        else:
            stage.now += 20
            stage.dispatcher.tick()
        stage.now += STORAGE_TIMEOUT_SECONDS


def test_a_storage_that_stays_away_ends_the_study(tmp_path):
    stage = Stage(tmp_path, nodes=("a",))
    stage.storage_fault = "no route to the bucket"
    stage.breaks_all("unreachable")
    assert stage.dispatcher.complete
    assert STORAGE_TIMEOUT_SECONDS <= stage.now < 2 * STORAGE_TIMEOUT_SECONDS


def test_a_full_disk_costs_no_try_and_units_wait_for_space(stage, caplog):
    for _ in range(10 * RETRIES):
        key = stage.next().unit.key
        stage.breaks(key, "full", "a")
        assert stage.dispatcher.next() is None, "nothing is released until there may be space"
        stage.now += SPACE_POLL_SECONDS
    assert stage.dispatcher.failed_on(key) == set() and not stage.dispatcher.nodes.avoided
    assert caplog.text.count("units wait for space on the disk, 30 minutes at most; free some, and they go on") == 1
    assert stage.next().unit.key == key
    finish(stage.graph.ledger, stage.graph.units[key])
    stage.end(key, "finished")
    assert stage.dispatcher.next() is not None


def test_a_disk_that_stays_full_ends_the_study(tmp_path):
    stage = Stage(tmp_path, nodes=("a",))
    stage.breaks_all("full")
    assert stage.dispatcher.complete
    assert STORAGE_TIMEOUT_SECONDS <= stage.now < 2 * STORAGE_TIMEOUT_SECONDS


def test_a_unit_that_failed_on_a_node_tries_another_one_first(stage):
    key = stage.next().unit.key
    stage.breaks(key, "raised", node="b")
    assert stage.next().avoid == ("b",)
    stage.breaks(key, "raised", node="a")
    assert stage.next().avoid == ("a", "b")
    stage.breaks(key, "raised", node="c")
    assert stage.next().avoid == (), "everywhere it has failed, anywhere it may try again"


def test_a_node_that_fails_everything_is_used_no_more_and_its_failures_are_forgiven(stage):
    first, second = stage.next().unit.key, stage.next().unit.key
    stage.breaks(first, "raised", node="a")
    stage.breaks(second, "raised", node="a")
    assert not stage.dispatcher.nodes.avoided
    third = stage.next().unit.key
    stage.breaks(third, "raised", node="a")
    assert set(stage.dispatcher.nodes.avoided) == {"a"}
    assert stage.dispatcher.failed_on(first) == stage.dispatcher.failed_on(second) == set()
    assert stage.next().avoid == ("a",)


def test_a_unit_that_fails_everywhere_condemns_no_node(stage):
    key = stage.next().unit.key
    for node in ("a", "b", "c"):
        stage.breaks(key, "raised", node)
        stage.next()
    stage.breaks(key, "raised", "a")
    assert stage.graph.state[key] is State.FAILED
    assert not stage.dispatcher.nodes.avoided


def test_a_node_on_which_units_finish_keeps_its_name(stage):
    first, second = stage.next().unit, stage.next().unit.key
    stage.breaks(first.key, "raised", node="a")
    stage.breaks(second, "raised", node="a")
    good = stage.next().unit
    finish(stage.graph.ledger, good)
    stage.end(good.key, "finished", node="a")
    other = stage.next().unit.key
    stage.breaks(other, "raised", node="a")
    assert not stage.dispatcher.nodes.avoided


def test_the_only_node_is_never_given_up(tmp_path):
    stage = Stage(tmp_path, nodes=("a",))
    for _ in range(3):
        stage.breaks(stage.next().unit.key, "raised", node="a")
    assert not stage.dispatcher.nodes.avoided
    assert stage.next().avoid == ()


def test_what_failed_for_good_on_a_bad_node_waits_again(tmp_path):
    stage = Stage(tmp_path, nodes=("a",))
    keys = [stage.next().unit.key]
    for _ in range(RETRIES):
        stage.breaks(keys[0], "raised", node="a")
        stage.next()
    stage.breaks(keys[0], "raised", node="a")
    assert stage.graph.state[keys[0]] is State.FAILED
    blocked = [key for key, state in stage.graph.state.items() if state is State.BLOCKED]
    assert blocked
    stage.alive.add("b")
    stage.breaks(stage.next().unit.key, "raised", node="a")
    assert set(stage.dispatcher.nodes.avoided) == {"a"}
    assert stage.graph.state[keys[0]] is State.WAITING
    assert all(stage.graph.state[key] is State.WAITING for key in blocked)


def test_a_notice_moves_the_unit_and_keeps_others_away(stage):
    key = stage.next().unit.key
    stage.end(key, "stopped", node="a", notice="it goes in two minutes")
    assert stage.graph.state[key] is State.WAITING
    assignment = stage.next()
    assert assignment.unit.key == key and assignment.avoid == ("a",)
    assert stage.dispatcher.failed_on(key) == set()


def test_a_notice_with_a_result_still_counts_for_the_node(stage):
    unit = stage.next().unit
    finish(stage.graph.ledger, unit)
    stage.end(unit.key, "finished", node="b", notice="soon")
    assert stage.graph.state[unit.key] is State.FINISHED
    assert stage.next().avoid == ("b",)


def test_a_notice_on_the_only_machine_stops_the_study(tmp_path):
    stage = Stage(tmp_path, nodes=("a",))
    key = stage.next().unit.key
    stage.end(key, "stopped", node="a", notice="it goes")
    assert stage.graph.stopping and stage.stops == 1
    assert stage.graph.state[key] is State.STOPPED
    assert stage.dispatcher.complete


def test_on_a_cluster_that_grows_it_waits_for_the_next_machine(tmp_path):
    stage = Stage(tmp_path, nodes=("a",), growing=True)
    key = stage.next().unit.key
    stage.end(key, "stopped", node="a", notice="it goes")
    assert not stage.graph.stopping
    assert stage.next().avoid == ("a",)


def test_a_unit_that_lost_the_driver_for_a_moment_goes_on(stage):
    key = stage.next().unit.key
    stage.end(key, "stopped")
    assert stage.graph.state[key] is State.WAITING
    assert stage.next().avoid == ()


def test_a_node_that_refuses_gets_no_more_units_and_the_unit_is_not_blamed(stage):
    key = stage.next().unit.key
    stage.end(key, "refused", node="a", error="torch 2.12 where the driver has 2.13")
    assert stage.graph.state[key] is State.WAITING
    assert stage.next().avoid == ("a",)
    assert "torch 2.12" in stage.dispatcher.nodes.avoided["a"]


def test_units_that_wait_for_nodes_that_refuse_go_to_the_one_that_does_not(stage):
    first, second = stage.next().unit.key, stage.next().unit.key
    for node in ("a", "b"):
        stage.end(first, "refused", node=node, error="torch 2.12")
        stage.end(second, "refused", node=node, error="torch 2.12")  # It was given out before the node was known.
        assignments = [stage.next(), stage.next()]
        assert {one.unit.key for one in assignments} == {first, second}
    assert {one.avoid for one in assignments} == {("a", "b")}


def test_where_every_node_refuses_units_fail_and_say_why(tmp_path):
    stage = Stage(tmp_path, nodes=("a",))
    key = stage.next().unit.key
    stage.end(key, "refused", node="a", error="torch 2.12")
    assert stage.graph.state[key] is State.FAILED
    assert stage.graph.error[key] == "torch 2.12"


def test_a_growing_cluster_whose_nodes_all_refuse_does_not_grow_for_ever(tmp_path):
    stage = Stage(tmp_path, nodes=(), growing=True)
    key = stage.next().unit.key
    for number in range(MAX_REFUSING_NODES - 1):
        stage.end(key, "refused", node=f"new{number}", error="torch 2.12")
        assert stage.next().unit.key == key
    stage.end(key, "refused", node="new9", error="torch 2.12")
    assert stage.graph.state[key] is State.FAILED


def test_what_fails_on_every_new_node_of_a_growing_cluster_comes_to_an_end(tmp_path):
    stage = Stage(tmp_path, nodes=("new0",), growing=True)
    used = 1
    for _ in range(1000):
        if stage.alive <= set(stage.dispatcher.nodes.avoided):  # Idle, it is given back, and another one comes.
            stage.alive = {f"new{used}"}
            used += 1
        for assignment in [stage.dispatcher.next() for _ in range(4)]:
            if assignment is not None:
                stage.breaks(assignment.unit.key, "raised", next(iter(stage.alive)))
        if stage.dispatcher.complete:
            break
    assert stage.dispatcher.complete
    assert used == MAX_REFUSING_NODES + 1


def test_what_may_be_the_nodes_fault_is_believed_of_two(stage):
    key = stage.next().unit.key
    stage.end(key, "failed", node="a", error="no language model here", sure=False)
    assert stage.graph.state[key] is State.WAITING
    assert stage.next().avoid == ("a",)
    stage.end(key, "failed", node="b", error="no language model here", sure=False)
    assert stage.graph.state[key] is State.FAILED


def test_what_is_sure_is_believed_at_once(stage):
    key = stage.next().unit.key
    stage.end(key, "failed", node="a", error="not finite", sure=True)
    assert stage.graph.state[key] is State.FAILED


def test_units_that_wait_for_machines_that_are_gone_are_told_of(stage, caplog):
    key = stage.next().unit.key
    stage.dispatcher.began(key)
    stage.breaks(key, "machine")
    stage.next()
    stage.alive.clear()
    stage.now += 61
    stage.dispatcher.tick()
    assert "no machine that lives has room for a unit; 1 wait" in caplog.text
    stage.alive.add("a")
    caplog.clear()
    stage.now += 61
    stage.dispatcher.tick()
    assert not caplog.text


def test_out_of_memory_is_tried_again_alone_and_remembered(tmp_path):
    stage = Stage(tmp_path, gpus=0.25)
    assignment = stage.next()
    assert assignment.gpus == 0.25 and assignment.too_small == ()
    stage.end(assignment.unit.key, "out_of_memory", error="CUDA out of memory")
    again = stage.next()
    assert again.unit.key == assignment.unit.key
    assert again.gpus == 1.0 and again.too_small == (0.25,)
    assert again.avoid == (), "the share was at fault, not the node"
    stage.end(assignment.unit.key, "out_of_memory", error="CUDA out of memory")
    assert stage.graph.state[assignment.unit.key] is State.FAILED
    assert "it had a whole GPU: give --micro-batch auto" in stage.graph.error[assignment.unit.key]


def test_a_unit_that_can_compute_smaller_parts_is_tried_again_on_as_many_gpus(tmp_path):
    stage = Stage(tmp_path, gpus=4.0)
    assignment = stage.next()
    for tries in range(1, RETRIES + 1):
        stage.end(assignment.unit.key, "out_of_memory", error="CUDA out of memory", sure=False)
        again = stage.next()
        assert again.unit.key == assignment.unit.key and again.gpus == 4.0
        assert again.too_small == (4.0,) * tries, "each of them plans for less memory"
    stage.end(assignment.unit.key, "out_of_memory", error="CUDA out of memory", sure=False)
    assert stage.graph.state[assignment.unit.key] is State.FAILED


def test_a_stopping_study_keeps_what_stopped(stage):
    key = stage.next().unit.key
    stage.graph.stopping = True
    stage.end(key, "stopped")
    assert stage.graph.state[key] is State.STOPPED
    assert stage.dispatcher.next() is None
    assert stage.dispatcher.complete
