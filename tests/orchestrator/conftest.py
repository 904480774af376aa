"""Benches that several files share: toy clip sets with a study on them, made once for all processes."""

from __future__ import annotations

import pytest
from filelock import FileLock

from tests.support.drivers import Bench
from tests.support.runs import session_folder


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The toy study and its clips."""
    folder = session_folder(tmp_path_factory, "worker")
    with FileLock(folder / "lock"):
        return Bench.opened(folder) if (folder / "toy.py").exists() else Bench.make(folder, 16)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A toy study of 11 units of 240 steps and, in storage "reference", an undisturbed run of it."""
    folder = session_folder(tmp_path_factory, "crashes")
    with FileLock(folder / "lock"):
        if (folder / "done").exists():
            return Bench.opened(folder)
        bench = Bench.make(folder, 240)
        driver = bench.run(folder / "reference")
        assert driver.process.returncode == 0, driver.text
        (folder / "done").touch()
    return bench
