"""What one unit does, in a process of Ray's: take it, train it or go on with it, leave a record. Imports no Ray."""

import json
import logging
import os
import platform
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from orchestrator.commit import commit
from orchestrator.ledger import LOG, PROGRESS, Ledger, Record
from orchestrator.packing import limit_memory
from orchestrator.plan import Unit
from orchestrator.site import Site, faults, versions
from orchestrator.storage import Claim, ClaimLost, Workspace
from ups_model.progress import read_rows

logger = logging.getLogger(__name__)

CHECKPOINTS_PER_UNIT = 10
MOST_STEPS_BETWEEN = 500
"""A kill loses at most a tenth of a unit, and never more than so many steps."""


@dataclass(frozen=True)
class Job:
    """A unit, and how it is carried out here; nothing but the unit can change its result."""

    unit: Unit
    parent: Unit | None
    storage: str
    paths: Mapping[str, str]
    """Folder of each clip set."""
    cache: str
    """Folder of text features."""
    threads: int = 1
    device: str = "auto"
    precision: str = "auto"
    test: bool = True
    """Measure the test split, also of a unit that finished without."""
    site: Site | None = None
    """What must be the same here as at the driver's; None checks nothing."""
    gpus: float = 0.0
    """Share of a GPU, or GPUs."""
    too_small: tuple[float, ...] = ()
    """Shares of a GPU in which the unit ran out of memory before."""

    def to_json(self) -> str:
        """`from_json` is its inverse."""
        plain = {name: value for name, value in vars(self).items() if name not in ("unit", "parent", "site")}
        parent = self.parent.to_plain() if self.parent else None
        site = vars(self.site) if self.site else None
        return json.dumps(
            plain | {"paths": dict(self.paths), "unit": self.unit.to_plain(), "parent": parent, "site": site}
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        plain = json.loads(text)
        parent, site, too_small = plain.pop("parent"), plain.pop("site"), plain.pop("too_small")
        return cls(
            unit=Unit.from_plain(plain.pop("unit")),
            parent=Unit.from_plain(parent) if parent else None,
            site=Site(**site) if site else None,
            too_small=tuple(too_small),
            **plain,
        )


@dataclass(frozen=True)
class Outcome:
    """How a call to `run_unit` ended, where it didn't raise."""

    status: Literal["finished", "stopped", "busy", "failed", "parent_unreadable", "refused", "out_of_memory"]
    error: str = ""
    sure: bool = True
    """Of a failure: another node would fail as well."""

    def to_plain(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self)


def run_unit(job: Job, should_stop: Callable[[], bool]) -> Outcome:
    """Train a unit to its end, or report that it is done, held by another process, stopped, or that this node must not
    run it.

    Raises:
        Exception: whatever may be gone at another try: a full disk, a lost device. What can't be, such as a loss that
            isn't finite, is a record and an outcome "failed".
    """
    if job.site is not None and (found := faults(job.site, job.paths)):
        return Outcome("refused", "; ".join(found))
    ledger = Ledger.at(job.storage)
    unit = job.unit
    try:
        with ledger.claim(unit) as claim:
            if not claim:
                return Outcome("busy", f"{unit.name} is held by {ledger.owner(unit)}")
            done = ledger.done(unit)
            if done is not None and (done.tested or not job.test) and _readable(ledger.weights(unit, done)):
                return Outcome("finished")
            with ledger.workspace(unit, claim) as work:
                return _logged(job, ledger, claim, work, done, lambda: claim.lost() or should_stop())
    except ClaimLost as error:
        return Outcome("busy", f"{unit.name}: {error}")


def _logged(
    job: Job, ledger: Ledger, claim: Claim, work: Workspace, done: Record | None, should_stop: Callable[[], bool]
) -> Outcome:
    try:
        with _log_to(work.folder / LOG):
            try:
                return _train(job, ledger, claim, work, done, should_stop)
            except Exception:
                logger.exception("%s", job.unit.name)
                raise
    finally:
        work.save_log()


def _train(
    job: Job, ledger: Ledger, claim: Claim, work: Workspace, done: Record | None, should_stop: Callable[[], bool]
) -> Outcome:
    # Imported here, after Ray has set the threads that a worker may use; the driver needs none of it.
    import torch

    from ups_model.checkpoint import load_checkpoint
    from ups_model.train import NonFiniteLoss, RunOptions, train

    unit, folder, started = job.unit, work.folder, time.time()
    torch.set_num_threads(job.threads)
    if job.gpus:
        limit_memory(job.gpus)
    parent = None
    if job.parent is not None:
        record = ledger.done(job.parent)
        try:
            if record is None:
                raise ValueError(f"{job.parent.name} has no record")
            parent = ledger.weights(job.parent, record)
            load_checkpoint(parent)
        except ValueError as error:
            return Outcome("parent_unreadable", str(error))
    _discard_unreadable_weights(folder)
    trained_before = done is not None and (folder / "result.json").exists()
    options = RunOptions(
        out=folder,
        device=job.device,
        precision=job.precision,
        checkpoint_every=max(1, min(MOST_STEPS_BETWEEN, unit.config.optim.steps // CHECKPOINTS_PER_UNIT)),
        log_every=max(1, min(50, unit.config.optim.steps // 10)),
        cache=Path(job.cache),
        test=job.test or (done is not None and done.tested),  # What has been measured stays so.
    )
    paths = {name: Path(path) for name, path in job.paths.items()}
    try:
        result = train(unit.config, paths, options, parent, should_stop=should_stop, on_checkpoint=work.save)
    except (ValueError, NonFiniteLoss) as error:
        # The same again at every try: the configuration, the data or the numbers are at fault, not the machine.
        logger.exception("%s", unit.name)
        about = _about(job, started)
        claim.confirm()
        failure = Record(unit.key, "failed", error=traceback.format_exc().strip(), about=about)
        claim.insist(lambda: ledger.write(unit, failure))
        # Of anything but numbers, another node may think otherwise: its language model, its device.
        return Outcome("failed", str(error), sure=isinstance(error, NonFiniteLoss))
    except torch.OutOfMemoryError as error:
        logger.exception("%s", unit.name)
        torch.cuda.empty_cache()  # This process goes on to other units.
        return Outcome("out_of_memory", str(error).splitlines()[0])
    work.save()
    if result.status == "stopped":
        claim.check()
        return Outcome("stopped")
    assert result.key == unit.key, f"{unit.name}: planned as {unit.key}, trained as {result.key}"
    about = {**result.about, **_about(job, started)}
    if memory := [row["memory_mb"] for row in read_rows(folder / PROGRESS) if "memory_mb" in row]:
        about["peak_memory_mb"] = round(max(memory), 1)
    if done is not None and trained_before:
        about = _tested_later(done.about, about)
    checkpoint = f"best/{Path(result.checkpoint).name}"  # Relative: a storage may be mounted elsewhere tomorrow.
    claim.confirm()  # Nobody else may have begun to make this unit.
    record = Record(
        unit.key,
        "finished",
        result.metrics,
        result.routes,
        about,
        checkpoint,
        health=result.health,
        outcomes=result.outcomes,
    )
    claim.insist(lambda: ledger.write(unit, record))
    _keep_newest_checkpoint(work)
    return Outcome("finished")


def _keep_newest_checkpoint(work: Workspace) -> None:
    """A finished unit needs one checkpoint, should its chosen weights be damaged or its test split be measured later;
    while it runs, an older one stands by."""
    from ups_model.checkpoint import prune_checkpoints

    try:
        prune_checkpoints(work.folder / "checkpoints", 1)
        work.save()
    except OSError as error:  # The unit is done, and this is only space.
        logger.warning("older checkpoints are left on storage (%s)", error)


def _discard_unreadable_weights(folder: Path) -> None:
    """Forget chosen weights that can't be read, and whatever says that they were chosen, so that they are made again.

    A run that has finished makes them from its last checkpoint, without training; where they were chosen by validation,
    it goes on from the last checkpoint before that.
    """
    from ups_model.checkpoint import STATE
    from ups_model.stored import json_object

    best = {path.name: _readable(path) for path in (folder / "best").glob("step-*")}
    result = json_object(folder / "result.json")
    if result and result.get("status") == "finished" and not best.get(Path(result.get("checkpoint", "")).name):
        logger.warning("the weights of %s can't be read; making them again", folder.name)
        (folder / "result.json").unlink()
    for file in (folder / "checkpoints").glob(f"step-*/{STATE}"):
        chosen = json_object(file).get("best")  # Of an unreadable checkpoint nothing: resuming passes it over.
        if chosen and not best.get(f"step-{chosen['step']:08d}"):
            shutil.rmtree(file.parent)
    for name, readable in best.items():
        if not readable:
            shutil.rmtree(folder / "best" / name)


def _readable(weights: Path) -> bool:
    """Whether a checkpoint folder can be read whole."""
    from ups_model.checkpoint import load_checkpoint

    try:
        load_checkpoint(weights)
    except ValueError:
        return False
    return True


def _tested_later(trained: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Of a unit that was trained by one job and measured by a later one: times and places are those of training."""
    kept = ("commit", "versions", "host", "machine", "device", "precision", "started", "ended")
    found = {**trained, "tested": {name: measured[name] for name in kept if name in measured}}
    if measured["commit"] != trained["commit"]:
        found["commit"] = f"{trained['commit']}, measured at {measured['commit']}"
    return found


def _about(job: Job, started: float) -> dict[str, Any]:
    gpus = {"gpus": job.gpus} | ({"out_of_memory_at": list(job.too_small)} if job.too_small else {})
    return {
        "commit": job.site.commit if job.site else commit(),  # The same code; its copy here may be without a history.
        "versions": dict(versions()),
        "host": socket.gethostname(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "threads": job.threads,
        "started": round(started, 1),
        "ended": round(time.time(), 1),
    } | (gpus if job.gpus else {})


@contextmanager
def _log_to(file: Path) -> Iterator[None]:
    """Everything that the unit logs goes to its own file."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        logger.info("%s, process %d on %s", " ".join(sys.argv[:1]), os.getpid(), socket.gethostname())
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
