"""Ctrl-C at moments spread over the start of a study, from the start of its process until units run.

    python benchmarks/interrupts.py [COUNT]

Needs Linux. Prints for each SIGINT the exit status, the lines that aren't the study's own and the processes left. Exit
status 0 only if each call ended with status 130 and one line, or, once units ran, with status 1 and what has to follow.
"""

import re
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.drivers import Bench, Driver, session_of

STEPS = 4000
"""Of a unit, so that none finishes before its interrupt."""
GRACE_SECONDS = 1.0
"""For the kernel, between the end of the driver and the look at what is left of it."""
EXIT_TIMEOUT_SECONDS = 120.0
PROGRESS_LINE = re.compile(r"\d\d:\d\d:\d\d ")


@dataclass(frozen=True)
class Interrupt:
    """What came of one."""

    delay: float
    """Seconds after the start of the process."""
    status: int
    """As a shell gives it: 130 also where the interpreter had not begun to handle signals."""
    seconds: float
    """From the signal to the end."""
    lines: tuple[str, ...]
    """All but progress."""
    has_begun: bool
    """Whether a unit had started."""
    left: tuple[int, ...]
    """Processes of the call that outlived it."""

    @property
    def is_right(self) -> bool:
        """Whether all is as documented."""
        if self.left or any("Traceback" in line for line in self.lines):
            return False
        if self.has_begun and self.status == 1:
            return "stopped; the same command goes on from here" in self.lines
        return self.status == 128 + signal.SIGINT and self.lines in (("interrupted",), ())


def interrupt(driver: Driver, started: float, delay: float) -> Interrupt:
    """Send SIGINT after a delay, and wait for the end."""
    time.sleep(max(0.0, started + delay - time.monotonic()))
    sent = time.monotonic()
    driver.process.send_signal(signal.SIGINT)
    status = driver.process.wait(EXIT_TIMEOUT_SECONDS)
    seconds = time.monotonic() - sent
    time.sleep(GRACE_SECONDS)
    lines = tuple(line for line in driver.text.splitlines() if line and not PROGRESS_LINE.match(line))
    begun = " start   " in driver.text
    return Interrupt(delay, status if status >= 0 else 128 - status, seconds, lines, begun,
                     tuple(session_of(driver.process.pid)))  # fmt: skip


def spread(bench: Bench, count: int) -> list[Interrupt]:
    """Interrupts at moments spread evenly until a second after the first unit's start; prints each."""
    started = time.monotonic()
    driver = bench.start(bench.folder / "reference")
    driver.wait_for(" start   ")
    until = time.monotonic() - started + 1
    driver.kill()
    print(f"first unit after {until - 1:.1f} s\n\n{'after':>7}{'status':>8}{'ended after':>13}{'left':>6}  lines")
    results = []
    for number in range(count):
        started = time.monotonic()
        one = interrupt(bench.start(bench.folder / f"storage-{number}"), started, until * number / max(1, count - 1))
        shown = one.lines[0] if len(one.lines) == 1 else f"{len(one.lines)} lines"
        if one.has_begun and one.status == 1:
            shown = "stopped; the same command goes on from here"
        mark = "" if one.is_right else "  WRONG\n" + "\n".join(one.lines)
        print(f"{one.delay:6.1f}s{one.status:8}{one.seconds:11.1f} s{len(one.left):6}  {shown}{mark}", flush=True)
        results.append(one)
    return results


def main(count: int = 30) -> int:
    with tempfile.TemporaryDirectory() as folder:
        results = spread(Bench.make(Path(folder) / "bench", STEPS), count)
    right = sum(one.is_right for one in results)
    print(f"\n{right} of {len(results)} ended as documented")
    return int(right < len(results))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
