"""The folder of a run: names of its files, and checkpoints that are written whole or not at all. Imports no torch.

A checkpoint is a folder `step-00001200` with any files, and `state.json`, which names the SHA-256 of the others and of
itself. It is made under a temporary name and renamed, so that a half-written one never has the name of a whole one.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ups_model.atomic import sync

TRUNK = "trunk"
"""Folder of the checkpoint before the rate's decay, from which a longer run can begin."""
STATE = "state.json"
"""In each checkpoint: written last, so a checkpoint without it is none."""
PREFIX = "step-"
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors of a file that is not there; other OSErrors are a storage that doesn't answer."""
_STATE_HASH = "state_sha256"


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"{PREFIX}{step:08d}"


@contextlib.contextmanager
def write_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Iterator[Path]:
    """A folder to write files to, which is `folder/step-...` at the end of the block; an existing one is replaced.

    Checkpoints of later steps are deleted: this run did not resume from them, so they are unreadable or belong to a run
    that diverged. Kept, they would count as the newest, and pruning would delete this one instead.

    Args:
        state: JSON data to keep with the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = checkpoint_folder(folder, step)
    # Not tempfile: its folders are closed to others, and checkpoints on a shared mount are for others too.
    temporary = folder / f".{final.name}-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        yield temporary
        if (temporary / STATE).exists():
            raise ValueError(f"a checkpoint's own file is {STATE}; give yours another name")
        hashes = {}
        for file in sorted(temporary.iterdir()):
            if not file.is_file():
                raise ValueError(f"a checkpoint holds files alone, got the folder {file.name}; write files")
            sync(file)
            hashes[file.name] = _sha256(file)
        whole = {**state, "step": step, "sha256": hashes}
        text = json.dumps({**whole, _STATE_HASH: _state_hash(whole)}, indent=1, allow_nan=False)
        (temporary / STATE).write_text(text, "utf-8")
        sync(temporary / STATE)
        if final.exists():
            # In one step, as in `_delete`.
            os.replace(final, folder / f".{final.name}-{uuid.uuid4().hex}")
        os.replace(temporary, final)
        sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for path in folder.glob(f"{PREFIX}*"):
        if path.name > final.name:
            _delete(path)


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """The state of a checkpoint folder, all of whose files have been read.

    Raises:
        ValueError: no checkpoint there, or one whose files are missing, cut short or altered; names the file.
        OSError: a file can't be read, which says nothing of its content: whoever deletes damaged checkpoints must not
            take it for one.
    """
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text("utf-8"))
        if state.pop(_STATE_HASH) != _state_hash(state):
            raise ValueError("its content is not what was written")
        hashes = dict(state["sha256"])
    except (*ABSENT, ValueError, KeyError, TypeError, AttributeError) as error:
        missing = "no such file; a checkpoint is a folder such as RUN/best/step-00004200"
        why = missing if isinstance(error, FileNotFoundError) else error
        raise ValueError(f"{path / STATE}: not a readable checkpoint state ({why}); use another checkpoint") from error
    for name, expected in hashes.items():
        file = path / name
        try:
            if _sha256(file) != expected:
                raise ValueError("its content is not what was written")
        except (*ABSENT, ValueError) as error:
            raise ValueError(
                f"{file}: corrupted checkpoint ({error}); delete {path} to go on from an older one"
            ) from error
    return state


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and temporary folders that a killed process left."""
    if keep < 1:
        raise ValueError(f"at least 1 checkpoint must be kept, got keep={keep}")
    _delete_all(folder, sorted(folder.glob(f"{PREFIX}*"))[:-keep])


def keep_steps(folder: Path, steps: set[int]) -> None:
    """Delete all checkpoints but those of `steps`, and temporary folders that a killed process left."""
    names = {f"{PREFIX}{step:08d}" for step in steps}
    _delete_all(folder, [path for path in folder.glob(f"{PREFIX}*") if path.name not in names])


def _delete_all(folder: Path, checkpoints: list[Path]) -> None:
    for path in checkpoints:
        _delete(path)
    for path in folder.glob(f".{PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def _delete(path: Path) -> None:
    """Under another name: a half-deleted folder must not keep the name of a whole one."""
    away = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        os.replace(path, away)
        shutil.rmtree(away)


def _state_hash(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
