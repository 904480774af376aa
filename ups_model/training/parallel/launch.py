"""One run in several processes of this machine, started and watched by the caller's process.

The caller computes nothing. It hears what the processes log and measure, keeps their checkpoints, tells them to stop,
and ends them all when one fails: a process whose peer is gone may wait for it for hours.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from ups_model.config import Config
from ups_model.training.options import RunOptions
from ups_model.training.result import Result

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
BLAME_SECONDS = 5.0
"""After a first failure, for the other processes to tell theirs: which came first is not which is the cause."""
PR_SET_PDEATHSIG = 1
"""Of Linux' prctl: the signal that a process gets when its parent ends."""


class ProcessDied(RuntimeError):
    """A process of a run ended without a word: it was killed, or its libraries crashed."""


@dataclass(frozen=True)
class _Task:
    """What a process of a run is given."""

    rank: int
    processes: int
    threads: int
    rendezvous: str
    parent_process: int
    config: Config
    paths: Mapping[str, Path]
    options: RunOptions
    parent: Path | None


def train_in_processes(
    processes: int,
    config: Config,
    paths: Mapping[str, Path],
    options: RunOptions,
    parent: Path | None = None,
    on_metrics: Callable[[int, dict[str, float]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_checkpoint: Callable[[], None] | None = None,
    threads: int = 1,
) -> Result:
    """`training.run.train` in several processes: on a GPU each, else on the CPU. The result is that of one process, to
    rounding; a run may be resumed with another number of them. Functions are called in the caller's process; the run
    waits for them.

    Args:
        threads: of each process.

    Raises:
        ProcessDied: one of them ended without a word; the others were ended too.
        Exception: what `train` raises, or `on_metrics` or `on_checkpoint`.
    """
    context = multiprocessing.get_context("spawn")  # Neither threads nor CUDA survive a fork.
    stop = context.Event()
    ranks: list[tuple[BaseProcess, Connection]] = []
    with tempfile.TemporaryDirectory(prefix="ups-processes-") as folder:
        try:
            for rank in range(processes):
                ours, theirs = context.Pipe()
                task = _Task(
                    rank, processes, threads, f"file://{folder}/rendezvous", os.getpid(), config, paths, options, parent
                )
                process: BaseProcess = context.Process(
                    target=_run, args=(task, theirs, stop), name=f"rank {rank}", daemon=True
                )
                # Blocked signals stay blocked in the new process: the parent says when to stop, from the first moment.
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
                try:
                    process.start()
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                theirs.close()
                ranks.append((process, ours))
            return _watch(ranks, stop, on_metrics, should_stop, on_checkpoint)
        finally:
            for process, connection in ranks:
                process.kill()
                process.join()
                connection.close()


def _watch(
    ranks: list[tuple[BaseProcess, Connection]],
    stop: Event,
    on_metrics: Callable[[int, dict[str, float]], None] | None,
    should_stop: Callable[[], bool] | None,
    on_checkpoint: Callable[[], None] | None,
) -> Result:
    """Serve the processes until the first has sent the result, and all have ended well."""
    open_ends = {connection: rank for rank, (_, connection) in enumerate(ranks)}
    results: dict[int, Result] = {}
    failures: dict[int, BaseException] = {}
    deadline = float("inf")
    while open_ends and time.monotonic() < deadline:
        if should_stop is not None and not stop.is_set() and should_stop():
            stop.set()
        for connection in wait(list(open_ends), POLL_SECONDS):
            assert isinstance(connection, Connection)
            rank = open_ends[connection]
            try:
                kind, value = connection.recv()
            except (EOFError, ConnectionResetError):
                del open_ends[connection]
                process = ranks[rank][0]
                process.join()
                if rank not in results and rank not in failures:
                    failures[rank] = ProcessDied(
                        f"process {rank} of {len(ranks)} ended with {_ending(process.exitcode)}; the newest checkpoint "
                        "is kept"
                    )
                continue
            except Exception as error:  # Sent, but not to be made again here.
                kind, value = "failure", RuntimeError(f"process {rank} of {len(ranks)} failed ({error})")
            if kind == "log":
                logging.getLogger(value.name).handle(value)
            elif kind == "checkpoint":
                if on_checkpoint is not None:
                    on_checkpoint()
                connection.send(None)
            elif kind == "metrics":
                if on_metrics is not None:
                    on_metrics(*value)
                connection.send(None)
            elif kind == "result":
                results[rank] = value
            else:
                failures[rank] = value
        if failures:
            deadline = min(deadline, time.monotonic() + BLAME_SECONDS)
    if failures:
        raise _cause(failures)
    return results[0]


def _cause(failures: Mapping[int, BaseException]) -> BaseException:
    """Of several failures the one that the others follow from: a peer that is gone is a RuntimeError of the others'."""
    return min(failures.values(), key=lambda error: type(error) is RuntimeError)


def _ending(status: int | None) -> str:
    return f"signal {signal.Signals(-status).name}" if status is not None and status < 0 else f"status {status}"


def _run(task: _Task, connection: Connection, stop: Event) -> None:
    """What each process does."""
    _end_with_parent(task.parent_process)
    os.environ |= {"RANK": str(task.rank), "LOCAL_RANK": str(task.rank), "WORLD_SIZE": str(task.processes)}
    lock = threading.Lock()

    def send(kind: str, value: Any) -> None:
        with lock:
            connection.send((kind, value))

    root = logging.getLogger()
    root.addHandler(_Sender(send))
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    # Imported here: spawning imports this module before anything is set.
    import torch

    from ups_model.training.parallel.group import RENDEZVOUS
    from ups_model.training.run import train

    os.environ[RENDEZVOUS] = task.rendezvous
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # One machine; its name may stand for no interface.
    torch.set_num_threads(task.threads)

    def tell(kind: str, value: Any = None) -> None:
        """And wait until the parent has done with it."""
        send(kind, value)
        connection.recv()

    def measured(step: int, metrics: dict[str, float]) -> None:
        tell("metrics", (step, metrics))

    try:
        result = train(
            task.config, task.paths, task.options, task.parent, measured, stop.is_set, lambda: tell("checkpoint")
        )
        send("result", result)
    except Exception as error:
        # The parent's traceback ends where it heard of the error.
        error.add_note(f"In process {task.rank} of {task.processes}: {traceback.format_exc()}")
        try:
            send("failure", error)
        except Exception:  # One that can't be sent.
            send("failure", RuntimeError(f"{type(error).__name__}: {error}"))
        connection.close()
        os._exit(1)  # Not through a group whose other processes may wait for this one.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    connection.close()


def _end_with_parent(parent: int) -> None:
    """End this process when its parent ends, however it does: nobody else would, and the unit is free then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        return

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


class _Sender(QueueHandler):
    """Sends log records to the parent."""

    def __init__(self, send: Callable[[str, Any], None]) -> None:
        super().__init__(None)  # type: ignore[arg-type]  # `enqueue` needs none
        self._send = send

    def enqueue(self, record: logging.LogRecord) -> None:
        self._send("log", record)
