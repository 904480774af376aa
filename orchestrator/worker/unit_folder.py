"""The folder in which a unit is trained: what of it is kept, discarded and set aside."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

from orchestrator.planning.plan import Unit
from orchestrator.record import Record
from orchestrator.storage import Claim, Workspace
from orchestrator.storage.backends.workspace import GROUPS, RESULT, SOURCE
from orchestrator.storage.ledger import PROGRESS, Ledger
from orchestrator.storage.source_check import THEN, training_code
from ups_model.atomic import json_object
from ups_model.training.run_folder import STATE, prune_checkpoints, verify_checkpoint

logger = logging.getLogger(__name__)


def set_aside(ledger: Ledger, claim: Claim, work: Workspace, unit: Unit, done: Record | None) -> None:
    """Make room for training a unit again: its record is copied under another name, its weights, checkpoints and curve
    are deleted. The old record also stays in its place until the new one replaces it, but names no weights any more:
    the new training may make some of the same name.

    Raises:
        OSError: the storage can't be written to.
    """
    if done is not None and done.checkpoint:
        name, content = _name_aside(ledger, unit, done), done.to_json().encode("utf-8")
        outcomes = ledger.outcomes(unit)
        if outcomes is not None:  # They go with it.
            beside = name.replace("/record-", "/outcomes-").removesuffix(".json") + ".npz"
            claim.insist(lambda: ledger.storage.write(beside, outcomes))
        claim.insist(lambda: ledger.storage.write(name, content))
        claim.insist(lambda: ledger.write(unit, replace(done, checkpoint="")))
    # The result first: it names the weights.
    for name in (RESULT, PROGRESS):
        (work.folder / name).unlink(missing_ok=True)
    for group in GROUPS:
        shutil.rmtree(work.folder / group, ignore_errors=True)
    (work.folder / SOURCE).unlink(missing_ok=True)
    work.save()


def _name_aside(ledger: Ledger, unit: Unit, done: Record) -> str:
    """A name that no other record has."""
    code, number = training_code(done).replace(THEN, "-"), 1
    while True:
        name = f"units/{unit.folder}/record-{code}{f'-{number}' * (number > 1)}.json"
        try:
            if ledger.storage.read(name) == done.to_json().encode("utf-8"):
                return name
        except FileNotFoundError:
            return name
        number += 1


def keep_newest_checkpoint(work: Workspace) -> None:
    """A finished unit needs one checkpoint, should its chosen weights be damaged or its test split be measured later;
    while it runs, an older one stands by."""
    try:
        prune_checkpoints(work.folder / "checkpoints", 1)
        work.save()
    except OSError as error:  # The unit is done, and this is only space.
        logger.warning("older checkpoints are left on storage (%s)", error)


def discard_unreadable_weights(folder: Path) -> None:
    """Delete chosen weights that are damaged, and what names them, so that they are made again: from the last
    checkpoint without training, or, if validation chose them, from the last checkpoint before them.

    Raises:
        OSError: the storage doesn't answer, which says nothing of them.
    """
    best = {path.name: readable(path) for path in (folder / "best").glob("step-*")}
    result = json_object(folder / RESULT)
    if result and result.get("status") == "finished" and not best.get(Path(result.get("checkpoint", "")).name):
        logger.warning("the weights of %s can't be read; making them again", folder.name)
        (folder / RESULT).unlink()
    for file in (folder / "checkpoints").glob(f"step-*/{STATE}"):
        chosen = json_object(file).get("best")  # Of an unreadable checkpoint nothing: resuming passes it over.
        if chosen and not best.get(f"step-{chosen['step']:08d}"):
            shutil.rmtree(file.parent)
    for name, is_readable in best.items():
        if not is_readable:
            shutil.rmtree(folder / "best" / name)


def readable(weights: Path) -> bool:
    """Whether a checkpoint folder is there and whole; OSError where the storage doesn't answer."""
    try:
        verify_checkpoint(weights)
    except ValueError:
        return False
    return True
