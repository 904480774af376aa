"""What a person sees while a study runs: one live line on a terminal, plain log lines where the output is a file."""

import logging
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from orchestrator.planning.plan import Unit
from orchestrator.scheduling.task_graph import State, TaskGraph
from orchestrator.storage.ledger import LOG
from orchestrator.worker.system_metrics import PREFIX
from ups_model.evaluation.metric_names import is_headline
from ups_model.training.progress import duration

logger = logging.getLogger(__name__)

LINE_SECONDS = 30.0
"""Between two status lines in a log."""
REFRESH_SECONDS = 1.0
REMOTE_SECONDS = 15.0
"""Between looks at the progress of a unit on an object store."""
SHOWN_METRICS = 5


class Display:
    """Done, running, waiting and failed units; what the running ones measure; time left."""

    def __init__(self, graph: TaskGraph, seconds: Mapping[str, float], slots: int, has_bar: bool = True) -> None:
        """
        Args:
            seconds: the expected time of each unit; those of this call replace it as they come.
            has_bar: draw a bar where standard error is a terminal.
        """
        self._graph, self._slots = graph, slots
        self._expected = dict(seconds)
        self._started: dict[str, float] = {}
        self._ratios: list[float] = []
        self._rows: dict[str, tuple[float, list[dict[str, float]]]] = {}
        self._last = self._refreshed = time.monotonic()
        self._bar = tqdm(
            total=len(graph.units),
            initial=len(graph.done_before),
            unit="unit",
            disable=None if has_bar else True,  # None: where standard error is no terminal.
            bar_format="{n_fmt}/{total_fmt} units |{bar:20}| {desc}",
        )

    def changed(self, key: str, state: State) -> None:
        """A unit has a new state."""
        unit, now = self._graph.units[key], time.monotonic()
        if state is State.RUNNING:
            self._started[key] = now
            self._say("start   %s  (%s)", unit.name, unit.folder)
            return
        here = key in self._started
        took = now - self._started.pop(key, now)
        if state is State.FINISHED:
            if here:
                self._ratios.append(took / max(self._expected[key], 1e-9))
            where = f"in {duration(took)}" if here else "elsewhere"
            self._say("done    %s  %s  %s", unit.name, where, self._result(key))
            self._bar.update(1)
        elif state is State.FAILED:
            error = self._graph.error.get(key, "")
            log = self._graph.ledger.where(unit, LOG)
            self._say("FAILED  %s: %s  (log: %s)", unit.name, error, log, level=logging.ERROR)
        elif state in (State.PAUSED, State.STOPPED):
            self._say("%-7s %s after %s; its checkpoint is kept", state, unit.name, duration(took))
        elif state is State.ELSEWHERE:
            self._say("held    %s by %s; waiting for it", unit.name, self._graph.ledger.owner(unit))
        elif state is State.WAITING:
            parent = self._graph.units.get(unit.parent)
            if parent is not None and self._graph.state[parent.key] is not State.FINISHED:
                self._say("waits   %s for %s", unit.name, parent.name)
            else:
                self._say("again   %s after %s, from its newest checkpoint", unit.name, duration(took))

    def expect(self, key: str, seconds: float, done: bool) -> None:
        """A unit has joined the graph."""
        self._expected[key] = seconds
        self._bar.total = len(self._graph.units)
        if done:
            self._bar.update(1)

    def tick(self) -> None:
        """Let the display move; cheap when nothing is due."""
        now = time.monotonic()
        if self._bar.disable:
            if now - self._last >= LINE_SECONDS:
                self._last = now
                logger.info("%s", self.line())
        elif now - self._refreshed >= REFRESH_SECONDS:
            self._refreshed = now
            self._bar.set_description_str(self.line())

    def line(self) -> str:
        """The state of the study on one line."""
        parts = [*self._counts(), f"{duration(self.seconds_left())} left"]
        return ", ".join(parts) + "".join(f" | {text}" for text in self._running())

    def _counts(self) -> list[str]:
        """Units by state, in words."""
        counts = self._graph.counts()
        running = len(self._started)
        counts[State.WAITING] += counts[State.RUNNING] - running  # Released, and waiting for room.
        parts = [f"{counts[State.FINISHED]} done", f"{running} running"]
        parts += [
            f"{counts[state]} {state}" for state in (State.WAITING, State.ELSEWHERE, State.PAUSED) if counts[state]
        ]
        failed = counts[State.FAILED] + counts[State.BLOCKED]
        return [*parts, f"{failed} failed"] if failed else parts

    def seconds_left(self, slots: int | None = None) -> float:
        """Until all is done, from the estimate, corrected by how far it was off so far.

        Args:
            slots: units at once; those of this call if None.
        """
        correction = sorted(self._ratios)[len(self._ratios) // 2] if self._ratios else 1.0
        expected = {key: value * correction for key, value in self._expected.items()}
        for key, started in self._started.items():
            expected[key] = max(expected[key] - (time.monotonic() - started), 1.0)
        return self._graph.time_left(expected, slots or self._slots)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.close()

    def _running(self) -> list[str]:
        texts = []
        for key in list(self._started)[:4]:
            unit = self._graph.units[key]
            rows = self._progress(unit)
            text = unit.name
            if rows:
                losses = [f"{name.split('/')[-1]} {value:.3g}" for name, value in rows[-1].items() if "loss" in name]
                steps = unit.trainer.steps(unit.config)
                of = f"{rows[-1]['step']:.0f}/{steps}" if steps else f"{rows[-1]['step']:.0f}"
                at = "evaluating" if rows[-1]["step"] == steps else of
                text += " ".join(["", at, *losses[:2]])
            texts.append(text)
        return texts

    def _progress(self, unit: Unit) -> list[dict[str, float]]:
        """What a unit has reported. An object store is asked now and then, for it changes with checkpoints alone."""
        ledger, now = self._graph.ledger, time.monotonic()
        read_at, rows = self._rows.get(unit.key, (-LINE_SECONDS, []))
        if ledger.root is None and now - read_at < REMOTE_SECONDS:
            return rows
        try:
            rows = ledger.progress(unit)
        except OSError as error:
            logger.debug("progress of %s: %s", unit.name, error)
        # Of the machine's own lines nothing is shown.
        rows = [row for row in rows if not any(name.startswith(PREFIX) for name in row)]
        self._rows[unit.key] = (now, rows)
        return rows

    def _result(self, key: str) -> str:
        record = self._graph.ledger.finished(self._graph.units[key])
        if record is None:
            return ""
        part = "test/" if record.tested else "validation/"
        shown = {
            name.removeprefix(part): value
            for name, value in record.metrics.items()
            if name.startswith(part) and is_headline(name.removeprefix(part)) and "top5" not in name
        }
        text = "  ".join(_shown(name, value) for name, value in list(shown.items())[:SHOWN_METRICS])
        return f"{part.removesuffix('/')}: {text}" if text else ""

    def _say(self, text: str, *values: object, level: int = logging.INFO) -> None:
        if self._bar.disable:
            logger.log(level, text, *values)
        else:
            self._bar.write(time.strftime("%H:%M:%S ") + text % values, file=sys.stderr)


def _shown(name: str, value: float) -> str:
    """A metric for people. A score is the share solved, in percent, and below 0 where poses are worse than a pose that
    never changes."""
    is_worse = name == "score" and value < 0
    return f"{name} below 0 (poses worse than the mean pose)" if is_worse else f"{name} {value:.4g}"
