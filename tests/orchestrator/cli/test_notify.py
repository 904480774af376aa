"""`--notify`: what a user's command is told, and that nothing it does harms a study."""

import logging
import os
import time
from pathlib import Path

import pytest

from orchestrator.cli import notify
from orchestrator.cli.notify import Notifier

WRITES = 'echo "$UPS_EVENT|$UPS_NAME|$UPS_STATUS" >> {0}'


def told(file: Path) -> list[str]:
    return sorted(file.read_text().splitlines()) if file.exists() else []


def test_a_command_is_told_what_happened_with_the_callers_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "abc")
    command = WRITES + '; echo "$MY_TOKEN" >> {0}'
    notifier = Notifier(command.format(tmp_path / "told"), 0, "plan-1")
    notifier.tell("finished", '9 of 9 units; "quoted" $HOME `date`')
    notifier.wait()
    assert told(tmp_path / "told") == ["abc", 'finished|plan-1|9 of 9 units; "quoted" $HOME `date`']


def test_progress_is_told_when_it_is_due_and_never_without_hours(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    often = Notifier(WRITES.format(tmp_path / "often"), 2, "p")
    never = Notifier(WRITES.format(tmp_path / "never"), 0, "p")
    for hour in range(6):
        now[0] = 1000.0 + 3600 * hour
        for notifier in (often, never):
            notifier.tick(lambda hour=hour: f"hour {hour}")
    monkeypatch.undo()
    often.wait()
    never.wait()
    assert told(tmp_path / "often") == ["progress|p|hour 2", "progress|p|hour 4"] and not told(tmp_path / "never")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo no route >&2; exit 3", "told of 'finished', the command ended with 3 (no route)"),
        ("exit 1", "ended with 1 (it said nothing)"),
        ("/no/such/program", "the command ended with 127"),
        ("sleep 60", "the command ran for 1 s and was ended"),
    ],
)
def test_a_command_that_fails_or_hangs_is_a_warning(command, message, caplog, monkeypatch):
    monkeypatch.setattr(notify, "TIMEOUT_SECONDS", 1.0)
    notifier, before = Notifier(command, 0, "p"), time.monotonic()
    with caplog.at_level(logging.WARNING):
        notifier.tell("finished", "s")
        assert time.monotonic() - before < 0.5, "the study doesn't wait"
        notifier.wait()
    assert message in caplog.text


def test_what_a_command_that_hangs_has_started_is_ended_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(notify, "TIMEOUT_SECONDS", 1.0)
    notifier = Notifier(f"sleep 61 & echo $! > {tmp_path}/pid; wait", 0, "p")
    notifier.tell("stopped", "s")
    notifier.wait()
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("it still runs")


def test_no_command_is_no_process(monkeypatch):
    monkeypatch.setattr(notify.subprocess, "Popen", None)
    Notifier("", 1, "p").tell("finished", "s")
