"""JSON files of the user's own: parsed whole or refused, with the line at fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_WAY_OUT = "get the file again"


def load_json(file: Path, max_bytes: int) -> Any:
    """The content of a JSON file. Keys that stand twice, NaN and infinities are refused.

    Raises:
        ValueError: not JSON in UTF-8, or larger than `max_bytes`; names the file, and the line where one is at fault.
        OSError: the file cannot be read.
    """
    if (size := file.stat().st_size) > max_bytes:
        raise ValueError(f"{file}: must have at most {max_bytes} bytes, got {size}; is it this kind of file?")
    raw = file.read_bytes()
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{error.lineno}: not whole JSON, {error.msg}; {_WAY_OUT}") from error
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{file}:{line}: must be UTF-8, got the byte 0x{raw[error.start]:02x}; {_WAY_OUT}") from error
    except RecursionError as error:
        raise ValueError(f"{file}: is nested too deeply; {_WAY_OUT}") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}; {_WAY_OUT}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"keys must stand once in an object, got {double!r:.60} twice")
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"numbers must be finite, got {constant}")
