"""The worker's side of Tune: a trainable that runs one unit, and the bell that tells all workers to stop."""

import copy
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import FrameType
from typing import Any

import ray
from ray import tune

from orchestrator.record import encodable
from orchestrator.worker.job import Job
from orchestrator.worker.preemption import Notice, configured
from orchestrator.worker.run_unit import run_unit

RETRY_PAUSE_SECONDS = 2.0
EXIT_GRACE_SECONDS = 2.0
"""After SIGTERM, when a worker's unit has ended, until its process does."""


def train_job(text: str, should_stop: Callable[[], bool]) -> Mapping[str, Any]:
    """What a worker does by default: train the unit."""
    return asdict(run_unit(Job.from_json(text), should_stop))


class UnitTrainable(tune.Trainable):
    """One unit a trial, in one step. The process goes on to the next unit: a unit takes nothing from the global state
    of its process, which a test holds it to, and starting a process costs seconds."""

    _leaving = False
    """Whether the process ends in a moment."""

    def setup(self, config: dict[str, Any], bell: Any, work: Any) -> None:  # type: ignore[override]
        self._config, self._bell, self._work = config, bell, work
        self._node = ray.get_runtime_context().get_node_id()
        # Answers when the driver says stop; broken when the driver is gone, which means stop as well.
        self._rung = bell.heard.remote()
        self._notice: Notice = configured()
        self._told = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._tell)  # Ray's own handler ends the process at once.

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        if self._should_stop():  # Before a model is built; and asked to end while it had no unit, it still has to.
            if self._leaving:  # Its process ends meanwhile; else it would be given the same unit again at once.
                time.sleep(2 * EXIT_GRACE_SECONDS)
            self._leave_if_told()
            return {"status": "stopped", "done": True, "node": self._node, "notice": self._notice.reason}
        self._bell.begins.remote(self._config["try"], self._node)
        try:
            result = {**self._work(self._config["job"], self._should_stop), "done": True, "node": self._node}
        except OSError:
            time.sleep(RETRY_PAUSE_SECONDS)  # A full disk or a lost mount may come back.
            raise
        except Exception as error:  # Of a training function's libraries, of any kind.
            if _arrives(error):
                raise
            text = encodable(f"{type(error).__name__}: {error}")
            raise RuntimeError(text).with_traceback(error.__traceback__) from None
        self._leave_if_told()
        return result | {"notice": self._notice.reason}

    def _leave_if_told(self) -> None:
        if self._told:
            self._leaving = True
            # Asked to end, and not that its machine is about to go; that Ray says by itself. Not at once: the result
            # must reach the driver.
            threading.Timer(EXIT_GRACE_SECONDS, os._exit, (0,)).start()

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}  # A unit's checkpoints are its own, in the ledger.

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        pass

    def cleanup(self) -> None:
        self._notice.close()

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def _should_stop(self) -> bool:
        return self._told or bool(self._notice.reason) or bool(ray.wait([self._rung], timeout=0)[0])


def _arrives(error: Exception) -> bool:
    """Whether Ray can take an exception to the driver: not one whose constructor doesn't take what it was made of, or
    whose text has half a character."""
    try:
        copy.copy(error)  # Made of its arguments, as it is again on the driver.
        str(error).encode("utf-8")
    except Exception:
        return False
    return True


def trainable_with(bell: Any, work: Any) -> type[UnitTrainable]:
    """A trainable with a bell and a work. Ray's `tune.with_parameters` would put them into its object store, and when
    the raylet dies, Ray ends the process of whoever owns such objects, while it tries to get them back."""

    class BoundTrainable(UnitTrainable):
        def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
            super().setup(config, bell, work)

    return BoundTrainable


@ray.remote
class StopBell:
    """Tells all workers at once that they should stop, and the driver which tries began, and where."""

    def __init__(self) -> None:
        import asyncio

        self._event, self._more = asyncio.Event(), asyncio.Event()
        self._node: dict[str, str] = {}
        self._fresh: list[str] = []

    async def ring(self) -> None:
        self._event.set()

    async def heard(self) -> bool:
        return await self._event.wait()

    async def begins(self, name: str, node: str) -> None:
        self._node[name] = node
        self._fresh.append(name)
        self._more.set()

    async def news(self) -> list[str]:
        """Tries that have begun since it was last asked; answers when there are any."""
        await self._more.wait()
        self._more.clear()
        fresh, self._fresh = self._fresh, []
        return fresh

    async def ended(self, name: str) -> str:
        """Where a try began; empty if it never did. Forgets it."""
        return self._node.pop(name, "")
