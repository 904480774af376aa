"""Checkpoints: weights in safetensors, the rest in a small JSON file, written whole or not at all, read without pickle.

A checkpoint is a folder `step-00001200` with `model.safetensors`, for resuming also `optimizer.safetensors` (and
`ema.safetensors`), and `state.json`, which names the SHA-256 of the others and of itself. The folder is made under a
temporary name and renamed, so a half-written one never bears the name of a whole one.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ups_model.atomic import sync
from ups_model.training.run_folder import STATE

logger = logging.getLogger(__name__)

_PREFIX = "step-"
_STATE_HASH = "state_sha256"


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write `folder/step-...` with one safetensors file a group of tensors, atomically; an existing one is replaced.

    Checkpoints of later steps are deleted: this run did not resume from them, so they are unreadable or belong to a run
    that diverged. Kept, they would count as the newest, and pruning would delete this one instead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{_PREFIX}{step:08d}"
    # Not tempfile: its folders are closed to others, and checkpoints on a shared mount are for others too.
    temporary = folder / f".{final.name}-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        hashes = {}
        for group, values in tensors.items():
            file = temporary / f"{group}.safetensors"
            save_file({name: value.detach().contiguous().cpu() for name, value in values.items()}, file)
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
    for path in folder.glob(f"{_PREFIX}*"):
        if path.name > final.name:
            _delete(path)
    return final


def _delete(path: Path) -> None:
    """Under another name: a half-deleted folder must not keep the name of a whole one."""
    away = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        os.replace(path, away)
        shutil.rmtree(away)


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by group, and the state, of one checkpoint folder.

    Raises:
        ValueError: no checkpoint there, or one whose files are missing, cut short or altered; names the file.
    """
    try:
        state = json.loads((path / STATE).read_text("utf-8"))
        if state.pop(_STATE_HASH) != _state_hash(state):
            raise ValueError("its content is not what was written")
        hashes = state["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        missing = "no such file; a checkpoint is a folder such as RUN/best/step-00004200"
        why = missing if isinstance(error, FileNotFoundError) else error
        raise ValueError(f"{path / STATE}: not a readable checkpoint state ({why}); use another checkpoint") from error
    tensors = {}
    for name, expected in hashes.items():
        file = path / name
        try:
            if _sha256(file) != expected:
                raise ValueError("its content is not what was written")
            tensors[file.stem] = load_file(file)
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(
                f"{file}: corrupted checkpoint ({error}); delete {path} to go on from an older one"
            ) from error
    return tensors, state


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """The newest checkpoint in `folder` that can be read whole; unreadable ones are passed over with a warning."""
    for path in sorted(folder.glob(f"{_PREFIX}*"), reverse=True):
        try:
            return (path, *load_checkpoint(path))
        except ValueError as error:
            logger.warning("%s; trying an older checkpoint", error)
    return None


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and temporary folders that a killed process left."""
    if keep < 1:
        raise ValueError(f"at least 1 checkpoint must be kept, got keep={keep}")
    _delete_all(folder, sorted(folder.glob(f"{_PREFIX}*"))[:-keep])


def keep_steps(folder: Path, steps: set[int]) -> None:
    """Delete all checkpoints but those of `steps`, and temporary folders that a killed process left."""
    names = {f"{_PREFIX}{step:08d}" for step in steps}
    _delete_all(folder, [path for path in folder.glob(f"{_PREFIX}*") if path.name not in names])


def _delete_all(folder: Path, checkpoints: list[Path]) -> None:
    for path in checkpoints:
        _delete(path)
    for path in folder.glob(f".{_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def named_best_steps(folder: Path) -> set[int]:
    """Steps of the best weights that the checkpoints in `folder` name."""
    steps = set()
    for file in folder.glob(f"{_PREFIX}*/{STATE}"):
        best = json.loads(file.read_text("utf-8")).get("best")
        if best is not None:
            steps.add(int(best["step"]))
    return steps


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors: `<parameter number>.<entry>`."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{entry}": torch.as_tensor(value) for index, row in state.items() for entry, value in row.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took; the parameter groups stay as the optimizer was built."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, entry = name.split(".", 1)
        state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Copy weights into a model of the same shape; ValueError names the first tensors that do not fit."""
    own = model.state_dict()
    shapes = [{name: value.shape for name, value in group.items()} for group in (own, tensors)]
    wrong = sorted(name for name in own.keys() | tensors.keys() if shapes[0].get(name) != shapes[1].get(name))
    if wrong:
        raise ValueError(f"{where}: weights do not fit this configuration, first of {len(wrong)}: {wrong[0]}")
    model.load_state_dict(tensors)


def _state_hash(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
