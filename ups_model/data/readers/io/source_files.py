"""Files that a clip set is made of: what is known of them without reading them, and a disk that fails meanwhile."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def listing_sha256(listing: Sequence[tuple[str, int, int]]) -> str:
    """sha256 of a listing, for a recipe: name, size and time of change (ns) of each file, in the order given."""
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


@contextmanager
def source_kept(file: Path) -> Iterator[None]:
    """An OSError within ends a preparation: its message names the file and says how to go on.

    A disk that can't be reached says nothing of what the file holds, so it must not leave a recording out.
    """
    try:
        yield
    except OSError as error:
        kept = "what is read so far is kept, run the same command again once the file can be read, or take it away"
        if isinstance(error, FileNotFoundError):
            kept = "it was there before; run the same command again, which lists the files anew"
        raise OSError(error.errno or errno.EIO, f"{error.strerror or error}; {kept}", str(file)) from error
