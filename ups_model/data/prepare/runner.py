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
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import filelock
import numpy as np
from tqdm import tqdm

from ups_model.atomic import json_object, write_atomic
from ups_model.data.format.clip_set import MANIFEST, ClipSet, read_manifest
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
    """Makes the clip set of a reading in the folder `path`, read by `workers` processes.

    The reading's recipe names the content, so that parts of an earlier call can be used, and a set of the same recipe
    that is there already is kept. Where it fails parts stay.

    Raises:
        ValueError: nothing could be read, clips break a rule of the format, or a process died.
        OSError: the disk is full or can't be written.
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
        clips = _open_whole(path, reading.info.recipe) or _make(path, reading, workers, progress)
        if _has_parts(path, reading.info.recipe):
            shutil.rmtree(_parts_folder(path))
        return clips
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        way_out = f"{error.strerror}; what is read so far is kept, make space and run the same command again"
        raise OSError(error.errno, way_out, str(path.parent)) from error
    finally:
        lock.release()


def check_place(path: Path) -> None:
    """ValueError where a set can't be written to `path`, before anything is read; leaves nothing that was not there."""
    path = path.absolute()
    if path.exists() and not (path / MANIFEST).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path}: holds files that are not a clip set; name another folder with --out")
    new = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"{path.parent}: can't be written to ({error.strerror}); name another folder with --out"
        ) from error
    finally:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def is_prepared(path: Path, recipe: Mapping[str, str | int]) -> bool:
    """Whether a whole clip set of this recipe is at `path`, and nothing is left to do: a damaged set is made again, and
    `prepare_reading` deletes parts that are still there."""
    return _open_whole(path, recipe) is not None and not _has_parts(path, recipe)


def read_left_out(path: Path) -> list[LeftOut]:
    """What was left out of the clip set at `path`."""
    file = path / LEFT_OUT_FILE
    if not file.exists():
        return []
    return [LeftOut(*line.split("\t")) for line in file.read_text("utf-8").splitlines()[1:]]


def _make(path: Path, reading: Reading, workers: int, progress: bool) -> ClipSet:
    parts, name = _Parts(_parts_folder(path)), reading.info.name
    parts.open(reading)
    items = [job.items for job in reading.jobs]
    missing = [index for index in range(len(items)) if not parts.summary_file(index).exists()]
    done = sum(items) - sum(items[index] for index in missing)
    with _bar(progress, f"{name}: reading", sum(items), done) as bar:
        if workers <= 1 or len(missing) <= 1:
            for index in missing:
                _run(parts, index, reading.jobs[index], bar.update)
        else:
            _run_all(parts, reading.jobs, missing, workers, bar)
    summaries = [parts.summary(index) for index in range(len(items))]
    left_out = [LeftOut(*item) for summary in summaries for item in summary["left_out"]]
    info = replace(reading.info, left_out=dict(sorted(Counter(item.reason for item in left_out).items())))
    files = {LEFT_OUT_FILE: _table(left_out)} if left_out else {}
    with _bar(progress, f"{path.name}: writing", sum(summary["clips"] for summary in summaries)) as bar:
        try:
            return write_clip_set(
                path, info, parts.clips([summary["files"] for summary in summaries], bar), files=files
            )
        except ValueError as error:
            raise ValueError(f"{error}{_first(left_out)}") from error


def _open_whole(path: Path, recipe: Mapping[str, str | int]) -> ClipSet | None:
    """The clip set at `path`, where it is whole and of this recipe."""
    try:
        clips = ClipSet.open(path)
        return clips if read_manifest(path).get("provenance", {}).get("recipe") == dict(recipe) else None
    except ValueError:
        return None


