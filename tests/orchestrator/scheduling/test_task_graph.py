"""The graph: what is released when, and what a failure takes with it."""

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.session import record_failures
from orchestrator.planning.estimate import makespan
from orchestrator.record import Record
from orchestrator.scheduling.task_graph import SETTLED, State
from search_spaces import find_study
from search_spaces.study import Column, Row, Table
from tests.support.plans import children_of, finish, graph_of, new_ledger, plan_of, small_study


@pytest.fixture
def ledger(tmp_path):
    return new_ledger(tmp_path)


def run_all(graph, slots=1, outcome=lambda unit: "finished"):
    """Every release and end, as a driver with so many slots makes them; returns the units in order of release."""
    order, running = [], []
    while not graph.complete:
        while len(running) < slots and (unit := graph.next()):
            order.append(unit)
            running.append(unit)
        unit = running.pop(0)
        result = outcome(unit)
        if result == "finished":
            graph.finished(unit.key)
        elif result == "failed":
            graph.failed(unit.key, "it broke")
    return order


def test_every_unit_is_released_once_and_after_its_parent(ledger):
    plan = plan_of(find_study("paper_tables"), seeds=2)
    order = run_all(graph_of(plan, ledger), slots=3)
    keys = [unit.key for unit in order]
    assert sorted(keys) == sorted(plan.units)
    for place, unit in enumerate(order):
        assert not unit.parent or unit.parent in keys[:place]


def test_the_longest_chains_go_first(ledger):
    plan = plan_of(small_study())
    costs = {unit.key: 10.0 if "=1" in unit.arm else 20.0 for unit in plan.units.values()}
    graph = graph_of(plan, ledger, costs)
    first, second = graph.next(), graph.next()
    assert (first.arm, second.arm) == ("base", "encoder_layers=1")
    assert graph.next() is None
    graph.finished(second.key)
    assert graph.next().parent == second.key


def test_finished_units_are_never_released_again(ledger):
    plan = plan_of(small_study())
    keys = list(plan.units)
    for key in keys[:3]:
        finish(ledger, plan.units[key])
    graph = graph_of(plan, ledger)
    assert graph.done_before == set(keys[:3])
    assert {unit.key for unit in run_all(graph)} == set(keys[3:])
    for key in keys:
        finish(ledger, plan.units[key])
    assert graph_of(plan, ledger).complete
    assert graph_of(plan, ledger).next() is None


def test_a_failed_record_is_tried_again_in_the_next_call(ledger):
    plan = plan_of(small_study())
    key = next(iter(plan.units))
    ledger.write(plan.units[key], Record(key, "failed", error="full disk"))
    assert graph_of(plan, ledger).state[key] is State.WAITING


@cache
def paper_plan():
    """Made once for all examples."""
    return plan_of(find_study("paper_tables"))


@given(broken=st.sets(st.integers(0, 45)))
def test_a_failure_takes_its_descendants_alone(tmp_path_factory, broken):
    plan = paper_plan()
    keys = list(plan.units)
    bad = {keys[index] for index in broken}
    graph = graph_of(plan, new_ledger(tmp_path_factory.mktemp("ledger")))
    run_all(graph, 2, lambda unit: "failed" if unit.key in bad else "finished")
    for key, unit in plan.units.items():
        expected = State.BLOCKED if unit.parent in bad else State.FAILED if key in bad else State.FINISHED
        assert graph.state[key] is expected
        if expected is State.BLOCKED:
            assert plan.units[unit.parent].name in graph.error[key]


def test_stopping_releases_nothing_more_and_waits_for_what_runs(ledger):
    graph = graph_of(plan_of(small_study()), ledger)
    unit = graph.next()
    graph.stopping = True
    assert graph.next() is None
    assert not graph.complete
    graph.stopped(unit.key)
    assert graph.complete


def test_a_unit_held_elsewhere_is_waited_for_and_taken_when_let_go(ledger):
    graph = graph_of(plan_of(small_study()), ledger)
    first, second = graph.next(), graph.next()
    with ledger.claim(first) as held:
        assert held
        graph.busy(first.key)
        assert graph.look_elsewhere() == []
        assert graph.state[first.key] is State.ELSEWHERE
    assert graph.look_elsewhere() == []
    assert graph.next() == first  # Let go without a record: its process died.
    graph.busy(second.key)
    finish(ledger, second)
    assert graph.look_elsewhere() == [second.key]
    assert graph.next().parent == second.key


def test_damaged_weights_are_made_again_once_before_what_needs_them(ledger):
    plan = plan_of(small_study())
    graph = graph_of(plan, ledger)
    parent = graph.next()
    graph.finished(parent.key)
    child = next(unit for unit in iter(graph.next, None) if unit.parent == parent.key)
    graph.parent_unreadable(child.key, "cut short")
    assert graph.state[parent.key] is graph.state[child.key] is State.WAITING
    again = next(unit for unit in iter(graph.next, None))
    assert again.key == parent.key
    graph.finished(parent.key)
    assert graph.state[child.key] is State.WAITING
    while graph.next() is not None:
        pass
    graph.parent_unreadable(child.key, "cut short")
    assert graph.state[child.key] is State.FAILED
    assert graph.state[parent.key] is State.FINISHED


