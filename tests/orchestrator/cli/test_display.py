"""What is seen while a study runs, where the output is a file: lines that say something, and not many of them."""

import logging
import time

import pytest

from orchestrator.cli import display
from orchestrator.cli.display import LINE_SECONDS, Display
from orchestrator.record import Record
from tests.support.plans import finish, graph_of, new_ledger, plan_of, small_study
from ups_model.training.progress import append_row


class Clock:
    """Stands for the module `time`."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    strftime = staticmethod(time.strftime)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    return clock


@pytest.fixture
def graph(tmp_path):
    """Eight units: two of joint training, each with three that start from it."""
    return graph_of(plan_of(small_study()), new_ledger(tmp_path))


@pytest.fixture
def shown(graph, clock, caplog):
    """A display that expects 10 seconds of each unit, on two slots; standard error is no terminal here."""
    caplog.set_level(logging.INFO)
    made = Display(graph, dict.fromkeys(graph.units, 10.0), 2)
    yield made
    made.close()


def start(graph, shown):
    unit = graph.next()
    shown.changed(unit.key, graph.state[unit.key])
    return unit


def end(graph, shown, unit):
    finish(graph.ledger, unit, **{"ar3d/top1": 61.25, "pe/mpjpe_mm": 88.5})
    graph.finished(unit.key)
    shown.changed(unit.key, graph.state[unit.key])


def test_each_change_is_one_line_with_what_was_measured(graph, shown, clock, caplog):
    unit = start(graph, shown)
    clock.now += 75
    end(graph, shown, unit)
    first, second = caplog.messages
    assert first == f"start   {unit.name}  ({unit.folder})"
    assert second.startswith(f"done    {unit.name}  in 0:01:15")
    assert "ar3d/top1 61.25" in second and "pe/mpjpe_mm 88.5" in second


def test_a_failure_names_its_reason_and_its_log(graph, shown, caplog):
    unit = start(graph, shown)
    graph.failed(unit.key, "loss is not finite at step 3")
    shown.changed(unit.key, graph.state[unit.key])
    assert f"FAILED  {unit.name}: loss is not finite at step 3" in caplog.messages[-1]
    assert str(graph.ledger.folder(unit) / "log.txt") in caplog.messages[-1]
    assert caplog.records[-1].levelno == logging.ERROR
    assert "0 done, 0 running, 4 waiting, 4 failed" in shown.line()  # The unit, and three that start from it.


def test_the_status_line_counts_and_shows_how_far_running_units_are(graph, shown, clock):
    assert shown.line().startswith("0 done, 0 running, 8 waiting, 0:00:40 left")
    unit = start(graph, shown)
    append_row(graph.ledger.folder(unit) / "progress.jsonl", {"step": 120, "train/pe_loss": 3.21987})
    line = shown.line()
    assert line.startswith("0 done, 1 running, 7 waiting, ")
    assert f"| {unit.name} 120/{unit.config.optim.steps} pe_loss 3.22" in line


def test_a_unit_at_its_last_step_is_evaluating(graph, shown):
    unit = start(graph, shown)
    last = {"step": unit.config.optim.steps, "train/pe_loss": 3.21987}
    append_row(graph.ledger.folder(unit) / "progress.jsonl", last)
    assert f"| {unit.name} evaluating pe_loss 3.22" in shown.line()


def test_a_score_below_0_is_shown_as_no_percentage(graph, shown, caplog):
    unit = start(graph, shown)
    graph.ledger.write(unit, Record(unit.key, "finished", {"validation/score": -110.4}))
    graph.finished(unit.key)
    shown.changed(unit.key, graph.state[unit.key])
    assert caplog.messages[-1].endswith("validation: score below 0 (poses worse than the mean pose)")


def test_time_left_falls_and_follows_what_was_measured(graph, shown, clock):
    assert shown.seconds_left() == 40  # 8 units of 10 seconds on two slots.
    unit = start(graph, shown)
    seen = [shown.seconds_left()]
    for _ in range(4):
        clock.now += 2
        seen.append(shown.seconds_left())
    assert seen == sorted(seen, reverse=True) and seen[-1] < seen[0] == 40
    clock.now += 12
    end(graph, shown, unit)  # It took 20 seconds, twice what was expected: so will the seven others.
    assert shown.seconds_left() == 7 * 20 / 2
    while (unit := graph.next()) is not None:
        shown.changed(unit.key, graph.state[unit.key])
        clock.now += 20
        end(graph, shown, unit)
    assert shown.seconds_left() == 0
    assert shown.line().startswith("8 done, 0 running, 0:00:00 left")


def test_a_unit_done_by_another_driver_says_so_and_counts_as_no_time(graph, shown, clock, caplog):
    unit = start(graph, shown)
    with graph.ledger.claim(unit):
        graph.busy(unit.key)
        shown.changed(unit.key, graph.state[unit.key])
        assert caplog.messages[-1].startswith(f"held    {unit.name} by process ")
        assert "1 elsewhere" in shown.line()
    clock.now += 1
    finish(graph.ledger, unit)
    assert graph.look_elsewhere() == [unit.key]
    shown.changed(unit.key, graph.state[unit.key])
    assert caplog.messages[-1].startswith(f"done    {unit.name}  elsewhere")
    assert shown.seconds_left() == 7 * 10 / 2


def test_a_file_gets_a_status_line_now_and_then_and_no_flood(graph, shown, clock, caplog, capsys):
    start(graph, shown)
    caplog.clear()
    seconds = 600
    for _ in range(seconds * 4):
        clock.now += 0.25
        shown.tick()
    assert len(caplog.messages) == seconds // LINE_SECONDS
    assert all(message.startswith("0 done, 1 running, 7 waiting") for message in caplog.messages)
    assert capsys.readouterr().err == ""  # No progress bar.


def test_units_done_before_are_counted_from_the_start(tmp_path, clock):
    plan, ledger = plan_of(small_study()), new_ledger(tmp_path)
    for key in list(plan.units)[:3]:
        finish(ledger, plan.units[key])
    graph = graph_of(plan, ledger)
    shown = Display(graph, dict.fromkeys(graph.units, 10.0), 1)
    assert shown.line().startswith("3 done, 0 running, 5 waiting, 0:00:50 left")


def test_a_record_of_a_search_shows_validation(graph, shown, caplog):
    unit = start(graph, shown)
    graph.ledger.write(unit, Record(unit.key, "finished", {"validation/score": 42.5}))
    graph.finished(unit.key)
    shown.changed(unit.key, graph.state[unit.key])
    assert caplog.messages[-1].endswith("validation: score 42.5")
