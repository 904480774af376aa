"""cluster/v100.yaml against an AWS of moto's: what is asked of EC2, a cluster that works, spot refused, nothing left.

No account, no cost: fake keys, a private home, every address on this machine.
"""

import copy
import os
import shlex
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

boto3 = pytest.importorskip("boto3")
pytest.importorskip("moto.server")
pytest.importorskip("ray")

from cluster.rule_tables import read_yaml  # noqa: E402

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

REGION = "us-west-2"
IMAGE = "ami-0123456789abcdef0"
REFUSED = "InsufficientInstanceCapacity"
RAY = str(Path(sys.executable).parent / "ray")


@pytest.fixture(scope="module")
def catalogue():
    """The P3 family, which moto 5.2 has dropped, with the facts of AWS's own table."""
    from moto.ec2.models.instance_types import INSTANCE_TYPES, InstanceType, InstanceTypeBackend

    if "p3.16xlarge" not in INSTANCE_TYPES:
        kind = copy.deepcopy(INSTANCE_TYPES["g4dn.xlarge"])
        kind["InstanceType"] = "p3.16xlarge"
        kind["VCpuInfo"].update(DefaultVCpus=64)
        kind["MemoryInfo"]["SizeInMiB"] = 499712
        kind["GpuInfo"] = {
            "Gpus": [{"Name": "V100", "Manufacturer": "NVIDIA", "Count": 8, "MemoryInfo": {"SizeInMiB": 16384}}],
            "TotalGpuMemoryInMiB": 8 * 16384,
        }
        INSTANCE_TYPES["p3.16xlarge"] = kind
        InstanceTypeBackend.instance_types.append(InstanceType("p3.16xlarge"))
    return INSTANCE_TYPES


