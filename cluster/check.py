"""Report every fault of cluster files offline, before they cost money: python -m cluster.check FILE ..."""

import contextlib
import copy
import difflib
import io
import logging
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cluster.cli import command_parser
from cluster.node_check import CONSTRAINTS, canonical, constraints
from cluster.rule_tables import (
    RULES,
    UBUNTU,
    Command,
    Document,
    Fault,
    Key,
    forbidden,
    joined,
    logical_lines,
    memory_note,
    read_yaml,
    required,
    without_comments,
)

EXAMPLES = """examples:
  python -m cluster.check cluster/v100.yaml                   before `ray up`: starts nothing, asks no network
  python -m cluster.check cluster/*.yaml cluster/slurm.sh cluster/Dockerfile

Knows files of `ray up` (provider aws, local), batch scripts of SLURM, manifests of KubeRay, templates of
CloudFormation, Dockerfiles.
exit status: 0 nothing wrong (there may be warnings), 1 faults, 2 usage"""

VOLTA = 70  # Its last NVIDIA driver is 580; AWS's deep learning images of 2026 have 595.
TYPES, HEAD_START, WORKER_START = "available_node_types", "head_start_ray_commands", "worker_start_ray_commands"
SETUP = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")


class UnknownFile(ValueError):
    """Not of a kind that this command checks."""


def any_file(text: str) -> Iterator[Fault]:
    """Secrets, another Python, servers that listen on every address; versions other than those of constraints.txt."""
    code = without_comments(text)
    yield from forbidden("secrets", enumerate(text.splitlines(), 1))
    yield from forbidden("any_file", enumerate(code.splitlines(), 1))
    pinned = constraints(CONSTRAINTS.read_text())
    for number, line in enumerate(code.splitlines(), 1):
        packages = re.findall(r"([A-Za-z][\w.-]*)(?:\[[\w,-]*\])?==([\w.]+)", line)
        packages += [("ray", version) for version in re.findall(r"rayVersion: *['\"]?([\w.]+)", line)]
        for name, version in packages:
            expected = pinned.get(canonical(name))
            if expected is None:
                yield Fault("versions", f"{name}=={version}: constraints.txt has no {name}; add it there", number)
            elif expected != version:
                yield Fault("versions", f"{name} must be {expected} as in constraints.txt, got {version}", number)


