"""Readings become clip sets: whatever the number of processes, and however often the preparation is killed."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ups_model.data.format.clip_set import ClipSet, ClipSetInfo
from ups_model.data.format.writer import Clip, Track
from ups_model.data.prepare import runner as preparation
from ups_model.data.prepare.jobs import Job, LeftOut, Reading
from ups_model.data.prepare.runner import is_prepared, prepare_reading, read_left_out

JOBS, CLIPS = 5, 4


def read(job: int, log: Path, slow: float = 0.0):
    """Four clips of one or two persons, after every second one that is left out."""
    with log.open("a") as file:
        file.write(f"{job}\n")
    rng = np.random.default_rng(job)
    for row in range(CLIPS):
        time.sleep(slow)
        if row == 2:
            yield LeftOut(f"clip-{job}-{row}", "unreadable", "line 7:\thas\nan odd \x85 break")
            continue
        frames = 3 + row
        tracks = tuple(
            Track(rng.normal(size=(frames, 25, 3)).astype(np.float32), person, np.full((frames, 25), 0.5, np.float16))
            for person in range(1 + row % 2)
        )
        yield Clip(f"clip-{job}-{row}", tracks, job % 3, job, job == 0, extra={"row": row})


def reading(log: Path, jobs: int = JOBS, slow: float = 0.0, version: int = 1) -> Reading:
    info = ClipSetInfo(
        "made", "ntu25", 3, 30.0, "metre", "y", "none", ("a", "b", "c"), False, "made up", recipe={"version": version}
    )
    return Reading(info, [Job(f"job {job}", CLIPS, functools.partial(read, job, log, slow)) for job in range(jobs)])


def read_jobs(log: Path) -> list[int]:
    return sorted(int(line) for line in log.read_text().split())


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


def test_clips_come_in_the_order_of_jobs_with_all_that_they_had(tmp_path, log):
    clips = prepare_reading(tmp_path / "made", reading(log))
    clips.verify()
    expected = [clip for job in range(JOBS) for clip in read(job, log) if isinstance(clip, Clip)]
    assert clips.clip_id.tolist() == [clip.clip_id for clip in expected]
    assert clips.extra["row"].tolist() == [clip.extra["row"] for clip in expected]
    assert clips.label.tolist() == [clip.label for clip in expected]
    assert clips.split_test.tolist() == [clip.split_test for clip in expected]
    for row, clip in enumerate(expected):
        tracks = clips.clip(row)
        assert [offset for offset, _ in tracks] == [track.offset for track in clip.tracks]
        for (_, positions), track in zip(tracks, clip.tracks, strict=True):
            np.testing.assert_array_equal(positions, track.positions)
    assert (clips.confidence == 0.5).all()


@pytest.mark.slow
def test_the_number_of_processes_and_the_size_of_parts_change_nothing(tmp_path, log, monkeypatch):
    alone = prepare_reading(tmp_path / "one" / "made", reading(log))
    together = prepare_reading(tmp_path / "three" / "made", reading(log), workers=3)
    monkeypatch.setattr(preparation, "PART_BYTES", 1)
    apart = prepare_reading(tmp_path / "small" / "made", reading(log))
    assert alone.fingerprint == together.fingerprint == apart.fingerprint


def test_what_is_left_out_is_counted_and_listed_by_name(tmp_path, log):
    clips = prepare_reading(tmp_path / "made", reading(log))
    assert ClipSet.open(clips.path).info.left_out == {"unreadable": JOBS}
    listed = read_left_out(clips.path)
    assert [item.name for item in listed] == [f"clip-{job}-2" for job in range(JOBS)]
    assert listed[0].detail == "line 7: has an odd break"


def test_a_name_that_is_no_utf8_is_listed_like_any_other(tmp_path, log):
    odd = LeftOut(os.fsdecode(b"caf\xe9"), "unreadable", os.fsdecode(b"/data/caf\xe9.skeleton: no name"))
    job = Job("odd", 1, functools.partial(iter, [odd]))
    clips = prepare_reading(tmp_path / "made", Reading(reading(log).info, [*reading(log).jobs, job]))
    assert read_left_out(clips.path)[-1].name == r"caf\udce9"


def test_a_job_that_was_read_before_a_failure_is_not_read_again(tmp_path, log):
    broken = reading(log)

    def fail():
        raise ValueError("file 3 is no such file")
        yield

    jobs = [*broken.jobs[:3], Job("job 3", CLIPS, fail), broken.jobs[4]]
    with pytest.raises(ValueError, match="file 3"):
        prepare_reading(tmp_path / "made", Reading(broken.info, jobs))
    assert read_jobs(log) == [0, 1, 2] and not (tmp_path / "made").exists()
    clips = prepare_reading(tmp_path / "made", reading(log))
    assert read_jobs(log) == [0, 1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["made"]
    assert clips.fingerprint == prepare_reading(tmp_path / "other" / "made", reading(log)).fingerprint


def test_parts_of_another_recipe_are_not_used(tmp_path, log):
    with pytest.raises(OSError):
        prepare_reading(tmp_path / "made", Reading(reading(log).info, [*reading(log).jobs[:4], Job("x", 1, _full)]))
    prepare_reading(tmp_path / "made", reading(log, version=2))
    assert read_jobs(log) == [0, 0, 1, 1, 2, 2, 3, 3, 4]


def _full():
    raise OSError(28, "No space left on device")
    yield


def test_a_full_disk_says_where_and_that_what_is_read_is_kept(tmp_path, log):
    with pytest.raises(OSError, match=rf"No space left on device; what is read so far is kept.*{tmp_path}"):
        prepare_reading(tmp_path / "made", Reading(reading(log).info, [*reading(log).jobs, Job("x", 1, _full)]))
    assert len(list((tmp_path / ".made.parts").glob("0000?.json"))) == JOBS


def test_a_set_of_the_same_recipe_is_kept(tmp_path, log):
    prepare_reading(tmp_path / "made", reading(log))
    prepare_reading(tmp_path / "made", reading(log))
    assert read_jobs(log) == list(range(JOBS))


def test_nothing_readable_is_an_error_that_names_the_first_cause(tmp_path, log):
    job = Job("all", 1, functools.partial(iter, [LeftOut("a.skeleton", "unreadable", "a.skeleton:3: no number")]))
    with pytest.raises(ValueError, match=r"at least one clip.*1 recordings were left out.*a.skeleton:3: no number"):
        prepare_reading(tmp_path / "made", Reading(reading(log).info, [job]))


KILLED = """
import sys
from pathlib import Path
from tests.ups_model.data.prepare.test_preparation import reading
from ups_model.data.prepare.runner import prepare_reading

