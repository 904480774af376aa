"""Finding trained weights: a checkpoint, the folder of a run, or a unit of a ledger by its key."""

import re
from pathlib import Path

from ups_model.atomic import json_object
from ups_model.training.run_folder import STATE

DEFAULT_STORAGE = Path("runs/ablations")
"""The default storage of `orchestrator.ablate`."""


def find_weights(model: str, storage: Path = DEFAULT_STORAGE) -> Path:
    """The checkpoint folder of a model, named by itself, by the folder of a finished run or unit, or by (the first
    digits of) a unit's key in the ledger `storage`. ValueError: none, several, or not finished."""
    path = Path(model).expanduser()
    if (path / STATE).is_file():
        return path
    if path.is_dir():
        return _chosen(path)
    if not re.fullmatch(r"[0-9a-f]{4,16}", model):
        raise ValueError(
            f"{model}: no such folder; give a checkpoint, a run's folder, or at least 4 digits of a unit's key"
        )
    folders = storage.expanduser().glob("units/*-*")
    units = [folder for folder in folders if folder.name.rsplit("-", 1)[-1].startswith(model)]
    if not units:
        raise ValueError(f"no unit whose key begins with {model} in {storage}; name the folder with --storage")
    if len(units) > 1:
        names = ", ".join(sorted(folder.name for folder in units)[:5])
        raise ValueError(f"several units have keys that begin with {model}: {names}; give more digits")
    return _chosen(units[0])


def _chosen(run: Path) -> Path:
    """The chosen weights of a finished run. Its folder may have been moved: only the last part of the path counts."""
    for name in ("record.json", "result.json"):
        checkpoint = json_object(run / name).get("checkpoint")
        if checkpoint and (folder := run / "best" / Path(checkpoint).name).is_dir():
            return folder
    raise ValueError(f"{run}: holds no chosen weights, the run has not finished; finish it, or give a folder of best/")
