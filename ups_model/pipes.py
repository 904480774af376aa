"""Ending a command whose output goes into a pipe that is closed early, as `... --list | head` does."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

CLOSED = 141
"""Exit status: what a shell gives for a process that SIGPIPE ended."""


def end_with(main: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its status; without a traceback if the reader has closed the pipe."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes again at exit, which would fail with a message.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = CLOSED
    sys.exit(status)
