"""Servers as child processes that end with this one, however this one ends."""

import ctypes
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from signal import Signals
from typing import Any

START_TIMEOUT_SECONDS, STOP_TIMEOUT_SECONDS = 180.0, 30.0
PR_SET_PDEATHSIG = 1


class Children(ExitStack):
    """Servers, each in a session of its own, ended with the block; when we are killed, the kernel ends them."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.processes: dict[Path, subprocess.Popen[bytes]] = {}

    def start(
        self, name: str, command: list[Any], ready: Callable[[], bool], signals: tuple[Signals, Signals], **options: Any
    ) -> None:
        """Start a server that logs to NAME.log, and wait until it is ready; ValueError where one ends before that.

        At the end the server gets the first of `signals`; its process group, which may outlive it, the second.
        """
        prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux alone has it.
        options["preexec_fn"] = (lambda: prctl(PR_SET_PDEATHSIG, int(signals[0]))) if prctl else None
        log = self.folder / f"{name}.log"
        if log.exists():
            log.replace(f"{log}.1")
        with log.open("xb") as stream:
            options |= {"cwd": self.folder, "stdin": subprocess.DEVNULL, "stdout": stream, "stderr": stream}
            self.processes[log] = process = subprocess.Popen(command, start_new_session=True, **options)
        self.callback(_end, process, *signals)
        late = f"{name} didn't answer in {START_TIMEOUT_SECONDS:g} s; see {log}"
        wait_until(lambda: self.check() and ready(), START_TIMEOUT_SECONDS, late)

    def check(self) -> bool:
        """True; ValueError where a server has ended."""
        for log, process in self.processes.items():
            if process.poll() is not None:
                last_lines = "\n".join(log.read_text("utf-8", "replace").splitlines()[-8:])
                raise ValueError(
                    f"{log.stem} ended with status {process.returncode}; the other is ended, too. The same command "
                    f"starts them again. {log} says:\n{last_lines}"
                )
        return True


def _end(process: subprocess.Popen[bytes], first: Signals, last: Signals) -> None:
    try:
        process.send_signal(first)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_SECONDS)
    finally:  # Also when interrupted meanwhile.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, last)
        process.wait()


def wait_until(ready: Callable[[], bool], timeout: float, failure: str) -> None:
    """Check again and again; ValueError with a message after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > end:
            raise ValueError(failure)
        time.sleep(0.1)
