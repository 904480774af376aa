"""Whose handlers of signals a process has, how it begins anew, and how it ends when nobody reads it."""

import os
import signal
import subprocess
import sys

import pytest

from orchestrator import process
from tests.support.drivers import ROOT
from ups_model.pipes import refuse

IMPORTED = """
import signal
import orchestrator
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, orchestrator.process.is_command)
"""

AGAIN = """
import os, signal, sys, threading
from orchestrator import process
process.before_end.append(lambda: 1 / 0)
process.before_end.append(lambda: print("tidied", flush=True))
print(process.restarts_so_far(), sys.argv[1:], os.environ.get("ADDED"), flush=True)
os.environ["ADDED"] = "by a library"
if process.restarts_so_far() < 2:
    threading.Thread(target=process.begin_anew).start()
    signal.pause()
process.end_at_once(signal.SIGTERM)
"""

SAYS_THEN_FAILS = """
import sys
from ups_model.pipes import end_with, refuse
def main():
    print("said")
    return refuse(ValueError("a fault"))
end_with(main)
"""


def run(program, *arguments):
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_process_that_imports_the_orchestrator_keeps_its_handler_of_ctrl_c():
    assert run(IMPORTED).stdout == "True False\n"


def test_a_call_begins_anew_with_its_arguments_and_its_first_environment():
    """From another thread than the main one, which may be inside Ray; what fails before the end keeps nothing back."""
    ended = run(AGAIN, "one", "--two")
    lines = [text for number in range(3) for text in (f"{number} ['one', '--two'] None", "tidied")]
    assert ended.stdout.splitlines() == lines
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGTERM, "interrupted\n")


def test_ctrl_c_unwinds_where_something_has_to_be_cleaned_up():
    before = signal.signal(signal.SIGINT, process.end_at_once)
    try:
        with pytest.raises(KeyboardInterrupt), process.unwinding():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is process.end_at_once
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("buffering", ["", "1"])
@pytest.mark.parametrize("command", ["ablate --list", "search --list", "storage --help", "storage list"])
def test_output_that_nobody_reads_is_no_error(command, buffering, tmp_path):
    (tmp_path / "units").mkdir()
    (tmp_path / "studies").mkdir()
    reader, writer = os.pipe()
    os.close(reader)
    more = ["--storage", str(tmp_path)] if command == "storage list" else []
    ended = subprocess.run(
        [sys.executable, "-m", *f"orchestrator.{command}".split(), *more],
        cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": buffering}, stdout=writer, stderr=subprocess.PIPE, timeout=60,
    )  # fmt: skip
    os.close(writer)
    assert ended.stderr == b""
    assert ended.returncode == 141 or command == "storage --help"  # Argparse says nothing of it, unbuffered.


@pytest.mark.slow
@pytest.mark.parametrize("command", ["orchestrator.ablate --list", "orchestrator.search --list"])
def test_a_command_without_standard_output_does_its_work(command):
    ended = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m {command} >&-"], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_what_was_said_arrives_where_nobody_reads_the_errors():
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-c", SAYS_THEN_FAILS],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=writer,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert ended.stdout == b"said\n"


def test_a_broken_pipe_that_is_not_standard_output_is_an_error(capsys):
    assert refuse(BrokenPipeError(32, "Broken pipe")) == 2
    assert capsys.readouterr().err == "error: [Errno 32] Broken pipe\n"
