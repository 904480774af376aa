"""What one unit does, in a process of Ray's: take it, train it or go on with it, leave a record. Imports no Ray."""

import importlib.metadata
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
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from orchestrator.commit import commit
from orchestrator.ledger import LOG, Ledger, Record
from orchestrator.plan import Unit
from ups_model import __version__

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

    def to_json(self) -> str:
        """`from_json` is its inverse."""
        plain = {name: value for name, value in vars(self).items() if name not in ("unit", "parent")}
        parent = self.parent.to_plain() if self.parent else None
        return json.dumps(plain | {"paths": dict(self.paths), "unit": self.unit.to_plain(), "parent": parent})

    @classmethod
    def from_json(cls, text: str) -> Self:
        plain = json.loads(text)
        parent = Unit.from_plain(plain.pop("parent")) if plain["parent"] else plain.pop("parent")
        return cls(unit=Unit.from_plain(plain.pop("unit")), parent=parent, **plain)


@dataclass(frozen=True)
class Outcome:
    """How a call to `run_unit` ended, where it didn't raise."""

    status: Literal["finished", "stopped", "busy", "failed", "parent_unreadable"]
    error: str = ""

    def to_plain(self) -> dict[str, str]:
        """JSON data."""
        return asdict(self)


def run_unit(job: Job, should_stop: Callable[[], bool]) -> Outcome:
    """Train a unit to its end, or report that it is done, held by another process, or stopped.

    Raises:
        Exception: whatever may be gone at another try: a full disk, a lost device. What can't be, such as a loss that
            isn't finite, is a record and an outcome "failed".
    """
    ledger = Ledger(Path(job.storage))
    unit = job.unit
    with ledger.claim(unit) as held:
        if not held:
            return Outcome("busy", f"{unit.name} is held by {ledger.owner(unit)}")
        done = ledger.finished(unit)
        if done is not None and (done.tested or not job.test) and _readable(ledger.weights(unit, done)):
            return Outcome("finished")
        with _log_to(ledger.folder(unit) / LOG):
            try:
                return _train(job, ledger, done, should_stop)
            except Exception:
                logger.exception("%s", unit.name)
                raise


def _train(job: Job, ledger: Ledger, done: Record | None, should_stop: Callable[[], bool]) -> Outcome:
    # Imported here, after Ray has set the threads that a worker may use; the driver needs none of it.
    import torch

    from ups_model.checkpoint import load_checkpoint
    from ups_model.train import NonFiniteLoss, RunOptions, train

    unit, folder, started = job.unit, ledger.folder(job.unit), time.time()
    torch.set_num_threads(job.threads)
    parent = None
    if job.parent is not None:
        record = ledger.finished(job.parent)
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
        result = train(unit.config, paths, options, parent, should_stop=should_stop)
    except (ValueError, NonFiniteLoss) as error:
        # The same again at every try: the configuration, the data or the numbers are at fault, not the machine.
        logger.exception("%s", unit.name)
        about = _about(job, started)
        ledger.write(unit, Record(unit.key, "failed", error=traceback.format_exc().strip(), about=about))
        return Outcome("failed", str(error))
    if result.status == "stopped":
        return Outcome("stopped")
    assert result.key == unit.key, f"{unit.name}: planned as {unit.key}, trained as {result.key}"
    about = {**result.about, **_about(job, started)}
    if memory := [row["memory_mb"] for row in ledger.progress(unit) if "memory_mb" in row]:
        about["peak_memory_mb"] = round(max(memory), 1)
    if done is not None and trained_before:
        about = _tested_later(done.about, about)
    checkpoint = f"best/{Path(result.checkpoint).name}"  # Relative: a storage may be mounted elsewhere tomorrow.
    ledger.write(unit, Record(unit.key, "finished", result.metrics, result.routes, about, checkpoint))
    return Outcome("finished")


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
    return {
        "commit": commit(),
        "versions": _versions(),
        "host": socket.gethostname(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "threads": job.threads,
        "started": round(started, 1),
        "ended": round(time.time(), 1),
    }


@cache
def _versions() -> dict[str, str]:
    # This package's own from its source: it may run without being installed, on a cluster that was sent the folder.
    own = {"python": platform.python_version(), "ups-ablate": __version__}
    return own | {name: importlib.metadata.version(name) for name in ("torch", "numpy", "transformers", "ray")}


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