def _sweep(path: Path) -> None:
    """Deletes half-written sets of killed processes. Nobody else writes: the caller holds the lock."""
    names = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}\.tmp")
    for folder in path.parent.iterdir():
        if names.fullmatch(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


# Parts


def _parts_folder(path: Path) -> Path:
    return path.parent / f".{path.name}.parts"


def _has_parts(path: Path, recipe: Mapping[str, str | int]) -> bool:
    """Whether parts of this recipe are there, or what a killed process has not yet deleted of a folder of parts."""
    folder = _parts_folder(path)
    if not folder.exists():
        return False
    description = json_object(folder / _RECIPE_FILE)
    return not description or description.get("recipe") == dict(recipe)


@dataclass(frozen=True)
class _Parts:
    """What has been read of a source."""

    folder: Path

    def open(self, reading: Reading) -> None:
        """Makes the folder, and empties it if its parts are of something else."""
        jobs = [[job.name, job.items] for job in reading.jobs]
        wanted = {"format": PART_FORMAT, "recipe": dict(reading.info.recipe), "jobs": jobs}
        if json_object(self.folder / _RECIPE_FILE) == json.loads(json.dumps(wanted)):
            return
        if self.folder.exists():
            log.info("%s: starting anew, the source has changed", self.folder)
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        write_atomic(self.folder / _RECIPE_FILE, json.dumps(wanted))

    def summary_file(self, index: int) -> Path:
        """There once job `index` is done."""
        return self.folder / f"{index:05d}.json"

    def summary(self, index: int) -> dict[str, Any]:
        return json.loads(self.summary_file(index).read_text("utf-8"))

    def file(self, index: int, number: int) -> Path:
        """Some clips of job `index`."""
        return self.folder / f"{index:05d}-{number:03d}.npz"

    def write(self, index: int, number: int, clips: Sequence[Clip]) -> None:
        """Writes one file, over what a killed process left."""
        tracks = [track for clip in clips for track in clip.tracks]
        arrays = {}
        for name in FRAME_ARRAYS:
            present = [array for track in tracks if (array := getattr(track, name)) is not None]
            if present and len(present) < len(tracks):
                raise ValueError(f"clip {clips[0].clip_id} and after: all tracks or none must have {name}")
            if present:
                rows_match = all(
                    len(array) == len(track.positions) for array, track in zip(present, tracks, strict=True)
                )
                assert rows_match, f"{name} must be one row a frame"
                arrays[name] = np.concatenate(present)
        rows = [asdict(replace(clip, tracks=())) for clip in clips]
        with self.file(index, number).open("wb") as file:
            np.savez(
                file,
                **arrays,  # type: ignore[arg-type]  # numpy's types take any name for `allow_pickle`
                track_length=np.array([len(track.positions) for track in tracks], dtype=np.int64),
                track_offset=np.array([track.offset for track in tracks], dtype=np.int64),
                persons=np.array([len(clip.tracks) for clip in clips], dtype=np.int64),
                clips=np.frombuffer(json.dumps(rows).encode(), dtype=np.uint8),
            )
            file.flush()
            os.fsync(file.fileno())  # Before the job counts as done: a power cut must not leave an empty part.

    def clips(self, files: Sequence[int], bar: "tqdm[NoReturn]") -> Iterator[Clip]:
        """The clips of all jobs, which have so many files each, in order."""
        for index, number in ((index, number) for index, count in enumerate(files) for number in range(count)):
            with np.load(self.file(index, number), allow_pickle=False) as part:
                arrays = {name: part[name] for name in part.files}
            ends_T = np.cumsum(arrays["track_length"])
            tracks = iter(zip(ends_T - arrays["track_length"], ends_T, arrays["track_offset"], strict=True))
            for row, persons in zip(json.loads(arrays["clips"].tobytes()), arrays["persons"], strict=True):
                yield Clip(**{**row, "tracks": tuple(_track(arrays, *next(tracks)) for _ in range(persons))})
                bar.update()


def _track(arrays: Mapping[str, np.ndarray], start: int, end: int, offset: int) -> Track:
    frames = {name: arrays[name][start:end] for name in FRAME_ARRAYS if name in arrays}
    return Track(**frames, offset=int(offset))


# Jobs


def _run(parts: _Parts, index: int, job: Job, report: Callable[[int], Any] = lambda read: None) -> None:
    """Reads one job into parts."""
    left_out: list[LeftOut] = []
    held: list[Clip] = []
    files = items = size = 0
    for item in job.read():
        if isinstance(item, LeftOut):
            left_out.append(item)
        else:
            held.append(item)
            size += sum(_bytes(track) for track in item.tracks)
        if size >= PART_BYTES:
            parts.write(index, files, held)
            files, held, size = files + 1, [], 0
        items += 1
        if items <= job.items:
            report(1)
    report(max(job.items - items, 0))
    if held:
        parts.write(index, files, held)
        files += 1
    summary = {"files": files, "clips": items - len(left_out), "left_out": [astuple(item) for item in left_out]}
    write_atomic(parts.summary_file(index), json.dumps(summary))


def _bytes(track: Track) -> int:
    return sum(array.nbytes for name in FRAME_ARRAYS if (array := getattr(track, name)) is not None)


def _run_all(parts: _Parts, jobs: Sequence[Job], missing: Sequence[int], workers: int, bar: "tqdm[NoReturn]") -> None:
    # Not forked: this process may have threads (BLAS, a progress bar), whose locks a copy would inherit.
    context = multiprocessing.get_context("spawn")
    count = min(workers, len(missing))
    with concurrent.futures.ProcessPoolExecutor(count, mp_context=context, initializer=_start_process) as pool:
        with _interrupts_ignored():  # The processes start here, and inherit it.
            running = {pool.submit(_run, parts, index, jobs[index]): index for index in missing}
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


# Words


def _table(left_out: Sequence[LeftOut]) -> str:
    rows = [("name", "reason", "detail"), *map(astuple, left_out)]
    # A name or message of damaged content may hold anything; a row is a line.
    table = "".join("\t".join(" ".join(cell.split()) for cell in row) + "\n" for row in rows)
    # A file's name that isn't UTF-8 has half characters in it, which can't be written to any file.
    return table.encode("utf-8", "backslashreplace").decode()


def _first(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return ""
    item = left_out[0]
    return f"; {len(left_out)} recordings were left out, the first: {item.name}: {item.reason} {item.detail}".rstrip()


def _bar(progress: bool, what: str, total: int, done: int = 0) -> "tqdm[NoReturn]":
    shown = progress and sys.stderr.isatty()
    return tqdm(total=total, initial=done, desc=what, unit=" recordings", leave=False, disable=not shown)