if __name__ == "__main__":
    prepare_reading(Path(sys.argv[1]), reading(Path(sys.argv[2]), slow=0.05), workers=2)
"""


@pytest.mark.slow
def test_a_killed_preparation_goes_on_where_it_was(tmp_path, log, repo_root):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": str(repo_root)}
    command = [sys.executable, str(script), str(tmp_path / "made"), str(log)]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    parts = tmp_path / ".made.parts"
    deadline = time.monotonic() + 60
    while not list(parts.glob("0000?.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {int(path.stem) for path in parts.glob("0000?.json")}
    assert done and not (tmp_path / "made").exists()
    log.unlink()
    clips = prepare_reading(tmp_path / "made", reading(log, slow=0.05))
    assert set(read_jobs(log)) == set(range(JOBS)) - done
    assert clips.fingerprint == prepare_reading(tmp_path / "other" / "made", reading(log)).fingerprint
    assert not parts.exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are looked up in /proc")
def test_reading_processes_end_when_the_first_one_is_killed_alone(tmp_path, log, repo_root):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(tmp_path / "made"), str(log)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(repo_root)})
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    started = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert len(started) >= 2
    while any(map(_runs, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_runs, started))


def _runs(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


KILLED_WHEN_WRITTEN = """
import os, signal, sys
from pathlib import Path
from tests.ups_model.data.prepare.test_preparation import reading
from ups_model.data.format import writer as writing
from ups_model.data.prepare.runner import prepare_reading

writing._move_into_place = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
prepare_reading(Path(sys.argv[1]), reading(Path(sys.argv[2])))
"""


@pytest.mark.slow
def test_a_half_written_set_of_a_killed_process_goes_and_others_stay(tmp_path, log, repo_root):
    command = [sys.executable, "-c", KILLED_WHEN_WRITTEN, str(tmp_path / "made"), str(log)]
    assert subprocess.run(command, cwd=repo_root, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".made.*.tmp"))) == 1
    others = {f".made2.{'0' * 32}.tmp", ".made.mine.tmp"}
    for name in others:
        (tmp_path / name).mkdir()
    prepare_reading(tmp_path / "made", reading(log)).verify()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"made", *others}
    assert read_jobs(log) == list(range(JOBS))


@pytest.mark.parametrize("deleted", ["", "recipe.json", "00000-000.npz"])
def test_parts_that_a_killed_process_left_of_a_whole_set_go_with_the_next_call(tmp_path, log, monkeypatch, deleted):
    rmtree = shutil.rmtree

    def killed(folder, *arguments, **options):
        if Path(folder).name != ".made.parts":
            return rmtree(folder, *arguments, **options)
        if deleted:
            (folder / deleted).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        prepare_reading(tmp_path / "made", reading(log))
    recipe = reading(log).info.recipe
    assert (tmp_path / ".made.parts").exists() and not is_prepared(tmp_path / "made", recipe)
    prepare_reading(tmp_path / "made", reading(log)).verify()
    assert not (tmp_path / ".made.parts").exists() and is_prepared(tmp_path / "made", recipe)
    assert read_jobs(log) == list(range(JOBS))


def test_parts_of_another_recipe_do_not_make_a_whole_set_unprepared(tmp_path, log):
    made = prepare_reading(tmp_path / "made", reading(log))
    with pytest.raises(OSError):
        prepare_reading(tmp_path / "made", Reading(reading(log, version=2).info, [Job("x", 1, _full)]))
    assert is_prepared(tmp_path / "made", reading(log).info.recipe)
    assert prepare_reading(tmp_path / "made", reading(log)).fingerprint == made.fingerprint
    assert (tmp_path / ".made.parts").exists()


@pytest.mark.slow
def test_two_preparations_at_once_read_everything_once(tmp_path, log, repo_root):
    script = tmp_path / "twice.py"
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": str(repo_root)}
    command = [sys.executable, str(script), str(tmp_path / "made"), str(log)]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert read_jobs(log) == list(range(JOBS))
    ClipSet.open(tmp_path / "made").verify()
