"""A driver with a cluster of nothing, for tests of the command around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.planning.plan import Unit
from tests.support.plans import finish


class NoMirror:
    """In MLflow's place, which has tests of its own."""

    outcomes: list[str] = []  # noqa: RUF012 - emptied by `FakeDriver.install`
    arms_page = ""

    def __init__(self, *args: Any) -> None:
        pass

    def start(self) -> None:
        pass

    def note(self, key: str, state: str) -> None:
        pass

    def close(self, outcome: str, out: Path | None, seconds: float) -> int:
        self.outcomes.append(outcome)
        return 0


class FakeDriver:
    """Releases units and ends them; `becomes` says what becomes of each unit."""

    def __init__(self) -> None:
        self.started = 0
        self.becomes: Callable[[Unit], str] = lambda unit: "finished"
        self.metrics: Callable[[Unit], dict[str, float]] = lambda unit: {}
        """On the test split, of a unit that finishes."""
        self.jobs: list[Any] = []
        """Of all units that were released."""

    @classmethod
    def install(cls, monkeypatch: Any) -> FakeDriver:
        """One that takes the place of Ray and MLflow while the test runs."""
        from orchestrator.execution import driver, ray_cluster
        from orchestrator.tracking import mirror

        fake = cls()
        monkeypatch.setattr(ray_cluster, "connect", lambda address: ray_cluster.ClusterFacts(2.0, 0.0, True))
        monkeypatch.setattr(ray_cluster, "check_room", lambda facts, resources: None)
        monkeypatch.setattr(ray_cluster, "disconnect", lambda: None)
        monkeypatch.setattr(driver, "execute", fake.execute)
        monkeypatch.setattr(NoMirror, "outcomes", [])
        monkeypatch.setattr(mirror, "Mirror", NoMirror)
        return fake

    def execute(self, graph: Any, job_of: Any, resources: Any, facts: Any, hooks: Any, footprints: Any) -> None:
        """In place of `orchestrator.execution.driver.execute`."""
        self.started += 1
        while (unit := graph.next()) is not None:
            job = job_of(unit)
            assert all(Path(path).is_absolute() for path in job.paths.values()) and job.threads == 1
            self.jobs.append(job)
            state = self.becomes(unit)
            if state == "finished":
                finish(graph.ledger, unit, **self.metrics(unit))
                graph.finished(unit.key)
            elif state == "failed":
                graph.failed(unit.key, "it broke")
            else:
                graph.stopping = True
                graph.stopped(unit.key)
            hooks.changed(unit.key, graph.state[unit.key])
            hooks.tick()
