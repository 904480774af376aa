"""Atomic, durable writes of files, and reading what others may be writing."""

import json
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_atomic(file: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8), whole or not at all; it is on the disk when this returns."""
    temporary = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content.encode("utf-8") if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
        sync(file.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where none can be read."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
