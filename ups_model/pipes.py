"""How a command ends: a fault of its user's is a line; its output may go into a pipe that is closed early, as that of
`... --list | head`."""

import os
import select
import sys
from collections.abc import Callable
from typing import NoReturn, TextIO

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
        if sys.stdout is not None:  # As where a shell has closed it.
            sys.stdout.flush()
    except BrokenPipeError:
        if not (closed := _unread()):
            raise
        for stream in closed:  # Python flushes again at exit, which would fail with a message.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        status = CLOSED
    sys.exit(status)


def refuse(error: Exception | str, status: int = 2) -> int:
    """Print a fault of the user's in one line; returns the exit status. Output that nobody reads any more is no fault:
    for `end_with` the error is raised again."""
    if isinstance(error, BrokenPipeError) and _unread():
        raise error
    print(f"error: {error}", file=sys.stderr)
    return status


def _unread() -> list[TextIO]:
    """Those of standard output and standard error that are pipes without a reader: a library may have broken ones of
    its own."""
    streams = []
    for stream in (sys.stdout, sys.stderr):
        output = select.poll()
        try:
            output.register(stream.fileno(), 0)  # The system tells of a reader that has gone without being asked.
        except (AttributeError, OSError, ValueError):  # There is none, or it is no file, as in a notebook.
            continue
        if output.poll(0):
            streams.append(stream)
    return streams
