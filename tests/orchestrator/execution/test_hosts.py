"""`ray up` on three hosts, a study on all of them, and what goes wrong with hosts: each study ends whole."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.drivers import PATIENCE, cells, records, wait_until
from tests.support.hosts import SHARED, Cluster, Hosts, why_not
from ups_model.data.prepare.catalog import prepare

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]
SETS = ("synthetic_h36m17", "synthetic_openpose18", "synthetic_ntu25")
UNITS = 11
"""Of study smoke with one seed: two joint, six fine-tuned, three separate."""


class Study:
    """A study on the cluster, started by `python -m orchestrator.ablate` on its head."""

    def __init__(self, cluster, name, *more):
        self.cluster, self.name = cluster, name
        self.storage = cluster.hosts.shared / name
        self.more = more or ("smoke", "--seeds", "1", "--storage", f"{SHARED}/{name}")
        self.log = cluster.hosts.folder / f"{name}.log"

    def start(self):
        """A driver on the head; it ends with its host."""
        command = f"cd ~/ups && exec python -m orchestrator.ablate {shlex.join(self.more)}"
        command += f" --tracking-uri sqlite:////root/{self.name}.db"
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                self.cluster.hosts.ssh(1, command), stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
            )
        return self

    @property
    def text(self):
        return self.log.read_text("utf-8", "replace")

    def wait_for(self, condition):
        """Until something is so; AssertionError with the log if the driver ends before."""
        wait_until(lambda: condition() or self.process.poll() is not None, lambda: self.text)
        assert condition(), self.text

    def end(self, status=0):
        """Wait for the driver's end."""
        assert self.process.wait(PATIENCE) == status, self.text
        return self

    def records(self):
        return {name: json.loads(text) for name, text in records(self.storage).items()}

    def logs(self):
        return {file.parent.name: file.read_text() for file in self.storage.glob("units/*/log.txt")}

    def held_by(self, number):
        """A unit that runs on a host and has left a checkpoint; None if there is none now."""
        for owner in self.storage.glob("units/*/owner.json"):
            folder = owner.parent
            if (folder / "record.json").exists() or not any(folder.glob("checkpoints/step-*")):
                continue
            try:
                if json.loads(owner.read_text())["host"] == f"h{number}":
                    return folder.name
            except (OSError, ValueError, KeyError):
                continue
        return None

    def starts(self):
        """How often each unit began at its first step."""
        return {name: text.count(" training ") for name, text in self.logs().items()}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three hosts with a shared folder, and Ray on them."""
    folder = Path("/tmp/ups-hosts")
    with Hosts.up(folder, 3) as hosts:
        for name in SETS:
            shutil.copytree(prepare(name), hosts.shared / "cache" / name)
        made = Cluster(hosts, tmp_path_factory.mktemp("cluster"))
        made.began = time.monotonic()
        print(f"\nray up: {made.up():.1f} s")
        made.wait_for_nodes(3)
        print(f"ray up to three nodes: {time.monotonic() - made.began:.1f} s")
        yield made


@pytest.fixture(scope="module")
def undisturbed(cluster):
    """A study that nothing happens to."""
    study = Study(cluster, "undisturbed").start()
    study.wait_for(lambda: " start " in study.text)
    print(f"ray up to the first unit: {time.monotonic() - cluster.began:.1f} s")
    return study.end()


def assert_whole(study, reference):
    """Every unit done once, and the same tables."""
    assert study.records().keys() == reference.records().keys(), study.text
    assert f"{UNITS} of {UNITS} units finished" in study.text
    assert cells(study.storage) == cells(reference.storage)
    for name, record in study.records().items():
        assert record["metrics"] == reference.records()[name]["metrics"], name


def test_the_study_runs_on_all_three_hosts_and_each_unit_once(undisturbed):
    records = undisturbed.records()
    assert len(records) == UNITS
    hosts = sorted(record["about"]["host"] for record in records.values())
    print(f"units by host: { {host: hosts.count(host) for host in sorted(set(hosts))} }")
    assert set(hosts) == {"h1", "h2", "h3"}
    assert set(undisturbed.starts().values()) == {1}


def test_a_worker_that_crashes_takes_nothing_with_it(cluster, undisturbed):
    study = Study(cluster, "crashed").start()
    study.wait_for(lambda: study.held_by(2))
    lost = study.held_by(2)
    cluster.hosts.crash(2)
    before = study.records()
    cluster.hosts.boot(2)
    study.end()
    assert_whole(study, undisturbed)
    assert before.items() <= study.records().items()
    assert "its machine is gone" in study.text
    assert "failed (" not in study.text, "no try of the unit's own was used up"
    assert "resuming at step" in study.logs()[lost]
    cluster.wait_for_nodes(3)  # The autoscaler brings it back by itself.


def test_a_link_that_is_cut_for_half_a_minute_costs_no_unit(cluster, undisturbed):
    study = Study(cluster, "cut").start()
    study.wait_for(lambda: study.held_by(3))
    cluster.hosts.cut(3)
    time.sleep(30)
    cluster.hosts.heal(3)
    study.end()
    assert_whole(study, undisturbed)
    assert "failed (" not in study.text
    cluster.wait_for_nodes(3)


def test_a_notice_and_a_sigterm_move_units_with_their_checkpoints(cluster, undisturbed):
    study = Study(cluster, "moved").start()
    study.wait_for(lambda: study.held_by(2))
    cluster.hosts.execute(2, "touch /run/leave")
    study.wait_for(lambda: "gets no more units" in study.text)
    study.wait_for(lambda: study.held_by(3))
    # The processes of Tune's trials are named after what they do.
    cluster.hosts.execute(3, "pkill -TERM -f '^ray::.*train' || pkill -TERM -f '^ray::UnitTrainable'")
    study.end()
    cluster.hosts.execute(2, "rm /run/leave")
    assert_whole(study, undisturbed)
    assert "/run/leave is there" in study.text
    assert "failed (" not in study.text
    assert set(study.starts().values()) == {1}, "each went on from the checkpoint that it saved"
    assert sum("resuming at step" in text for text in study.logs().values()) >= 1


def test_the_head_may_die_and_come_up_again(cluster, undisturbed):
    study = Study(cluster, "headless").start()
    study.wait_for(lambda: len(study.records()) >= 2)
    cluster.hosts.crash(1)
    study.process.wait(60)
    before = study.records()
    cluster.hosts.boot(1)
    cluster.up()
    cluster.wait_for_nodes(3, seconds=180)
    study.start().end()
    assert before.items() <= study.records().items()
    # Those that ran on the other hosts may have ended after the head was gone.
    assert int(re.search(rf"{UNITS} of {UNITS} units finished, (\d+) of them before", study.text)[1]) >= len(before)
    assert_whole(study, undisturbed)


def test_hosts_whose_folder_is_another_get_no_units(cluster, undisturbed):
    study = Study(cluster, "private", "smoke", "--seeds", "1", "--storage", "/root/private").start().end()
    assert study.text.count("is not the driver's folder here") == 2
    assert study.text.count("gets no more units") == 2
    hosts = cluster.hosts.execute(1, "cat /root/private/units/*/record.json | grep '\"host\"' | sort | uniq -c")
    assert hosts.split() == [str(UNITS), '"host":', '"h1",']
    assert "Permission" not in cluster.hosts.execute(2, "ls /root/private 2>&1 || true")
    assert "No such file" in cluster.hosts.execute(2, "ls /root/private 2>&1 || true")
