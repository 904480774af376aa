"""Rules for the files of `ray up` on AWS: what EC2 knows, what a machine has, what it would cost."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import botocore.session
from botocore.model import ListShape, Shape, StructureShape

from cluster.document import Document, Fault, near
from cluster.rules import text as text_rules
from cluster.rules.facts import HEAD_DISK_GB, INSTANCE_TYPES, ROOT_DEVICES, VOLTA, WORKER_DISK_GB, InstanceType
from cluster.rules.ray_yaml import commands

TYPES = "available_node_types"
SCORER = "RAY_AUTOSCALER_UTILIZATION_SCORER=cluster.spot_first.score"
RAY_SETS = {"MinCount", "MaxCount"}
"""Required by EC2 and filled in by Ray."""
RAY_ADDS = {"SubnetIds": "list"}
"""Not EC2's but Ray's: all subnets to be tried."""
SCALARS = {"string": str, "integer": int, "long": int, "boolean": bool, "double": float, "float": float}


def check(document: Document) -> list[Fault]:
    """All rules of this file; empty for a good one."""
    faults = [*_place(document), *_cost(document)]
    types = document.get(TYPES, default={})
    if not isinstance(types, dict) or not types:
        return faults  # The schema says so.
    head = document.get("head_node_type")
    for name in types:
        node = (TYPES, name, "node_config")
        config = document.get(*node, default={})
        if not isinstance(config, dict):
            continue
        faults += run_instances_faults(document, node, config)
        known = INSTANCE_TYPES.get(config.get("InstanceType", ""))
        faults += _machine(document, name, known, name == head)
        faults += _image(document, name, known)
        faults += _disk(document, name, name == head)
        faults += _profile(document, name)
        if name == head:
            faults += _head(document, name)
        elif known is None or known.gpus:
            faults += _workers(document, name, known)
    return faults + _spot(document, types, head)


@cache
def run_instances() -> StructureShape:
    """EC2's own description of what RunInstances takes, which botocore carries: no network is asked."""
    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def run_instances_faults(document: Document, path: tuple[str | int, ...], config: dict[str, Any]) -> list[Fault]:
    """Fields of a node_config that EC2 does not know or would not take. Ray's schema lets all of them pass."""
    own = {key: value for key, value in config.items() if key not in RAY_ADDS}
    return [
        Fault("node-config", message, document.line(*path, *where))
        for where, message in _misfits(run_instances(), own, RAY_SETS)
    ]


def _misfits(
    shape: Shape, value: Any, given: frozenset[str] | set[str] = frozenset()
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """(path, what is wrong) of each part of a value that does not fit a shape."""
    if isinstance(shape, StructureShape):
        if not isinstance(value, dict):
            yield (), f"{shape.name} must hold fields, got {value!r}; {near('', shape.members)}"
            return
        for key in shape.required_members:
            if key not in value and key not in given:
                yield (), f"EC2 needs {key} in {shape.name}; add it"
        for key, part in value.items():
            if key not in shape.members:
                yield (key,), f"EC2 knows no {key} in {shape.name}; {near(key, shape.members)}"
                continue
            for where, message in _misfits(shape.members[key], part):
                yield (key, *where), message
    elif isinstance(shape, ListShape):
        if not isinstance(value, list):
            yield (), f"{shape.name} must be a list, got {value!r}; put it behind a dash"
            return
        for i, part in enumerate(value):
            for where, message in _misfits(shape.member, part):
                yield (i, *where), message
    else:
        wanted = SCALARS.get(shape.type_name)
        if wanted and (not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))):
            yield (), f"EC2 takes a {shape.type_name} here, got {value!r}"
        elif getattr(shape, "enum", None) and value not in shape.enum:
            yield (), f"EC2 does not know {value!r} here; {near(str(value), shape.enum)}"


def _place(document: Document) -> list[Fault]:
    faults = []
    region, zones = document.get("provider", "region"), document.get("provider", "availability_zone", default="")
    known = botocore.session.get_session().get_available_regions("ec2")
    if region not in known:
        faults.append(
            Fault(
                "region",
                f"provider.region must be one of EC2's, got {region!r}; {near(str(region), known)}",
                document.line("provider", "region"),
            )
        )
    wrong = [zone for zone in str(zones).split(",") if not re.fullmatch(rf"{region}[a-z]", zone.strip())]
    if wrong:
        faults.append(
            Fault(
                "zones",
                f"zones must be of the region {region}, got {', '.join(wrong) or 'none'}; try {region}a,{region}b",
                document.line("provider", "availability_zone"),
            )
        )
    elif "," not in str(zones):
        faults.append(
            Fault(
                "zones",
                f"one zone alone ({zones}) is often without capacity; name all that have the type: {region}a,{region}b",
                document.line("provider", "availability_zone"),
            )
        )
    for i, rule in enumerate(document.get("provider", "security_group", "IpPermissions", default=[])):
        open_to = [
            one.get("CidrIp") or one.get("CidrIpv6") for key in ("IpRanges", "Ipv6Ranges") for one in rule.get(key, [])
        ]
        if {"0.0.0.0/0", "::/0"} & set(open_to):
            faults.append(
                Fault(
                    "security-group",
                    f"port {rule.get('FromPort', 'all')} would be open to the world; Ray opens SSH by itself, for the "
                    "rest use a tunnel",
                    document.line("provider", "security_group", "IpPermissions", i),
                )
            )
    return faults