def test_all_children_of_damaged_weights_wait_for_one_repair(ledger):
    graph = graph_of(plan_of(small_study()), ledger)
    parent = graph.next()
    graph.finished(parent.key)
    children = [unit for unit in iter(graph.next, None) if unit.parent == parent.key]
    assert len(children) == 3
    graph.parent_unreadable(children[0].key, "cut short")
    assert graph.next() == parent
    for child in children[1:]:  # They were running at the same time and say so after the repair has begun.
        graph.parent_unreadable(child.key, "cut short")
    assert {graph.state[child.key] for child in children} == {State.WAITING}
    graph.finished(parent.key)
    assert {unit.key for unit in iter(graph.next, None)} >= {child.key for child in children}


def test_a_finished_parent_without_weights_runs_again_only_if_a_child_needs_it(ledger):
    plan = plan_of(small_study())
    parent = next(iter(plan.units.values()))
    finish(ledger, parent)
    (ledger.folder(parent) / "best" / "step-1" / "state.json").unlink()
    assert graph_of(plan, ledger).state[parent.key] is State.WAITING
    for key in children_of(plan, parent.key):
        finish(ledger, plan.units[key])
    assert graph_of(plan, ledger).state[parent.key] is State.FINISHED


class MeasuresAll:
    """A check by which every finished unit is measured again from its weights, as after a change of the metrics."""

    def is_current(self, unit, record):
        return False

    def is_to_measure(self, unit, record):
        return True


def test_a_unit_that_is_only_measured_waits_for_its_parent_once_its_weights_prove_unreadable(ledger):
    plan = plan_of(small_study())
    for unit in plan.units.values():
        finish(ledger, unit)
    graph = graph_of(plan, ledger, check=MeasuresAll())
    released = list(iter(graph.next, None))
    assert len(released) == len(plan.units)  # None of them needs its parent.
    child = next(unit for unit in released if unit.parent)
    graph.finished(child.parent)
    graph.parent_unreadable(child.key, "cut short")
    assert graph.next().key == child.parent and graph.next() is None
    graph.finished(child.parent)
    assert graph.next() == child


def test_a_failed_parent_leaves_units_that_are_only_measured_alone(ledger):
    plan = plan_of(small_study())
    for unit in plan.units.values():
        finish(ledger, unit)
    graph = graph_of(plan, ledger, check=MeasuresAll())
    parent = next(unit for unit in iter(graph.next, None) if not unit.parent and children_of(plan, unit.key))
    graph.failed(parent.key, "it broke")
    assert not any(state is State.BLOCKED for state in graph.state.values())


def test_counts_always_add_up(ledger):
    plan = plan_of(find_study("paper_tables"))
    graph = graph_of(plan, ledger)
    places = iter(range(1000))
    while not graph.complete:
        unit = graph.next()
        place = next(places)
        if place % 7 == 3:
            graph.failed(unit.key, "broke")
        else:
            graph.finished(unit.key)
        counts = graph.counts()
        assert sum(counts.values()) == len(plan.units)
        assert counts == {state: list(graph.state.values()).count(state) for state in set(graph.state.values())}
    assert set(graph.state.values()) <= set(SETTLED)


def test_makespan_by_hand():
    plan = plan_of(small_study())  # Two arms, each joint training and three fine-tunings.
    seconds = {key: 10.0 if unit.stage == "joint" else 1.0 for key, unit in plan.units.items()}
    keys = list(plan.units)
    assert makespan(plan.units, seconds, keys, 1) == 26
    assert makespan(plan.units, seconds, keys, 2) == 13
    assert makespan(plan.units, seconds, keys, 100) == 11
    assert makespan(plan.units, seconds, [], 2) == 0
    assert makespan(plan.units, seconds, children_of(plan, keys[0]), 2) == 2


def test_a_failure_that_left_no_record_gets_one_and_a_worker_s_own_is_kept(ledger):
    plan = plan_of(small_study())
    graph = graph_of(plan, ledger)
    silent, told = graph.next(), graph.next()
    ledger.write(silent, Record(silent.key, "failed", error="Traceback of an earlier call"))
    ledger.write(told, Record(told.key, "failed", error="Traceback ...\nNonFiniteLoss: at step 3"))
    graph.failed(silent.key, "its process died")
    graph.failed(told.key, "at step 3")
    record_failures(graph)
    assert ledger.record(silent).error == "its process died"
    assert ledger.record(silent).about["ended"] > 0  # By which an import knows the later of two failures.
    assert "Traceback" in ledger.record(told).error


def test_units_with_the_same_training_run_one_after_another(ledger):
    """The second takes the weights of the first."""
    column = Column("pe/mpjpe_mm", "MPJPE", "mm", False)
    rows = (Row("plain"), Row("flip", {"evaluation.flip": True}))
    table = Table("flip", "Flip", "Test", (column,), tuple(replace(row, training="separate") for row in rows), "plain")
    plan = plan_of(small_study(tables=(table,)), seeds=2)
    assert len(plan.units) == 4
    graph = graph_of(plan, ledger)
    first, second = graph.next(), graph.next()
    assert first.training_key != second.training_key and graph.next() is None
    graph.finished(first.key)
    third = graph.next()
    assert third.training_key == first.training_key and graph.next() is None
    graph.failed(second.key, "it broke")
    assert graph.next().training_key == second.training_key
