"""The Ray that a call starts for itself: where its files lie, how it ends, what follows when it dies."""

import ctypes
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import worker

from orchestrator import process

logger = logging.getLogger(__name__)

SOCKET = "/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
"""The longest path of a socket in Ray's folder."""
MAX_SOCKET_PATH = 107 if sys.platform.startswith("linux") else 103
"""Bytes; sun_path in unix(7)."""
MAX_FOLDER = MAX_SOCKET_PATH - len(SOCKET)
SHORT_FOLDERS = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))
KILL_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.05
DEATH_TIMEOUT_SECONDS = 3.0
"""After what a dying Ray takes with it has failed, until its raylet is dead too."""
MAX_RESTARTS = 3
"""Of Ray, in one call."""
VITAL = ("gcs_server", "raylet")
"""Processes without which Ray is dead. The raylet ends when one of its agents does."""
PR_SET_CHILD_SUBREAPER = 36
"""prctl(2)."""

_private_folders: list[str] = []
_watch: "_Watch | None" = None


def start() -> None:
    """Start Ray; in the process of a command, also watch over it.

    Raises:
        ValueError: Ray doesn't start on this machine.
    """
    place = _folder()
    if process.is_command:
        process.before_end[:0] = [kill_descendants]
        _adopt_orphans()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address="local", logging_level=logging.ERROR, log_to_driver=False, _temp_dir=place)
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if process.is_command and process.restarts_so_far() < MAX_RESTARTS:
            logger.warning("Ray did not start (%s); starting it again", reason)
            process.begin_anew()
        raise ValueError(
            f"Ray does not start on this machine ({reason}); its logs are in {place}/session_latest/logs, and "
            "RAY_TMPDIR names another folder for its files"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own unwinds from wherever the process is.
    if process.is_command:
        global _watch
        _watch = _Watch()


def stop_watching() -> None:
    """Units have ended: from here on Ray may die. Begins anew if it has died just now."""
    global _watch
    if _watch is not None:
        watch, _watch = _watch, None
        watch.close()


def wait_for_restart() -> None:
    """Something has failed that fails with Ray: if Ray is about to die, this doesn't return."""
    if _watch is not None:
        _watch.join(DEATH_TIMEOUT_SECONDS)


def remove_files() -> None:
    """Delete the private folder, if there is one; Ray has ended."""
    while _private_folders:
        shutil.rmtree(_private_folders.pop(), ignore_errors=True)


def kill_descendants() -> None:
    """SIGKILL to all that this process has started, however deep; returns when they are gone.

    Raises:
        TimeoutError: some can't be killed.
    """
    alive: list[psutil.Process] = []
    for _ in range(3):  # A raylet may have been starting workers.
        descendants = psutil.Process().children(recursive=True)
        if not descendants:
            return
        for one in descendants:
            with suppress(psutil.Error):
                one.kill()
        _, alive = psutil.wait_procs(descendants, timeout=KILL_TIMEOUT_SECONDS)
    if alive:
        raise TimeoutError(f"processes {', '.join(str(one.pid) for one in alive)} can't be killed")


class _Watch:
    """Begins the call anew when Ray dies. Ray's own code would end this process instead: at once without a word, or
    after a minute; so it can't be started again in this process."""

    def __init__(self) -> None:
        self._over = threading.Event()
        # Private: it holds Ray's processes, for which there is no call.
        self._node: Any = worker._global_node
        # Signals are here before their handlers run, which they do when the main thread comes back from Ray's code.
        self._signals, self._sender = socket.socketpair()
        for end in (self._signals, self._sender):
            end.setblocking(False)
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, name="watch over Ray", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it, after a last look."""
        self._over.set()
        self._thread.join()
        signal.set_wakeup_fd(-1)
        self._look()

    def join(self, seconds: float) -> None:
        """Wait for the end of the process."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            self._look()

    def _look(self) -> None:
        dead = [name for name, _ in self._node.dead_processes() if name in VITAL]
        if dead and not process.is_ending:
            self._replace(dead[0])

    def _replace(self, dead: str) -> None:
        asked_to_stop = False
        with suppress(BlockingIOError):
            asked_to_stop = any(number in (signal.SIGINT, signal.SIGTERM) for number in self._signals.recv(4096))
        number = process.restarts_so_far() + 1
        if asked_to_stop:
            logger.error("Ray ended before all units had saved a checkpoint; the same command goes on from here")
        elif number > MAX_RESTARTS:
            logger.error("Ray has died %d times (%s); the same command goes on from here", number, dead)
        else:
            logger.warning(
                "Ray has died (%s); starting it again (%d of %d), and units go on from their newest checkpoints",
                dead, number, MAX_RESTARTS,
            )  # fmt: skip
        logging.disable()  # What Ray and the units say of it meanwhile is no news.
        try:
            kill_descendants()
        except TimeoutError as error:  # They may still write.
            os.write(2, f"{error}; end them, and the same command goes on from here\n".encode())
            process.end(1)
        if asked_to_stop or number > MAX_RESTARTS:
            process.end(1)
        process.begin_anew()


def _folder() -> str:
    """Ray's folder: its own default, or a private one where the default can't be used.

    Raises:
        ValueError: RAY_TMPDIR can't be used, or there is no folder that can.
    """
    usual = Path(get_default_ray_temp_dir())
    fault = _fault(usual)
    if not fault:
        return str(usual)
    way = f"name a folder of at most {MAX_FOLDER - len('/ray')} ASCII characters that can be written to"
    if "RAY_TMPDIR" in os.environ:
        raise ValueError(f"RAY_TMPDIR {os.environ['RAY_TMPDIR']}: Ray can't use it, {usual} {fault}; {way}")
    for place in SHORT_FOLDERS:
        with suppress(OSError):
            _private_folders.append(tempfile.mkdtemp(prefix="ray-", dir=place))
            process.before_end.append(remove_files)
            logger.info("Ray's files go to %s: %s %s", _private_folders[-1], usual, fault)
            return _private_folders[-1]
    raise ValueError(
        f"Ray has no folder for its files: {usual} {fault}, and {', '.join(map(str, SHORT_FOLDERS))} can't be written "
        f"to; set RAY_TMPDIR: {way}"
    )


def _fault(folder: Path) -> str:
    """Why Ray can't have its files in a folder; empty where it can."""
    if not str(folder).isascii():
        return "has characters that aren't ASCII"
    if len(str(folder)) > MAX_FOLDER:
        return f"has more than {MAX_FOLDER} characters"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"can't be written to ({error.strerror})"


def _adopt_orphans() -> None:
    """What a dead raylet leaves becomes this process's own, and can be found. On Linux alone; elsewhere workers end by
    themselves when their raylet is gone."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
