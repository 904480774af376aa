"""What must be equal on every node that runs units: code, packages, clip sets, storage. Made by the driver, checked by
each worker before it runs a unit, so that no table mixes units that were trained by different code or on other data."""

import hashlib
import importlib.metadata
import platform
import socket
import subprocess
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

import ups_model
from orchestrator.project import import_folders, load_project
from search_spaces.study import UPS

GIT_TIMEOUT_SECONDS = 20
LOCK_CHECK_SECONDS = 0.2
"""Another worker that asks for the driver's lock has it for a moment."""
MAX_DIFF_BYTES = 1_000_000
"""Of a working tree that is kept beside a plan."""
COMPARED = ("torch", "numpy", "transformers", "ray")
"""Packages of which all nodes must have the same version; a build for other hardware (2.13.0+cu126) is the same."""


@dataclass(frozen=True)
class Environment:
    """What the driver runs. Plain data, sent with every job."""

    host: str
    """Of the driver."""
    commit: str
    """That runs; equal code has no other."""
    code: str
    """`code_digest` of the driver."""
    versions: Mapping[str, str]
    clips: Mapping[str, str]
    """Content fingerprint of each clip set, by name."""
    probe: str = ""
    """A file on the storage that the driver holds a lock on; empty for an object store: its address is one for all."""
    projects: Mapping[str, str] = field(default_factory=dict)
    """Training code of each project of the study, by address."""


@contextmanager
def driver_environment(
    root: Path | None, commit: str, clips: Mapping[str, str], projects: Iterable[str] = ()
) -> Iterator[Environment]:
    """This process's, as the driver, with a probe on the storage for as long as the block lasts.

    Args:
        root: folder of the storage; None for an object store.
        commit: of the code that runs.
        clips: content fingerprints by name.
        projects: addresses of those that are trained.
    """
    codes = {address: load_project(address).identity().training for address in projects}
    own = Environment(socket.gethostname(), commit, code_digest(), versions(), dict(clips), projects=codes)
    if root is None:
        yield own
        return
    for left in root.glob(".driver-*"):  # Of drivers that were killed: their locks ended with them.
        lock = FileLock(left)
        with suppress(OSError, Timeout):
            lock.acquire(blocking=False)
            left.unlink()
            lock.release()
    probe = root / f".driver-{uuid.uuid4().hex}"
    with FileLock(probe):
        try:
            yield replace(own, probe=str(probe))
        finally:
            with suppress(OSError):
                probe.unlink()


def faults(driver: Environment, paths: Mapping[str, str], project: str = UPS) -> list[str]:
    """Why this node must not run a unit of the driver's; empty where it may. Each names the way out.

    Args:
        paths: place of each data set that the unit needs.
        project: address of what trains the unit.
    """
    trainer = load_project(project)
    reasons = []
    here = versions()
    for name, version in driver.versions.items():
        own = here.get(name, "none")
        if _release(name, own) != _release(name, version):
            reasons.append(f"{name} {own} where the driver has {version}; install from constraints.txt")
    if code_digest() != driver.code:
        reasons.append(
            "ups_model is not the driver's code: send the same working tree to every node, and start the command again "
            "after changing it"
        )
    if (code := driver.projects.get(project)) not in (None, trainer.identity().training):
        reasons.append(f"project {project} is not the driver's code ({code}): send the same files to every node")
    for name, path in paths.items():
        try:
            fingerprint = trainer.open({name: Path(path)})[name].fingerprint
        except (ValueError, OSError) as error:
            reasons.append(f"clip set {name} can't be read at {path} ({error}); copy it to every node, at one path")
            continue
        if fingerprint != driver.clips.get(name):
            reasons.append(
                f"clip set {name} at {path} is another than the driver's when the call began; copy the driver's to "
                "every node, and leave it alone while units run"
            )
    return reasons + (_probe_faults(Path(driver.probe), driver.host) if driver.probe else [])


def _probe_faults(probe: Path, host: str) -> list[str]:
    """Whether storage is one, and locks reach from one host to another."""
    folder = probe.parent
    if not probe.exists():
        # Asking for the lock would make the file: a folder of this node alone must be left as it was.
        return [
            f"--storage {folder} is not the driver's folder here: mount it on every node at one path, or give s3://"
        ]
    lock = FileLock(probe)
    try:
        lock.acquire(timeout=LOCK_CHECK_SECONDS)
    except Timeout:
        return []
    except OSError as error:
        return [f"--storage {folder} can't be locked ({error.strerror or error}); mount it with locks, or give s3://"]
    lock.release()
    if not probe.exists():
        return []  # The driver has ended meanwhile.
    return [
        f"--storage {folder}: locks don't reach from {host} to {socket.gethostname()}, so one unit could be trained "
        "twice at a time; mount it with locks between hosts (NFS version 4, without nolock or local_lock), or give s3://"
    ]


@cache
def versions() -> dict[str, str]:
    """Of what can change a result, as installed here."""
    # This package's own from its source: it may run without being installed, on a cluster that was sent the folder.
    own = {"python": platform.python_version(), "ups-ablate": ups_model.__version__}
    return own | {name: importlib.metadata.version(name) for name in COMPARED}


@cache
def code_digest() -> str:
    """Hash of the source of `ups_model`, all of what a unit's result depends on."""
    root = Path(ups_model.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(file for kind in ("py", "txt", "toml") for file in root.rglob(f"*.{kind}")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def _release(name: str, version: str) -> str:
    """A version without its build; of Python, the first two numbers."""
    return ".".join(version.split(".")[:2]) if name == "python" else version.split("+")[0]


@cache
def commit() -> str:
    """Commit of the working tree that this package lies in, with "-dirty" where files differ from it; where there is no
    such tree, as on a cluster that was sent the packages, the version and a hash of the source."""
    without = f"version {ups_model.__version__}, source {code_digest()[:12]}"
    return _commit_of(Path(ups_model.__file__).resolve().parents[1], without)


@cache
def project_commit(project: str) -> str:
    """The same of the working tree that a project lies in."""
    (folder,) = import_folders([project])
    tree = next((one for one in (Path(folder), *Path(folder).parents) if (one / ".git").exists()), Path(folder))
    return _commit_of(tree, f"no commit, source {load_project(project).identity().training}")


def _commit_of(folder: Path, without: str) -> str:
    """`without` is said where the folder is no working tree."""
    head, changed = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    if head is None or changed is None:
        return without
    return head.decode("utf-8", "replace").strip()[:12] + ("-dirty" if changed.strip() else "")


def working_tree_diff() -> bytes:
    """What the working tree that this package lies in differs in from its commit; empty where it doesn't, or where
    there is no such tree."""
    diff = _git(Path(ups_model.__file__).resolve().parents[1], "diff", "HEAD") or b""
    return diff if len(diff) <= MAX_DIFF_BYTES else diff[:MAX_DIFF_BYTES] + b"\n... (cut)\n"


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git says; None where it fails, or the folder is no working tree."""
    if not (folder / ".git").exists():
        return None
    command, limit = ["git", *arguments], GIT_TIMEOUT_SECONDS
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, timeout=limit, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
