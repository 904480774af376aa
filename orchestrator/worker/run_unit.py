"""Runs one unit in a worker process: claims it, trains or resumes it, writes its record. Imports no Ray."""

import logging
import os
import platform
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO, cast

from orchestrator.project import Identity, Request, Result
from orchestrator.record import Record, encodable
from orchestrator.storage import Claim, ClaimLost, Workspace
from orchestrator.storage.backends.workspace import RESULT
from orchestrator.storage.ledger import LOG, PROGRESS, Ledger
from orchestrator.storage.source_check import (
    THEN,
    UNKNOWN,
    Begun,
    chain,
    is_trained_otherwise,
    needs_measuring,
    training_code,
)
from orchestrator.storage.trained import Twin, enter, enter_trunk, find_trunk, find_twin
from orchestrator.worker.environment import commit, faults, project_commit, versions
from orchestrator.worker.gpu_memory import limit_memory
from orchestrator.worker.job import Job, Outcome
from orchestrator.worker.pause import Pause
from orchestrator.worker.system_metrics import EnergyMeter, sampler
from orchestrator.worker.unit_folder import discard_unreadable_weights, keep_newest_checkpoint, readable, set_aside
from search_spaces.study import UPS
from ups_model.atomic import json_object
from ups_model.training.progress import forget_after, read_rows
from ups_model.training.run_folder import verify_checkpoint

logger = logging.getLogger(__name__)

MEASURED_AT = ", measured at "
SHRINK = 0.8
"""Of the memory planned for, at each try after one that ran out of it."""


def run_unit(job: Job, should_stop: Callable[[], bool]) -> Outcome:
    """Train a unit to its end, unless it is done, held by another process, stopped, or this node must not run it.

    Raises:
        Exception: what another try may not meet again, such as a full disk or a lost device. What it would, such as a
            loss that isn't finite, is a record and an outcome "failed".
    """
    unit = job.unit
    paths = {name: job.paths[name] for name in unit.trainer.sets(unit.config)}
    if job.site is not None and (reasons := faults(job.site, paths, unit.project)):
        return Outcome("refused", "; ".join(reasons))
    ledger = Ledger.at(job.storage)
    try:
        with ledger.claim(unit) as claim:
            if not claim:
                return Outcome("busy", f"{unit.name} is held by {ledger.owner(unit)}")
            done = ledger.done(unit)
            if done is not None and _is_complete(job, done) and _needs_no_weights(ledger, job, done):
                return Outcome("finished")
            with ledger.workspace(unit, claim) as work:
                return _Attempt(job, ledger, claim, work).run(done, lambda: claim.lost() or should_stop())
    except ClaimLost as error:
        return Outcome("busy", f"{unit.name}: {error}")


def _is_complete(job: Job, done: Record) -> bool:
    """Whether a finished record stays as it is."""
    if (job.test and not done.tested) or (is_trained_otherwise(done) and job.other_code != "accept"):
        return False
    return not needs_measuring(done, job.wanted)


def _needs_no_weights(ledger: Ledger, job: Job, done: Record) -> bool:
    """Whether a finished unit's weights are there, or nobody asks for them: of what was imported there are none."""
    return not job.remake or readable(ledger.weights(job.unit, done))


class OtherCode(ValueError):
    """Other code has trained a unit, or a part of it, and may not be mixed with the present one."""


