"""Checkpoints of tensors: in safetensors, read without pickle, with `model.safetensors`, and for resuming also
`optimizer.safetensors` (and `ema.safetensors`). `run_folder` has what makes them whole or none.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ups_model.training.run_folder import ABSENT, PREFIX, STATE, checkpoint_folder, verify_checkpoint, write_checkpoint

logger = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write `folder/step-...` with one safetensors file a group of tensors, as `run_folder.write_checkpoint` does."""
    with write_checkpoint(folder, step, state) as temporary:
        for group, values in tensors.items():
            named = {name: value.detach().contiguous().cpu() for name, value in values.items()}
            save_file(named, temporary / f"{group}.safetensors")
    return checkpoint_folder(folder, step)


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by group, and the state, of one checkpoint folder.

    Raises:
        ValueError: no checkpoint there, or one whose files are missing, cut short or altered; names the file.
        OSError: a file can't be read.
    """
    state = verify_checkpoint(path)
    tensors = {}
    for name in state["sha256"]:
        try:
            tensors[Path(name).stem] = load_file(path / name)
        except (*ABSENT, SafetensorError) as error:
            raise ValueError(
                f"{path / name}: corrupted checkpoint ({error}); delete {path} to go on from an older one"
            ) from error
    return tensors, state


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """The newest checkpoint in `folder` that can be read whole; unreadable ones are passed over with a warning."""
    for path in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        try:
            return (path, *load_checkpoint(path))
        except ValueError as error:
            logger.warning("%s; trying an older checkpoint", error)
    return None


def named_best_steps(folder: Path) -> set[int]:
    """Steps of the best weights that the checkpoints in `folder` name."""
    steps = set()
    for file in folder.glob(f"{PREFIX}*/{STATE}"):
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
