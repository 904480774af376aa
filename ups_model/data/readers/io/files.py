"""Files of the user's own: walked through, listed, parsed whole or refused; and a disk that fails meanwhile."""

import codecs
import csv
import errno
import hashlib
import json
import os
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ups_model.data.format.rules import DAMAGED

NUMBERS = frozenset({int, float})
"""Exact types of numbers in JSON: NumPy would take true and "1.5" for numbers too."""
FPS_BOUNDS = (1.0, 1000.0)
"""Frames per second that a recording may have."""
_DAMAGED: tuple[type[Exception], ...] = (*DAMAGED, MemoryError)
_WAY_OUT = "get the file again"
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs"}


def load_json(file: Path, max_bytes: int) -> Any:
    """The content of a JSON file. ValueError names the file, and the line where one is at fault: not JSON in UTF-8,
    larger than `max_bytes`, or with keys that stand twice, NaN or infinities."""
    if (size := file.stat().st_size) > max_bytes:
        raise ValueError(f"{file}: must have at most {max_bytes} bytes, got {size}; is it this kind of file?")
    raw = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{file}:{line}: must be UTF-8, got the byte 0x{raw[error.start]:02x}; {_WAY_OUT}") from error
    return parse_json(str(file), text)


def parse_json(where: str, text: str) -> Any:
    """The content of a text of JSON. ValueError as of `load_json` begins with `where`."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}:{error.lineno}: not whole JSON, {error.msg}; {_WAY_OUT}") from error
    except RecursionError as error:
        raise ValueError(f"{where}: is nested too deeply; {_WAY_OUT}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}; {_WAY_OUT}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"keys must stand once in an object, got {double!r:.60} twice")
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"numbers must be finite, got {constant}")


def read_rows(file: Path) -> list[list[str]]:
    """The rows of a table, the line of column names first. ValueError names the file: not UTF-8, not CSV, or separated
    by something else than commas."""
    try:
        rows = list(csv.reader(file.read_text("utf-8-sig").splitlines(), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: must be a table in UTF-8 with commas ({error}); save it again so") from error
    if rows and len(rows[0]) == 1:
        for separator, name in _OTHER_SEPARATORS.items():
            if separator in rows[0][0]:
                raise ValueError(f"{file}:1: columns must be separated by commas, got {name}; save it again so")
    return rows


def packaged_lines(name: str) -> tuple[str, ...]:
    """The lines, but for comments, of a text file that comes with the readers; `name` is its path from their folder."""
    lines = (resources.files("ups_model.data.readers") / name).read_text("utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))


def packaged_table(name: str) -> dict[str, Any]:
    """The same of a TOML file, parsed."""
    return tomllib.loads((resources.files("ups_model.data.readers") / name).read_text("utf-8"))


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of the .npy content that begins here. ValueError for other versions."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f".npy version must be 1.0 or 2.0, got {version[0]}.{version[1]}")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read_header(stream)


def checked_fps(where: object, fps: Any, way_out: str) -> float:
    """Frames per second. ValueError, which begins with `where`, where it is no number in FPS_BOUNDS."""
    low, high = FPS_BOUNDS
    if type(fps) not in NUMBERS or not low <= fps <= high:
        raise ValueError(f"{where}: fps must be in {low:g}..{high:g}, got {fps!r:.60}; {way_out}")
    return float(fps)


def is_numeric(value: Any) -> bool:
    """Whether it is an array of plain numbers."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiu"


def first_outside(values: np.ndarray, low: float, high: float) -> tuple[int, ...] | None:
    """The place of the first value that is not in low..high, or is no number; None where all are."""
    # No abs(): the least integer has no positive.
    good = (values >= low) & (values <= high)
    return None if good.all() else tuple(np.argwhere(~good)[0].tolist())


def persons_first(shape: Sequence[int]) -> str:
    """What is wrong with an array [persons, frames, ...] that has more persons than frames."""
    return (
        f"the order must be [persons, frames, joints, coordinates], got {list(shape)}, {shape[0]} persons in "
        f"{shape[1]} frames; swap the first two axes, or write persons of so short a clip to files of their own"
    )


@contextmanager
def damage_named(what: str, way_out: str = _WAY_OUT, absent: Sequence[int] = ()) -> Iterator[None]:
    """ValueError "WHAT (error); WAY OUT" for damaged .npy and .npz content; errors of the disk itself go on.

    Damage shows as an OSError without a number, or as a seek to nowhere. `absent` are further numbers taken for it.
    """
    try:
        yield
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL, *absent):
            raise
        shown = str(error) or type(error).__name__
        raise ValueError(f"{what} ({shown:.200}); {way_out}") from error


def walk_folders(source: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As `os.walk`, through links too, each folder once. OSError for one that can't be listed: nothing is left out."""

    def stop(error: OSError) -> None:
        raise error

    seen = set()
    for place, folders, names in os.walk(source, onerror=stop, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # A link to a folder above it, or to one seen before.
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        yield Path(place), folders, names


def status_of(path: Path) -> os.stat_result | None:
    """None for a link to nothing, or to itself. Raises OSError for a path that is not there."""
    try:
        return path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP) and path.is_symlink():
            return None
        raise


def no_target(link: Path, what: str) -> ValueError:
    """The refusal of a link to nothing where it should lead to `what`."""
    # Many such links are a disk that isn't there: leaving them out would make a set of what happens to be there.
    rule = f"links must lead to a {what}, this one leads to {os.readlink(link)}, which is not there"
    return ValueError(f"{link}: {rule}; bring it back, or delete the link")


def files_sha256(listing: Sequence[tuple[str, int, int]]) -> str:
    """sha256 of a listing, for a recipe: name, size and time of change (ns) of each file, in this order."""
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


@contextmanager
def source_kept(file: Path) -> Iterator[None]:
    """An OSError within ends a preparation: its message names the file and says how to go on.

    A disk that can't be reached says nothing of what the file holds, so it must not leave a recording out.
    """
    try:
        yield
    except OSError as error:
        kept = "what is read so far is kept, run the same command again once the file can be read, or take it away"
        if isinstance(error, FileNotFoundError):
            kept = "it was there before; run the same command again, which lists the files anew"
        raise OSError(error.errno or errno.EIO, f"{error.strerror or error}; {kept}", str(file)) from error
