"""How a command ends: a fault of its user's is a line; its output may go into a pipe that is closed early, as that of
`... --list | head`."""

import os
import select
import sys
from collections.abc import Callable
from typing import NoReturn

CLOSED = 141
"""Exit status: what a shell gives for a process that SIGPIPE ended."""


def end_with(main: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its status; without a traceback if the reader has closed the pipe."""
    status: str | int | None
    try:
        try:
            status = main()
        except SystemExit as ended:  # Of argparse, after a help text.
            status = ended.code
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes again at exit, which would fail with a message.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = CLOSED
    sys.exit(status)


def refuse(error: Exception) -> int:
    """Print a fault of the user's in one line; returns the exit status. A standard output that nobody reads any more
    is no fault: for `end_with` the error is raised again."""
    if isinstance(error, BrokenPipeError) and _nobody_reads():
        raise error
    print(f"error: {error}", file=sys.stderr)
    return 2


def _nobody_reads() -> bool:
    """Whether the broken pipe is standard output, and not one of a library's own."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # Of a pipe without a reader the system tells without being asked.
    return bool(output.poll(0))