@dataclass(frozen=True)
class _Attempt:
    """A try at a unit that this process has claimed."""

    job: Job
    ledger: Ledger
    claim: Claim
    work: Workspace
    started: float = field(default_factory=time.time)

    def run(self, done: Record | None, should_stop: Callable[[], bool]) -> Outcome:
        """Measure or train the unit; what is logged meanwhile goes to a file of its folder."""
        try:
            with _log_to(self.work.folder / LOG):
                try:
                    return self._run(done, should_stop)
                except Exception:
                    logger.exception("%s", self.job.unit.name)
                    raise
        finally:
            self.work.save_log()

    def _run(self, done: Record | None, should_stop: Callable[[], bool]) -> Outcome:
        # Imported here, after Ray has set the threads that a worker may use; the driver needs none of it.
        import torch

        from ups_model.training.finite import NonFiniteLoss

        job, unit = self.job, self.job.unit
        torch.set_num_threads(job.threads)
        if job.gpus and job.processes == 1:  # Others have whole GPUs, which this process leaves alone.
            limit_memory(job.gpus)
        parent = self.ledger.done(job.parent) if job.parent is not None else None
        try:
            done, codes = self._codes(done, parent)
        except OtherCode as error:
            return Outcome("failed", str(error))
        try:
            if (outcome := self._measure(done)) is not None:
                return outcome
            return self._train(done, parent, codes, should_stop)
        except (ValueError, NonFiniteLoss) as error:
            # The same again at every try: the configuration, the data or the numbers are at fault, not the machine.
            logger.exception("%s", unit.name)
            about = _about(job, self.started)
            self.claim.confirm()
            failure = Record(unit.key, "failed", error=encodable(traceback.format_exc().strip()), about=about)
            self.claim.insist(lambda: self.ledger.write(unit, failure))
            # Of anything but numbers, another node may think otherwise: its language model, its device.
            return Outcome("failed", encodable(str(error)), sure=isinstance(error, NonFiniteLoss))
        except torch.OutOfMemoryError as error:
            logger.exception("%s", unit.name)
            torch.cuda.empty_cache()  # This process goes on to other units.
            return Outcome("out_of_memory", str(error).splitlines()[0], sure=job.micro_batch != "auto")

    def _codes(self, done: Record | None, parent: Record | None) -> tuple[Record | None, list[str]]:
        """What counts as done, and which code will have trained the unit at its end.

        Raises:
            OtherCode: other code has trained it in part, and the policy is to refuse that.
        """
        job, folder = self.job, self.work.folder
        present = self._present.training
        expected = chain([*([training_code(parent)] if parent is not None else []), present])
        begun = list(Begun.read(folder).training)
        is_current = done is not None and not is_trained_otherwise(done)
        # A record without weights, as an import leaves it, says nothing of checkpoints beside it.
        if done is not None and is_current and (begun in ([], expected) or readable(folder / done.checkpoint)):
            return done, [present]
        if done is None and begun in ([], expected):
            return None, expected
        before = chain([training_code(done)] if done is not None and not is_current else begun)
        if job.other_code == "accept":
            return done, chain([*before, *expected])
        if job.other_code == "retrain":
            if begun != expected:  # Else an earlier call has set it aside and begun anew.
                logger.warning("%s was trained by other code (%s); training it again", job.unit.name, THEN.join(before))
                set_aside(self.ledger, self.claim, self.work, job.unit, done)
            return None, expected
        raise OtherCode(
            f"{job.unit.name} was trained by other code ({THEN.join(before)}, the present one is {present}); give "
            "--accept-other-code or --retrain"
        )

    @property
    def _present(self) -> Identity:
        """The present code of the unit's project."""
        return self.job.unit.trainer.identity()

    @property
    def _request(self) -> Request:
        # What was measured to fit has run out of memory later: of whole GPUs, shares get a whole one instead.
        memory_share = SHRINK ** sum(share >= 1 for share in self.job.too_small)
        return self.job.request(self.work.folder, memory_share=memory_share, on_checkpoint=self.work.save)

    def _measure(self, done: Record | None) -> Outcome | None:
        """Measure weights that are there already; None where the unit has to be trained."""
        job, unit = self.job, self.job.unit
        if done is not None:
            lacks_test = job.test and not done.tested
            weights = self.work.folder / done.checkpoint
            if not (lacks_test or needs_measuring(done, job.wanted)) or not done.checkpoint or not readable(weights):
                return None
            request = replace(self._request, test=job.test or done.tested)  # What has been measured stays so.
            result = unit.trainer.measure(request, weights, done.about, done.health)
            return self._leave(result, self._later(done.about), training_code(done))
        own = json_object(self.work.folder / RESULT)
        is_tested = any(name.startswith("test/") for name in own.get("metrics", {}))
        if own.get("key") == unit.key and own.get("status") == "finished" and (is_tested or not job.test):
            return None  # Only its record is missing.
        twin = find_twin(self.ledger, unit, job.other_code)
        if twin is None:
            return None
        try:
            with self.ledger.storage.local(twin.weights) as weights:
                return self._take(twin, weights)
        except ValueError as error:
            logger.warning("the weights of %s can't be taken (%s); training", twin.folder, error)
            return None

    def _take(self, twin: Twin, weights: Path) -> Outcome:
        """Measure another unit's weights as this one's."""
        code = training_code(twin.record)
        about = {
            **self._later(twin.record.about),
            "trained_by": twin.record.about.get("trained_by", twin.record.key),
            "train_seconds": 0.0,  # They are in the record of the other unit.
            "started": round(self.started, 1),
        }
        Begun(tuple(chain([code])), self._present.evaluation).write(self.work.folder)
        result = self.job.unit.trainer.measure(self._request, weights, about, twin.record.health)
        return self._leave(result, about | {"ended": round(time.time(), 1)}, code)

    def _later(self, trained: Mapping[str, Any]) -> dict[str, Any]:
        return _tested_later(trained, _about(self.job, self.started))

    def _train(
        self, done: Record | None, parent: Record | None, codes: list[str], should_stop: Callable[[], bool]
    ) -> Outcome:
        """Train the unit, go on with it, or make a record of a result that is there."""
        job, unit, folder = self.job, self.job.unit, self.work.folder
        start = None
        if job.parent is not None:
            try:
                if parent is None:
                    raise ValueError(f"{job.parent.name} has no record")
                start = self.ledger.weights(job.parent, parent)
                verify_checkpoint(start)
            except ValueError as error:
                return Outcome("parent_unreadable", str(error))
        discard_unreadable_weights(folder)
        # A run that was stopped has a result, too, which says nothing of how it will end.
        has_finished = json_object(folder / RESULT).get("status") == "finished"
        if not has_finished and not any((folder / "checkpoints").glob("*")):
            forget_after(folder / PROGRESS, 0)  # Of a run that was killed before it had anything to go on from.
        pause = Pause(folder, job.rung, sampler(folder / PROGRESS))
        if (value := pause.reached_before()) is not None:
            return Outcome("paused", value=value)
        request = replace(
            self._request,
            test=job.test or (done is not None and done.tested),
            parent=start,
            should_stop=lambda: pause.value is not None or should_stop(),
            sample=pause.sample,
            measure_at=(job.rung.step,) if job.rung else (),
        )
        evaluation = Begun.read(folder).evaluation if has_finished else ""
        evaluation = evaluation or self._present.evaluation
        Begun(tuple(codes), evaluation).write(folder)
        meter = EnergyMeter.start(job.gpus)
        with self._trunk() as trunk:
            result = unit.trainer.train(replace(request, trunk=trunk))
        if result.status == "stopped":
            self.work.save()
            self.claim.check()
            return Outcome("stopped") if pause.value is None else Outcome("paused", value=pause.value)
        about = {**result.about, **_about(job, self.started)}
        if (joules := meter.joules(result.about["train_seconds"])) is not None:
            about["energy_joules"] = joules
        if "trained_by" in result.about:  # Killed after it had measured another unit's weights.
            times = {"started": result.about["started"], "ended": round(time.time(), 1)}
            about = self._later(result.about) | times
        if memory := [row["memory_mb"] for row in read_rows(folder / PROGRESS) if "memory_mb" in row]:
            about["peak_memory_mb"] = round(max(memory), 1)
        if done is not None and has_finished:
            about = _tested_later(done.about, about)
        return self._leave(result, about, THEN.join(codes), evaluation, looked=done is None)

    @contextmanager
    def _trunk(self) -> Iterator[Path | None]:
        """The checkpoint of a shorter unit to begin from; None where there is none, or this one has begun."""
        place = "" if any((self.work.folder / "checkpoints").glob("*")) else find_trunk(self.ledger, self.job.unit)
        if not place:
            yield None
            return
        with self.ledger.storage.local(place) as trunk:
            if readable(trunk):
                yield trunk
            else:
                logger.warning("%s can't be read; training from the start", self.ledger.storage.where(place))
                yield None

    def _leave(
        self, result: Result, about: Mapping[str, Any], training: str, evaluation: str = "", looked: bool = False
    ) -> Outcome:
        """Put the record of a finished unit on storage; `looked` as for `trained.enter`."""
        unit = self.job.unit
        assert result.key == unit.key, f"{unit.name}: planned as {unit.key}, trained as {result.key}"
        self.work.save()
        source = {"training": training, "evaluation": evaluation or self._present.evaluation}
        about = {**result.about, **about, "config": result.about["config"], "source": source}
        if unit.project != UPS:
            about["project"] = unit.project
        checkpoint = f"best/{Path(result.checkpoint).name}"  # Relative: a storage may be mounted elsewhere tomorrow.
        self.claim.confirm()  # Nobody else may have begun to make this unit.
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
        self.claim.insist(lambda: self.ledger.write(unit, record))
        enter(self.ledger, unit, looked)
        enter_trunk(self.ledger, unit)
        keep_newest_checkpoint(self.work)
        return Outcome("finished")


