"""What Ray has: joining a cluster or starting one, its nodes now and those to come, what a unit takes of a GPU."""

import logging
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._private import services
from ray._private import worker as ray_worker
from ray.exceptions import RayTaskError

from orchestrator.execution import local_ray
from orchestrator.worker import gpu_memory
from orchestrator.worker.gpu_memory import Footprint
from orchestrator.worker.job import Job

logger = logging.getLogger(__name__)

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves its configuration on the head."""
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where Kubernetes tells a pod its namespace."""

COLOUR = re.compile("\x1b\\[[0-9;]*m")
TOLD_OTHERWISE = (
    "The node with node id",  # By the dispatcher, as is the next.
    "A worker died or was killed",
    "Raylet is terminated",  # By `local_ray`; that of a cluster ends the driver, with a line of Ray's core.
)
"""How messages of Ray begin that say nothing new, or list what may be the reason."""
MAX_SLOTS = 2**15
"""Of a cluster that has no bound of its own."""


@dataclass(frozen=True)
class Resources:
    """What a unit gets, and how many units may run at once."""

    cpus_per_unit: float = 1.0
    gpus_per_unit: float = 0.0
    max_concurrent: int | None = None
    """None: as many as the cluster has room for."""
    processes_per_unit: int = 1
    """On one node, and each on a GPU of its own if the unit has GPUs."""


@dataclass(frozen=True)
class ClusterFacts:
    """What Ray says there is."""

    cpus: float
    gpus: float
    local: bool
    """Ray was started by this call: one node, and no more to come."""
    types: tuple[Mapping[str, float], ...] = ()
    """Resources of the kinds of nodes that an autoscaler may add."""
    most: Mapping[str, float] = field(default_factory=dict)
    """What it may grow to, where that is known."""
    missing: int = 0
    """Machines of the user's own that `ray up` knows and that have not joined yet."""

    @property
    def growing(self) -> bool:
        """Whether an autoscaler adds nodes for units that wait."""
        return bool(self.types)

    @property
    def has_gpus(self) -> bool:
        """Now, or once it has grown."""
        return self.gpus > 0 or any(kind.get("GPU", 0) for kind in self.types)

    def slots(self, resources: Resources) -> int:
        """Units that run at once, once it has grown."""
        cpus, gpus = max(self.cpus, self.most.get("CPU", 0.0)), max(self.gpus, self.most.get("GPU", 0.0))
        room = cpus / resources.cpus_per_unit if resources.cpus_per_unit else float("inf")
        if resources.gpus_per_unit:
            room = min(room, gpus / resources.gpus_per_unit)
        most = resources.max_concurrent if resources.max_concurrent is not None else float("inf")
        return int(max(1, min(room + 1e-9, most, MAX_SLOTS)))


def connect(address: str) -> ClusterFacts:
    """Start Ray on this machine ("local"), or join a cluster that runs ("auto": if there is one; HOST:PORT).

    Raises:
        ValueError: no cluster answers at the address, or Ray doesn't start.
    """
    if not ray.is_initialized():
        # Private, for want of a switch: Ray prints its messages to drivers with colour codes, and dozens of lines.
        ray_worker.print_to_stdstream = _log_message
        if _starts_ray(address):
            local_ray.start()
        else:
            _join(address)
    resources = ray.cluster_resources()
    # Private: whether this process has started the head; then `ray up`'s file, if any, is of another cluster.
    own = ray_worker._global_node is not None and ray_worker._global_node.is_head()
    plain = {} if own else _autoscaler_config()
    types, most = ((), {}) if own else _growth(plain)
    missing = 0
    if plain.get("provider", {}).get("type") == "local":
        missing = max(0, 1 + plain.get("max_workers", 0) - sum(node["Alive"] for node in ray.nodes()))
    return ClusterFacts(resources.get("CPU", 0.0), resources.get("GPU", 0.0), own, types, most, missing)


def _starts_ray(address: str) -> bool:
    """Whether an address stands for a cluster of the call's own. ValueError where "auto" finds one that is gone."""
    if address != "auto":
        return address == "local"
    # Private. Of RAY_ADDRESS, or a cluster of `ray start` (so of `ray up`); Ray's public "auto" would also take what
    # another driver on this machine has started for itself, and end with it.
    logging.getLogger("ray").setLevel(logging.ERROR)  # It would tell of other drivers' clusters.
    found = services.canonicalize_bootstrap_address(None)  # type: ignore[arg-type]  # It says that it may be None.
    if found is None:
        return True
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:  # Ray would try for minutes.
        source = "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") else "what ray start has left"
        raise ValueError(
            f"--address auto: no Ray cluster answers at {found} ({error.strerror or error}), which {source} names; "
            "start it, or give --address local"
        ) from error
    return False


def _join(address: str) -> None:
    try:
        where = None if address == "auto" else address
        ray.init(address=where, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"--address {address}: no Ray cluster answers ({reason}); start one with ray up, or use local"
        ) from error