def wheels(commands: Iterable[Command], sm: int | None, gpu: str = "the GPU") -> Iterator[Fault]:
    """Builds of torch without kernels for a GPU of compute capability `sm`: 0 for no GPU, None for an unknown one."""
    for line, text in commands:
        if not re.search(r"\bpip3? install\b.*\btorch\b", text):
            continue
        matches = (re.search(r"download\.pytorch\.org/whl/(\w+)", text), re.search(r"torch==[\d.]+\+(\w+)", text))
        index, build = (one[1] if one else "none" for one in matches)
        if index != build or index == "none":
            way = "--extra-index-url https://download.pytorch.org/whl/cu126 'torch==VERSION+cu126'"
            said = f"torch must name its build and the index of it, got index {index} and build {build}; {way}"
            yield Fault("wheel", said, line)
        elif index == "cpu" and sm:
            yield Fault("wheel", f"the cpu build can't use {gpu} (sm_{sm}); take cu126", line)
        elif RULES["torch_builds"].get(index, 0) > (VOLTA if sm is None else sm or 999):
            whom = f"{gpu} (sm_{sm})" if sm else "a V100 (sm_70), should there be one"
            yield Fault("wheel", f"the {index} build has no kernels for {whom}; take cu126", line, warning=sm is None)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command_parser("cluster.check", "Say what is wrong with cluster files before they cost money.", EXAMPLES)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    bad = False
    for file in parser.parse_args(arguments).files:
        try:
            faults = list(dict.fromkeys(check(file)))  # Node types may share a faulty line.
        except (OSError, UnicodeDecodeError, UnknownFile) as error:
            print(f"error: {file}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
            return 2
        except ModuleNotFoundError as error:  # Ray has the schema, botocore knows EC2.
            print(f"error: {file}: {error.name} is missing; pip install -e '.[orchestrator,aws]'", file=sys.stderr)
            return 2
        for fault in faults:
            where = file if fault.line is None else f"{file}:{fault.line}"
            print(f"{where}: {'warning: ' * fault.warning}{fault.rule}: {fault.message}")
        serious = sum(not fault.warning for fault in faults)
        for note in notes(file):
            print(f"{file}: {note}")
        print(f"{file}: {serious} faults" if serious else f"{file}: good")
        bad = bad or serious > 0
    return int(bad)


def check(file: Path) -> list[Fault]:
    """All faults of a file, in the order of its lines; raises OSError and UnknownFile."""
    text = file.read_text(encoding="utf-8")
    faults = [*any_file(text)]
    if file.suffix in (".yaml", ".yml"):
        faults += yaml_file(text)
    elif "Dockerfile" in file.name or "#SBATCH" in text:
        commands = list(logical_lines(text))
        faults += [*forbidden("commands", commands), *wheels(commands, None)]
        faults += slurm_script(text, commands) if "#SBATCH" in text else []
    elif file.suffix == ".sh":
        raise UnknownFile("a script without #SBATCH lines; this checks batch scripts of SLURM")
    else:
        raise UnknownFile("must be FILE.yaml, a batch script or a Dockerfile")
    return sorted(faults, key=lambda fault: (fault.line or 0, fault.rule))


def notes(file: Path) -> Iterator[str]:
    """Whether units of preset `paper` fit the GPUs of a file of `ray up`, and how; one line a kind of machine."""
    if file.suffix not in (".yaml", ".yml"):
        return
    with contextlib.suppress(yaml.YAMLError):
        for document in read_yaml(file.read_text(encoding="utf-8")):
            types = document.get(TYPES, default={})
            instances = {name: str(document.get(TYPES, name, "node_config", "InstanceType")) for name in types}
            for instance in dict.fromkeys(instances.values()):
                spec = RULES["instance_types"].get(instance, {})
                if "GB" in spec:
                    names = ", ".join(name for name, one in instances.items() if one == instance)
                    yield f"{names}: {memory_note(spec['GPU'], spec['model'], spec['GB'])}"


def yaml_file(text: str) -> Iterator[Fault]:
    """Faults of a file of `ray up` or KubeRay; CloudFormation's own command refuses a wrong template at no cost."""
    try:
        documents = read_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        yield Fault("yaml", f"not YAML: {getattr(error, 'problem', error)}", mark and mark.line + 1)
        return
    clusters = [document for document in documents if document.get("kind") == "RayCluster"]
    launched = [document for document in documents if document.get("provider")]
    if not clusters and not launched and not any(one.get("AWSTemplateFormatVersion") for one in documents):
        raise UnknownFile("holds no provider (ray up), RayCluster (KubeRay) or AWSTemplateFormatVersion")
    for document in clusters:
        yield from kuberay_manifest(document)
    for document in launched:
        yield from ray_up_file(document)
        if document.get("provider", "type") == "aws":
            yield from aws_file(document, text)


def ray_schema(document: Document) -> Iterator[Fault]:
    """What `ray up` itself would refuse, by the schema that comes with Ray."""
    import jsonschema

    # Private, and the only offline reader of these files that Ray has; `ray up` begins with the same two calls.
    from ray.autoscaler._private import util

    logging.getLogger("ray.autoscaler").setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            util.validate_config(util.prepare_config(copy.deepcopy(document.data)))
    except jsonschema.ValidationError as error:
        path, properties, way = list(error.absolute_path), error.schema.get("properties", {}), ""
        if error.validator == "additionalProperties":
            path.append(next(key for key in error.instance if key not in properties))
            close = difflib.get_close_matches(path[-1], properties, 1)
            way = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(properties)}"
        yield document.fault("ray-schema", f"{'.'.join(map(str, path)) or 'file'}: {error.message}{way}", *path)
    except Exception as error:  # Whatever Ray raises, `ray up` would end with.
        said = str(error) or type(error).__name__
        yield Fault("ray-schema", f"Ray can't read it ({said}); see docs.ray.io/en/latest/cluster/vms")


def ray_up_file(document: Document) -> Iterator[Fault]:
    """Faults of any file of `ray up`; of own machines the GPUs are unknown, and a wheel without V100 is a warning."""
    kind = document.get("provider", "type")
    yield from ray_schema(document)
    yield from document.values("ray_up")
    yield from forbidden("commands", (command for name in SETUP for command in document.commands(name)))
    for name in (HEAD_START, WORKER_START):
        starts = (command for command in document.commands(name) if re.search(r"\bray start\b", command[1]))
        line, start = next(starts, (document.line(name), ""))
        yield from required(name, start, line)
        yield from required(f"{kind}_{name}", start, line)
    if kind == "local":
        setup = [*document.commands("setup_commands"), *document.commands("worker_setup_commands")]
        yield from document.values("local")
        yield from wheels(setup, None)
        yield from required("setup", joined(setup), document.line("setup_commands"), name="all machines")


