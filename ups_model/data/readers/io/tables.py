"""Tables of the user's own: rows of text, from CSV in UTF-8."""

import csv
from pathlib import Path

_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs"}


def read_rows(file: Path) -> list[list[str]]:
    """The rows of a table, the line of column names first.

    Raises:
        ValueError: not UTF-8, not CSV, or separated by something else than commas; names the file.
        OSError: the file cannot be read.
    """
    try:
        rows = list(csv.reader(file.read_text("utf-8-sig").splitlines(), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: must be a table in UTF-8 with commas ({error}); save it again so") from error
    if rows and len(rows[0]) == 1:
        for separator, name in _OTHER_SEPARATORS.items():
            if separator in rows[0][0]:
                raise ValueError(f"{file}:1: columns must be separated by commas, got {name}; save it again so")
    return rows
