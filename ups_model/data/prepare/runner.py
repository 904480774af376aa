"""From a reading to a clip set: jobs run in processes and leave parts, parts are put together in the order of the jobs.

What has been read stays until the set is whole: a preparation that is killed, or whose disk fills up, goes on where it
was when it is called again. Parts lie in `.NAME.parts` beside the set, and belong to one recipe:

    recipe.json      what is being prepared; of another recipe, or another version of this code, everything goes
    00012-003.npz    some clips of job 12
    00012.json       job 12 is done: its number of files, and what was left out. Written last, renamed into place

What a killed preparation leaves beside its parts, a half-written set or parts of a set that is whole, goes with the
next call.

Shape suffixes: F frames of a part, T tracks of a part.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import filelock
import numpy as np
from tqdm import tqdm

from ups_model.atomic import write_atomic
from ups_model.data.format.clip_set import ClipSet, read_manifest
from ups_model.data.format.rules import FRAME_ARRAYS
from ups_model.data.format.writer import Clip, Track, write_clip_set
from ups_model.data.prepare.jobs import Job, LeftOut, Reading

log = logging.getLogger(__name__)

PART_FORMAT = 1
_RECIPE_FILE = "recipe.json"
PART_BYTES = 32 << 20
"""Frames are held up to this size, then written: what bounds the memory of a process."""
LEFT_OUT_FILE = "left_out.tsv"
"""In the set's folder: name, reason and detail of every recording that is not in it."""


def available_workers() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_reading(path: Path, reading: Reading, workers: int = 1, progress: bool = False) -> ClipSet:
    """Makes the clip set of a reading at `path`.

    Args:
        path: the set's folder.
        reading: what to read; its recipe names the content, so that parts of an earlier call can be used, and a set
            of the same recipe that is there already is kept.
        workers: processes that read.
        progress: show what is done and the time left, on a terminal.

    Raises:
        ValueError: nothing could be read, clips break a rule of the format, or a process died. Parts stay.
        OSError: the disk is full or can't be written. Parts stay.
    """
    path = Path(path).expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.parent / f".{path.name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log.warning("%s: another process prepares this set; waiting for it", path)
        lock.acquire()
    try:
        _sweep(path)
        made = _open_whole(path, reading.info.recipe) or _make(path, reading, workers, progress)
        if _has_parts(path, reading.info.recipe):
            shutil.rmtree(_parts_folder(path))
        return made
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        way_out = f"{error.strerror}; what is read so far is kept, make space and run the same command again"
        raise OSError(error.errno, way_out, str(path.parent)) from error
    finally:
        lock.release()


def is_prepared(path: Path, recipe: Mapping[str, str | int]) -> bool:
    """Whether a whole clip set of this recipe is at `path`, and nothing is left to do.

    A damaged set counts as absent and is made again. One whose parts were not deleted yet is not done either:
    `prepare_reading` deletes them.
    """
    return _open_whole(path, recipe) is not None and not _has_parts(path, recipe)


def read_left_out(path: Path) -> list[LeftOut]:
    """What was left out of the clip set at `path`."""
    file = path / LEFT_OUT_FILE
    if not file.exists():
        return []
    return [LeftOut(*line.split("\t")) for line in file.read_text("utf-8").splitlines()[1:]]


def _make(path: Path, reading: Reading, workers: int, progress: bool) -> ClipSet:
    folder = _parts_folder(path)
    _open_parts(folder, reading)
    left_out = _read(folder, reading, workers, progress)
    reasons = dict(sorted(Counter(item.reason for item in left_out).items()))
    info = replace(reading.info, left_out=reasons)
    clips = _show(_clips(folder, len(reading.jobs)), progress, f"{path.name}: writing", _count(folder, reading))
    files = {LEFT_OUT_FILE: _table(left_out)} if left_out else {}
    try:
        return write_clip_set(path, info, clips, files=files)
    except ValueError as error:
        raise ValueError(f"{error}{_first(left_out)}") from error


def _open_whole(path: Path, recipe: Mapping[str, str | int]) -> ClipSet | None:
    """The clip set at `path`, where it is whole and of this recipe."""
    try:
        clips = ClipSet.open(path)
        return clips if read_manifest(path).get("provenance", {}).get("recipe") == dict(recipe) else None
    except ValueError:
        return None