def _log_message(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    """What Ray tells drivers, in one line each without colours, and only what nothing else tells."""
    for message in data["lines"]:
        line = next((line.strip() for line in COLOUR.sub("", message).splitlines() if line.strip()), "")
        if line and not line.startswith(TOLD_OTHERWISE):
            logger.warning("Ray: %s", line)


def _autoscaler_config() -> Mapping[str, Any]:
    """What the cluster's autoscaler was told: by `ray up` in a file on the head, by KubeRay in a resource that the
    head's pod may read. Empty where there is neither."""
    if BOOTSTRAP.expanduser().is_file():
        bootstrap: Mapping[str, Any] = yaml.safe_load(BOOTSTRAP.expanduser().read_text("utf-8"))
        return bootstrap
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not name or "KUBERNETES_SERVICE_HOST" not in os.environ:
        return {}
    # Private; what the autoscaler beside the head calls itself. Nothing of Ray's tells a driver what may still come.
    from ray.autoscaler._private.kuberay import autoscaling_config

    try:
        space = NAMESPACE.read_text("utf-8").strip()
        provider = autoscaling_config.node_provider  # type: ignore[attr-defined]  # imported there, not exported
        resource = provider.KubernetesHttpApiClient(space).get(f"rayclusters/{name}")
        derived: Mapping[str, Any] = autoscaling_config._derive_autoscaling_config_from_ray_cr(resource)
        return derived
    except (OSError, ValueError, KeyError) as error:  # Those of requests are OSErrors.
        logger.warning(
            "Kubernetes doesn't tell which pods may come for RayCluster %s (%s): units are given to those that are "
            "there; the head needs enableInTreeAutoscaling, and its service account",
            name, error,
        )  # fmt: skip
        return {}


def _growth(bootstrap: Mapping[str, Any]) -> tuple[tuple[Mapping[str, float], ...], Mapping[str, float]]:
    """Resources of node types that the cluster's autoscaler may add, and of all nodes when it has added them.

    Args:
        bootstrap: of the autoscaler; empty where there is none.
    """
    types: list[tuple[Mapping[str, float], int]] = []
    most: dict[str, float] = {}
    for name, kind in bootstrap.get("available_node_types", {}).items():
        if name != bootstrap.get("head_node_type"):
            types.append((kind.get("resources", {}), kind.get("max_workers", bootstrap.get("max_workers", 0))))
    if bootstrap.get("provider", {}).get("type") == "local":
        types = []  # Its nodes are the user's own, and all there are.
    usable = [(kind, count) for kind, count in types if count and any(kind.get(name) for name in ("CPU", "GPU"))]
    for kind, count in usable:
        for name in ("CPU", "GPU"):
            most[name] = most.get(name, 0.0) + kind.get(name, 0.0) * (count if count > 0 else float("inf"))
    for name, amount in most.items():  # Spot and on demand each may have as many as all together.
        largest = max(kind.get(name, 0.0) for kind, _ in usable)
        most[name] = min(amount, bootstrap.get("max_workers", float("inf")) * largest)
    return tuple(kind for kind, _ in usable), most


def check_room(facts: ClusterFacts, resources: Resources) -> None:
    """ValueError where no node could ever run one unit."""
    nodes = [*(node["Resources"] for node in ray.nodes() if node["Alive"]), *facts.types]
    for flag, name, need in (
        ("--gpus-per-unit", "GPU", resources.gpus_per_unit),
        ("--cpus-per-unit", "CPU", resources.cpus_per_unit),
    ):
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if need > most:
            total = facts.gpus if name == "GPU" else facts.cpus
            several = resources.processes_per_unit > most
            way = f"--processes-per-unit {most:g}" if several and not resources.gpus_per_unit else f"{flag} {most:g}"
            raise ValueError(
                f"{flag} must be at most what one node has, got {need:g}: the cluster has {total:g} {name} in all and "
                f"{most:g} on its largest node; try {way}"
            )
    fits = [node for node in nodes if node.get("GPU", 0.0) >= resources.gpus_per_unit]
    most = max((node.get("CPU", 0.0) for node in fits), default=0.0)
    if resources.cpus_per_unit > most:
        raise ValueError(
            f"--cpus-per-unit must be at most what a node with --gpus-per-unit {resources.gpus_per_unit:g} has, got "
            f"{resources.cpus_per_unit:g}: the largest of those has {most:g}; try --cpus-per-unit {most:g}"
        )


def usable_nodes(resources: Resources) -> list[str]:
    """Ids of the nodes that live, and have room for a unit when nothing else runs there."""
    wanted = {"CPU": resources.cpus_per_unit, "GPU": resources.gpus_per_unit}
    return [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(name, 0.0) >= amount for name, amount in wanted.items())
    ]


def measure_footprints(
    jobs: Mapping[str, Job], resources: Resources, measure: Callable[[Job], Footprint] = gpu_memory.measure
) -> dict[str, Footprint]:
    """What each kind of unit takes of a GPU, measured on whole ones, as many at once as there are.

    Args:
        jobs: one of each kind, by `Unit.kind`.
        resources: CPUs of a unit.
        measure: what a worker does.

    Raises:
        ValueError: a unit doesn't fit on a whole GPU, or torch sees none.
    """

    def call(text: str) -> Footprint:
        return measure(Job.from_json(text))

    remote = ray.remote(num_gpus=1, num_cpus=resources.cpus_per_unit, max_retries=3)(call)
    answers = {kind: remote.remote(job.to_json()) for kind, job in jobs.items()}
    try:
        return gpu_memory.smallest_gpu({kind: ray.get(answer) for kind, answer in answers.items()})
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ValueError):
            raise ValueError(str(cause)) from error
        raise


def disconnect() -> None:
    """End the connection, and Ray itself where `connect` started it."""
    local_ray.stop_watching()
    ray.shutdown()
    local_ray.remove_files()
