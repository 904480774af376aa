"""Standard output of the commands of this folder."""

import io
import sys


def escape_unencodable() -> None:
    """Characters that the terminal's encoding lacks are printed as escapes from here on, and end no command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
