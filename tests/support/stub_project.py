"""A project whose training takes no time: ten steps, weights chosen at the fourth, files as `ups_model` leaves them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from orchestrator.planning.plan import Unit
from orchestrator.project import Identity, Project
from orchestrator.worker.job import Job
from ups_model.atomic import json_object, write_atomic
from ups_model.training.progress import append_row, forget_after
from ups_model.training.run_folder import prune_checkpoints, verify_checkpoint, write_checkpoint

STEPS, CHOSEN = 10, 4


@dataclass(frozen=True)
class Settings:
    seed: int = 0

    def canonical(self) -> dict[str, Any]:
        return {"seed": self.seed}


@dataclass
class Stub:
    """What a test changes lies in its fields: the code, the machine, and a step before which the process dies."""

    training: str = "T1"
    evaluation: str = "E1"
    machine: str = "machine A"
    dies_before: int = 0
    steps_run: list[int] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    """Which code has made the weights that units started from."""
    name = "stub"

    def identity(self) -> Identity:
        return Identity(self.training, self.evaluation)

    def sets(self, settings: Settings) -> tuple[str, ...]:
        return ()

    def steps(self, settings: Settings) -> int:
        return STEPS

    def train(self, request: Any) -> Any:
        folder: Path = request.folder
        done = json_object(folder / "result.json")
        if done.get("status") == "finished":
            return SimpleNamespace(**done)
        if request.parent is not None:
            self.parents.append((request.parent / "made_by").read_text())
        checkpoints = sorted((folder / "checkpoints").glob("step-*"))
        step = verify_checkpoint(checkpoints[-1])["step"] if checkpoints else 0
        if checkpoints:
            forget_after(folder / "progress.jsonl", step)
        is_stopped = False
        while step < STEPS and not is_stopped:
            step += 1
            if step == self.dies_before:
                raise KeyboardInterrupt
            self.steps_run.append(step)
            measured = {"validation/stub/m": float(step)} if step in request.measure_at else {}
            append_row(folder / "progress.jsonl", {"step": step, **measured})
            request.sample(step, {})
            if step == CHOSEN:
                self._save(folder / "best", step, {"key": request.key})
            is_stopped = step < STEPS and request.should_stop()
            if step % 2 == 0 or is_stopped:
                chosen = {"step": CHOSEN} if step >= CHOSEN else None
                self._save(folder / "checkpoints", step, {"key": request.key, "best": chosen})
                prune_checkpoints(folder / "checkpoints", 2)
                request.on_checkpoint()
        metrics = {} if is_stopped else {"validation/stub/m": 1.0} | ({"test/stub/m": 1.0} if request.test else {})
        result = {
            "status": "stopped" if is_stopped else "finished", "key": request.key, "metrics": metrics, "routes": {},
            "checkpoint": "" if is_stopped else str(folder / "best" / f"step-{CHOSEN:08d}"),
            "about": {"config": request.settings.canonical(), "train_seconds": 1.0, "device": self.machine},
            "health": {}, "outcomes": "",
        }  # fmt: skip
        write_atomic(folder / "result.json", json.dumps(result))
        return SimpleNamespace(**result)

    def measure(self, request: Any, weights: Path, about: Any, health: Any) -> Any:
        shutil.copytree(weights, request.folder / "best" / weights.name, dirs_exist_ok=True)
        about = {"config": request.settings.canonical(), **about}
        return SimpleNamespace(
            key=request.key, metrics={"test/stub/m": 1.0}, routes={}, checkpoint=str(weights), about=about,
            health=health, outcomes="",
        )  # fmt: skip

    def _save(self, folder: Path, step: int, state: dict[str, Any]) -> None:
        with write_checkpoint(folder, step, state) as draft:
            (draft / "made_by").write_text(self.training)


for _name in vars(Project):  # What no test of it asks for.
    if not _name.startswith("_") and not hasattr(Stub, _name):
        setattr(Stub, _name, lambda *_: None)

STUB = Stub()
"""The one of the test that runs."""


def unit(seed: int = 0, parent: str = "") -> Unit:
    return Unit(f"{seed:016x}", "alone", "", Settings(seed), parent, "base", project=f"{__name__}:STUB")


def job(storage: Any, of: Unit, **more: Any) -> Job:
    return Job(of, None, str(storage), {}, "", 1, "cpu", "fp32", **more)


def stop_before(step: int) -> Any:
    """A `should_stop` that is asked once a step and says yes at this one."""
    asked = iter(range(1, step + 1))
    return lambda: next(asked, step) == step
