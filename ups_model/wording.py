"""How messages and reports word numbers."""


def count(value: int, noun: str) -> str:
    """A count and its noun: "1 clip", "1,907 clips"."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"
