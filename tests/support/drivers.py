"""Real drivers as processes of their own, on toy clip sets: started, watched, killed; and what they leave."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.runs import FLAT, POSE, SOLID, write_toy_sets

PATIENCE = 900.0
"""Seconds after which a process is taken to hang: a loaded machine takes many times what an idle one does."""
ROOT = Path(__file__).resolve().parents[2]

STUDY = '''
"""Two settings of routing and separate training on toy clips: every kind of unit, a few seconds each."""

from search_spaces.columns import AR3D, MPJPE
from search_spaces.study import Column, Row, Study, Table

EAP = Column("eap/top1@0.5", "Early prediction", "%", True)
STUDY = Study(
    "toy",
    "Does it come through?",
    "It does.",
    (
        Table(
            "toy",
            "Toy",
            "Setting",
            (AR3D, MPJPE, EAP),
            (Row("without", {"routing": False}), Row("with"), Row("separate", training="separate")),
            "with",
        ),
    ),
    base={
        "token_width": 8, "tokenizer_layers": 1, "encoder_layers": 1, "router_width": 16, "tem_width": 16,
        "tem_heads": 2, "tem_mlp_ratio": 1, "decoder_layers": 1, "decoder_width": 16, "decoder_heads": 2,
        "n_bins": 10, "evaluation.ratios": (0.5,), "steps": STEPS,
        "pe.sources": ("toy_pose",), "pe.frames": 8, "pe.batch_size": 4, "pe.frame_stride": 1,
        "pe.targets_per_window": 1, "pe.evaluate_targets": 8, "pe.evaluate_stride": 8,
        "ar2d.sources": ("toy_flat",), "ar2d.frames": 8, "ar2d.batch_size": 4,
        "eap.sources": ("toy_solid",), "eap.frames": 8, "eap.batch_size": 4,
        "ar3d.sources": ("toy_solid",), "ar3d.frames": 8, "ar3d.batch_size": 4,
    },
    seeds=1,
)
'''


@dataclass
class Bench:
    """A toy study, its data, and a folder for storages."""

    folder: Path
    data: dict[str, Path]
    study: Path

    @classmethod
    def make(cls, folder: Path, steps: int) -> Bench:
        """Writes clip sets and a study whose rows have so many steps."""
        folder.mkdir(parents=True, exist_ok=True)
        study = folder / "toy.py"
        study.write_text(STUDY.replace("STEPS", str(steps)))
        return cls(folder, write_toy_sets(folder / "clips"), study)

    @classmethod
    def opened(cls, folder: Path) -> Bench:
        """What `make` has made."""
        return cls(folder, {name: folder / "clips" / name for name in (POSE, SOLID, FLAT)}, folder / "toy.py")

    def command(self, storage: Path, *more: str) -> list[str]:
        """The command line of a driver of one unit at a time: one process that trains costs half of what two do."""
        data = [text for name in (POSE, SOLID, FLAT) for text in ("--data", f"{name}={self.data[name]}")]
        return [sys.executable, "-m", "orchestrator.ablate", str(self.study), *data, "--storage", str(storage),
                "--address", "local", "--max-concurrent", "1", *more]  # fmt: skip

    def start(self, storage: Path, *more: str) -> Driver:
        """A driver in a session of its own."""
        log = self.folder / f"{storage.name}-{time.monotonic_ns()}.log"
        environment = {**os.environ, "UPS_CACHE": str(self.folder / "cache"), "PYTHONPATH": str(ROOT)}
        with log.open("wb") as stream:
            process = subprocess.Popen(
                self.command(storage, *more), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return Driver(process, log)

    def run(self, storage: Path, *more: str, timeout: float = PATIENCE) -> Driver:
        """A driver, until it ends by itself."""
        driver = self.start(storage, *more)
        driver.process.wait(timeout)
        return driver


@dataclass
class Driver:
    """A running or ended driver."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def text(self) -> str:
        """What it printed so far."""
        return self.log.read_text("utf-8", "replace")

    def wait_for(self, text: str, *, times: int = 1) -> None:
        """Until it has printed something so often; AssertionError with its log if it ends or takes too long."""
        wait_until(lambda: self.text.count(text) >= times or self.process.poll() is not None, lambda: self.text)
        assert self.text.count(text) >= times, self.text

    def kill(self) -> None:
        """SIGKILL, as a crash would. Its workers end by themselves; waits for that, so that a test knows what is left.
        Ray's own agents may take a minute longer."""
        workers = self.workers()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not any(alive(pid) for pid in workers), lambda: str(workers))

    def workers(self) -> list[int]:
        """Processes that run units now."""
        return [pid for pid in descendants(self.process.pid) if b"Trainable.train" in command_of(pid)]


def wait_until(
    condition: Callable[[], bool], why: Callable[[], str] = lambda: "", *, timeout: float = PATIENCE
) -> None:
    """Poll; AssertionError after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"nothing after {timeout} s: {why()}"
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    pids, left = [], [pid]
    while left:
        below = children.get(left.pop(), [])
        pids += below
        left += below
    return pids


def command_of(pid: int) -> bytes:
    """Its command line; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def records(storage: Path) -> dict[str, bytes]:
    """Every finished record, by the unit's folder."""
    return {file.parent.name: file.read_bytes() for file in (storage / "units").glob("*/record.json")}


def cells(storage: Path) -> list[dict[str, str]]:
    """The report's cells."""
    (file,) = (storage / "studies").glob("*/report/cells.csv")
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def mlflow_runs(storage: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Status of the runs of each unit key, and of the runs of studies, read from MLflow's database without MLflow."""
    import sqlite3

    # Not read-only: what a killed driver left half written has to be rolled back first.
    with sqlite3.connect(f"file:{storage / 'mlflow.db'}?mode=rw", uri=True) as database:
        status = dict(database.execute("SELECT run_uuid, status FROM runs"))
        keys = dict(database.execute("SELECT run_uuid, value FROM tags WHERE key = 'ups.key'"))
        studies = [run for (run,) in database.execute("SELECT run_uuid FROM tags WHERE key = 'ups.plan'")]
    units: dict[str, list[str]] = {}
    for run, key in keys.items():
        units.setdefault(key, []).append(status[run])
    return units, [status[run] for run in studies]


def session_of(leader: int) -> list[int]:
    """Processes of the session that a process has led, which may be gone; those that wait to be reaped don't count."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            members.append(int(stat.parent.name))
    return members
