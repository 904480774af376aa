"""Rules for manifests of KubeRay: Ray's own reading of them, misspelt fields, a volume, a notice before the end."""

import contextlib
import copy
import io
import logging
import re
from collections.abc import Iterator

import jsonschema

from cluster.document import Document, Fault, near, words
from cluster.rules.facts import IDLE_MINUTES, PREEMPTION_SECONDS

API = "ray.io/v1"
CLUSTER = words(
    "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec "
    "headServiceAnnotations managedBy rayVersion suspend upgradeStrategy workerGroupSpecs"
)
HEAD = words("enableIngress headService labels rayStartParams resources serviceType template")
WORKERS = words(
    "groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts priority rayStartParams replicas "
    "resources scaleStrategy suspend template"
)
AUTOSCALER = words(
    "env envFrom idleTimeoutSeconds image imagePullPolicy resources securityContext upscalingMode version volumeMounts"
)
CONTAINER = words(
    "args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports readinessProbe resizePolicy "
    "resources restartPolicy securityContext startupProbe stdin stdinOnce terminationMessagePath "
    "terminationMessagePolicy tty volumeDevices volumeMounts workingDir"
)
POD = words(
    "activeDeadlineSeconds affinity automountServiceAccountToken containers dnsConfig dnsPolicy enableServiceLinks "
    "ephemeralContainers hostAliases hostIPC hostNetwork hostPID hostUsers hostname imagePullSecrets initContainers "
    "nodeName nodeSelector os overhead preemptionPolicy priority priorityClassName readinessGates resourceClaims "
    "restartPolicy runtimeClassName schedulerName schedulingGates securityContext serviceAccount serviceAccountName "
    "setHostnameAsFQDN shareProcessNamespace subdomain terminationGracePeriodSeconds tolerations "
    "topologySpreadConstraints volumes"
)
GPU = "nvidia.com/gpu"

Path = tuple[str | int, ...]


def check(documents: list[Document], ray: str) -> list[Fault]:
    """All rules of a manifest that holds a RayCluster.

    Args:
        documents: of the file.
        ray: the version in constraints.txt.
    """
    clusters = [document for document in documents if document.get("kind") == "RayCluster"]
    claims = {
        document.get("metadata", "name") for document in documents if document.get("kind") == "PersistentVolumeClaim"
    }
    return [fault for document in clusters for fault in _cluster(document, claims, ray)]


def _cluster(document: Document, claims: set[str], ray: str) -> list[Fault]:
    faults = []
    if document.get("apiVersion") != API:
        faults.append(
            Fault("api", f"apiVersion must be {API}, got {document.get('apiVersion')}", document.line("apiVersion"))
        )
    if document.get("spec", "rayVersion") != ray:
        faults.append(
            Fault(
                "versions",
                f"spec.rayVersion must be {ray} as in constraints.txt, got {document.get('spec', 'rayVersion')}",
                document.line("spec", "rayVersion"),
            )
        )
    faults += [*_unknown(document), *_read_by_ray(document), *_autoscaling(document)]
    head = document.get("spec", "headGroupSpec", "rayStartParams", "num-cpus")
    if str(head) != "0":
        faults.append(
            Fault(
                "head",
                f'units would run on the head; rayStartParams: {{num-cpus: "0"}}, got {head!r}',
                document.line("spec", "headGroupSpec", "rayStartParams"),
            )
        )
    for group in _groups(document):
        faults += _pod(document, group, claims)
        if group[-1] != "headGroupSpec":
            faults += _worker(document, group)
    return faults


def _groups(document: Document) -> list[Path]:
    workers = document.get("spec", "workerGroupSpecs", default=[])
    return [("spec", "headGroupSpec"), *(("spec", "workerGroupSpecs", i) for i in range(len(workers)))]


def _containers(document: Document, group: Path) -> Iterator[Path]:
    for kind in ("initContainers", "containers"):
        path = (*group, "template", "spec", kind)
        yield from ((*path, i) for i in range(len(document.get(*path, default=[]))))


def _unknown(document: Document) -> Iterator[Fault]:
    """Fields that the API server would drop without a word, or refuse when it is late."""
    places: list[tuple[Path, frozenset[str]]] = [
        (("spec",), CLUSTER),
        (("spec", "autoscalerOptions"), AUTOSCALER),
        *((group, HEAD if group[-1] == "headGroupSpec" else WORKERS) for group in _groups(document)),
        *(((*group, "template", "spec"), POD) for group in _groups(document)),
        *((container, CONTAINER) for group in _groups(document) for container in _containers(document, group)),
    ]
    for path, known in places:
        for key in document.get(*path, default={}):
            if key not in known:
                yield Fault(
                    "fields", f"{'.'.join(map(str, path))} has no {key}; {near(key, known)}", document.line(*path, key)
                )


