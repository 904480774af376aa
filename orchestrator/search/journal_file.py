"""The file of a search's journal, as Optuna's storage reads and writes it: lines are added, each whole or cut off."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

logger = logging.getLogger(__name__)


class NoLock:
    """Transactions are ours: a lock file of Optuna's would outlive a killed process by half a minute."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def file_backend(file: Path, keep: Callable[[], None]) -> JournalFileBackend:
    class Backend(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            cut_torn_line(file)  # A full disk may have taken half a line just now.
            super().append_logs(logs)
            keep()

    cut_torn_line(file)
    return Backend(str(file), lock_obj=NoLock())  # type: ignore[arg-type]  # Optuna's base of locks is not public


def cut_torn_line(file: Path) -> None:
    """Drop a line that a crash or a full disk cut short; what is added behind it would make the file unreadable."""
    if not file.exists():
        return
    with file.open("r+b") as stream:
        size = stream.seek(0, 2)
        kept = size
        while kept:
            stream.seek(max(0, kept - 65536))
            chunk = stream.read(kept - stream.tell())
            if (end := chunk.rfind(b"\n")) >= 0:
                kept -= len(chunk) - end - 1
                break
            kept -= len(chunk)
        if kept < size:
            logger.warning("%s: its last line is incomplete and is dropped", file)
            stream.truncate(kept)