class Cloud:
    """A mock of AWS that notes every launch, looks images up as EC2 does, and can be without spot machines."""

    def __init__(self, host, monkeypatch):
        from moto.ec2.exceptions import EC2ClientError
        from moto.ec2.models import EC2Backend
        from moto.server import ThreadedMotoServer

        self.launches, self.no_spot = [], False
        run_instances_of_moto = EC2Backend.run_instances

        def run_instances(backend, image_id, count, user_data, security_group_names, **kwargs):
            market = kwargs.get("instance_market_options")  # moto keeps the market's type alone.
            refused = self.no_spot and market == "spot"
            self.launches.append({"image": image_id, "refused": refused})
            if refused:
                raise EC2ClientError(REFUSED, "There is no Spot capacity available that matches your request.")
            image = IMAGE if image_id.startswith("resolve:ssm:") else image_id
            return run_instances_of_moto(backend, image, count, user_data, security_group_names, **kwargs)

        monkeypatch.setattr(EC2Backend, "run_instances", run_instances)
        with socket.socket() as free:
            free.bind((host, 0))
            port = free.getsockname()[1]
        self.server = ThreadedMotoServer(ip_address=host, port=port, verbose=False)
        self.server.start()
        self.address = f"http://{host}:{port}"
        # What an earlier test has left in this process.
        urllib.request.urlopen(urllib.request.Request(f"{self.address}/moto-api/reset", method="POST")).close()

    def client(self, service):
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        return boto3.client(service, region_name=REGION, endpoint_url=self.address, **keys)

    def instances(self, *states):
        reservations = self.client("ec2").describe_instances()["Reservations"]
        every = [one for reservation in reservations for one in reservation["Instances"]]
        return [one for one in every if one["State"]["Name"] in states]

    def subnets(self, *blocks):
        """Only these subnets, one a zone, so that addresses and attempts can be foretold."""
        ec2 = self.client("ec2")
        for subnet in ec2.describe_subnets()["Subnets"]:
            ec2.delete_subnet(SubnetId=subnet["SubnetId"])
        network = blocks[0].rpartition(".")[0] + ".0/24"
        vpc = ec2.create_vpc(CidrBlock=network)["Vpc"]["VpcId"]
        for zone, block in zip("abc", blocks, strict=False):
            made = ec2.create_subnet(VpcId=vpc, CidrBlock=block, AvailabilityZone=REGION + zone)
            ec2.modify_subnet_attribute(SubnetId=made["Subnet"]["SubnetId"], MapPublicIpOnLaunch={"Value": True})

    def account(self, repo_root):
        """What cluster/aws_account.yaml makes."""
        formation = self.client("cloudformation")
        formation.create_stack(
            StackName="ups",
            TemplateBody=(repo_root / "cluster" / "aws_account.yaml").read_text(),
            Parameters=[{"ParameterKey": "Bucket", "ParameterValue": "ups-test"}],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        return formation.describe_stacks(StackName="ups")["Stacks"][0]["StackStatus"]


def fake_environment(home, address):
    """Of every process that talks to the mock: it can find no real account, and no cached configuration."""
    return {
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": address,
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@pytest.fixture
def home(tmp_path):
    for folder in ("tmp", ".cache/ups/clips", ".ray", ".ssh"):
        (tmp_path / "home" / folder).mkdir(parents=True)
    (tmp_path / "home" / ".ray" / "auth_token").write_text("f" * 32 + "0123456789abcdef" * 2)
    return tmp_path / "home"


@pytest.fixture
def cloud(catalogue, monkeypatch, home):
    made = Cloud("127.0.0.1", monkeypatch)
    for name, value in fake_environment(home, made.address).items():
        monkeypatch.setenv(name, value)
    yield made
    made.server.stop()


@pytest.fixture
def config(repo_root, monkeypatch):
    """The shipped file as `ray up` prepares it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.chdir(repo_root)
    made = prepare_config(yaml.safe_load((repo_root / "cluster" / "v100.yaml").read_text()))
    validate_config(made)
    return made


class Launcher:
    """What runs on the head: Ray's scheduler and launcher over its real provider for AWS, here in this process."""

    def __init__(self, config):
        from ray.autoscaler._private.aws import config as bootstrap
        from ray.autoscaler._private.aws import utils
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
        from ray.autoscaler._private.event_summarizer import EventSummarizer
        from ray.autoscaler._private.node_launcher import BaseNodeLauncher
        from ray.autoscaler._private.node_provider_availability_tracker import NodeProviderAvailabilityTracker
        from ray.autoscaler._private.prom_metrics import AutoscalerPrometheusMetrics
        from ray.autoscaler._private.resource_demand_scheduler import ResourceDemandScheduler
        from ray.autoscaler._private.util import ConcurrentCounter

        # Ray keeps one client a region, of an earlier test's mock.
        for kept in (utils.client_cache, utils.resource_cache, bootstrap._get_subnets_or_die):
            getattr(kept, "cache_clear", lambda: None)()
        self.config = AWSNodeProvider.bootstrap_config(config)
        self.provider = AWSNodeProvider(self.config["provider"], self.config["cluster_name"])
        self.types = self.config["available_node_types"]
        self.tracker = NodeProviderAvailabilityTracker()
        self.scheduler = ResourceDemandScheduler(self.provider, self.types, 8, "head", 8.0)
        self.launcher = BaseNodeLauncher(
            self.provider,
            ConcurrentCounter(),
            EventSummarizer(),
            self.tracker,
            prom_metrics=AutoscalerPrometheusMetrics(),
            node_types=self.types,
        )

    def head(self):
        from ray.autoscaler.tags import TAG_RAY_LAUNCH_CONFIG, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

        tags = {TAG_RAY_NODE_KIND: "head", TAG_RAY_USER_NODE_TYPE: "head", TAG_RAY_LAUNCH_CONFIG: "x"}
        self.provider.create_node(self.types["head"]["node_config"], tags, 1)

    def step(self, units):
        """One round of the autoscaler while so many units of one GPU wait; the machines it asked for, by type."""
        nodes = self.provider.non_terminated_nodes({})
        waiting = [{"CPU": 1, "GPU": 1}] * units
        launches, _ = self.scheduler.get_nodes_to_launch(nodes, {}, waiting, {}, [], {}, [], self.tracker.summary())
        for name, count in launches.items():
            self.launcher.pending.inc(name, count)
            self.launcher.launch_node(self.config, count, name)
        return launches


@pytest.fixture
def key(home):
    file = home / ".ssh" / "key.pem"
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", str(file)], check=True)
    return file


@pytest.fixture
def launcher(cloud, config, repo_root, key, monkeypatch):
    cloud.subnets("10.79.0.0/26", "10.79.0.64/26", "10.79.0.128/26")
    assert cloud.account(repo_root) == "CREATE_COMPLETE"
    cloud.client("ec2").import_key_pair(KeyName="ups", PublicKeyMaterial=Path(f"{key}.pub").read_bytes())
    config["auth"]["ssh_private_key"] = str(key)
    for node in config["available_node_types"].values():
        node["node_config"]["KeyName"] = "ups"
    monkeypatch.setenv("RAY_AUTOSCALER_UTILIZATION_SCORER", "cluster.spot_first.score")
    return Launcher(config)


def test_the_account_has_a_private_bucket_and_two_profiles_and_the_workers_may_start_nothing(cloud, repo_root):
    assert cloud.account(repo_root) == "CREATE_COMPLETE"
    s3, iam = cloud.client("s3"), cloud.client("iam")
    assert [one["Name"] for one in s3.list_buckets()["Buckets"]] == ["ups-test"]
    # moto keeps nothing of this, so the template is read: as CloudFormation would, `!Sub` and the like taken as text.
    (template,) = read_yaml((repo_root / "cluster" / "aws_account.yaml").read_text())
    block = template.get("Resources", "Ledger", "Properties", "PublicAccessBlockConfiguration")
    assert all(block.values()) and len(block) == 4
    assert template.get("Resources", "Ledger", "DeletionPolicy") == "Retain"

    def actions(profile):
        (role,) = iam.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Roles"]
        names = set()
        for one in iam.list_attached_role_policies(RoleName=role["RoleName"])["AttachedPolicies"]:
            version = iam.get_policy(PolicyArn=one["PolicyArn"])["Policy"]["DefaultVersionId"]
            text = iam.get_policy_version(PolicyArn=one["PolicyArn"], VersionId=version)["PolicyVersion"]["Document"]
            for statement in text["Statement"]:
                named = statement["Action"]
                names |= {named} if isinstance(named, str) else set(named)
        return names

    head, worker = actions("ups-head"), actions("ups-worker")
    assert {one.partition(":")[0] for one in worker} == {"s3"}
    assert worker < head
    assert {"ec2:RunInstances", "ec2:TerminateInstances", "iam:PassRole", "ssm:GetParameters"} <= head
    assert not {one for one in head if "*" in one}


def test_the_machines_are_those_of_the_file(cloud, launcher):
    launcher.head()
    for _ in range(2):  # moto starts one instance where two are asked for.
        launcher.step(16)
    assert launcher.step(16) == {}
    ec2 = cloud.client("ec2")
    head, *workers = sorted(cloud.instances("pending", "running"), key=lambda one: one["InstanceType"])
    assert (head["InstanceType"], "InstanceLifecycle" in head) == ("m5.2xlarge", False)
    assert [(one["InstanceType"], one.get("InstanceLifecycle")) for one in workers] == [("p3.16xlarge", "spot")] * 2
    for one in (head, *workers):
        assert one["ImageId"] == IMAGE
        assert one["Placement"]["AvailabilityZone"] == f"{REGION}a"
        assert one["IamInstanceProfile"]["Arn"].endswith("/ups-head" if one is head else "/ups-worker")
        assert one["MetadataOptions"]["HttpTokens"] == "required"
        disks = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [one["InstanceId"]]}])
        assert [(disk["Size"], disk["VolumeType"]) for disk in disks["Volumes"]] == [
            (200 if one is head else 500, "gp3")
        ]
        assert [disk["Ebs"]["DeleteOnTermination"] for disk in one["BlockDeviceMappings"]] == [True]
        (group,) = one["SecurityGroups"]
        rules = ec2.describe_security_groups(GroupIds=[group["GroupId"]])["SecurityGroups"][0]["IpPermissions"]
        open_to_all = [rule for rule in rules if any(at["CidrIp"] == "0.0.0.0/0" for at in rule["IpRanges"])]
        assert [(rule["FromPort"], rule["ToPort"]) for rule in open_to_all] == [(22, 22)]
    launcher.provider.terminate_nodes(launcher.provider.non_terminated_nodes({}))
    assert cloud.instances("pending", "running", "stopping", "stopped") == []