def _read_by_ray(document: Document) -> list[Fault]:
    """What Ray's autoscaler makes of the manifest inside the head's pod, where a fault would show itself last."""
    # Private; it is the very function the autoscaler's container calls, and it asks no server.
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    resource = copy.deepcopy(document.data)
    if isinstance(resource.get("metadata"), dict):
        resource["metadata"].setdefault("namespace", "default")
    logging.getLogger("ray.autoscaler").setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            _derive_autoscaling_config_from_ray_cr(resource)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, AssertionError) as error:
        named = f"{error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
        return [Fault("ray-reads", f"Ray's autoscaler can't read it ({named}); see docs.ray.io, KubeRay", None)]
    except jsonschema.ValidationError as error:
        return [Fault("ray-reads", f"Ray's autoscaler would refuse it: {error.message}", None)]
    return []


def _autoscaling(document: Document) -> list[Fault]:
    faults = []
    if document.get("spec", "enableInTreeAutoscaling") is not True:
        faults.append(
            Fault(
                "autoscaler",
                "spec.enableInTreeAutoscaling must be true, or no pod comes or goes",
                document.line("spec"),
            )
        )
    low, high = (60 * minutes for minutes in IDLE_MINUTES)
    idle = document.get("spec", "autoscalerOptions", "idleTimeoutSeconds")
    if not isinstance(idle, int) or not low <= idle <= high:
        faults.append(
            Fault(
                "idle-timeout",
                f"spec.autoscalerOptions.idleTimeoutSeconds must be {low} to {high}, got {idle}; try 600",
                document.line("spec", "autoscalerOptions", "idleTimeoutSeconds"),
            )
        )
    return faults


def _pod(document: Document, group: Path, claims: set[str]) -> list[Fault]:
    spec = (*group, "template", "spec")
    faults = []
    volumes = document.get(*spec, "volumes", default=[])
    claimed = {
        volume.get("name"): volume["persistentVolumeClaim"].get("claimName")
        for volume in volumes
        if isinstance(volume, dict) and isinstance(volume.get("persistentVolumeClaim"), dict)
    }
    mounted = {mount.get("name") for mount in document.get(*spec, "containers", 0, "volumeMounts", default=[])}
    if not claimed.keys() & mounted:
        faults.append(
            Fault(
                "volume",
                f"{group[-1]}: the first container mounts no claimed volume; data and ledger must be the same for all",
                document.line(*spec, "volumes"),
            )
        )
    for missing in sorted(mounted - {volume.get("name") for volume in volumes if isinstance(volume, dict)}, key=str):
        faults.append(
            Fault(
                "volume",
                f"{group[-1]}: {missing} is mounted but no volume of the pod",
                document.line(*spec, "containers", 0, "volumeMounts"),
            )
        )
    for claim in sorted(set(claimed.values()) - claims, key=str):
        faults.append(
            Fault(
                "volume",
                f"claim {claim} is not in this file: it must exist already",
                document.line(*spec, "volumes"),
                warning=True,
            )
        )
    for container in _containers(document, group):
        image = str(document.get(*container, "image", default=""))
        if not re.search(r"(:(?!latest$)[\w.-]+|@sha256:[0-9a-f]{64})$", image):
            faults.append(
                Fault(
                    "image",
                    f"an image needs a tag that stays, got {image or 'none'}; NAME:VERSION",
                    document.line(*container, "image"),
                )
            )
    return faults


def _worker(document: Document, group: Path) -> list[Fault]:
    name = document.get(*group, "groupName")
    spec = (*group, "template", "spec")
    gpus = document.get(*spec, "containers", 0, "resources", "limits", GPU)
    if not gpus:
        return []  # A group of CPU machines may stay, and lose little when it goes.
    faults = []
    if document.get(*group, "minReplicas") != 0:
        faults.append(
            Fault(
                "min-workers",
                f"{name}: minReplicas must be 0, or GPUs are held while nothing runs",
                document.line(*group, "minReplicas"),
            )
        )
    grace = document.get(*spec, "terminationGracePeriodSeconds", default=30)
    if not isinstance(grace, int) or grace < PREEMPTION_SECONDS:
        faults.append(
            Fault(
                "notice",
                f"{name}: terminationGracePeriodSeconds must be at least {PREEMPTION_SECONDS}, got {grace}; try 180",
                document.line(*spec, "terminationGracePeriodSeconds"),
            )
        )
    hook = document.get(*spec, "containers", 0, "lifecycle", "preStop", "exec", "command", default=[])
    variables = {one.get("name") for one in document.get(*spec, "containers", 0, "env", default=[])}
    if not any("UPS_PREEMPTION_FILE" in str(part) for part in hook) or "UPS_PREEMPTION_FILE" not in variables:
        faults.append(
            Fault(
                "notice",
                f'{name}: set UPS_PREEMPTION_FILE and let lifecycle.preStop touch it (touch "$UPS_PREEMPTION_FILE" && '
                "sleep 120), or units don't save",
                document.line(*spec, "containers", 0, "lifecycle"),
            )
        )
    init = document.get(*spec, "initContainers", default=[])
    if not any("cluster.node_check" in str(one.get("command")) for one in init):
        faults.append(
            Fault("node-check", f"{name}: an init container must run cluster.node_check", document.line(*spec))
        )
    return faults
