"""Nodes with declared GPUs: how many units share one, and that none takes what another has. No GPU is needed."""

from __future__ import annotations

import json
import os
import time
from collections import Counter

import pytest

from orchestrator.execution import driver as run
from orchestrator.execution import ray_cluster as ray_nodes
from orchestrator.planning.plan import Plan
from orchestrator.scheduling.task_graph import State
from orchestrator.worker.gpu_memory import Footprint
from orchestrator.worker.job import Job
from search_spaces.columns import AR3D
from search_spaces.study import Row, Study, Table
from tests.support.plans import graph_of, new_ledger, plan_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
SECONDS = 1.0
PATIENCE = 60.0
GIB = 2**30


@pytest.fixture
def nodes():
    """Makes a Ray cluster on this machine out of nodes with declared resources; the first is the head."""
    import ray
    from ray.cluster_utils import Cluster

    made = []

    def start(*resources):
        head, *others = resources
        cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **head})
        made.append(cluster)
        for one in others:
            cluster.add_node(**one)
        cluster.wait_for_nodes()
        return ray_nodes.connect(cluster.address)

    yield start
    ray.shutdown()
    for cluster in made:
        cluster.shutdown()


def independent(count: int) -> Plan:
    """A plan of units that start from no other."""
    rows = tuple(Row(str(row), {"dropout": row / (2 * count)}, "separate") for row in range(count))
    return plan_of(Study("gpus", "?", "!", (Table("t", "T", "dropout", (AR3D,), rows, "0"),)))


def work_of(folder, crowd=1, fails=None, after=0):
    """A unit's work: takes a while, and writes down when, where and with what.

    The first ones wait, at most a minute, until `crowd` of them run: on a busy machine processes start far apart.
    `fails` gives another outcome; the others then wait, as long at most, until there are `after` such.
    """
    gathered = folder.with_name("gathered")

    def work(text, should_stop):
        job = Job.from_json(text)
        import ray

        row = {"key": job.unit.key, "gpus": job.gpus, "too_small": list(job.too_small), "began": time.time()}
        row |= {"devices": os.environ.get("CUDA_VISIBLE_DEVICES", "")}
        row |= {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid()}
        outcome = fails(job, row["node"]) if fails else None
        if outcome is None:
            running = folder.with_name(f"running-{job.unit.key}")
            running.touch()
            while not gathered.exists() and time.time() < row["began"] + PATIENCE:
                if len(list(folder.parent.glob("running-*"))) >= crowd:
                    gathered.touch()
                time.sleep(0.05)
            while len(list(folder.glob("failed-*"))) < after and time.time() < row["began"] + PATIENCE:
                time.sleep(0.05)
            time.sleep(SECONDS)
            running.unlink()
        row |= {"ended": time.time(), "outcome": outcome or "finished"}
        name = f"{'failed-' if outcome else ''}{job.unit.key}-{row['began']}.json"
        (folder / name).write_text(json.dumps(row))
        if outcome == "raised":
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
        return {"status": outcome or "finished", "error": ""}

    return work


def run_all(tmp_path, facts, resources, count=8, footprints=None, **more):
    """Run so many units; what each try wrote down, in order of their beginnings."""
    plan = independent(count)
    graph = graph_of(plan, new_ledger(tmp_path))
    folder = tmp_path / "rows"
    folder.mkdir()
    ray_nodes.check_room(facts, resources)
    dispatcher = run.execute(
        graph,
        lambda unit: Job(unit, None, str(tmp_path), {}, str(tmp_path)),
        resources,
        facts,
        run.Hooks(lambda *_: None, lambda: None),
        work_of(folder, **more),
        footprints and dict.fromkeys((unit.kind for unit in plan.units.values()), footprints),
    )
    rows = [json.loads(file.read_text()) for file in folder.iterdir()]
    return graph, dispatcher, sorted(rows, key=lambda row: row["began"])


def at_once(rows, group=lambda row: None):
    """The most that ran at a time, in each group."""
    most: Counter = Counter()
    for row in rows:
        together = [one for one in rows if one["began"] <= row["began"] < one["ended"] and group(one) == group(row)]
        most[group(row)] = max(most[group(row)], len(together))
    return most


def shares_at_once(rows):
    """The largest sum of shares of one GPU at a time."""
    gpu = [(row["node"], row["devices"]) for row in rows]
    return max(
        sum(one["gpus"] for one, where in zip(rows, gpu, strict=True)
            if where == gpu[place] and one["began"] <= row["began"] < one["ended"])
        for place, row in enumerate(rows)
    )  # fmt: skip


def test_a_quarter_of_a_gpu_each_is_four_at_a_time(nodes, tmp_path):
    facts = nodes({"num_cpus": 8, "num_gpus": 1})
    graph, _, rows = run_all(tmp_path, facts, ray_nodes.Resources(gpus_per_unit=0.25), crowd=4)
    assert graph.counts() == {State.FINISHED: 8}
    assert at_once(rows) == {None: 4}
    assert shares_at_once(rows) == 1.0
    assert {row["devices"] for row in rows} == {"0"}
    print(f"\n0.25 GPU a unit, one GPU: {max(at_once(rows).values())} at a time")


