"""Which code is running."""

import subprocess
from functools import cache
from pathlib import Path

from ups_model import __version__


@cache
def commit() -> str:
    """Commit of the working tree that this package lies in, with "-dirty" where files differ from it; the version where
    there is no such tree."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return f"version {__version__}"
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return f"version {__version__}"
    return head[:12] + ("-dirty" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()