def _cost(document: Document) -> list[Fault]:
    if document.get("provider", "cache_stopped_nodes", default=True):
        return [
            Fault(
                "zero-cost",
                "provider.cache_stopped_nodes must be false: by default ray down leaves stopped machines, whose disks "
                "go on costing",
                document.line("provider", "cache_stopped_nodes"),
            )
        ]
    return []


def _machine(document: Document, name: str, known: InstanceType | None, head: bool) -> list[Fault]:
    path = (TYPES, name)
    instance = document.get(*path, "node_config", "InstanceType")
    line = document.line(*path, "node_config", "InstanceType")
    if known is None:
        return [
            Fault(
                "instance-type",
                f"{name}: {instance!r} is not in cluster/rules/facts.py, so its CPUs, GPUs and wheel are not checked; "
                f"{near(str(instance), INSTANCE_TYPES)}",
                line,
                warning=True,
            )
        ]
    faults = []
    for resource, has in (("CPU", known.vcpus), ("GPU", known.gpus)):
        declared = document.get(*path, "resources", resource, default=0)
        wanted = 0 if head else has
        if declared != wanted:
            why = "no unit may run on the head" if head else f"{instance} has {has}"
            faults.append(
                Fault(
                    "resources",
                    f"{name}: {resource} must be {wanted} ({why}), got {declared}",
                    document.line(*path, "resources", resource),
                )
            )
    return faults


def _image(document: Document, name: str, known: InstanceType | None) -> list[Fault]:
    path = (TYPES, name, "node_config", "ImageId")
    image, line = document.get(*path), document.line(*path)
    region = document.get("provider", "region")
    ubuntu = "resolve:ssm:/aws/service/canonical/ubuntu/server/22.04/stable/current/amd64/hvm/ebs-gp2/ami-id"
    if not image:
        return [Fault("image", f"{name}: without ImageId Ray takes Ubuntu 18.04 of 2022; ImageId: {ubuntu}", line)]
    if not isinstance(image, str) or not re.fullmatch(r"ami-([0-9a-f]{8}|[0-9a-f]{17})|resolve:ssm:/[\w./-]+", image):
        return [Fault("image", f"{name}: ImageId must be ami- and 17 digits, or {ubuntu}, got {image!r}", line)]
    if image.startswith("ami-") and str(region) not in document.comment(*path):
        return [
            Fault(
                "image",
                f"{name}: an id is one region's alone; say whose it is (ImageId: {image}  # {region}), or let EC2 look "
                f"it up: {ubuntu}",
                line,
            )
        ]
    if known and known.sm == VOLTA and "/deeplearning/" in image:
        return [
            Fault(
                "image",
                f"{name}: the drivers of AWS's deep learning images have dropped Volta, and so {known.gpu}; ImageId: "
                f"{ubuntu}, and driver 580 as in cluster/v100.yaml",
                line,
            )
        ]
    return []


def _disk(document: Document, name: str, head: bool) -> list[Fault]:
    path = (TYPES, name, "node_config", "BlockDeviceMappings")
    need = HEAD_DISK_GB if head else WORKER_DISK_GB
    root = ROOT_DEVICES.get(document.get("auth", "ssh_user"), "/dev/sda1")
    mappings = document.get(*path, default=[])
    if not isinstance(mappings, list):
        return []  # `node-config` says so.
    for i, mapping in enumerate(mappings):
        if not isinstance(mapping, dict) or mapping.get("DeviceName") != root:
            continue
        ebs = mapping.get("Ebs") or {}
        faults = []
        if not isinstance(ebs.get("VolumeSize"), int) or ebs["VolumeSize"] < need:
            faults.append(
                Fault(
                    "disk",
                    f"{name}: the root disk must have at least {need} GB, got {ebs.get('VolumeSize')}",
                    document.line(*path, i, "Ebs", "VolumeSize"),
                )
            )
        if ebs.get("VolumeType") != "gp3":
            faults.append(
                Fault(
                    "disk",
                    f"{name}: VolumeType must be gp3, got {ebs.get('VolumeType')}: gp2 is slower and dearer",
                    document.line(*path, i, "Ebs"),
                )
            )
        if ebs.get("DeleteOnTermination") is not True:
            faults.append(
                Fault(
                    "zero-cost",
                    f"{name}: DeleteOnTermination must be true, or the disk outlives the machine",
                    document.line(*path, i, "Ebs"),
                )
            )
        return faults
    names = [mapping.get("DeviceName") for mapping in mappings if isinstance(mapping, dict)]
    return [
        Fault(
            "root-device",
            f"{name}: the root disk of images with the login {document.get('auth', 'ssh_user')} is {root}, got "
            f"{', '.join(map(str, names)) or 'none'}; another name adds an empty disk and leaves the root one at 8 GB",
            document.line(*path),
        )
    ]


