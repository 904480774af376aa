"""The Ray that a call starts for itself: its folder, its death, and Ctrl-C while it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.interrupts import spread
from orchestrator.execution import local_ray
from orchestrator.execution.local_ray import MAX_FOLDER, MAX_RESTARTS, MAX_SOCKET_PATH
from orchestrator.process import RESTARTS
from tests.support.drivers import (
    PATIENCE,
    ROOT,
    Bench,
    alive,
    cells,
    command_of,
    descendants,
    mlflow_runs,
    records,
    session_of,
    wait_until,
)

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

AS_ANOTHER_USER = """
import os, sys
from orchestrator.execution import local_ray
os.setuid(65534)
print(local_ray._folder())
local_ray.remove_files()
"""


@pytest.fixture
def temporary(monkeypatch):
    """Sets TMPDIR; private folders are deleted at the end."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    yield lambda folder: monkeypatch.setenv("TMPDIR", str(folder))
    local_ray.remove_files()


def test_a_temporary_folder_that_ray_can_use_stays(temporary, tmp_path, monkeypatch):
    monkeypatch.setattr(local_ray, "MAX_FOLDER", 1000)
    temporary(tmp_path)
    assert local_ray._folder() == f"{tmp_path}/ray"


@pytest.mark.parametrize("name", ["a" * 60, "Ordner-für-Läufe"])
def test_a_temporary_folder_that_ray_can_not_use_is_replaced_by_a_private_one(temporary, tmp_path, name):
    temporary(tmp_path / name)
    folder = Path(local_ray._folder())
    assert folder.is_dir() and folder.stat().st_mode & 0o077 == 0
    assert str(folder).isascii() and len(str(folder)) <= MAX_FOLDER
    assert not (tmp_path / name).exists()
    local_ray.remove_files()
    assert not folder.exists()


def test_a_folder_in_the_place_of_a_file_is_replaced(temporary, tmp_path, monkeypatch):
    monkeypatch.setattr(local_ray, "MAX_FOLDER", 1000)
    (tmp_path / "ray").touch()
    temporary(tmp_path)
    assert not local_ray._folder().startswith(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to become another user")
def test_another_users_folder_is_left_alone(temporary, tmp_path):
    tmp_path.chmod(0o755)
    theirs = Path("/tmp") / f"theirs-{os.getpid()}"
    (theirs / "ray").mkdir(parents=True, mode=0o755)
    try:
        run = subprocess.run(
            [sys.executable, "-c", AS_ANOTHER_USER], cwd=ROOT, env={**os.environ, "TMPDIR": str(theirs)},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    finally:
        (theirs / "ray").rmdir()
        theirs.rmdir()
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("/tmp/ray-"), run.stdout


def test_a_folder_that_the_user_named_is_refused_and_not_replaced(temporary, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("a" * 60)))
    with pytest.raises(ValueError, match=rf"RAY_TMPDIR .* has more than {MAX_FOLDER} characters; name a folder of at"):
        local_ray._folder()


def test_the_longest_folder_leaves_room_for_the_longest_socket():
    assert MAX_FOLDER + len("/session_2026-11-29_16-28-42_123456_4194304/sockets/plasma_store") == MAX_SOCKET_PATH


@pytest.fixture
def start(bench, tmp_path, monkeypatch):
    """Starts the short toy study with something in its environment."""

    def run(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return bench.start(tmp_path / "storage")

    return run


@pytest.mark.slow
def test_a_study_runs_with_a_temporary_folder_that_ray_can_not_use(start, tmp_path):
    (folder := tmp_path / ("ä" * 60)).mkdir()
    driver = start(TMPDIR=str(folder))
    driver.process.wait(PATIENCE)
    assert driver.process.returncode == 0, driver.text
    assert "Ray's files go to /tmp/ray-" in driver.text
    private = driver.text.split("Ray's files go to ")[1].split(":")[0]
    assert not Path(private).exists()


@pytest.mark.slow
@needs_proc
def test_ctrl_c_at_any_moment_of_the_start_ends_in_one_line(tmp_path):
    """The 30 of `benchmarks/interrupts.py` are the same at more moments."""
    wrong = [one for one in spread(Bench.make(tmp_path / "bench", 4000), 5) if not one.is_right]
    assert not wrong


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("name", [b"raylet/raylet", b"gcs_server", b"ray::DashboardAgent"])
def test_a_study_outlives_the_death_of_its_own_ray(undisturbed, name):
    storage = undisturbed.folder / f"dead-{name.decode().replace('/', '-').replace(':', '')}"
    driver = undisturbed.start(storage, "--max-concurrent", "2")
    wait_until(
        lambda: any((storage / "units").glob("joint-*/checkpoints/step-*")) or driver.process.poll() is not None,
        lambda: driver.text,
    )
    before = descendants(driver.process.pid)
    kill(before, name)
    saved = {checkpoint.parents[1] for checkpoint in (storage / "units").glob("joint-*/checkpoints/step-*")}
    driver.wait_for("11 units (", times=2)  # The first line of a call.
    assert not [command_of(pid) for pid in before if alive(pid)], "nothing of the dead cluster writes any more"
    driver.process.wait(PATIENCE)
    assert driver.process.returncode == 0, driver.text
    assert driver.text.count("Ray has died") == 1 and "\x1b" not in driver.text, driver.text
    assert "core_worker" not in driver.text and "Traceback" not in driver.text, driver.text
    assert not session_of(driver.process.pid)
    logs = [(folder / "log.txt").read_text() for folder in saved]
    assert logs and all("resuming at step" in log for log in logs)
    assert max(log.count("training ") for log in logs) == 1, "none begins again at its first step"
    reference = undisturbed.folder / "reference"
    assert records(storage).keys() == records(reference).keys()
    assert cells(storage) == cells(reference)
    assert all(status == ["FINISHED"] for status in mlflow_runs(storage)[0].values())


@pytest.mark.slow
@needs_proc
def test_ray_that_dies_while_it_starts_is_started_again(start, bench, tmp_path):
    driver = start()
    wait_until(lambda: kill(descendants(driver.process.pid), b"ray::DashboardAgent"), lambda: driver.text)
    driver.process.wait(PATIENCE)
    assert driver.process.returncode == 0, driver.text
    assert "starting it again" in driver.text and "Traceback" not in driver.text, driver.text
    assert len(records(tmp_path / "storage")) == 11


@pytest.mark.slow
@needs_proc
def test_ray_that_dies_again_and_again_ends_the_call(start):
    driver = start(**{RESTARTS: str(MAX_RESTARTS)})
    driver.wait_for("start ")
    kill(descendants(driver.process.pid), b"gcs_server")
    driver.process.wait(60)
    assert driver.process.returncode == 1, driver.text
    assert f"Ray has died {MAX_RESTARTS + 1} times (gcs_server); the same command goes on from here" in driver.text
    assert "Traceback" not in driver.text
    wait_until(lambda: not session_of(driver.process.pid), timeout=5)


def kill(pids, name):
    """SIGKILL to the processes of a name; whether there were any."""
    named = [pid for pid in pids if name in command_of(pid).split(b"\0")[0]]
    for pid in named:
        os.kill(pid, signal.SIGKILL)
    return bool(named)
