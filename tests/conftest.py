"""Settings and fixtures that every test shares."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

# Fixed examples: a test that fails on one run of two tells nothing. No deadline: the machines are shared.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("repeatable")
# Of Ray's own it would be 15: trainings would stand still while other tests take the processor.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many slow tests first: at the end they would keep one process busy while the others have nothing."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Root folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def open_data() -> Path:
    """Folder of the open motion data (UPS_OPEN_DATA, else ../shared/data); skips the test where it is absent."""
    folder = Path(os.environ.get("UPS_OPEN_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"open motion data not found at {folder}; set UPS_OPEN_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def toy_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of each of the three toy clip sets, by name."""
    from tests.support.runs import session_folder, write_toy_sets

    folder = session_folder(tmp_path_factory, "toy_sets")
    with FileLock(folder / "lock"):
        names = {name: folder / name for name in ("toy_pose", "toy_solid", "toy_flat")}
        return names if all(path.is_dir() for path in names.values()) else write_toy_sets(folder)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of text features that all tests share."""
    from tests.support.runs import session_folder

    return session_folder(tmp_path_factory, "cache")