def _tested_later(trained: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Of a unit that was trained by one job and measured by a later one: times and places are those of training."""
    kept = ("commit", "versions", "host", "machine", "device", "precision", "started", "ended")
    about = {**trained, "tested": {name: measured[name] for name in kept if name in measured}}
    trained_at = str(trained.get("commit", UNKNOWN)).partition(MEASURED_AT)[0]
    about["commit"] = trained_at
    if measured["commit"] != trained_at:
        about["commit"] += f"{MEASURED_AT}{measured['commit']}"
    return about


def _about(job: Job, started: float) -> dict[str, Any]:
    code = job.site.commit if job.site else commit()  # The same code; its copy here may be without a history.
    if job.unit.project != UPS and (own := project_commit(job.unit.project)).removesuffix("-dirty") not in code:
        code = f"{own}, orchestrator {code}"
    gpus = {"gpus": job.gpus} | ({"out_of_memory_at": list(job.too_small)} if job.too_small else {})
    return {
        "commit": code,
        "versions": dict(versions()),
        "host": socket.gethostname(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "threads": job.threads,
        "started": round(started, 1),
        "ended": round(time.time(), 1),
    } | (gpus if job.gpus else {})


class _Tee:
    """A text stream whose output goes to another one too, while that is open; in all else it is the stream."""

    def __init__(self, stream: TextIO, also: TextIO) -> None:
        self.stream, self.also = stream, also

    def write(self, text: str) -> int:
        if not self.also.closed:
            self.also.write(text)
            self.also.flush()
        return self.stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # Of a copy that is not filled yet.
            raise AttributeError(name)
        return getattr(self.stream, name)


@contextmanager
def _log_to(file: Path) -> Iterator[None]:
    """Everything that the unit logs and prints goes to its own file; prints go where they went before too."""
    handler = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        logger.info("%s, process %d on %s", " ".join(sys.argv[:1]), os.getpid(), socket.gethostname())
        tee = _Tee(sys.stdout, cast(TextIO, handler.stream)) if sys.stdout else None
        with redirect_stdout(cast(TextIO | None, tee)):
            yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
