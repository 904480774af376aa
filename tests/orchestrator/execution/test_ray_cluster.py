"""What is asked of a cluster, held against nodes as Ray tells of them."""

from __future__ import annotations

import json

import pytest

from orchestrator.ablate import parser
from orchestrator.cli.session import connect
from orchestrator.execution import ray_cluster as ray_nodes
from orchestrator.execution.ray_cluster import ClusterFacts, Resources, check_room


@pytest.fixture
def nodes(monkeypatch):
    def set_nodes(*resources):
        monkeypatch.setattr(ray_nodes.ray, "nodes", lambda: [{"Alive": True, "Resources": one} for one in resources])

    return set_nodes


def test_processors_and_gpus_of_a_unit_must_be_on_one_node(nodes):
    nodes({"CPU": 64.0}, {"CPU": 4.0, "GPU": 8.0})
    facts = ClusterFacts(68.0, 8.0, local=False)
    told = r"--cpus-per-unit must be .* with --gpus-per-unit 1 has, .*; try --cpus-per-unit 4"
    with pytest.raises(ValueError, match=told):
        check_room(facts, Resources(cpus_per_unit=8, gpus_per_unit=1))
    check_room(facts, Resources(cpus_per_unit=4, gpus_per_unit=1))
    check_room(facts, Resources(cpus_per_unit=64))


@pytest.mark.parametrize("asked", [None, "auto"])
def test_units_on_the_processor_take_no_gpu(asked, monkeypatch):
    monkeypatch.setattr(ray_nodes, "connect", lambda address: ClusterFacts(16.0, 1.0, local=True))
    monkeypatch.setattr(ray_nodes, "check_room", lambda facts, resources: None)
    for device, gpus in (("cpu", 0), ("auto", 1)):
        options = parser().parse_args(["smoke", "--address", "local", "--device", device])
        options.gpus_per_unit = asked
        assert connect(options)[1].gpus_per_unit == gpus


def test_a_cluster_that_grows_without_bound_has_a_number_of_slots():
    kind = {"CPU": 8.0, "GPU": 1.0}
    facts = ClusterFacts(0.0, 0.0, False, (kind,), {"CPU": float("inf"), "GPU": float("inf")})
    assert facts.slots(Resources(gpus_per_unit=1)) >= 1000
    assert facts.slots(Resources(gpus_per_unit=1, max_concurrent=7)) == 7


def test_the_shipped_aws_cluster_grows_to_eight_machines_and_not_to_eight_of_each_kind(repo_root, monkeypatch):
    """Spot and on demand may each be eight, all together eight (`max_workers`): 64 V100."""
    import yaml

    bootstrap = yaml.safe_load((repo_root / "cluster" / "v100.yaml").read_text())
    monkeypatch.setattr(ray_nodes, "BOOTSTRAP", repo_root / "cluster" / "v100.yaml")
    assert ray_nodes._autoscaler_config() == bootstrap
    types, most = ray_nodes._growth(bootstrap)
    assert types == ({"CPU": 64, "GPU": 8}, {"CPU": 64, "GPU": 8}), "the head is none of them"
    facts = ClusterFacts(0.0, 0.0, False, types, most)
    assert facts.slots(Resources(gpus_per_unit=1)) == 64
    assert facts.slots(Resources(gpus_per_unit=0.25)) == 256


def test_messages_of_ray_are_one_line_each_without_colours(caplog):
    told = "\x1b[33m(raylet)\x1b[0m 2 Workers killed due to memory pressure (OOM)\n\tRefer to the documentation"
    silent = "The node with node id: 38468f has been marked dead\n\t(1) raylet crashes"
    with caplog.at_level("WARNING"):
        ray_nodes._log_message({"lines": [told, silent, "Raylet is terminated. Termination is unexpected."]}, False)
    assert caplog.messages == ["Ray: (raylet) 2 Workers killed due to memory pressure (OOM)"]


def test_the_printer_of_messages_is_there_to_be_replaced():
    """It is private to Ray, which would print in colour again if it had another name."""
    import inspect

    from ray._private import worker

    assert "print_to_stdstream(" in inspect.getsource(worker.listen_error_messages)
    assert list(inspect.signature(worker.print_to_stdstream).parameters) == ["data", "ignore_prefix"]


def test_a_cluster_that_is_gone_is_named_and_not_waited_for(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ValueError, match=r"no Ray cluster answers at .*:1 \(Connection refused\), which RAY_ADDRESS"):
        ray_nodes._starts_ray("auto")


@pytest.mark.slow
def test_machines_that_join_late_are_waited_for_where_gpus_are_concerned_and_used_otherwise(tmp_path, monkeypatch):
    """`ray up` returns when the head is there; a study that is started then must not be bounded by it for ever."""
    import ray
    from ray.cluster_utils import Cluster

    left = tmp_path / "ray_bootstrap_config.yaml"
    left.write_text(json.dumps({"provider": {"type": "local"}, "max_workers": 1}))
    monkeypatch.setattr(ray_nodes, "BOOTSTRAP", left)
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, "num_cpus": 1})
    try:
        arguments = ["--address", cluster.address]
        with pytest.raises(ValueError, match=r"1 machines have not joined yet.*--gpus-per-unit 0"):
            connect(parser().parse_args(arguments))
        facts, _ = connect(parser().parse_args([*arguments, "--gpus-per-unit", "0"]))
        assert not facts.local, "more may join"
        ray.shutdown()
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        facts, resources = connect(parser().parse_args(arguments))
        assert (facts.missing, facts.slots(resources)) == (0, 2)
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_pods_that_kuberay_has_yet_to_start_count(tmp_path, monkeypatch, repo_root):
    """The shipped manifest begins with a head of no processors and no worker: nothing of Ray's tells what may come."""
    import yaml
    from ray.autoscaler._private.kuberay import node_provider
    from ray.cluster_utils import Cluster

    manifests = list(yaml.safe_load_all((repo_root / "cluster" / "kuberay.yaml").read_text()))
    requests = []

    class Api:
        def __init__(self, namespace):
            self.namespace = namespace

        def get(self, path):
            requests.append((self.namespace, path))
            return manifests[1]

    (tmp_path / "namespace").write_text("default")
    monkeypatch.setattr(node_provider, "KubernetesHttpApiClient", Api)
    monkeypatch.setattr(ray_nodes, "NAMESPACE", tmp_path / "namespace")
    monkeypatch.setattr(ray_nodes, "BOOTSTRAP", tmp_path / "not there")
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, "num_cpus": 0})
    try:
        arguments = parser().parse_args(["--address", cluster.address])
        with pytest.raises(ValueError, match="--cpus-per-unit must be at most what one node has"):
            connect(arguments)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
        monkeypatch.setenv("RAY_CLUSTER_NAME", "ups")
        facts, resources = connect(arguments)
    finally:
        ray_nodes.disconnect()
        cluster.shutdown()
    assert requests == [("default", "rayclusters/ups")]
    assert facts.growing and not facts.local
    assert (resources.gpus_per_unit, facts.slots(resources)) == (1.0, 64), "8 pods of 8 GPUs"
