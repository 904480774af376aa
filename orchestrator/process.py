"""The process of a command that runs units: how it ends at once, and how it begins anew. Imports nothing else.

KeyboardInterrupt is for code that can unwind. Inside the import of a library or a call to Ray it comes out as some
other error, or leaves threads that crash the interpreter on its way out.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

COMMANDS = ("orchestrator.ablate", "orchestrator.search")
RESTARTS = "UPS_RESTARTS"
"""In the environment of a call that has begun anew: how often."""

is_command = False
"""Whether this process is one of COMMANDS, and not a test or a notebook that imports them."""
is_ending = False
"""Whether it ends at once: what it has started dies by its own hand."""
before_end: list[Callable[[], None]] = []
"""What has to be done before the process ends at once or begins anew, in this order."""
_environment = dict(os.environ)
"""As the process found it; libraries add to it."""


def start() -> None:
    """To be called before all other imports: they take seconds in which Ctrl-C may come."""
    global is_command
    # While `python -m` looks for its module, the first argument is -m.
    is_command = sys.argv[:1] == ["-m"] and any(name in sys.orig_argv for name in COMMANDS)
    if is_command:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end_at_once)


def end_at_once(number: int, frame: FrameType | None = None) -> NoReturn:
    """Handler of a signal: one line, status 130 (143 for SIGTERM)."""
    os.write(2, b"interrupted\n")  # The signal may have come inside a print.
    end(128 + number)


def begin_anew() -> NoReturn:
    """Run the same command in this process's place; from any thread."""
    _tidy()
    while is_ending:  # A signal has come meanwhile, and another thread is about to end the process.
        time.sleep(1)
    restarts = {RESTARTS: str(restarts_so_far() + 1)}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], _environment | restarts)


def restarts_so_far() -> int:
    """How often this call has begun anew."""
    return int(_environment.get(RESTARTS, 0))


def end(status: int) -> NoReturn:
    """End without unwinding; from any thread."""
    global is_ending
    is_ending = True
    _tidy()
    os._exit(status)


def _tidy() -> None:
    for action in before_end:
        with suppress(Exception):  # Nobody is left to be told, and the next should still be done.
            action()


@contextmanager
def unwinding() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt in the block, which has something to clean up and calls no Ray."""
    before = signal.getsignal(signal.SIGINT)
    unwind()
    try:
        yield
    finally:
        if before is end_at_once:
            signal.signal(signal.SIGINT, before)


def unwind() -> None:
    """Ctrl-C raises KeyboardInterrupt from here on, if it ended the process at once."""
    if signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
