"""What the commands of this folder share."""

import argparse
import io
import sys


def command_parser(module: str, description: str, examples: str) -> argparse.ArgumentParser:
    """The parser of `python -m MODULE`, without arguments. From here on, characters that the terminal's encoding lacks
    are printed as escapes, and end no command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
