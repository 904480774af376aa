"""`python -m cluster.check`: the shipped files pass, and each rule finds a copy that breaks it, at its line."""

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

botocore = pytest.importorskip("botocore")
pytest.importorskip("ray")

from cluster import check as command  # noqa: E402
from cluster.check import check  # noqa: E402
from cluster.rule_tables import RULES, memory_note  # noqa: E402

SHIPPED = ("v100.yaml", "a100.yaml", "local.yaml", "kuberay.yaml", "aws_account.yaml", "slurm.sh", "Dockerfile")


def serious(faults):
    return [fault for fault in faults if not fault.warning]


@pytest.fixture
def broken(repo_root, tmp_path):
    """A function that copies a shipped file with replacements, each of which must change something."""

    def copy(name, *changes):
        text = (repo_root / "cluster" / name).read_text()
        for old, new in changes:
            assert old in text, f"{name} has no {old!r} any more"
            text = text.replace(old, new, 1)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return copy


@pytest.fixture
def offline(monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError(f"the check asked the network: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_passes_without_asking_the_network(repo_root, name, offline):
    assert serious(check(repo_root / "cluster" / name)) == []


def test_every_file_of_the_folder_that_starts_machines_is_among_those(repo_root):
    shipped = {file.name for file in (repo_root / "cluster").iterdir() if file.suffix in (".yaml", ".sh")}
    assert shipped | {"Dockerfile"} == set(SHIPPED)


AWS = "v100.yaml"
SPOT_WORKER = "  workers_spot:\n    resources: {CPU: 64, GPU: 8}\n    min_workers: 0"
# (file, what stands there, what is put there, rule, words of the message, text of the line it must name)
BROKEN = [
    # Ray's own schema
    (AWS, "idle_timeout_minutes: 10", "idle_timeout_minute: 10", "ray-schema", "idle_timeout_minutes", "minute:"),
    (AWS, "max_workers: 8\n#", "max_workers: many\n#", "ray-schema", "'many' is not of type", "max_workers: many"),
    (AWS, "head_node_type: head", "head_node_type: haed", "ray-schema", "must be one of", None),
    ("local.yaml", "  head_ip: 192.0.2.10\n", "", "ray-schema", "head_ip", None),
    # What that lets pass: botocore's model of RunInstances
    (AWS, "InstanceType: p3.16", "InstanceTyp: p3.16", "node-config", 'input: "InstanceTyp"', "InstanceTyp:"),
    (AWS, "VolumeSize: 500", "VolumeSiz: 500", "node-config", 'Ebs: "VolumeSiz"', "VolumeSiz"),
    (
        AWS,
        "VolumeSize: 500",
        'VolumeSize: "500"',
        "node-config",
        "VolumeSize, value: 500, type: <class 'str'>, valid types: <class 'int'>",
        'VolumeSize: "500"',
    ),
    (AWS, "VolumeType: gp3", "VolumeType: gp9", "disk", "must be gp3, got gp9", "gp9"),
    (AWS, "MarketType: spot", "MarketType: sopt", "spot", "must be spot, got 'sopt'", "MarketType: sopt"),
    (AWS, "HttpTokens: required", "HttpToken: required", "node-config", 'MetadataOptions: "HttpToken"', "HttpToken:"),
    (
        AWS,
        "        - DeviceName: /dev/sda1\n          Ebs: {VolumeSize: 200, VolumeType: gp3, DeleteOnTermination: true}",
        "          DeviceName: /dev/sda1",
        "node-config",
        "valid types: <class 'list'>",
        "BlockDeviceMappings:",
    ),
    # Region, zones, image
    (AWS, "region: us-west-2", "region: us-wset-2", "zones", "all of us-wset-2", "availability_zone"),
    (AWS, "us-west-2b", "us-east-1b", "zones", "us-east-1b", "availability_zone"),
    (AWS, "us-west-2a,us-west-2b,us-west-2c", "us-west-2a", "zones", "one zone alone", "availability_zone"),
    (AWS, "      ImageId: *image\n      Iam", "      Iam", "image", "Ubuntu 18.04", "    node_config:"),
    (AWS, "ImageId: &image resolve:ssm:", "ImageId: &image ami-xyz #", "image", "got 'ami-xyz'", "ami-xyz"),
    (AWS, "ImageId: *image", "ImageId: ami-0123456789abcdef0", "image", "one region's alone", "ami-0123456789abcdef0"),
    (AWS, "ImageId: *image", "ImageId: ami-0123456789abcdef0  # us-east-1", "image", "# us-west-2", "ami-01234"),
    (
        AWS,
        "ImageId: *image",
        "ImageId: resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss/latest/ami-id",
        "image",
        "dropped Volta",
        "deeplearning/ami",
    ),
    # Machines
    (AWS, "{CPU: 64, GPU: 8}", "{CPU: 64, GPU: 4}", "resources", "p3.16xlarge has 8), got 4", "GPU: 4"),
    (AWS, "{CPU: 64, GPU: 8}", "{CPU: 96, GPU: 8}", "resources", "p3.16xlarge has 64), got 96", "CPU: 96"),
    (AWS, "resources: {CPU: 0}", "resources: {CPU: 8}", "resources", "no unit may run on the head", "CPU: 8"),
    (AWS, "--num-cpus=0 ", "", "head", "--num-cpus=0", "ulimit"),
    (AWS, "    max_workers: 0", "    max_workers: 1", "head", "must be 0", "max_workers: 1"),
    (AWS, SPOT_WORKER, SPOT_WORKER[:-1] + "1", "min-workers", "must be 0", "min_workers: 1"),
    (AWS, "VolumeSize: 500", "VolumeSize: 100", "disk", "at least 200 GB, got 100", "VolumeSize: 100"),
    (AWS, "VolumeSize: 200", "VolumeSize: 8", "disk", "at least 50 GB, got 8", "VolumeSize: 8"),
    (AWS, "VolumeType: gp3", "VolumeType: gp2", "disk", "must be gp3, got gp2", "gp2"),
    (AWS, "/dev/sda1", "/dev/xvda", "root-device", "is /dev/sda1, got /dev/xvda", "BlockDeviceMappings"),
    (AWS, "      IamInstanceProfile: {Name: ups-worker}\n", "", "profile", "workers_spot", "    node_config"),
    # Network: Ray sets SubnetId itself and tries what stands in SubnetIds
    (
        AWS,
        "InstanceType: p3.16xlarge",
        "InstanceType: p3.16xlarge\n      SubnetId: subnet-1",
        "subnet",
        "write SubnetIds: [subnet-1]",
        "SubnetId: subnet-1",
    ),
    (
        AWS,
        "InstanceType: p3.16xlarge",
        "InstanceType: p3.16xlarge\n      SubnetIds: subnet-1",
        "subnet",
        "must be a list",
        "SubnetIds: subnet-1",
    ),
    # Fields that EC2 knows and Ray replaces, ignores or trips over (ray.autoscaler._private.aws)
    (
        AWS,
        "InstanceType: p3.16xlarge",
        "InstanceType: p3.16xlarge\n      MinCount: 2",
        "counts",
        "write min_workers: 2 beside",
        "MinCount",
    ),
    (
        AWS,
        "InstanceType: p3.16xlarge",
        "InstanceType: p3.16xlarge\n      MaxCount: 2",
        "counts",
        "write max_workers: 2 beside",
        "MaxCount",
    ),
    (
        AWS,
        "InstanceType: p3.16xlarge",
        "InstanceType: p3.16xlarge\n      SecurityGroups: [mine]",
        "security-group",
        "write SecurityGroupIds: [sg-...]",
        "SecurityGroups",
    ),
    (
        AWS,
        "InstanceType: p3.16xlarge",
        "InstanceType: p3.16xlarge\n      Placement: {AvailabilityZone: us-west-2c}",
        "zones",
        "write us-west-2c there",
        "Placement",
    ),
    (
        AWS,
        "InstanceType: p3.16xlarge",
        "InstanceType: p3.16xlarge\n      NetworkInterfaces: [{DeviceIndex: 0}]",
        "subnet",
        "write SubnetId and Groups in all",
        "NetworkInterfaces",
    ),
    (
        AWS,
        "InstanceType: p3.16xlarge",
        "InstanceType: p3.16xlarge\n      SubnetIds: [subnet-1]"
        "\n      NetworkInterfaces: [{SubnetId: subnet-1, Groups: [sg-1]}]",
        "subnet",
        "neither SubnetIds nor",
        "node_config",
    ),
    (
        AWS,
        "InstanceType: p3.16xlarge",
        "InstanceType: p3.16xlarge"
        "\n      TagSpecifications: [{ResourceType: instance, Tags: [{Key: ray-node-type, Value: x}]}]",
        "tags",
        "begin with ray-",
        "TagSpecifications",
    ),
    (
        AWS,
        "InstanceType: p3.16xlarge",
        "InstanceType: p3.16xlarge\n      ClientToken: once",
        "launch",
        "the first one's machines",
        "ClientToken",
    ),
    (
        AWS,
        "InstanceType: p3.16xlarge",
        "InstanceType: p3.16xlarge\n      DryRun: true",
        "launch",
        "no machine ever starts",
        "DryRun",
    ),
    (
        AWS,
        "InstanceType: p3.16xlarge",
        "InstanceType: p3.16xlarge\n      DisableApiTermination: true",
        "zero-cost",
        "goes on costing",
        "DisableApiTermination",
    ),
    (
        AWS,
        "InstanceType: p3.16xlarge",
        "InstanceType: p3.16xlarge\n      KeyName: mine",
        "ssh-key",
        "Ray overwrites KeyName",
        "KeyName",
    ),
    (AWS, "  ssh_user:", "  ssh_private_key: ~/.ssh/mine\n  ssh_user:", "ssh-key", "KeyName: the name", "node_config"),
    # Architecture
    (AWS, "p3.16xlarge", "g5g.16xlarge", "architecture", "amd64 doesn't run on g5g.16xlarge", "ImageId: *image"),
    (AWS, "amd64/hvm/ebs-gp2/ami-id\n      # M", "arm64/x\n      # M", "architecture", "arm64 doesn't run", "&image"),
    (
        AWS,
        "  - cd ~/ups && python -m cluster.node_check --gpus 8",
        "  - pip install -c constraints.txt https://example.org/a-1-cp311-cp311-manylinux_2_28_aarch64.whl",
        "architecture",
        "aarch64 doesn't run on p3.16xlarge",
        "aarch64.whl",
    ),
    # Cost and an end of it
    (AWS, "idle_timeout_minutes: 10\n", "", "idle-timeout", "got None", "cluster_name"),
    (AWS, "idle_timeout_minutes: 10", "idle_timeout_minutes: 600", "idle-timeout", "1 to 60, got 600", "600"),
    (AWS, "max_workers: 8\n#", "#", "max-workers", "what a study can cost", "cluster_name"),
    (AWS, "cache_stopped_nodes: false", "cache_stopped_nodes: true", "zero-cost", "ray down", "cache_stopped_nodes"),
    (AWS, "DeleteOnTermination: true", "DeleteOnTermination: false", "zero-cost", "outlives", "Ebs:"),
    # Spot
    (AWS, "  workers_on_demand:", "  workers_z:", "spot", "workers_z would go before workers_spot", "workers_spot:"),
    (
        AWS,
        "    RAY_AUTOSCALER_UTILIZATION_SCORER=cluster.spot_first.score\n",
        "",
        "spot",
        "again and again",
        "head_start",
    ),
    (AWS, " UPS_SPOT_NOTICE=ec2", "", "spot", "before EC2 takes", "worker_start_ray_commands"),
    # Wheels, versions, Python
    (
        AWS,
        "whl/cu126\n    'torch==2.13.0+cu126'",
        "whl/cu128\n    'torch==2.13.0+cu128'",
        "wheel",
        "no kernels for V100 (sm_70)",
        "https://download.pytorch.org/whl/cu128",
    ),
    (AWS, "'torch==2.13.0+cu126'", "'torch==2.13.0'", "wheel", "build none", "whl/cu126"),
    (AWS, "whl/cu126\n", "whl/cu130\n", "wheel", "index cu130 and build cu126", "whl/cu130"),
    (
        AWS,
        "whl/cu126\n    'torch==2.13.0+cu126'",
        "whl/cpu\n    'torch==2.13.0+cpu'",
        "wheel",
        "can't use V100",
        "whl/cpu",
    ),
    (AWS, "    'torch==2.13.0+cu126' -e", "    -e", "wheel", "never installed", "setup_commands:"),
    (AWS, "torch==2.13.0+cu126", "torch==2.12.0+cu126", "versions", "must be 2.13.0 as in", "2.12.0"),
    (AWS, "ray[default]==2.60.0", "ray[default]==2.59.0", "versions", "ray must be 2.60.0", "2.59.0"),
    (AWS, "-e '.[orchestrator,aws]'", "-e '.[orchestrator,aws]' wandb==1.0", "versions", "has no wandb", "wandb"),
    (AWS, "pip install -c constraints.txt", "pip install", "pins", "newest of everything", "cd ~/ups && pip"),
    (AWS, "--python 3.11", "--python 3.12", "python", "must be 3.11 on every machine, got 3.12", "3.12"),
    (AWS, "  - cd ~/ups && python -m cluster.node_check --gpus 8\n", "", "node-check", "workers_spot", "worker_setup"),
    ("Dockerfile", "python:3.11-slim", "python:3.12-slim", "python", "got 3.12", "FROM"),
    ("Dockerfile", "-c constraints.txt ", "", "pins", "newest of everything", "RUN pip"),
    ("local.yaml", "  - cd ~/ups && python -m cluster.node_check\n", "", "node-check", "node_check", "setup_commands:"),
    # Security
    (AWS, "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "open-port", "tunnel", "0.0.0.0"),
    (AWS, "--host 127.0.0.1", "--host 0.0.0.0", "open-port", "tunnel", "--host 0.0.0.0"),
    (
        AWS,
        "auth:",
        "  security_group:\n    IpPermissions:\n      - {FromPort: 8265, ToPort: 8265, IpProtocol: tcp, "
        "IpRanges: [{CidrIp: 0.0.0.0/0}]}\nauth:",
        "security-group",
        "port 8265",
        "8265",
    ),
    (AWS, "RAY_AUTH_MODE=token UPS", "UPS", "token", "RAY_AUTH_MODE=token", "ulimit"),
    (AWS, "  ~/.ray/auth_token: ~/.ray/auth_token\n", "", "token", "no machine would have", "file_mounts"),
    ("local.yaml", "  ssh_private_key: ~/.ssh/ups_cluster\n", "", "ssh-key", "ssh-keygen", "auth:"),
    ("slurm.sh", "export RAY_AUTH_MODE=token", "#", "token", "other users", None),
    # Own machines
    ("local.yaml", " RAY_enable_autoscaler_v2=0", "", "autoscaler", "leaves out machines", "ulimit"),
    ("local.yaml", " --autoscaling-config=~/ray_bootstrap_config.yaml", "", "autoscaler", "no worker", "ulimit"),
    ("local.yaml", "type: local", "type: gcp", "provider", "got 'gcp'", "type: gcp"),
    # YAML itself
    (AWS, "file_mounts:", "file_mounts: {", "yaml", "not YAML", "~/ups/baselines"),
    # SLURM
    ("slurm.sh", "--requeue", "--requeu", "directives", "--requeue is missing", None),
    ("slurm.sh", "#SBATCH --nodes=2\n", "", "directives", "--nodes is missing", None),
    ("slurm.sh", "source ~", "#SBATCH --mem=0\nsource ~", "directives", "after the first command", "--mem=0"),
    ("slurm.sh", "#SBATCH --gpus-per-node=8\n", "", "gpus", "--gpus-per-node", None),
    ("slurm.sh", "B:USR1@120", "USR1@120", "notice", "to this script", "--signal"),
    ("slurm.sh", "B:USR1@120", "B:USR1@10", "notice", "need 60 s", "--signal"),
    ("slurm.sh", "trap leave USR1", "trap leave USR2", "notice", "nothing traps USR1", "--signal"),
    ("slurm.sh", '  touch "$UPS_PREEMPTION_FILE"\n', "", "notice", "touch it", None),
    ("slurm.sh", '  scontrol requeue "$SLURM_JOB_ID"\n', "", "notice", "scontrol requeue", None),
    ("slurm.sh", 'srun --ntasks="$SLURM_NNODES" python -m cluster.node_check', "", "node-check", "before ray", None),
    ("slurm.sh", "ray start --head --block", "ray start --head", "ray-start", "--block", "srun --nodes=1 --ntasks=1"),
    ("slurm.sh", "trap leave USR1", "trap leave USR1; if", "syntax", "bash can't read it", None),
    # KubeRay
    ("kuberay.yaml", "      minReplicas: 0\n", "", "min-workers", "must be 0", "groupName: v100"),
    ("kuberay.yaml", "minReplicas: 0", "minReplicas: 1", "min-workers", "must be 0", "minReplicas: 1"),
    ("kuberay.yaml", "ray.io/v1", "ray.io/v1alpha1", "api", "must be ray.io/v1,", "v1alpha1"),
    ("kuberay.yaml", "rayVersion: 2.60.0", "rayVersion: 2.59.0", "versions", "must be 2.60.0", "rayVersion"),
    (
        "kuberay.yaml",
        "idleTimeoutSeconds: 600",
        "idleTimeoutSecond: 600",
        "idle-timeout",
        "got None",
        "autoscalerOptions:",
    ),
    ("kuberay.yaml", "idleTimeoutSeconds: 600", "idleTimeoutSeconds: 7200", "idle-timeout", "got 7200", "7200"),
    ("kuberay.yaml", "lifecycle:", "lifecycles:", "notice", "preStop", "name: ray-worker"),
    ("kuberay.yaml", 'num-cpus: "0"', 'num-cpus: "4"', "head", "got '4'", "num-cpus"),
    (
        "kuberay.yaml",
        "enableInTreeAutoscaling: true",
        "enableInTreeAutoscaling: false",
        "autoscaler",
        "no pod",
        "spec:",
    ),
    (
        "kuberay.yaml",
        "terminationGracePeriodSeconds: 180",
        "terminationGracePeriodSeconds: 30",
        "notice",
        "got 30",
        "30",
    ),
    ("kuberay.yaml", 'touch "$UPS_PREEMPTION_FILE" && ', "", "notice", "preStop", "lifecycle:"),
    ("kuberay.yaml", "/ups:0.1.0", "/ups:latest", "image", "ups:latest", "ups:latest"),
    ("kuberay.yaml", "persistentVolumeClaim: {claimName: ups}", "emptyDir: {}", "volume", "no claimed", "volumes:"),
    ("kuberay.yaml", "cluster.node_check", "cluster.nothing", "node-check", "init container", None),
]


@pytest.mark.parametrize(("name", "old", "new", "rule", "words", "at"), BROKEN, ids=lambda value: str(value)[:24])
def test_a_broken_copy_is_caught_at_its_line(broken, monkeypatch, repo_root, name, old, new, rule, words, at):
    monkeypatch.chdir(repo_root)
    file = broken(name, (old, new))
    faults = [fault for fault in serious(check(file)) if fault.rule == rule and words in fault.message]
    assert faults, serious(check(file))
    if at is not None:
        lines = (file.read_text() + "\n").splitlines(keepends=True)
        assert at in lines[faults[0].line - 1]


SECRETS = [
    # Put together here, so that no scanner of this repository takes them for real ones.
    ("AKIA" + "ABCDEFGHIJKLMNOP", "an AWS access key id"),
    ("aws_secret_access" + "_key: abcdefghijklmnopqrstuvwxyz0123456789ABCD", "an AWS secret key"),
    ("-----BEGIN RSA " + "PRIVATE KEY-----", "a private key"),
    ("gh" + "p_0123456789abcdefghijABCDEFGHIJ012345", "a GitHub token"),
    ("h" + "f_0123456789abcdefghijABCDEFGHIJ", "a Hugging Face token"),
    ("postgresql://mlflow:" + "hunter22@db/mlflow", "a password in an address"),
    ("RAY_AUTH_TOKEN=" + "0123456789abcdef", "a password or token"),
    ("MLFLOW_TRACKING_PASSWORD: " + "hunter22", "a password or token"),
    ("{name: DB_PASSWORD, value: " + "hunter22}", "a password or token"),
]


@pytest.mark.parametrize(("text", "what"), SECRETS)
@pytest.mark.parametrize("name", ["v100.yaml", "slurm.sh", "kuberay.yaml"])
def test_a_secret_is_found_even_in_a_comment_and_never_repeated(broken, capsys, name, text, what):
    first = "cluster_name" if name == "v100.yaml" else "set -euo" if name == "slurm.sh" else "apiVersion"
    file = broken(name, (first, f"# {text}\n{first}"))
    assert command.main([str(file)]) == 1
    said = capsys.readouterr().out
    line = next(number for number, one in enumerate(file.read_text().splitlines(), 1) if one == f"# {text}")
    assert f":{line}: secret: {what}" in said
    assert text.rpartition("=")[2].rpartition(": ")[2] not in said


def test_all_faults_of_a_file_are_told_at_once_in_the_order_of_its_lines(broken, capsys):
    changes = [
        ("us-west-2b", "us-east-1b"),
        ("GPU: 8", "GPU: 2"),
        ("--num-cpus=0 ", ""),
        ("2.13.0+cu126", "2.12.0+cu126"),
    ]
    file = broken("v100.yaml", *changes)
    assert command.main([str(file)]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if " warning: " not in line]
    rules = [re.match(r".*?:(\d+): ([\w-]+):", line) for line in lines[:-2]]
    assert "8 V100 of 16 GB: preset paper fits with --micro-batch auto" in lines[-2]
    assert {match[2] for match in rules} == {"zones", "resources", "head", "versions"}
    assert [int(match[1]) for match in rules] == sorted(int(match[1]) for match in rules)
    assert lines[-1].endswith(f": {len(rules)} faults")


def test_a_spot_type_without_another_way_is_refused(broken, repo_root):
    text = (repo_root / "cluster" / "v100.yaml").read_text()
    on_demand = text[text.index("  workers_on_demand:") : text.index("# Packages and not")]
    faults = [fault for fault in check(broken("v100.yaml", (on_demand, "\n"))) if fault.rule == "spot"]
    assert "as spot alone" in faults[0].message


def test_an_unknown_instance_type_is_a_warning_that_names_what_is_not_checked(broken):
    file = broken("v100.yaml", ("InstanceType: m5.2xlarge", "InstanceType: r5.2xlarge"))
    faults = check(file)
    assert serious(faults) == []
    told = [fault for fault in faults if fault.rule == "instance-type"]
    assert "'r5.2xlarge' is not in cluster/check_rules.json" in told[0].message


def test_a100s_take_wheels_that_v100s_cannot(broken):
    newer = ("whl/cu126\n    'torch==2.13.0+cu126'", "whl/cu128\n    'torch==2.13.0+cu128'")
    assert serious(check(broken("a100.yaml", newer))) == []
    assert [fault.rule for fault in serious(check(broken("v100.yaml", newer)))] == ["wheel", "wheel"]


def test_where_the_gpu_is_unknown_a_wheel_without_v100_is_only_warned_of(broken):
    newer = ("whl/cu126\n    'torch==2.13.0+cu126'", "whl/cu128\n    'torch==2.13.0+cu128'")
    faults = [fault for fault in check(broken("local.yaml", newer)) if fault.rule == "wheel"]
    assert [fault.warning for fault in faults] == [True]


def test_an_id_of_an_image_passes_with_its_region_beside_it(broken):
    own = "ImageId: ami-0123456789abcdef0  # us-west-2"
    file = broken("v100.yaml", ("ImageId: *image", own), ("ImageId: *image", own))
    assert serious(check(file)) == []


def test_a_list_of_subnets_passes(broken):
    """What Ray's provider for AWS tries, one after the other, at each launch."""
    instance = "InstanceType: p3.16xlarge"
    file = broken("v100.yaml", (instance, f"{instance}\n      SubnetIds: [subnet-1, subnet-2]"))
    assert serious(check(file)) == []


def test_what_ec2_knows_is_read_from_botocore(broken, monkeypatch):

    file = broken("v100.yaml", ("InstanceType: p3.16xlarge", "InstanceType: p3.16xlarge\n      PhaseOfTheMoon: full"))
    assert ["PhaseOfTheMoon" in fault.message for fault in check(file) if fault.rule == "node-config"] == [True]
    shape = command.run_instances()
    assert {"InstanceType", "ImageId", "BlockDeviceMappings", "MetadataOptions"} <= set(shape.members)
    assert len(shape.members) > 35
    # A field that only the next botocore knows is known from then on, without a change here.
    monkeypatch.setitem(shape.members, "PhaseOfTheMoon", shape.members["InstanceType"])
    assert [fault for fault in check(file) if fault.rule == "node-config"] == []


def test_every_field_that_ray_writes_over_is_one_that_a_rule_is_about(repo_root):
    """When this fails, Ray has begun to set another field of a machine: it needs a rule in check_rules.json."""
    from ray.autoscaler._private.aws import config, node_provider

    source = "".join(Path(module.__file__).read_text() for module in (config, node_provider))
    written = set(re.findall(r'\b(?:conf|node_config|node_cfg|config\["head_node"\])\["(\w+)"\] = ', source))
    written |= set(re.findall(r'"(\w+)": ', re.search(r"conf\.update\((\{.*?\})\)", source)[1]))
    assert {"SubnetId", "MinCount", "MaxCount", "TagSpecifications", "KeyName"} <= written
    told = "".join((repo_root / "cluster" / name).read_text() for name in ("check_rules.json", "check.py"))
    assert {name for name in written if not re.search(rf"\b{name}\b", told)} == set()


def test_rays_own_validator_has_a_say(repo_root, monkeypatch):
    from ray.autoscaler._private import util

    def refuse(config):
        raise ValueError("so says Ray")

    monkeypatch.setattr(util, "validate_config", refuse)
    assert [fault.message for fault in serious(check(repo_root / "cluster" / "v100.yaml"))] == [
        "Ray can't read it (so says Ray); see docs.ray.io/en/latest/cluster/vms"
    ]


def test_rays_autoscaler_reads_the_shipped_manifest(repo_root):
    import yaml
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr as derive

    _, cluster = yaml.safe_load_all((repo_root / "cluster" / "kuberay.yaml").read_text())
    config = derive(cluster)
    assert config["idle_timeout_minutes"] == 10
    assert config["available_node_types"]["v100"]["resources"]["GPU"] == 8


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("nothing.yaml", None, "No such file"),
        ("notes.txt", "hello", "must be FILE.yaml"),
        ("plain.sh", "#!/bin/sh\n", "without #SBATCH lines"),
        ("other.yaml", "a: 1\n", "holds no provider"),
    ],
)
def test_a_file_of_another_kind_is_usage(tmp_path, capsys, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    assert command.main([str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err


def test_the_command_answers_with_its_status(repo_root, broken):
    def run(*files):
        return subprocess.run(
            [sys.executable, "-m", "cluster.check", *map(str, files)], cwd=repo_root, capture_output=True, text=True
        )

    good = run("cluster/slurm.sh", "cluster/Dockerfile")
    assert (good.returncode, good.stdout.splitlines()[-1]) == (0, "cluster/Dockerfile: good")
    bad = run(broken("slurm.sh", ("--requeue", "--requeu")))
    assert bad.returncode == 1
    assert run().returncode == 2


def test_the_a100_file_differs_in_the_machines_alone(repo_root):
    import yaml

    first, second = (yaml.safe_load((repo_root / "cluster" / f"{name}.yaml").read_text()) for name in ("v100", "a100"))
    assert first.pop("cluster_name") != second.pop("cluster_name")
    for name in ("workers_spot", "workers_on_demand"):
        old, new = (config["available_node_types"][name] for config in (first, second))
        assert (old.pop("resources"), new.pop("resources")) == ({"CPU": 64, "GPU": 8}, {"CPU": 96, "GPU": 8})
        for key in ("InstanceType", "ImageId"):
            assert old["node_config"].pop(key) != new["node_config"].pop(key)
    assert first == second


@pytest.mark.slow
def test_the_account_of_aws_is_a_template_that_cfn_lint_accepts(repo_root):
    lint = shutil.which("cfn-lint", path=str(__import__("pathlib").Path(sys.executable).parent))
    if lint is None:
        pytest.skip("cfn-lint is not installed (pip install -e '.[dev]')")
    done = subprocess.run([lint, str(repo_root / "cluster" / "aws_account.yaml")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("gigabytes", "said"),
    [
        # Worked by hand: 90 % of the memory less 3.2 GB, by 0.1755 GB a clip, for a batch of 1,024.
        (16, "about 63 of 1024 clips of 2D action recognition at once; with --gpus-per-unit 8 each GPU has 128"),
        (32, "about 145 of 1024 clips"),
        (400, "preset paper fits as it is"),
        (3, "preset paper does not fit"),
    ],
)
def test_memory_says_whether_preset_paper_fits_and_how(gigabytes, said, monkeypatch):
    figures = {"batch": 1024, "task": "2D action recognition", "fixed_gb": 3.2, "clip_gb": 0.1755, "margin": 0.1}
    monkeypatch.setitem(RULES, "paper", figures)
    assert said in memory_note(8, "V100", gigabytes)


def test_every_type_with_gpus_has_their_memory():
    types = RULES["instance_types"]
    assert {name for name, spec in types.items() if "GPU" in spec} == {
        name for name, spec in types.items() if "GB" in spec
    }
    published = {"p3.16xlarge": 16, "p3dn.24xlarge": 32, "p4d.24xlarge": 40, "p4de.24xlarge": 80, "p5.48xlarge": 80}
    assert {name: types[name]["GB"] for name in published} == published
