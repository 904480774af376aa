"""How fast NTU RGB+D's raw files become a clip set, and in how much memory; beside a plain Python reading loop.

    python benchmarks/prepare.py [--clips 20000] [--workers N] [--folder DIR]

Files of real size and form (25 joints of 12 fields a line, about 80 frames, every fifth with a second person) are
written to DIR: 200 different ones, each under many names. The plain loop reads line by line into dicts of floats and
copies the coordinates into an array, as readers of this format commonly do; it is timed on every so-many-th file,
before and after the preparation, in this process. `prepare` is timed as its own process, from start to end, with all
it does: listing, reading, choosing persons, parts, putting together, hashing, syncing. Files come from the page cache
in both.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DIFFERENT = 200
FIELDS = ("x", "y", "z", "depthX", "depthY", "colorX", "colorY", "qW", "qX", "qY", "qZ", "trackingState")
SAMPLED = 400


def recording(index: int) -> str:
    """The text of one file: smooth motion about a standing body, written with the digits the sensor's files have."""
    rng = np.random.default_rng(index)
    frames = int(np.clip(rng.lognormal(4.3, 0.4), 25, 300))
    bodies = 2 if index % 5 == 0 else 1
    time_N = np.arange(frames)[:, None, None] / 30
    values = []
    for body in range(bodies):
        rest_J3 = rng.uniform([-0.3, -0.9, 2.5], [0.3, 0.9, 3.5], (25, 3)) + np.array([body, 0, 0])
        sway_NJ3 = 0.1 * np.sin(2 * np.pi * rng.uniform(0.2, 2, (25, 3)) * time_N + rng.uniform(0, 6, (25, 3)))
        other_NJ8 = rng.uniform(-1000, 1000, (frames, 25, 8))
        values.append(np.concatenate([rest_J3 + sway_NJ3, other_NJ8], axis=2))
    lines = [str(frames)]
    for frame in range(frames):
        lines.append(str(bodies))
        for body in range(bodies):
            lines.append(f"7205759403792{body:05d} 0 1 1 1 1 0 0.02764709 0.05745083 2")
            lines.append("25")
            lines += [" ".join(f"{value:.7g}" for value in joint) + " 2" for joint in values[body][frame]]
    return "\n".join(lines) + "\n"


def names() -> Iterator[str]:
    """Names of NTU RGB+D 60, setup by setup."""
    for setup, person, repeat, action, camera in itertools.product(
        range(1, 18), range(1, 41), (1, 2), range(1, 61), (1, 2, 3)
    ):
        yield f"S{setup:03d}C{camera:03d}P{person:03d}R{repeat:03d}A{action:03d}"


def write_files(folder: Path, clips: int) -> int:
    """Writes the files and returns their size in bytes."""
    texts = [recording(index).encode() for index in range(DIFFERENT)]
    for index, name in enumerate(itertools.islice(names(), clips)):
        (folder / f"{name}.skeleton").write_bytes(texts[index % DIFFERENT])
    return sum(len(texts[index % DIFFERENT]) for index in range(clips))


def read_plainly(file: Path) -> np.ndarray:
    """[bodies, frames, 25, 3], by a loop over lines."""
    with file.open() as stream:
        frames = []
        for _ in range(int(stream.readline())):
            bodies = []
            for _ in range(int(stream.readline())):
                stream.readline()
                joints = []
                for _ in range(int(stream.readline())):
                    joints.append(dict(zip(FIELDS, map(float, stream.readline().split()), strict=True)))
                bodies.append(joints)
            frames.append(bodies)
    out = np.zeros((max(map(len, frames)), len(frames), 25, 3), dtype=np.float32)
    for frame, bodies in enumerate(frames):
        for body, joints in enumerate(bodies):
            for joint, values in enumerate(joints):
                out[body, frame, joint] = values["x"], values["y"], values["z"]
    return out


def time_plainly(files: list[Path]) -> float:
    """Files a second."""
    start = time.perf_counter()
    for file in files:
        read_plainly(file)
    return len(files) / (time.perf_counter() - start)


@dataclass
class Usage:
    """What a command took."""

    seconds: float = 0.0
    all_bytes: int = 0
    """Most resident memory of all its processes at one time; shared and mapped pages count once for each."""
    one_bytes: int = 0
    """Most resident memory of any one of its processes."""
    own_bytes: int = 0
    """As `all_bytes`, without the pages of files that are mapped, which the system takes back when it needs them."""

    def see(self, root: int) -> None:
        """Looks at a process and all that it started."""
        page, resident, own, pending = os.sysconf("SC_PAGE_SIZE"), [0], [0], [root]
        while pending:
            process = pending.pop()
            try:
                pending += map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
                pages, shared = map(int, Path(f"/proc/{process}/statm").read_text().split()[1:3])
            except (OSError, ValueError, IndexError):
                continue  # It has ended.
            resident.append(pages * page)
            own.append((pages - shared) * page)
        self.all_bytes = max(self.all_bytes, sum(resident))
        self.one_bytes = max(self.one_bytes, *resident)
        self.own_bytes = max(self.own_bytes, sum(own))


def measure_prepare(name: str, source: Path, out: Path, workers: int) -> tuple[Usage, str]:
    """Runs `prepare` as a process of its own: what it took, and what it printed."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "ups_model.data", "prepare", name, "--source", str(source), "--out", str(out)]
    usage, start = Usage(), time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*command, "--workers", str(workers)], stdout=log)
        while process.poll() is None:
            usage.see(process.pid)
            time.sleep(0.05)
        usage.seconds = time.perf_counter() - start
        log.seek(0)
        printed = log.read()
    if process.returncode:
        raise SystemExit(f"prepare ended with {process.returncode}")
    return usage, printed


def main() -> None:
    """Prints the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        folder = Path(made)
        source, out = folder / "files", folder / "clips"
        source.mkdir()
        size = write_files(source, given.clips)
        print(f"{given.clips:,} files, {size / 1e9:.2f} GB, {len(os.sched_getaffinity(0))} processors", flush=True)
        files = sorted(source.iterdir())
        sample = files[:: max(1, len(files) // SAMPLED)][:SAMPLED]
        plain = [time_plainly(sample)]
        print(f"plain loop: {plain[0]:.1f} files/s ({len(sample)} files)", flush=True)
        rates = {}
        for workers in sorted({1, given.workers}, reverse=True):
            usage, printed = measure_prepare("ntu60", source, out, workers)
            plain.append(time_plainly(sample))
            rates[workers] = given.clips / usage.seconds
            print(
                f"prepare, {workers} workers: {usage.seconds:.1f} s, {rates[workers]:.1f} files/s, peak memory of all "
                f"processes {usage.all_bytes / 1e6:.0f} MB; plain loop after it {plain[-1]:.1f} files/s",
                flush=True,
            )
        middle = statistics.median(plain)
        for workers, rate in rates.items():
            print(f"prepare with {workers} workers / plain loop (median {middle:.1f} files/s): {rate / middle:.1f}")
        print(*printed.splitlines()[-3:], sep="\n")


if __name__ == "__main__":
    main()
