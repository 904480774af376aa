"""A study, or a worker, that is asked to end does so, whatever it was waiting for."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from unittest.mock import Mock

import pytest

from orchestrator.execution.trainable import EXIT_GRACE_SECONDS, UnitTrainable
from orchestrator.scheduling.dispatcher import SHUTDOWN_GRACE_SECONDS
from orchestrator.scheduling.task_graph import State
from orchestrator.worker.job import Job
from orchestrator.worker.preemption import Notice
from tests.orchestrator.scheduling.test_dispatcher import Stage
from tests.support.plans import graph_of, new_ledger, plan_of, small_study

IDLE_WORKER = """
import signal, threading, time
from orchestrator.worker.preemption import Notice
from orchestrator.execution.trainable import UnitTrainable

worker = UnitTrainable.__new__(UnitTrainable)
worker._told, worker._node, worker._notice, worker._config = False, "here", Notice([]), {}
signal.signal(signal.SIGTERM, worker._tell)
signal.raise_signal(signal.SIGTERM)
for _ in range(1000):  # As a driver that still has the unit; the process ends before the second answer.
    print(worker.step()["status"], flush=True)
"""


def test_a_stopping_study_waits_for_what_runs_and_not_for_what_has_no_room(tmp_path):
    stage = Stage(tmp_path)
    runs, waits = stage.next().unit.key, stage.next().unit.key
    stage.dispatcher.began(runs)
    stage.graph.stopping = True
    stage.dispatcher.tick()
    stage.now = 100 * SHUTDOWN_GRACE_SECONDS
    stage.dispatcher.tick()
    assert not stage.dispatcher.at_rest, "one saves a checkpoint"
    stage.end(runs, "stopped")
    stage.dispatcher.tick()
    assert not stage.dispatcher.at_rest, "another may have begun just now"
    stage.now += SHUTDOWN_GRACE_SECONDS
    assert stage.dispatcher.at_rest
    assert not stage.dispatcher.complete
    stage.dispatcher.abandon()
    assert stage.dispatcher.complete
    assert stage.graph.state[waits] is State.STOPPED
    assert stage.told[-1] == (waits, State.STOPPED)


@pytest.mark.slow
def test_a_worker_that_is_asked_to_end_while_it_has_no_unit_ends_at_the_next(repo_root):
    """It would be given unit after unit, and hand each back, for ever."""
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", IDLE_WORKER], cwd=repo_root, capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "stopped\n"), ended.stderr
    assert EXIT_GRACE_SECONDS <= time.monotonic() - started < 55


class NeedsTwo(Exception):
    """Comes back from pickle as an error of its constructor."""

    def __init__(self, what, where):
        super().__init__(f"{what} at {where}")


@pytest.mark.parametrize(
    ("error", "arrives"),
    [
        (KeyError("joints"), KeyError("joints")),
        (NeedsTwo("a bad frame", 7), RuntimeError("NeedsTwo: a bad frame at 7")),
        (RuntimeError("file \udcff.npy"), RuntimeError("RuntimeError: file \\udcff.npy")),
    ],
)
def test_what_a_training_function_raises_arrives_at_the_driver_whatever_it_is(error, arrives):
    worker = UnitTrainable.__new__(UnitTrainable)
    worker._told, worker._node, worker._notice = False, "here", Notice([])
    worker._config, worker._rung, worker._bell = {"try": "1", "job": ""}, None, Mock()
    worker._should_stop = lambda: False

    def work(text, should_stop):
        raise error

    worker._work = work
    with pytest.raises(type(arrives)) as raised:
        worker.step()
    again = pickle.loads(pickle.dumps(raised.value))
    assert (type(again), again.args) == (type(arrives), arrives.args)


@pytest.mark.slow
def test_ctrl_c_ends_a_study_whose_units_no_machine_has_room_for(tmp_path):
    from orchestrator.execution import driver as run
    from orchestrator.execution import ray_cluster as ray_nodes

    facts = ray_nodes.connect("local")
    try:
        graph = graph_of(plan_of(small_study()), new_ledger(tmp_path))
        resources = ray_nodes.Resources(cpus_per_unit=facts.cpus + 1)  # As when the last machine has gone.
        threading.Timer(5, os.kill, (os.getpid(), signal.SIGINT)).start()
        hooks = run.Hooks(lambda key, state: None, lambda: None)
        run.execute(graph, lambda unit: Job(unit, None, str(tmp_path), {}, ""), resources, facts, hooks)
    finally:
        ray_nodes.disconnect()
    assert graph.counts()[State.STOPPED] == 1
    assert graph.counts()[State.RUNNING] == 0
