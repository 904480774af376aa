"""What studies and search spaces have in common."""

import unicodedata
from collections.abc import Iterable, Mapping
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
