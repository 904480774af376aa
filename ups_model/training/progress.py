"""The progress file of a run, one JSON object a line, and how progress reads in a log."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from ups_model.atomic import write_atomic
from ups_model.evaluation.metric_names import is_headline


def append_row(file: Path, row: Mapping[str, float]) -> None:
    """Add a line, with the time of day in seconds since 1970."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({**row, "time": round(time.time(), 3)}) + "\n")


def read_rows(file: Path) -> list[dict[str, float]]:
    """All whole lines; one that a killed process or a full disk cut short is passed over."""
    rows = []
    for line in file.read_text("utf-8").splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def forget_after(file: Path, step: int) -> None:
    """Drop the progress lines of steps that will be run again."""
    if file.exists():
        kept = [row for row in read_rows(file) if row["step"] <= step]
        write_atomic(file, "".join(json.dumps(row) + "\n" for row in kept))


def short_line(metrics: Mapping[str, float]) -> str:
    """Headline numbers as `name value` pairs."""
    shown = {name.removeprefix("train/").removeprefix("validation/"): value for name, value in metrics.items()}
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items() if is_headline(name))


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
