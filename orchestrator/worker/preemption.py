"""Preemption notices: a file that a batch system makes, or a spot notice of EC2. Imports no Ray.

A unit that sees one saves a checkpoint and ends; the driver runs it elsewhere. `orchestrator.execution.driver` handles
the other notice, SIGTERM to a worker.
"""

import json
import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

logger = logging.getLogger(__name__)

FILE = "UPS_PREEMPTION_FILE"
"""Names a file that a batch system's signal handler, or a pod's preStop hook, makes when the machine has to be left."""
SPOT = "UPS_SPOT_NOTICE"
"""`ec2`: ask the instance's metadata service, which tells two minutes before a spot instance is taken away."""
ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
"""Another address of that service; the name is AWS's."""
DEFAULT_ENDPOINT = "http://169.254.169.254"
PERIOD_SECONDS = 5.0
"""As AWS recommends."""
METADATA_TIMEOUT_SECONDS = 2.0


class Notice:
    """Polls in a thread; `reason` says whether there has been a notice. One per process."""

    def __init__(self, sources: list[Callable[[], str]], period: float = PERIOD_SECONDS) -> None:
        self.reason = ""
        """Empty for none."""
        self._sources, self._period, self._complained = sources, period, False
        self._stop = threading.Event()
        if sources:
            threading.Thread(target=self._watch, name="notices", daemon=True).start()

    def _watch(self) -> None:
        while not self.reason and not self._stop.is_set():
            for source in self._sources:
                try:
                    self.reason = self.reason or source()
                except Exception as error:  # No answer is no notice; the next poll asks again.
                    level = logging.DEBUG if self._complained else logging.WARNING
                    self._complained = True
                    logger.log(level, "nobody tells whether this machine is about to go (%s); asked again", error)
            self._stop.wait(self._period)
        if self.reason:
            logger.warning("this machine is about to go (%s); the unit saves a checkpoint", self.reason)

    def close(self) -> None:
        """Ask no more."""
        self._stop.set()


def configured(environment: Mapping[str, str] | None = None, period: float = PERIOD_SECONDS) -> Notice:
    """A notice with the sources that environment variables name.

    Raises:
        ValueError: the variable UPS_SPOT_NOTICE has an unknown value.
    """
    variables = os.environ if environment is None else environment
    sources: list[Callable[[], str]] = []
    if name := variables.get(FILE):
        file = Path(name)
        sources.append(lambda: f"{file} is there" if file.exists() else "")
    if provider := variables.get(SPOT):
        if provider != "ec2":
            raise ValueError(f"{SPOT} must be ec2, got {provider!r}; leave it out for machines that give no notice")
        endpoint = variables.get(ENDPOINT) or DEFAULT_ENDPOINT
        sources.append(lambda: ec2_notice(endpoint))
    return Notice(sources, period)


def ec2_notice(endpoint: str = DEFAULT_ENDPOINT) -> str:
    """The spot interruption notice of this instance, empty for none (IMDSv2).

    Raises:
        OSError: the service does not answer.
    """
    token = _ask(f"{endpoint.rstrip('/')}/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "300"})
    headers = {"X-aws-ec2-metadata-token": token} if token else {}
    notice = _ask(f"{endpoint.rstrip('/')}/latest/meta-data/spot/instance-action", "GET", headers)
    if not notice:
        return ""
    action = json.loads(notice)
    return f"EC2 will {action.get('action', 'stop')} it at {action.get('time', 'an unknown time')}"


def _ask(address: str, method: str, headers: dict[str, str]) -> str:
    """An answer's text; empty for "not found", which is how the service says that there is no notice."""
    # No proxy: the address is the instance's own.
    request = urllib.request.Request(address, method=method, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=METADATA_TIMEOUT_SECONDS) as answer:
            return str(answer.read(), "utf-8")
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return ""
        raise
