"""The live table of --watch: what it says, and that its faults never reach the driver."""

from __future__ import annotations

import argparse
import io
import logging
import sys

import pytest
from rich.console import Console

from orchestrator import process
from orchestrator.cli import display, watch
from orchestrator.cli.display import Display
from orchestrator.cli.session import Session
from orchestrator.cli.watch import Watch
from tests.orchestrator.cli.test_display import Clock, end, start
from tests.support.plans import graph_of, new_ledger, plan_of, small_study
from ups_model.training.progress import append_row


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    monkeypatch.setattr(watch, "time", clock)
    return clock


@pytest.fixture
def graph(tmp_path):
    """Eight units: two of joint training, each with three that start from it."""
    return graph_of(plan_of(small_study()), new_ledger(tmp_path))


@pytest.fixture
def table(graph, clock):
    """Of units that take 10 seconds and half a GPU each, at 3600 an hour of a GPU."""
    console = Console(file=io.StringIO(), force_terminal=True, width=160, height=30, color_system=None)
    made = Watch(graph, dict.fromkeys(graph.units, 10.0), 2, 3600.0, 0.5, console)
    yield made
    made.close()


def seen(table):
    """As it stands on the terminal."""
    with table._console.capture() as captured:
        table._console.print(table.view())
    return captured.get()


def test_it_shows_what_runs_with_step_and_metrics_and_what_is_left(graph, table, clock):
    unit = start(graph, table)
    assert "starting" in seen(table)
    folder = graph.ledger.folder(unit)
    append_row(folder / "progress.jsonl", {"step": 10, "loss": 0.75})
    append_row(folder / "progress.jsonl", {"step": 20, "validation/score": 12.5})
    clock.now += 4
    text = seen(table)
    (line,) = [line for line in text.splitlines() if unit.name in line]
    assert f"20/{unit.trainer.steps(unit.config)}" in line and "score 12.5  loss 0.75" in line and "0:00:04" in line
    # 7 units of 10 seconds and 6 of one: 76 seconds of half a GPU, at 1 a second.
    assert "0 done, 1 running, 7 waiting" in text and "cost left about 38" in text
    end(graph, table, unit)
    assert "1 done, 0 running" in seen(table) and unit.name not in seen(table)


def test_a_long_list_is_cut_to_the_terminal(graph, clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=160, height=watch.OTHER_LINES + 1)
    table = Watch(graph, dict.fromkeys(graph.units, 10.0), 2, console=console)
    start(graph, table)
    start(graph, table)
    assert "and 1 more" in seen(table) and "cost" not in seen(table)
    table.close()


def test_a_fault_of_the_table_leaves_log_lines_and_a_whole_terminal(graph, table, clock, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    before = sys.stderr
    monkeypatch.setattr(table, "view", lambda: 1 / 0)
    clock.now += 5
    table.tick()
    assert "the live table can't be shown (ZeroDivisionError" in caplog.text
    table.tick()
    assert "0 done, 0 running" in caplog.text, "lines take its place at once"
    unit = start(graph, table)
    end(graph, table, unit)
    assert f"done    {unit.name}" in caplog.text
    table.close()
    assert sys.stderr is before and not table._streams


def test_log_lines_go_above_the_table_while_it_is_there(graph, clock):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=160, height=30, color_system=None)
    before, handler = sys.stderr, logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(handler)
    try:
        table = Watch(graph, dict.fromkeys(graph.units, 10.0), 2, console=console)
        assert handler.stream is sys.stderr and sys.stderr is not before
        logging.getLogger().warning("a word from below")
        table.close()
        assert "a word from below" in stream.getvalue()
        assert handler.stream is before and sys.stderr is before and table._stop not in process.before_end
    finally:
        logging.getLogger().removeHandler(handler)


def test_without_a_terminal_there_are_log_lines(graph, tmp_path):
    options = argparse.Namespace(storage=str(tmp_path), tracking_uri=None, watch=True, price_per_hour=None)
    made = Session(options, {})._display(graph, dict.fromkeys(graph.units, 10.0), 2, 0.0)
    assert type(made) is Display
    made.close()
