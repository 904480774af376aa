"""Several hosts on this machine, each with an address, processes, disks and sshd of its own, and one shared folder.

They are made by the program `netlab`, which UPS_NETLAB names (else ../shared/tools/netlab). Ray is brought up on them
as a user would: `ray up` with a copy of cluster/local.yaml.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
NET = "10.77.7"
SHARED = "/srv/shared"
"""Where every host mounts the shared folder."""
LOCK = Path(tempfile.gettempdir()) / "ups-hosts.lock"
PRIVATE = ("/tmp", "/root", "/run")
"""What hosts have for themselves, so that what lies there has to be shown to them."""
NEEDED = {"sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync", "ip": "iproute2"}
"""Debian's packages, by a program of each."""


def program() -> Path:
    """Where netlab is."""
    return Path(os.environ.get("UPS_NETLAB") or ROOT.parent / "shared" / "tools" / "netlab")


def why_not() -> str:
    """What is missing for hosts; empty where nothing is."""
    if os.geteuid():
        return "needs root for network namespaces"
    if not program().is_file():
        return f"needs netlab, which is not at {program()}; set UPS_NETLAB"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = sorted(package for name, package in NEEDED.items() if not shutil.which(name, path=path))
    return f"needs Debian's {', '.join(missing)}" if missing else ""


