"""Tables of the user's own beside their files: which clips are for testing, whose they are and what they show.

splits.csv, subjects.csv   a line of column names, then a row a clip. Columns: clip (the id: the path from the folder
                           without suffix), and any of split (train or test), subject (a number or a name) and label
                           (the name of the class). A table without the column clip has subject and split: whole
                           subjects are for training or testing

What a table tells of a clip counts more than the folders it is in. Two rows must not tell different things of a clip.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ups_model.data.readers.io.files import read_rows

TABLES = ("splits.csv", "subjects.csv")
MAX_BYTES = 64 << 20
_COLUMNS = ("clip", "split", "subject", "label")
_PARTS = {False: "train", True: "test"}
_SPLITS = {"train": False, "training": False, "test": True, "testing": True, "val": True, "validation": True}

_Told = dict[tuple[str, str], tuple[str, str]]
"""("split of clip", name) -> what a row has told, and file and line, to find rows that contradict each other."""


@dataclass(frozen=True)
class Row:
    """What a table tells of a clip; None where it tells nothing."""

    test: bool | None = None
    subject: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Tables:
    """What the tables of a folder tell."""

    clips: Mapping[str, Row] = field(default_factory=dict)
    """By the clip's id."""
    subjects: Mapping[str, bool] = field(default_factory=dict)
    """Subject -> whether it is for testing."""

    def row(self, clip: str) -> Row:
        """What is told of a clip, or of its subject."""
        row = self.clips.get(clip, Row())
        return row if row.test is not None else replace(row, test=self.subjects.get(row.subject or ""))

    @property
    def tells_splits(self) -> bool:
        """Whether any row has a split."""
        return bool(self.subjects) or any(row.test is not None for row in self.clips.values())


def read_tables(source: Path) -> Tables:
    """The tables in a folder. ValueError names file and line that break a rule or contradict another row."""
    clips: dict[str, Row] = {}
    subjects: dict[str, bool] = {}
    told: _Told = {}
    for file in (source / name for name in TABLES):
        if file.is_file():
            _read(file, clips, subjects, told)
    for clip, row in clips.items():
        if row.test is not None and row.subject in subjects:
            _tell(told, "split of clip", clip, _PARTS[subjects[row.subject]], told["split of subject", row.subject][1])
    return Tables(clips, subjects)


def _tell(told: _Told, what: str, name: str, value: str, where: str) -> None:
    """ValueError where another row has told another value."""
    before, there = told.setdefault((what, name), (value, where))
    if before != value:
        raise ValueError(
            f"{where}: the {what} {name!r:.60} must be told alike, got {value!r:.60} and in {there} "
            f"{before!r:.60}; mend one of them"
        )


def _read(file: Path, clips: dict[str, Row], subjects: dict[str, bool], told: _Told) -> None:
    if (size := file.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{file}: must have at most {MAX_BYTES} bytes, got {size}; part it")
    rows = read_rows(file)
    header = [name.strip().lower() for name in rows[0]] if rows else []
    known = len(set(header)) == len(header) >= 2 and set(header) <= set(_COLUMNS)
    if not known or ("clip" not in header and set(header) != {"subject", "split"}):
        raise ValueError(
            f"{file}:1: columns must be clip and any of split, subject and label, or subject and split, got "
            f"{', '.join(header)!r:.80}; name them so"
        )
    own: set[str] = set()
    for line, cells in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise ValueError(
                f"{file}:{line}: must have {len(header)} columns as line 1, got {len(cells)}; mend the row"
            )
        row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
        split = row.get("split", "").lower()
        if split and split not in _SPLITS:
            raise ValueError(f"{file}:{line}: split must be train or test, got {split!r:.60}; mend the row")
        key = row.get("clip", row.get("subject", ""))
        if not key or key in own:
            raise ValueError(f"{file}:{line}: {header[0]} must stand in one row, got {key!r:.60} again or nothing")
        own.add(key)
        if "clip" not in header:
            if not split:
                raise ValueError(f"{file}:{line}: split must be train or test, got nothing; mend the row")
            subjects[key] = _SPLITS[split]
            _tell(told, "split of subject", key, _PARTS[_SPLITS[split]], f"{file}:{line}")
            continue
        for what in ("split", "subject", "label"):
            if value := row.get(what):
                value = _PARTS[_SPLITS[split]] if what == "split" else value
                _tell(told, f"{what} of clip", key, value, f"{file}:{line}")
        before = clips.get(key, Row())
        clips[key] = Row(
            _SPLITS[split] if split else before.test,
            row.get("subject") or before.subject,
            row.get("label") or before.label,
        )