def _parts_folder(path: Path) -> Path:
    return path.parent / f".{path.name}.parts"


def _has_parts(path: Path, recipe: Mapping[str, str | int]) -> bool:
    """Whether parts of this recipe are there, or what a killed process has not yet deleted of a folder of parts."""
    folder = _parts_folder(path)
    if not folder.exists():
        return False
    found = _description(folder)
    return found is None or found.get("recipe") == dict(recipe)


def _description(folder: Path) -> dict[str, Any] | None:
    """What a folder of parts is of; None where it does not say."""
    try:
        found = json.loads((folder / _RECIPE_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _sweep(path: Path) -> None:
    """Deletes half-written sets of killed processes. Nobody else writes: the caller holds the lock."""
    names = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}\.tmp")
    for folder in path.parent.iterdir():
        if names.fullmatch(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def _open_parts(folder: Path, reading: Reading) -> None:
    """Makes the folder of parts, and empties it if its parts are of something else."""
    jobs = [[job.name, job.items] for job in reading.jobs]
    wanted = {"format": PART_FORMAT, "recipe": dict(reading.info.recipe), "jobs": jobs}
    if _description(folder) == json.loads(json.dumps(wanted)):
        return
    if folder.exists():
        log.info("%s: starting anew, the source has changed", folder)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_atomic(folder / _RECIPE_FILE, json.dumps(wanted))


def _read(folder: Path, reading: Reading, workers: int, progress: bool) -> list[LeftOut]:
    """Runs the jobs that have no parts yet; what was left out, in the order of the jobs."""
    jobs = reading.jobs
    missing = [index for index in range(len(jobs)) if not _done(folder, index).exists()]
    done = sum(jobs[index].items for index in set(range(len(jobs))) - set(missing))
    with _bar(progress, f"{reading.info.name}: reading", sum(job.items for job in jobs), done) as bar:
        if workers <= 1 or len(missing) <= 1:
            for index in missing:
                _run(folder, index, jobs[index], bar.update)
        else:
            _run_all(folder, jobs, missing, workers, bar)
    return [LeftOut(*item) for index in range(len(jobs)) for item in _summary(folder, index)["left_out"]]


def _run_all(folder: Path, jobs: Sequence[Job], missing: Sequence[int], workers: int, bar: tqdm[NoReturn]) -> None:
    # Not forked: this process may have threads (BLAS, a progress bar), whose locks a copy would inherit.
    context = multiprocessing.get_context("spawn")
    count = min(workers, len(missing))
    with concurrent.futures.ProcessPoolExecutor(count, mp_context=context, initializer=_start_process) as pool:
        with _interrupts_ignored():  # The processes start here, and inherit it.
            running = {pool.submit(_run, folder, index, jobs[index]): index for index in missing}
        try:
            for future in concurrent.futures.as_completed(running):
                future.result()
                bar.update(jobs[running[future]].items)
        except BrokenProcessPool as error:
            raise ValueError(
                "a reading process died, perhaps for lack of memory; what is read so far is kept, run the same command "
                "again, with fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal; the first one ends the others, once they are done with a job."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start_process() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # The pool's processes would wait for work for ever if the first one is killed alone, and until they are out of it
    # write the parts that the next preparation writes.
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in the processes of a pool"
    parent.join()
    os._exit(1)


def _run(folder: Path, index: int, job: Job, told: Callable[[int], Any] | None = None) -> None:
    """Reads one job into parts."""
    part = _Part(folder, index)
    left_out: list[LeftOut] = []
    seen = 0
    for item in job.read():
        if isinstance(item, LeftOut):
            left_out.append(item)
        else:
            part.append(item)
        seen += 1
        if told is not None and seen <= job.items:
            told(1)
    if told is not None:
        told(max(job.items - seen, 0))
    part.flush()
    content = {"files": part.files, "clips": part.clips, "left_out": [list(asdict(item).values()) for item in left_out]}
    write_atomic(_done(folder, index), json.dumps(content))


class _Part:
    """Clips of a job that are held, and the files that hold those before them."""

    def __init__(self, folder: Path, index: int) -> None:
        self.folder, self.index, self.files, self.clips = folder, index, 0, 0
        self._held: list[Clip] = []
        self._bytes = 0

    def append(self, clip: Clip) -> None:
        self._held.append(clip)
        self._bytes += sum(_size(track) for track in clip.tracks)
        self.clips += 1
        if self._bytes >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what is held. A file left by a killed process is written over."""
        if not self._held:
            return
        tracks = [track for clip in self._held for track in clip.tracks]
        arrays = {}
        for name in FRAME_ARRAYS:
            given = [getattr(track, name) for track in tracks]
            if any(array is not None for array in given):
                if any(array is None for array in given):
                    raise ValueError(f"clip {self._held[0].clip_id} and after: all tracks or none must have {name}")
                arrays[name] = np.concatenate(given)
        for track in tracks:
            for name in FRAME_ARRAYS[1:]:
                array = getattr(track, name)
                assert array is None or len(array) == len(track.positions), f"{name} must be one row a frame"
        rows = [asdict(replace(clip, tracks=())) for clip in self._held]
        with _file(self.folder, self.index, self.files).open("wb") as file:
            np.savez(
                file,
                **arrays,  # type: ignore[arg-type]  # numpy's types take any name for `allow_pickle`
                track_length=np.array([len(track.positions) for track in tracks], dtype=np.int64),
                track_offset=np.array([track.offset for track in tracks], dtype=np.int64),
                persons=np.array([len(clip.tracks) for clip in self._held], dtype=np.int64),
                clips=np.frombuffer(json.dumps(rows).encode(), dtype=np.uint8),
            )
            file.flush()
            os.fsync(file.fileno())  # Before the job counts as done: a power cut must not leave an empty part.
        self.files += 1
        self._held, self._bytes = [], 0


def _size(track: Track) -> int:
    return sum(array.nbytes for name in FRAME_ARRAYS if (array := getattr(track, name)) is not None)


def _clips(folder: Path, jobs: int) -> Iterator[Clip]:
    """The clips of all parts, in order."""
    for index in range(jobs):
        for file in range(_summary(folder, index)["files"]):
            with np.load(_file(folder, index, file), allow_pickle=False) as part:
                arrays = {name: part[name] for name in part.files}
            ends_T = np.cumsum(arrays["track_length"])
            tracks = iter(zip(ends_T - arrays["track_length"], ends_T, arrays["track_offset"], strict=True))
            for row, persons in zip(json.loads(arrays["clips"].tobytes()), arrays["persons"], strict=True):
                found = tuple(_track(arrays, *next(tracks)) for _ in range(persons))
                yield Clip(**{**row, "tracks": found})


def _track(arrays: Mapping[str, np.ndarray], start: int, end: int, offset: int) -> Track:
    frames = {name: arrays[name][start:end] for name in FRAME_ARRAYS if name in arrays}
    return Track(**frames, offset=int(offset))


def _count(folder: Path, reading: Reading) -> int:
    return sum(_summary(folder, index)["clips"] for index in range(len(reading.jobs)))


def _summary(folder: Path, index: int) -> dict[str, Any]:
    return json.loads(_done(folder, index).read_text("utf-8"))


def _done(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.json"


def _file(folder: Path, index: int, file: int) -> Path:
    return folder / f"{index:05d}-{file:03d}.npz"


def _table(left_out: Sequence[LeftOut]) -> str:
    rows = [("name", "reason", "detail"), *((item.name, item.reason, item.detail) for item in left_out)]
    # A name or message of damaged content may hold anything; a row is a line.
    return "".join("\t".join(" ".join(_writable(cell).split()) for cell in row) + "\n" for row in rows)


def _writable(text: str) -> str:
    """A file's name that isn't UTF-8 has half characters in it, which can't be written to any file."""
    return text.encode("utf-8", "backslashreplace").decode()


def _first(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return ""
    item = left_out[0]
    return f"; {len(left_out)} recordings were left out, the first: {item.name}: {item.reason} {item.detail}".rstrip()


def _bar(progress: bool, what: str, total: int, done: int = 0) -> tqdm[NoReturn]:
    shown = progress and sys.stderr.isatty()
    return tqdm(total=total, initial=done, desc=what, unit=" recordings", leave=False, disable=not shown)


def _show(clips: Iterator[Clip], progress: bool, what: str, total: int) -> Iterator[Clip]:
    with _bar(progress, what, total) as bar:
        for clip in clips:
            yield clip
            bar.update()