class Hosts:
    """h1 (the head) to hN. `up` is their maker."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.shared = folder / "shared"
        shown = {Path(sys.prefix), Path(sys.base_prefix), ROOT}
        share = [str(path) for path in sorted(shown) if str(path).startswith(tuple(f"{top}/" for top in PRIVATE))]
        self._environment = {
            **os.environ,
            "NETLAB_DIR": str(folder),
            "NETLAB_NAME": "ups",
            "NETLAB_NET": NET,
            "NETLAB_SHARE": ":".join(share),
        }

    @classmethod
    @contextmanager
    def up(cls, folder: Path, count: int) -> Iterator[Hosts]:
        """Hosts that live as long as the block. There is one set of them at a time: others wait."""
        hosts = cls(folder, count)
        with FileLock(LOCK):
            hosts.do("down", check=False)  # Of a run that was killed.
            try:
                hosts.do("up", str(count))
                for number in range(1, count + 1):
                    hosts.prepare(number)
                yield hosts
            finally:
                hosts.do("down", check=False)

    def address(self, number: int) -> str:
        return f"{NET}.1{number}"

    def prepare(self, number: int) -> None:
        """What a login shell of a host finds: Python with the project's packages, and the project where `ray up` puts
        it."""
        lines = [
            f'export PATH="{Path(sys.prefix) / "bin"}:$PATH"',
            'export PYTHONPATH="$HOME/ups" OMP_NUM_THREADS=1 RAY_AUTH_MODE=token PYTHONDONTWRITEBYTECODE=1',
            f"export UPS_CACHE={SHARED}/cache UPS_PREEMPTION_FILE=/run/leave",
            "export RAY_prestart_worker_first_driver=0 RAY_worker_niceness=0",
        ]
        self.execute(number, f"printf '%s\\n' {' '.join(map(shlex.quote, lines))} > /root/.bashrc")

    def do(self, *words: str, check: bool = True, timeout: float = 60) -> str:
        """A command of netlab's."""
        done = subprocess.run(
            [str(program()), *words], env=self._environment, capture_output=True, text=True, timeout=timeout,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"netlab {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def execute(self, number: int, command: str, check: bool = True, timeout: float = 60) -> str:
        """A command in a host, also in one whose link is cut."""
        return self.do("exec", f"h{number}", command, check=check, timeout=timeout)

    def cut(self, number: int) -> None:
        """Pull the network cable."""
        self.do("cut", f"h{number}")

    def heal(self, number: int) -> None:
        """Plug it in again."""
        self.do("heal", f"h{number}")

    def crash(self, number: int) -> None:
        """SIGKILL to all of it."""
        self.do("kill", f"h{number}")

    def boot(self, number: int) -> None:
        """Power on again."""
        self.do("boot", f"h{number}")

    def ssh(self, number: int, command: str) -> list[str]:
        """The command line that runs something in a login shell of a host."""
        return [
            "ssh", "-i", str(self.folder / "id_ed25519"), "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
            "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes",
            f"root@{self.address(number)}", f"bash --login -c {shlex.quote('. ~/.bashrc; ' + command)}",
        ]  # fmt: skip

    def run(self, number: int, command: str, timeout: float = 120) -> str:
        """What a command in a login shell of a host prints; AssertionError where it fails."""
        done = subprocess.run(
            self.ssh(number, command), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout


class Cluster:
    """Ray on hosts, by `ray up` with a copy of cluster/local.yaml that installs nothing."""

    def __init__(self, hosts: Hosts, folder: Path, cpus: int = 1) -> None:
        self.hosts = hosts
        self.file = folder / "local.yaml"
        self._home = folder / "home"
        self._home.mkdir(parents=True, exist_ok=True)
        self.file.write_text(yaml.safe_dump(self._content(cpus), sort_keys=False))
        token = self._home / ".ray" / "auth_token"
        token.parent.mkdir(exist_ok=True)
        token.write_text(os.urandom(32).hex())
        token.chmod(0o600)
        (self._home / ".cache/ups/clips").mkdir(parents=True, exist_ok=True)

    def _content(self, cpus: int) -> dict[str, Any]:
        content = yaml.safe_load((ROOT / "cluster" / "local.yaml").read_text())
        hosts = self.hosts
        workers = [hosts.address(number) for number in range(2, hosts.count + 1)]
        content["provider"] |= {"head_ip": hosts.address(1), "worker_ips": workers}
        content["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.folder / "id_ed25519")}
        content["min_workers"] = content["max_workers"] = len(workers)
        content["file_mounts"] = {
            place: str(ROOT / source) if not source.startswith("~") else source
            for place, source in content["file_mounts"].items()
        }
        # Nothing to install: hosts see this machine's packages.
        content["setup_commands"] = [line for line in content["setup_commands"] if "chmod" in line]
        limits = f" --num-cpus={cpus} --memory=1500000000 --object-store-memory=100000000 --disable-usage-stats"
        for name in ("head_start_ray_commands", "worker_start_ray_commands"):
            content[name] = [
                line.replace("ray start ", f"ray start{limits} ") for line in content[name] if "mlflow" not in line
            ]
        return content

    def ray(self, *words: str, timeout: float = 180) -> str:
        """A ray command of the user's, on the user's machine."""
        environment = {**os.environ, "HOME": str(self._home), "TMPDIR": str(self._home), "RAY_AUTH_MODE": "token"}
        done = subprocess.run(
            [str(Path(sys.prefix) / "bin" / "ray"), *words], env=environment, capture_output=True, text=True,
            timeout=timeout, stdin=subprocess.DEVNULL, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, f"ray {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def up(self) -> float:
        """`ray up`; returns its seconds."""
        started = time.monotonic()
        self.ray("up", "-y", "--no-config-cache", str(self.file))
        return time.monotonic() - started

    def down(self) -> None:
        """`ray down`."""
        self.ray("down", "-y", str(self.file))

    def alive(self) -> int:
        """Nodes that Ray counts as alive."""
        script = (
            "import ray; ray.init(log_to_driver=False, logging_level=40); print(sum(n['Alive'] for n in ray.nodes()))"
        )
        return int(self.hosts.run(1, f"RAY_ADDRESS={self.hosts.address(1)}:6379 python -c {shlex.quote(script)}"))

    def wait_for_nodes(self, count: int, seconds: float = 120) -> None:
        """Until so many live."""
        end = time.monotonic() + seconds
        while (alive := self.alive()) < count:
            assert time.monotonic() < end, f"{alive} of {count} nodes after {seconds} s"
            time.sleep(1)
