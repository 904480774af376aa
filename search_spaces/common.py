"""What studies and search spaces have in common."""

import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

UPS = "orchestrator.ups.project:UPS"
"""Address of the project that studies are of unless they say otherwise."""

NOTHING: Mapping[str, Any] = MappingProxyType({})

_DIRECTION_MARKS = {"\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
"""Change the direction of what follows, in tables and terminals too."""


def text_faults(texts: Iterable[tuple[str, object]]) -> list[str]:
    """What is wrong with texts that tables, figures, files and terminals show on one line.

    Args:
        texts: each with what it is.
    """
    faults = []
    for what, text in texts:
        if not isinstance(text, str):
            faults.append(f"{what} must be text, got {text!r}")
            continue
        # Control characters, lone surrogates, line and paragraph separators.
        breaks = (c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _DIRECTION_MARKS)
        if (character := next(breaks, None)) is not None:
            name = unicodedata.name(character, "a control character")
            faults.append(
                f"{what} must be one line of text without control characters, got {text!a} with "
                f"U+{ord(character):04X} ({name.lower()}); remove it"
            )
    return faults


_KINDS: dict[type, str] = {int: "a whole number", float: "a finite number", bool: "true or false"}


def kind_faults(owner: object, **kinds: type) -> list[str]:
    """What fields of a dataclass have that isn't of their kind; None, where it is the field's default, is of any.

    Args:
        kinds: by the field's name: int, float, bool, or a class; for a field of several, the class of each.
    """
    faults = []
    defaults = {one.name: one.default for one in fields(owner)}  # type: ignore[arg-type]  # A dataclass
    for name, kind in kinds.items():
        value = getattr(owner, name)
        if value is None and defaults[name] is None:
            continue
        several = defaults[name] == ()
        if (several and not isinstance(value, tuple)) or not all(
            _is_of(one, kind) for one in (value if several else (value,))
        ):
            what = _KINDS.get(kind, f"{kind.__name__}(...)")
            faults.append(f"{name} must be {'a tuple of ' * several}{what}, got {value!r}")
    return faults


def _is_of(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
