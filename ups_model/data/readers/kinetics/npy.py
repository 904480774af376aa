"""Kinetics skeletons as arrays: what ST-GCN's tools make of the JSON files.

    train_data.npy     float32 [R, 3, N, 18, 2]: x - 0.5, y - 0.5, score; zeros where the score is 0 and after the end
    train_label.pkl    (names, labels), R each; a name is a video's id, with or without ".json"

Shape suffixes: R rows (videos), N frames, P persons (slots), J 18 joints.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.format.rules import DAMAGED
from ups_model.data.readers.io import safe_pickle
from ups_model.data.readers.kinetics.tracks import JOINTS, MAX_COORDINATE, MAX_FRAMES, MAX_SCORE, PERSONS

_DATA, _LABEL = "_data.npy", "_label.pkl"


@dataclass(frozen=True)
class Listing:
    """What a label file says of the rows."""

    names: tuple[str, ...]
    """Ids of the videos."""
    labels: tuple[Any, ...]
    """As stored; integers become int."""


def label_file(data_file: Path) -> Path:
    """The label file that belongs to `train_data.npy`: `train_label.pkl`."""
    return data_file.with_name(data_file.name.removesuffix(_DATA) + _LABEL)


def open_rows(file: Path) -> np.ndarray:
    """The array of a data file, memory-mapped: [R, 3, N, 18, 2].

    Raises:
        ValueError: no such file, truncated, or of another shape or type.
        OSError: it cannot be read.
    """
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except DAMAGED as error:
        # Damage shows as an OSError without a number, or as a seek to nowhere; the disk's own errors go on.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL, errno.ENOENT, errno.EISDIR):
            raise
        raise ValueError(f"{file}: not a whole .npy file ({error}); get the file again") from error
    shape: tuple[int, ...] = array.shape if isinstance(array, np.ndarray) else ()
    if len(shape) != 5 or (shape[1], shape[3], shape[4]) != (3, JOINTS, PERSONS) or array.dtype.kind != "f":
        raise ValueError(
            f"{file}: must be of floats [rows, 3, frames, {JOINTS}, {PERSONS}], got "
            f"{getattr(array, 'dtype', type(array).__name__)} {list(shape)}; is it Kinetics skeletons?"
        )
    if not 1 <= shape[2] <= MAX_FRAMES:
        raise ValueError(f"{file}: must have 1..{MAX_FRAMES} frames a row, got {shape[2]}; is it Kinetics skeletons?")
    return array


def read_listing(file: Path, rows: int) -> Listing:
    """The names and labels of `rows` rows.

    Raises:
        ValueError: no such file, damaged, asking for more than data, or of another number of rows.
    """
    try:
        with file.open("rb") as stream:
            content = safe_pickle.load(stream, str(file))
    except FileNotFoundError as error:
        raise ValueError(f"{file}: no such file; it names the rows of the data file beside it") from error
    if not isinstance(content, (tuple, list)) or len(content) != 2:
        raise ValueError(f"{file}: must hold a pair (names, labels), got {type(content).__name__}; is it this format?")
    names, labels = (_sequence(file, what, part, rows) for what, part in zip(("names", "labels"), content, strict=True))
    for row, name in enumerate(names):
        if not isinstance(name, str) or not name.removesuffix(".json"):
            raise ValueError(
                f"{file}[names][{row}]: must be a video's name, got {safe_pickle.shown(name)}; get the file again"
            )
    return Listing(tuple(str(name).removesuffix(".json") for name in names), tuple(map(_plain, labels)))


def read_row(file: Path, array: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [N, P, J, 2] and scores [N, P, J] of a row, checked.

    Raises:
        ValueError: a value is out of bounds or not a number; names file, row and place.
    """
    row_3NJP = np.asarray(array[row])
    xy_NPJ2, score_NPJ = row_3NJP[:2].transpose(1, 3, 2, 0), row_3NJP[2].transpose(0, 2, 1)
    for what, values, low, high in (
        ("coordinates", xy_NPJ2, -MAX_COORDINATE, MAX_COORDINATE),
        ("scores", score_NPJ, 0.0, MAX_SCORE),
    ):
        good = (values >= low) & (values <= high)
        if not good.all():
            place = np.argwhere(~good)[0].tolist()
            raise ValueError(
                f"{file}[{row}]: {what} must be in {low:g}..{high:g}, got {float(values[tuple(place)])} in frame "
                f"{place[0]}, person {place[1]}, joint {place[2]}; get the file again"
            )
    return xy_NPJ2, score_NPJ


def _sequence(file: Path, what: str, part: Any, rows: int) -> Sequence[Any]:
    if isinstance(part, np.ndarray) and part.ndim == 1:
        part = part.tolist()
    if not isinstance(part, (list, tuple)):
        raise ValueError(f"{file}[{what}]: must be a list, got {type(part).__name__}; get the file again")
    if len(part) != rows:
        raise ValueError(
            f"{file}[{what}]: must have the {rows} rows of the data file, got {len(part)}; take both from one place"
        )
    return part


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.integer) else label
