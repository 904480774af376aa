"""The files of a report, in a folder or on a storage: a new report replaces an earlier one as a whole."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from orchestrator.storage.backends.base import Storage

MANIFEST = "report.sha256"
"""Digests of the files that a report has written, as `sha256sum --check` reads them."""
HEAD = "# Files of a report; the next one here removes those that it doesn't write itself."


def replace_files(storage: Storage, place: str, contents: Mapping[str, bytes]) -> list[str]:
    """Write a report's files, and remove those of an earlier report that are not among them.

    Removed is only what this function wrote, by name and digest: other files stay, and so do files that were edited.

    Args:
        place: below which names are; empty for the whole storage.
        contents: the file that refers to the others comes first.

    Returns:
        Names of the files that were removed. OSError where the place can't be read or written to.
    """
    prefix = f"{place}/" if place else ""
    before = _read_manifest(storage, prefix + MANIFEST)
    lines = [_line(name, content) for name, content in contents.items()]
    # Until all is done the manifest has both: a killed process leaves no file that the next report doesn't know of.
    _write_manifest(storage, prefix + MANIFEST, [*before, *lines])
    first, *others = contents
    storage.each(lambda name: storage.write(prefix + name, contents[name]), others)
    storage.write(prefix + first, contents[first])
    removed = [
        name
        for name in dict.fromkeys(before.values())
        if name not in contents and _is_ours(storage, prefix, name, before)
    ]
    for name in removed:
        storage.delete(prefix + name)
    _write_manifest(storage, prefix + MANIFEST, lines)
    return removed


def _line(name: str, content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()}  {name}"


def _read_manifest(storage: Storage, name: str) -> dict[str, str]:
    """Lines of a manifest, and the file's name in each; empty where there is none of ours."""
    try:
        head, *lines = storage.read(name).decode("utf-8", "replace").splitlines() or [""]
    except FileNotFoundError:
        return {}
    matches = [match for line in lines if (match := re.fullmatch(r"[0-9a-f]{64}  (.+)", line))]
    return {match[0]: match[1] for match in matches if head == HEAD and _is_below(match[1])}


def _is_below(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _is_ours(storage: Storage, prefix: str, name: str, lines: Mapping[str, str]) -> bool:
    """Whether a file is as a report left it."""
    try:
        return _line(name, storage.read(prefix + name)) in lines
    except FileNotFoundError:
        return False


def _write_manifest(storage: Storage, name: str, lines: list[str]) -> None:
    storage.write(name, "".join(f"{line}\n" for line in [HEAD, *dict.fromkeys(lines)]).encode("utf-8"))
