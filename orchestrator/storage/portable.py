"""JSON files of a ledger without what only means something on one machine: absolute paths."""

import json
import re
from pathlib import Path
from typing import Any

_QUOTED_PATH = re.compile(r"""(?<=["'])/[^"'\n]+(?=["'])""")
_PATH = re.compile(r"""(?:(?<![\w./~*<-])|(?<=file://)|(?<=sqlite:///))(?:/[^\s/"'`,;:()\[\]{}<>|]+){2,}/?""")


def portable(content: bytes) -> bytes:
    """JSON text without absolute paths of a machine, of which the last part is kept; the same bytes where it has none.

    Raises:
        ValueError: it isn't JSON.
    """
    plain = plain_json(content)
    changed = _without_paths(plain)
    return content if changed == plain else (json.dumps(changed, indent=1, sort_keys=True) + "\n").encode()


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_paths(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    if not isinstance(value, str) or "/" not in value:
        return value
    if re.fullmatch(r"/[^\n]+", value):
        return _last_part(value)
    for pattern in (_QUOTED_PATH, _PATH):
        value = pattern.sub(lambda match: _last_part(match[0]), value)
    return value


def _last_part(path: str) -> str:
    return f"PATH/{Path(path).name}"


def plain_json(content: bytes) -> Any:
    """What a JSON text holds, however it was made. ValueError where it isn't one."""
    try:
        plain = json.loads(content.decode("utf-8"))
        json.dumps(plain, allow_nan=False)  # NaN and infinity are read, and could not be written again.
        return plain
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
