"""Spot first and on-demand behind it, asked of Ray's own scheduler and launcher with the node types of v100.yaml."""

import copy
import time

import pytest
import yaml

pytest.importorskip("ray")

from ray.autoscaler._private import resource_demand_scheduler as scheduling
from ray.autoscaler._private.constants import AUTOSCALER_UTILIZATION_SCORER_KEY
from ray.autoscaler._private.event_summarizer import EventSummarizer
from ray.autoscaler._private.node_launcher import BaseNodeLauncher
from ray.autoscaler._private.node_provider_availability_tracker import NodeProviderAvailabilityTracker
from ray.autoscaler._private.prom_metrics import AutoscalerPrometheusMetrics
from ray.autoscaler._private.util import ConcurrentCounter
from ray.autoscaler.node_launch_exception import NodeLaunchException

NAME = "cluster.spot_first.score"
UNIT = {"CPU": 1, "GPU": 1}


class Capacity:
    """A node provider that has no machine of some types."""

    def __init__(self):
        self.without, self.requests = set(), []

    def create_node_with_resources_and_labels(self, node_config, tags, count, resources, labels):
        spot = node_config.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        name = "workers_spot" if spot else "workers_on_demand"
        self.requests.append(name)
        if name in self.without:
            raise NodeLaunchException("InsufficientInstanceCapacity", "There is no Spot capacity", None)
        return {f"i-{len(self.requests)}": None}


class Autoscaler:
    """The two parts of Ray's autoscaler that decide which machine is asked for next."""

    def __init__(self, repo_root, name="v100"):
        self.config = yaml.safe_load((repo_root / "cluster" / f"{name}.yaml").read_text())
        types = copy.deepcopy(self.config["available_node_types"])
        self.capacity, self.now = Capacity(), time.time()
        self.scheduler = scheduling.ResourceDemandScheduler(self.capacity, types, 8, "head", 8.0)
        self.tracker = NodeProviderAvailabilityTracker(timer=lambda: self.now)
        self.launcher = BaseNodeLauncher(
            self.capacity,
            ConcurrentCounter(),
            EventSummarizer(),
            self.tracker,
            prom_metrics=AutoscalerPrometheusMetrics(),
            node_types=types,
        )

    def wanted(self, units):
        """Machines asked for, by type, when so many units wait and only the head runs."""
        launches, unmet = self.scheduler.get_nodes_to_launch(
            [], {"head": 1}, [dict(UNIT) for _ in range(units)], {}, [], {}, [], self.tracker.summary()
        )
        assert not unmet
        return launches

    def launch(self, launches):
        for name, count in launches.items():
            self.launcher.pending.inc(name, count)
            self.launcher.launch_node(self.config, count, name)


@pytest.fixture
def autoscaler(repo_root, monkeypatch):
    monkeypatch.setenv(AUTOSCALER_UTILIZATION_SCORER_KEY, NAME)
    return Autoscaler(repo_root)


def test_the_file_names_the_scorer_that_is_tested_here(repo_root):
    config = yaml.safe_load((repo_root / "cluster" / "v100.yaml").read_text())
    assert f"{AUTOSCALER_UTILIZATION_SCORER_KEY}={NAME}" in " ".join(config["head_start_ray_commands"])


@pytest.mark.parametrize(("units", "machines"), [(1, 1), (8, 1), (9, 2), (16, 2), (64, 8)])
def test_units_get_spot_machines_and_no_more_than_they_fill(autoscaler, units, machines):
    assert autoscaler.wanted(units) == {"workers_spot": machines}


def test_without_spot_capacity_the_next_machine_is_on_demand(autoscaler):
    autoscaler.capacity.without = {"workers_spot"}
    autoscaler.launch(autoscaler.wanted(16))
    assert autoscaler.wanted(16) == {"workers_on_demand": 2}
    autoscaler.launch(autoscaler.wanted(16))
    assert autoscaler.capacity.requests == ["workers_spot", "workers_on_demand"]


def test_spot_is_asked_again_after_half_an_hour(autoscaler):
    autoscaler.capacity.without = {"workers_spot"}
    autoscaler.launch(autoscaler.wanted(8))
    autoscaler.now += 29 * 60
    assert autoscaler.wanted(8) == {"workers_on_demand": 1}
    autoscaler.now += 2 * 60
    assert autoscaler.wanted(8) == {"workers_spot": 1}


def test_where_nothing_is_to_be_had_spot_goes_first_again(autoscaler):
    autoscaler.capacity.without = {"workers_spot", "workers_on_demand"}
    for _ in range(3):
        autoscaler.launch(autoscaler.wanted(8))
    assert autoscaler.capacity.requests == ["workers_spot", "workers_on_demand", "workers_spot"]


def test_rays_own_scorer_would_ask_for_spot_for_ever(repo_root, monkeypatch):
    """Why there is a scorer at all; when this fails, Ray has learned it and cluster/spot_first.py may go."""
    monkeypatch.delenv(AUTOSCALER_UTILIZATION_SCORER_KEY, raising=False)
    plain = Autoscaler(repo_root)
    plain.capacity.without = {"workers_spot"}
    for _ in range(3):
        plain.launch(plain.wanted(8))
    assert plain.capacity.requests == ["workers_spot"] * 3


def test_what_fits_no_machine_is_left_waiting(autoscaler):
    launches, unmet = autoscaler.scheduler.get_nodes_to_launch(
        [], {"head": 1}, [{"GPU": 16}], {}, [], {}, [], autoscaler.tracker.summary()
    )
    assert (launches, unmet) == ({}, [{"GPU": 16}])