def _profile(document: Document, name: str) -> list[Fault]:
    path = (TYPES, name, "node_config", "IamInstanceProfile")
    if document.get(*path):
        return []
    return [
        Fault(
            "profile",
            f"{name}: without IamInstanceProfile it can't use the bucket; {{Name: ...}} of cluster/aws_account.yaml",
            document.line(*path),
        )
    ]


def _head(document: Document, name: str) -> list[Fault]:
    faults = []
    if document.get(TYPES, name, "max_workers") != 0:
        faults.append(
            Fault(
                "head", f"{name}: max_workers must be 0, there is one head", document.line(TYPES, name, "max_workers")
            )
        )
    for line, text in commands(document, "head_start_ray_commands"):
        if re.search(r"\bray start\b", text) and "--num-cpus=0" not in text:
            faults.append(Fault("head", "units would run on the head; ray start --head --num-cpus=0", line))
    return [*faults, *text_rules.wheels(_setup(document, name, head=True), 0)]


def _workers(document: Document, name: str, known: InstanceType | None) -> list[Fault]:
    faults = []
    if document.get(TYPES, name, "min_workers", default=0) != 0:
        faults.append(
            Fault(
                "min-workers",
                f"{name}: min_workers must be 0, or GPUs cost while nothing runs",
                document.line(TYPES, name, "min_workers"),
            )
        )
    setup = _setup(document, name, head=False)
    if not any(re.search(r"\bpip3? install\b.*\btorch\b", text) for _, text in setup):
        faults.append(
            Fault("wheel", f"{name}: torch is never installed; add it with its index", document.line("setup_commands"))
        )
    faults += text_rules.wheels(setup, known.sm if known else None, known.gpu if known else "the GPU")
    if not any("cluster.node_check" in text for _, text in setup):
        faults.append(
            Fault(
                "node-check",
                f"{name}: the setup must run python -m cluster.node_check: a wrong wheel shows itself only in a unit",
                document.line("worker_setup_commands"),
            )
        )
    return faults


def _setup(document: Document, name: str, head: bool) -> list[text_rules.Command]:
    """What one node type runs before Ray starts; a type's own list stands for the general one, as Ray has it."""
    last = "head_setup_commands" if head else "worker_setup_commands"
    own = not head and document.get(TYPES, name, last) is not None
    return [
        *commands(document, "setup_commands"),
        *(commands(document, TYPES, name, last) if own else commands(document, last)),
    ]


def _spot(document: Document, types: dict[str, Any], head: Any) -> list[Fault]:
    """Spot first, and a way on when there is none."""
    market: dict[str, dict[bool, str]] = {}
    for name, node in types.items():
        config = (node or {}).get("node_config") or {}
        if name != head and isinstance(config, dict):
            spot = (config.get("InstanceMarketOptions") or {}).get("MarketType") == "spot"
            market.setdefault(str(config.get("InstanceType")), {})[spot] = name
    faults = []
    for instance, names in market.items():
        if set(names) == {True}:
            faults.append(
                Fault(
                    "spot",
                    f"{instance} is asked for as spot alone: a study waits while there is none; add the type without "
                    "InstanceMarketOptions, under a name that sorts before",
                    document.line(TYPES, names[True]),
                )
            )
        elif set(names) == {False}:
            faults.append(
                Fault(
                    "spot",
                    f"{instance} is never asked for as spot, at about a third of the price; units survive its end",
                    document.line(TYPES, names[False]),
                    warning=True,
                )
            )
        elif names[True] < names[False]:
            faults.append(
                Fault(
                    "spot",
                    f"of equal types Ray takes the name that sorts last: {names[False]} would go before {names[True]}; "
                    "workers_spot, workers_on_demand",
                    document.line(TYPES, names[True]),
                )
            )
    if any(True in names for names in market.values()):
        for name, wanted, why in (
            ("head_start_ray_commands", SCORER, "Ray would ask for spot again and again, and never for the other type"),
            ("worker_start_ray_commands", "UPS_SPOT_NOTICE=ec2", "units would not save before EC2 takes the machine"),
        ):
            if not any(wanted in text for _, text in commands(document, name)):
                faults.append(Fault("spot", f"{name} must export {wanted}: {why}", document.line(name)))
    return faults
