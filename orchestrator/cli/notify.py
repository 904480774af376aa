"""A user's own command that is told how a study goes: `--notify COMMAND`."""

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Literal

logger = logging.getLogger(__name__)

Outcome = Literal["finished", "stopped", "failed"]
"""How a call ended."""
Event = Outcome | Literal["unit failed", "progress"]
"""That, or what happened meanwhile."""
TIMEOUT_SECONDS = 60.0
"""A command that takes longer is ended."""


class Notifier:
    """Runs a command in the background, with what happened in its environment; whatever becomes of it, the study goes
    on.

    UPS_EVENT    an `Event`
    UPS_NAME     of the study's plan or the search
    UPS_STATUS   a line for people
    """

    def __init__(self, command: str, every_hours: float, name: str) -> None:
        """
        Args:
            command: for the shell; empty for none.
            every_hours: between events of progress; 0 for none.
            name: of the study's plan or the search.
        """
        self._command, self._every, self._name = command, 3600 * every_hours, name
        self._last = time.monotonic()
        self._running: list[threading.Thread] = []

    def tick(self, status: Callable[[], str]) -> None:
        """Tell of progress where that is due."""
        now = time.monotonic()
        if self._every and now - self._last >= self._every:
            self._last = now
            self.tell("progress", status())

    def tell(self, event: Event, status: str) -> None:
        """Start the command."""
        if not self._command:
            return
        told = {"UPS_EVENT": event, "UPS_NAME": self._name, "UPS_STATUS": status}
        thread = threading.Thread(target=self._run, args=({**os.environ, **told},), daemon=True)
        self._running = [one for one in self._running if one.is_alive()]
        self._running.append(thread)
        thread.start()

    def wait(self) -> None:
        """Until the commands that run have ended, or their time is over."""
        for thread in self._running:
            thread.join(TIMEOUT_SECONDS + 1)

    def _run(self, environment: dict[str, str]) -> None:
        event = environment["UPS_EVENT"]
        try:
            # Its own session: a Ctrl-C that stops the study doesn't take the message about that with it.
            process = subprocess.Popen(
                self._command,
                shell=True,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            try:
                _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                logger.warning("--notify: told of %r, the command ran for %.0f s and was ended", event, TIMEOUT_SECONDS)
                return
        except OSError as error:
            logger.warning("--notify: told of %r, the command could not be started (%s)", event, error)
            return
        if process.returncode:
            why = " ".join(errors.decode("utf-8", "replace").split())[-200:] or "it said nothing"
            logger.warning("--notify: told of %r, the command ended with %d (%s)", event, process.returncode, why)
