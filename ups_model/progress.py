"""The progress file of a run, one JSON object a line, and how progress reads in a log."""

import json
from collections.abc import Mapping
from pathlib import Path

from ups_model.measure import is_headline


def append_row(file: Path, row: Mapping[str, float]) -> None:
    """Add a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def forget_after(file: Path, step: int) -> None:
    """Drop the progress lines of steps that will be run again."""
    if file.exists():
        lines = [line for line in file.read_text("utf-8").splitlines() if json.loads(line)["step"] <= step]
        file.write_text("".join(line + "\n" for line in lines), "utf-8")


def short_line(metrics: Mapping[str, float]) -> str:
    """Headline numbers as `name value` pairs."""
    shown = {name.removeprefix("train/").removeprefix("validation/"): value for name, value in metrics.items()}
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items() if is_headline(name))


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