def test_ray_overwrites_subnet_id_and_launches_in_the_first_of_subnet_ids(cloud, launcher):
    """Why cluster.check refuses SubnetId; when this fails, Ray has learned it and the rule may go."""
    subnets = cloud.client("ec2").describe_subnets()["Subnets"]
    a, _, c = (one["SubnetId"] for one in sorted(subnets, key=lambda one: one["AvailabilityZone"]))
    config = launcher.types["workers_spot"]["node_config"]
    assert config["SubnetIds"][0] == a  # Filled in by Ray.
    for changes, used in (({"SubnetId": c}, a), ({"SubnetIds": [c]}, c)):
        created = launcher.provider.create_node({**config, **changes}, {}, 1)
        assert [node.subnet_id for node in created.values()] == [used]


def test_spot_refused_in_every_zone_ends_in_an_on_demand_machine(cloud, launcher):
    launcher.head()
    cloud.no_spot = True
    assert launcher.step(8) == {"workers_spot": 1}
    refused = [one for one in cloud.launches if one["refused"]]
    # Ray tries each zone, at least five times in all.
    assert len(refused) == 5
    assert {one["InstanceType"] for one in cloud.instances("pending", "running")} == {"m5.2xlarge"}
    assert launcher.step(8) == {"workers_on_demand": 1}
    machine, _ = sorted(cloud.instances("pending", "running"), key=lambda one: one["InstanceType"], reverse=True)
    assert (machine["InstanceType"], machine.get("InstanceLifecycle")) == ("p3.16xlarge", None)
    assert launcher.step(8) == {}


