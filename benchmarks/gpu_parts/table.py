"""Rows that the parts of `gpu.py` hand to it, and the table of them."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Row:
    """One line of the table."""

    name: str
    value: float | str
    unit: str = ""
    aim: str = ""
    part: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    """What the value was computed from; not in the table."""

    def emit(self) -> None:
        """Hand the row to the parent process."""
        print(json.dumps(asdict(self)), flush=True)


@dataclass
class Outcome:
    """How a part ended."""

    part: str
    status: str
    seconds: float
    error: str = ""


def table(rows: list[Row], outcomes: list[Outcome]) -> str:
    """All rows, part by part, and what went wrong."""
    width = max((len(row.name) for row in rows), default=0)
    lines = []
    for outcome in outcomes:
        lines.append(f"-- {outcome.part} ({outcome.status}, {outcome.seconds:.0f} s)")
        for row in (row for row in rows if row.part == outcome.part):
            said = row.value if isinstance(row.value, str) else f"{row.value:>12.4g} {row.unit}"
            lines.append(f"{row.name:<{width}}  {said}{f'  (aim {row.aim})' if row.aim else ''}")
        lines += [f"   {line}" for line in outcome.error.splitlines()]
    return "\n".join(lines)
