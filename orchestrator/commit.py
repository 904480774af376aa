"""Which code is running."""

import subprocess
from functools import cache
from pathlib import Path

from orchestrator.site import code_digest
from ups_model import __version__


@cache
def commit() -> str:
    """Commit of the working tree that this package lies in, with "-dirty" where files differ from it; where there is no
    such tree, as on a cluster that was sent the packages, the version and a hash of the source."""
    folder = Path(__file__).resolve().parent.parent
    without = f"version {__version__}, source {code_digest()[:12]}"
    if not (folder / ".git").exists():
        return without
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return without
    return head[:12] + ("-dirty" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()