NETLAB_MISSING = "" if os.geteuid() == 0 else "needs root"
for tool in ("ip", "unshare", "nsenter", "ssh", "ssh-keygen", "rsync", "/usr/sbin/sshd"):
    if not NETLAB_MISSING and shutil.which(tool) is None:
        NETLAB_MISSING = f"needs {tool} (apt-get install openssh-server rsync iproute2)"

PROBE = """
import asyncio, json, os, ray, socket
ray.init(address="auto", log_to_driver=False)

@ray.remote(num_cpus=0)
class Gate:  # Opens when 16 units are there: so many GPUs are in use at once.
    def __init__(self):
        self.here, self.all = 0, asyncio.Event()

    async def arrive(self):
        self.here += 1
        self.here < 16 or self.all.set()
        await self.all.wait()

@ray.remote(num_gpus=1, num_cpus=0)
def unit():
    ray.get(gate.arrive.remote())
    return socket.gethostname(), os.environ["CUDA_VISIBLE_DEVICES"], os.environ.get("UPS_SPOT_NOTICE")

gate = Gate.options(max_concurrency=20).remote()
found = ray.get([unit.remote() for _ in range(16)], timeout=240)
print("FOUND", json.dumps(sorted(found)))
"""


class Hosts:
    """Four hosts of this machine's own that the mock's addresses lead to: .12 the head, .13 and .14 the workers."""

    network = "10.79.1"

    def __init__(self, tool, folder, share):
        self.tool = tool
        self.environment = {
            **os.environ,
            "NETLAB_DIR": str(folder),
            "NETLAB_NAME": "upsaw",
            "NETLAB_NET": self.network,
            "NETLAB_SHARE": share,
        }
        self.key = folder / "id_ed25519"

    def __call__(self, *arguments, check=True):
        done = subprocess.run(
            ["bash", str(self.tool), *arguments], env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done


@pytest.fixture
def hosts(repo_root):
    tool = Path(os.environ.get("UPS_NETLAB") or repo_root / ".." / "shared" / "tools" / "netlab")
    if NETLAB_MISSING:
        pytest.skip(NETLAB_MISSING)
    if not tool.is_file():
        pytest.skip(f"{tool} is missing (UPS_NETLAB names the tool that makes hosts)")
    folder = Path("/tmp/ups-netlab-aws")  # A short path: sockets lie below it.
    # Hosts have folders /tmp, /root and /run of their own: the environment and its Python may lie there.
    needed = {sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent.parent)}
    made = Hosts(tool, folder, ":".join(sorted(one for one in needed if one.startswith(("/tmp/", "/root/", "/run/")))))
    made("down", check=False)
    made("up", "4")
    yield made
    made("down")


