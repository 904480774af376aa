"""`--watch`: a live table on a terminal; log lines run above it. Never raises into the driver."""

import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator import process
from orchestrator.cli.display import LINE_SECONDS, REFRESH_SECONDS, SHOWN_METRICS, Display
from orchestrator.planning.plan import Unit
from orchestrator.scheduling.task_graph import State, TaskGraph
from ups_model.training.progress import duration

logger = logging.getLogger(__name__)

OTHER_LINES = 12
"""Of the terminal, that are not rows of units: heads, borders, totals, and a few log lines."""


class Watch(Display):
    """Units that run, with step and metrics; the best trials of a search; units done, failed and left; time and cost
    left."""

    def __init__(
        self,
        graph: TaskGraph,
        seconds: Mapping[str, float],
        slots: int,
        price: float | None = None,
        gpus_per_unit: float = 0.0,
        console: Console | None = None,
    ) -> None:
        """
        Args:
            price: of an hour of a GPU, of a slot where units have none.
            gpus_per_unit: that a unit has.
        """
        super().__init__(graph, seconds, slots, has_bar=False)
        self._price_per_second = None if price is None else price * (gpus_per_unit or 1.0) / 3600
        self._console = console or Console(stderr=True)
        self._live: Live | None = Live(console=self._console, auto_refresh=False, redirect_stdout=False)
        self._streams: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []
        self._guarded(self._start)
        process.before_end.append(self._stop)  # The cursor is hidden meanwhile.

    def tick(self) -> None:
        if self._live is None:
            super().tick()
        elif time.monotonic() - self._refreshed >= REFRESH_SECONDS:
            self._refreshed = time.monotonic()
            self._guarded(self._show)

    def close(self) -> None:
        self._guarded(self._show)
        self._stop()
        if self._stop in process.before_end:
            process.before_end.remove(self._stop)
        super().close()

    def _start(self) -> None:
        assert self._live is not None
        before = sys.stderr
        self._live.start()
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                self._streams.append((handler, before))
                handler.setStream(sys.stderr)  # Which now prints above the table.

    def _show(self) -> None:
        if self._live is not None:
            self._live.update(self.view(), refresh=True)

    def _stop(self) -> None:
        live, self._live = self._live, None
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._streams = []
        with suppress(Exception):
            if live is not None:
                live.stop()

    def _guarded(self, call: Callable[[], None]) -> None:
        """Call it; where it fails log lines take the table's place."""
        try:
            call()
        except Exception as error:
            self._stop()
            self._last = time.monotonic() - LINE_SECONDS
            logger.warning("the live table can't be shown (%s: %s)", type(error).__name__, error)

    def view(self) -> Group:
        """What is shown."""
        table = Table(expand=True, box=None, pad_edge=False)
        for head, of in (("unit", 3), ("step", 1), ("metrics", 3), ("time", 1)):
            table.add_column(head, ratio=of, no_wrap=True, overflow="ellipsis")
        room = max(1, self._console.height - OTHER_LINES)
        now, keys = time.monotonic(), list(self._started)
        for key in keys[:room]:
            unit = self._graph.units[key]
            step, metrics = self._at(unit)
            table.add_row(unit.name, step, metrics, duration(now - self._started[key]))
        for key in [key for key, state in self._graph.state.items() if state is State.ELSEWHERE][: room - len(keys)]:
            unit = self._graph.units[key]
            table.add_row(unit.name, "elsewhere", "", "")
        if len(keys) > room:
            table.add_row(f"and {len(keys) - room} more", "", "", "")
        best = [Text(line, no_wrap=True, overflow="ellipsis") for line in self._graph.highlights()]
        return Group(Text(""), table, *best, Text(self.summary(), style="bold", no_wrap=True, overflow="ellipsis"))

    def summary(self) -> str:
        """The last line: units by state, time and cost left."""
        parts = [*self._counts(), f"{duration(self.seconds_left())} left"]
        if self._price_per_second is not None:
            cost = self.seconds_left(slots=1) * self._price_per_second
            parts.append(f"cost left about {cost:,.{0 if cost >= 10 else 2}f}")
        return ", ".join(parts)

    def _at(self, unit: Unit) -> tuple[str, str]:
        """Step, and the newest value of each metric that a unit has reported, validation first."""
        rows = self._progress(unit)
        if not rows:
            return "starting", ""
        newest: dict[str, float] = {}
        for row in rows[-50:]:
            newest |= {name: value for name, value in row.items() if name not in ("step", "time")}
        order = sorted(newest, key=lambda name: (not name.startswith("validation/"), "loss" not in name))
        texts = [f"{name.removeprefix('validation/')} {newest[name]:.4g}" for name in order[:SHOWN_METRICS]]
        steps = unit.trainer.steps(unit.config)
        return f"{rows[-1]['step']:.0f}" + (f"/{steps}" if steps else ""), "  ".join(texts)