def aws_file(document: Document, text: str) -> Iterator[Fault]:
    """Faults of a file for AWS: zones, open ports, node types."""
    yield from document.values("aws")
    region, zones = document.get("provider", "region"), str(document.get("provider", "availability_zone"))
    wrong = not all(re.fullmatch(rf"{region}[a-z]", zone.strip()) for zone in zones.split(","))
    if wrong or "," not in zones:
        why = "zones must be of the region" if wrong else "one zone alone is often without capacity"
        message = f"{why}, got {zones}; name all of {region} that have the type: {region}a,{region}b"
        yield document.fault("zones", message, "provider", "availability_zone")
    permissions = ("provider", "security_group", "IpPermissions")
    for i, rule in enumerate(document.get(*permissions, default=[])):
        if re.search(r"'(0\.0\.0\.0|::)/0'", str(rule)):
            port = document.get(*permissions, i, "FromPort") or "all"
            message = f"port {port} would be open to the world; Ray opens SSH, tunnel the rest"
            yield document.fault("security-group", message, *permissions, i)
    head, types = document.get("head_node_type"), document.get(TYPES, default={})
    nodes = {name: node for name, node in types.items() if isinstance(document.get(TYPES, name, "node_config"), dict)}
    for name in nodes:
        yield from aws_node(document, name, text, is_head=name == head)
    yield from spot_types(document, {name: node["node_config"] for name, node in nodes.items() if name != head})


def aws_node(document: Document, name: str, text: str, is_head: bool) -> Iterator[Fault]:
    """Faults of one node type: fields, resources, disk, image, wheels."""
    at = (TYPES, name, "node_config")
    config = document.get(*at)
    instance = str(config.get("InstanceType"))
    spec = RULES["instance_types"].get(instance)
    has_gpus = not is_head and (not spec or "GPU" in spec)
    for table in ("aws_node", *["aws_head"] * is_head, *["aws_gpu"] * has_gpus):
        yield from document.values(table, TYPES, name, name=name)
    yield from ec2_fields(document, *at)
    yield from key_pair(document, name)
    if not spec:
        message = f"{name}: {instance!r} is not in cluster/check_rules.json: CPUs, GPUs and wheel are not checked"
        yield document.fault("instance-type", message, *at, "InstanceType", warning=True)
    for resource in ("CPU", "GPU") if spec else ():
        wanted = 0 if is_head else spec.get(resource, 0)
        declared = document.get(TYPES, name, "resources", resource, default=0)
        if declared != wanted:
            why = "no unit may run on the head" if is_head else f"{instance} has {wanted}"
            message = f"{name}: {resource} must be {wanted} ({why}), got {declared}"
            yield document.fault("resources", message, TYPES, name, "resources", resource)
    yield from root_disk(document, name, "disk_head" if is_head else "disk_worker")
    commands = "head_setup_commands" if is_head else "worker_setup_commands"
    own = (TYPES, name) if not is_head and document.get(TYPES, name, commands) is not None else ()
    setup = [*document.commands("setup_commands"), *document.commands(*own, commands)]
    yield from image_faults(document, name, setup, text)
    yield from wheels(setup, spec.get("sm", 0) if spec else None, spec.get("model", "") if spec else "the GPU")
    for table in ("setup", "aws_setup") if has_gpus else ():
        yield from required(table, joined(setup), document.line("worker_setup_commands"), name=name)


def key_pair(document: Document, name: str) -> Iterator[Fault]:
    """Faults of KeyName, which Ray reads only beside the private key."""
    at = (TYPES, name, "node_config")
    own, config = document.get("auth", "ssh_private_key"), document.get(*at)
    if "KeyName" in config and not own:
        message = "Ray overwrites KeyName with a pair that it makes; give auth.ssh_private_key, or leave KeyName out"
        yield document.fault("ssh-key", f"{name}: {message}", *at, "KeyName")
    if own and not {"KeyName", "UserData"} & config.keys():
        message = f"with auth.ssh_private_key Ray makes no key pair; KeyName: the name that EC2 has for {own}"
        yield document.fault("ssh-key", f"{name}: {message}", *at)


def root_disk(document: Document, name: str, table: str) -> Iterator[Fault]:
    """Faults of the disk that the system starts from."""
    at = (TYPES, name, "node_config", "BlockDeviceMappings")
    root = RULES["root_devices"].get(str(document.get("auth", "ssh_user")), "/dev/sda1")
    names = [str(disk.get("DeviceName")) for disk in document.get(*at, default=[]) if isinstance(disk, dict)]
    if root in names:
        for rules in ("disk", table):
            yield from document.values(rules, *at, names.index(root), name=name)
    else:
        message = f"the root disk is {root}, got {', '.join(names) or 'none'}; another name leaves the root at 8 GB"
        yield document.fault("root-device", f"{name}: {message}", *at)