def test_whole_gpus_are_never_shared(nodes, tmp_path):
    facts = nodes({"num_cpus": 8, "num_gpus": 2})
    graph, _, rows = run_all(tmp_path, facts, ray_nodes.Resources(gpus_per_unit=1), count=6, crowd=2)
    assert graph.counts() == {State.FINISHED: 6}
    assert at_once(rows, lambda row: row["devices"]) == {"0": 1, "1": 1}
    assert shares_at_once(rows) == 1.0


def test_on_mixed_nodes_units_go_where_gpus_are_and_fill_them(nodes, tmp_path):
    facts = nodes({"num_cpus": 4}, {"num_cpus": 4, "num_gpus": 1}, {"num_cpus": 4, "num_gpus": 2})
    assert (facts.cpus, facts.gpus, facts.local) == (12, 3, False)
    graph, _, rows = run_all(tmp_path, facts, ray_nodes.Resources(gpus_per_unit=0.5), count=18, crowd=6)
    assert graph.counts() == {State.FINISHED: 18}
    by_node = at_once(rows, lambda row: row["node"])
    print(f"\n0.5 GPU a unit, nodes of 0, 1 and 2 GPUs: {sorted(by_node.values())} at a time")
    assert sorted(by_node.values()) == [2, 4], "none on the node without GPUs"
    assert shares_at_once(rows) == 1.0


def test_a_unit_that_no_node_has_room_for_is_refused_before_anything_starts(nodes, tmp_path):
    facts = nodes({"num_cpus": 4, "num_gpus": 1}, {"num_cpus": 4, "num_gpus": 1})
    with pytest.raises(ValueError, match="--gpus-per-unit must be at most what one node has, got 2: the cluster has 2"):
        ray_nodes.check_room(facts, ray_nodes.Resources(gpus_per_unit=2))


def test_measured_units_are_packed_with_a_margin(nodes, tmp_path):
    facts = nodes({"num_cpus": 8, "num_gpus": 1})
    resources = ray_nodes.Resources(gpus_per_unit=1)
    plan = independent(2)
    measured = []

    def measure(job):  # In place of training on a GPU; runs on a whole one, as Ray sees it.
        return Footprint(int(4.5 * GIB), (16 if "1" in os.environ["CUDA_VISIBLE_DEVICES"] else 24) * GIB, "a GPU")

    jobs = {unit.kind: Job(unit, None, str(tmp_path), {}, str(tmp_path)) for unit in plan.units.values()}
    measured = ray_nodes.measure_footprints(jobs, resources, measure)
    assert {one.fit for one in measured.values()} == {4}, "24 GiB less a tenth hold four of 4.5"
    graph, _, rows = run_all(tmp_path, facts, resources, 9, next(iter(measured.values())), crowd=4)
    assert graph.counts() == {State.FINISHED: 9}
    assert at_once(rows) == {None: 4}
    assert {row["gpus"] for row in rows} == {0.25}


def test_a_unit_that_fits_on_no_gpu_is_refused_in_words(nodes, tmp_path):
    nodes({"num_cpus": 2, "num_gpus": 1})
    unit = next(iter(independent(1).units.values()))
    with pytest.raises(ValueError, match="torch sees none on this node; give a number"):
        ray_nodes.measure_footprints({"kind": Job(unit, None, "", {}, "")}, ray_nodes.Resources(gpus_per_unit=1))


def test_a_unit_out_of_memory_is_tried_again_alone_on_a_whole_gpu(nodes, tmp_path):
    facts = nodes({"num_cpus": 8, "num_gpus": 1})
    greedy = next(iter(independent(8).units))

    def fails(job, node):
        return "out_of_memory" if job.unit.key == greedy and job.gpus < 1 else None

    graph, _, rows = run_all(tmp_path, facts, ray_nodes.Resources(gpus_per_unit=0.25), fails=fails)
    assert graph.counts() == {State.FINISHED: 8}
    first, second = [row for row in rows if row["key"] == greedy]
    assert (first["gpus"], first["outcome"]) == (0.25, "out_of_memory")
    assert (second["gpus"], second["too_small"]) == (1.0, [0.25])
    others = [row for row in rows if row["key"] != greedy]
    assert not any(row["began"] < second["ended"] and second["began"] < row["ended"] for row in others), "alone"
    assert shares_at_once(rows) == 1.0


def test_a_node_on_which_everything_fails_gets_no_more_units_and_all_finish(nodes, tmp_path):
    import ray

    facts = nodes({"num_cpus": 2, "num_gpus": 2}, {"num_cpus": 2, "num_gpus": 2})
    bad = sorted(node["NodeID"] for node in ray.nodes())[0]
    graph, dispatcher, rows = run_all(
        tmp_path, facts, ray_nodes.Resources(gpus_per_unit=1), count=14, after=3,
        fails=lambda job, node: "raised" if node == bad else None,
    )  # fmt: skip
    assert graph.counts() == {State.FINISHED: 14}
    assert set(dispatcher.nodes.avoided) == {bad}
    assert "ECC" in dispatcher.nodes.avoided[bad]
    tried_there = [row for row in rows if row["node"] == bad]
    print(f"\nbad node: {len(tried_there)} tries there, none of {len(rows) - len(tried_there)} elsewhere failed")
    assert 3 <= len(tried_there) <= 6