def shortened(config, address, key, venv):
    """The shipped file for hosts that have an environment already and no GPU: the rest is as it is."""
    made = copy.deepcopy(config)
    made["provider"]["use_internal_ips"] = True  # moto's public addresses are real ones, of others.
    made["max_workers"] = 2
    made["auth"]["ssh_private_key"] = str(key)
    for name, node in made["available_node_types"].items():
        node["node_config"]["KeyName"] = "ups"
        if name != "head":
            node["resources"] = {"CPU": 1, "GPU": 8}  # Ray starts a process for each CPU.
    made["initialization_commands"] = []
    fake = fake_environment(Path("/root"), address)
    exports = " ".join(f"{name}={value}" for name, value in fake.items() if name.startswith("AWS_"))
    made["setup_commands"] = [
        "chmod 600 ~/.ray/auth_token",
        f"test -e ~/.venv || ln -s {shlex.quote(str(venv))} ~/.venv",
        next(one for one in config["setup_commands"] if ".bashrc" in one),
        f"grep -q AWS_ ~/.bashrc || echo export {exports} >> ~/.bashrc",
    ]
    made["head_setup_commands"] = [one for one in config["head_setup_commands"] if "node_check" in one]
    made["worker_setup_commands"] = [
        one.replace("--gpus 8", "--gpus 0") for one in config["worker_setup_commands"] if "node_check" in one
    ]
    small = "--object-store-memory=100000000 --memory=500000000"
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        made[name] = [
            one.replace("ray start ", f"export RAY_prestart_worker_first_driver=0; ray start {small} ")
            for one in config[name]
            if "mlflow" not in one
        ]
    return made


def test_ray_up_makes_a_cluster_that_runs_units_and_ray_down_leaves_nothing(
    hosts, catalogue, monkeypatch, home, repo_root, tmp_path
):
    cloud = Cloud(f"{hosts.network}.1", monkeypatch)
    environment = {**os.environ, **fake_environment(home, cloud.address)}
    try:
        cloud.subnets(f"{hosts.network}.8/29")
        assert cloud.account(repo_root) == "CREATE_COMPLETE"
        cloud.client("ec2").import_key_pair(KeyName="ups", PublicKeyMaterial=Path(f"{hosts.key}.pub").read_bytes())
        shipped = yaml.safe_load((repo_root / "cluster" / "v100.yaml").read_text())
        file = tmp_path / "v100.yaml"
        venv = Path(sys.executable).parent.parent
        file.write_text(yaml.safe_dump(shortened(shipped, cloud.address, hosts.key, venv), sort_keys=False))

        def ray(*arguments, timeout=280):
            done = subprocess.run(
                [RAY, *arguments], cwd=repo_root, env=environment, stdin=subprocess.DEVNULL, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[-6000:]
            return done.stdout

        ray("up", "-y", "--no-config-cache", str(file))
        (head,) = cloud.instances("pending", "running")
        assert (head["InstanceType"], head["PrivateIpAddress"]) == ("m5.2xlarge", f"{hosts.network}.12")

        # Nothing but a token opens it, even from inside.
        status = f"RAY_ADDRESS={hosts.network}.12:6379 /root/.venv/bin/ray status"
        assert hosts("exec", "h2", f"RAY_AUTH_MODE=token {status}").returncode == 0
        refused = hosts("exec", "h1", f"RAY_AUTH_MODE=disabled {status}".replace("/root/.venv", str(venv)), check=False)
        assert refused.returncode != 0
        # The dashboard and Ray's ports listen inside alone.
        assert (
            hosts("exec", "h1", f"timeout 3 bash -c '</dev/tcp/{hosts.network}.12/8265'", check=False).returncode != 0
        )

        probe = tmp_path / "probe.py"
        probe.write_text(PROBE)
        ray("rsync-up", str(file), str(probe), "/root/probe.py")
        said = ray("exec", str(file), "python /root/probe.py")
        gpus = yaml.safe_load(said.rpartition("FOUND ")[2].splitlines()[0])
        assert {(host, gpu) for host, gpu, _ in gpus} == {(host, str(i)) for host in ("h3", "h4") for i in range(8)}
        assert {notice for _, _, notice in gpus} == {"ec2"}

        workers = [one for one in cloud.instances("pending", "running") if one["InstanceType"] != "m5.2xlarge"]
        assert [(one["InstanceType"], one["InstanceLifecycle"]) for one in workers] == [("p3.16xlarge", "spot")] * 2
        assert {one["image"] for one in cloud.launches} == {
            node["node_config"]["ImageId"] for node in shipped["available_node_types"].values()
        }

        ray("down", "-y", str(file))
        assert cloud.instances("pending", "running", "stopping", "stopped") == []
        assert len(cloud.instances("terminated", "shutting-down")) == 3
    finally:
        cloud.server.stop()
