"""Kinetics skeletons as arrays: what ST-GCN's tools make of the JSON files.

    train_data.npy     float32 [R, 3, N, 18, 2]: x - 0.5, y - 0.5, score; zeros where the score is 0 and after the end
    train_label.pkl    (names, labels), R each; a name is a video's id, with or without ".json"

Shape suffixes: R rows (videos), N frames, P persons (slots), J 18 joints.
"""

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.readers.io import safe_pickle
from ups_model.data.readers.io.files import damage_named, first_outside
from ups_model.data.readers.kinetics.tracks import JOINTS, MAX_COORDINATE, MAX_FRAMES, MAX_SCORE, PERSONS


def label_file(data_file: Path) -> Path:
    """The label file that belongs to `train_data.npy`: `train_label.pkl`."""
    return data_file.with_name(data_file.name.removesuffix("_data.npy") + "_label.pkl")


def open_rows(file: Path) -> np.ndarray:
    """[R, 3, N, 18, 2], memory-mapped. ValueError where the file is missing, truncated or of another shape or type."""
    with damage_named(f"{file}: not a whole .npy file", absent=(errno.ENOENT, errno.EISDIR)):
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    shape: tuple[int, ...] = array.shape if isinstance(array, np.ndarray) else ()
    if len(shape) != 5 or (shape[1], shape[3], shape[4]) != (3, JOINTS, PERSONS) or array.dtype.kind != "f":
        rule = f"must be of floats [rows, 3, frames, {JOINTS}, {PERSONS}]"
        raise ValueError(f"{file}: {rule}, got {safe_pickle.shown(array)}; is it Kinetics skeletons?")
    if not 1 <= shape[2] <= MAX_FRAMES:
        raise ValueError(f"{file}: must have 1..{MAX_FRAMES} frames a row, got {shape[2]}; is it Kinetics skeletons?")
    return array


def read_labels(file: Path, rows: int) -> tuple[list[str], list[Any]]:
    """Ids of the videos, and their labels as stored, of which NumPy's integers become int. ValueError where the file is
    damaged, asks for more than data, or hasn't `rows` rows."""
    with file.open("rb") as stream:
        content = safe_pickle.load(stream, str(file))
    if not isinstance(content, (tuple, list)) or len(content) != 2:
        raise ValueError(f"{file}: must hold a pair (names, labels), got {type(content).__name__}; is it this format?")
    names, labels = (_sequence(file, what, part, rows) for what, part in zip(("names", "labels"), content, strict=True))
    for row, name in enumerate(names):
        if not isinstance(name, str) or not name.removesuffix(".json"):
            raise ValueError(
                f"{file}[names][{row}]: must be a video's name, got {safe_pickle.shown(name)}; get the file again"
            )
    plain = [label.item() if isinstance(label, np.integer) else label for label in labels]
    return [str(name).removesuffix(".json") for name in names], plain


def read_row(file: Path, array: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [N, P, J, 2] and scores [N, P, J] of a row. ValueError names file, row and place out of bounds."""
    row_3NJP = np.asarray(array[row])
    xy_NPJ2, score_NPJ = row_3NJP[:2].transpose(1, 3, 2, 0), row_3NJP[2].transpose(0, 2, 1)
    for what, values, low, high in (
        ("coordinates", xy_NPJ2, -MAX_COORDINATE, MAX_COORDINATE),
        ("scores", score_NPJ, 0.0, MAX_SCORE),
    ):
        if (place := first_outside(values, low, high)) is not None:
            raise ValueError(
                f"{file}[{row}]: {what} must be in {low:g}..{high:g}, got {float(values[place])} in frame "
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