def image_faults(document: Document, name: str, setup: Sequence[Command], text: str) -> Iterator[Fault]:
    """Images of another region, without a driver for the GPU; images and packages of another architecture."""
    at, region = (TYPES, name, "node_config", "ImageId"), document.get("provider", "region")
    image, instance = str(document.get(*at)), str(document.get(*at[:-1], "InstanceType"))
    line = document.line(*at)
    if image.startswith("ami-") and not re.search(rf"{re.escape(image)}.*#.*{region}", text):
        message = f"{name}: an id is one region's alone; say whose it is ({image}  # {region}), or take {UBUNTU}"
        yield Fault("image", message, line)
    model = RULES["instance_types"].get(instance, {}).get("model")
    yield from forbidden(f"image_{model}", [(line, image)], name=name, ubuntu=UBUNTU)
    # Graviton types have a g behind the generation: m7g, g5g, c7gn.
    architecture = "arm64" if re.match(r"a1\.|[a-z]+\dg[a-z]*\.|p6e-", instance) else "x86_64"
    yield from forbidden(architecture, [(line, image), *setup], name=name, instance=instance)


def spot_types(document: Document, configs: dict[str, dict[str, Any]]) -> Iterator[Fault]:
    """Spot types that no on-demand type follows in Ray's order."""
    market = ("node_config", "InstanceMarketOptions", "MarketType")
    spot = {name for name in configs if document.get(TYPES, name, *market) == "spot"}
    for name in sorted(spot):
        instance = configs[name].get("InstanceType")
        others = [other for other in configs.keys() - spot if configs[other].get("InstanceType") == instance]
        if not others:
            message = f"{instance} is asked for as spot alone: a study waits while there is none; add it on demand"
            yield document.fault("spot", message, TYPES, name)
        elif max(others) > name:
            message = f"Ray takes the name that sorts last: {max(others)} would go before {name}; rename it"
            yield document.fault("spot", message, TYPES, name)
    for start in (HEAD_START, WORKER_START) if spot else ():
        yield from required(f"spot_{start}", joined(document.commands(start)), document.line(start))


@cache
def run_instances() -> Any:
    """EC2's own description of what RunInstances takes, which botocore carries."""
    import botocore.session

    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def ec2_fields(document: Document, *at: Key) -> Iterator[Fault]:
    """Fields of a node_config that botocore would not send to EC2. Ray's schema lets all of them pass."""
    from botocore.validate import ParamValidator

    # Ray fills in the counts. SubnetIds is Ray's own: the subnets that it tries.
    fields = {"MinCount": 1, "MaxCount": 1, **document.get(*at)}
    fields.pop("SubnetIds", None)
    for said in ParamValidator().validate(fields, run_instances()).generate_report().splitlines():
        # Unknown parameter in A[0].B: "C", must be ...; Invalid type for parameter A[0].B, value ...
        where = re.search(r"parameter (?:in )?(?:input\b)?([\w.\[\]]*)(?:: \"(\w+))?", said)
        keys = re.findall(r"\w+", f"{where[1]} {where[2] or ''}") if where else []
        yield document.fault("node-config", said, *at, *(int(key) if key.isdigit() else key for key in keys))


def kuberay_manifest(document: Document) -> Iterator[Fault]:
    """Faults of a RayCluster: what the autoscaler and each group's pods need."""
    yield from document.values("kuberay")
    workers = document.get("spec", "workerGroupSpecs", default=[])
    for group in (("spec", "headGroupSpec"), *(("spec", "workerGroupSpecs", i) for i in range(len(workers)))):
        name, pod = document.get(*group, "groupName", default="head"), (*group, "template", "spec")
        yield from document.values("kuberay_group", *group, name=name)
        if document.get(*pod, "containers", 0, "resources", "limits", "nvidia.com/gpu"):
            yield from document.values("kuberay_gpu_group", *group, name=name)
            for path in ((*pod, "containers", 0, "lifecycle"), (*pod, "initContainers")):
                yield from required(f"kuberay_{path[-1]}", str(document.get(*path)), document.line(*path), name=name)


def slurm_script(text: str, commands: Sequence[Command]) -> Iterator[Fault]:
    """Faults of a batch script: directives that are missing or not read, and no way on when the time is up."""
    lines = without_comments(text).splitlines()
    begun = commands[0][0] if commands else len(lines)
    yield from required("sbatch", "\n".join(lines[: begun - 1]))
    yield from required("slurm", "\n".join(lines))
    yield from forbidden("late_directives", enumerate(lines[begun:], begun + 1))
    yield from forbidden("slurm_commands", commands)
    bash = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=20, check=False)
    if bash.returncode:
        yield Fault("syntax", f"bash can't read it: {bash.stderr.strip().splitlines()[0]}")


if __name__ == "__main__":
    sys.exit(main())
