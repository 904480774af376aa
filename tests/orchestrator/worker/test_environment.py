"""What a node is asked before it runs a unit."""

from __future__ import annotations

import multiprocessing
import threading
from dataclasses import replace

import pytest
from filelock import FileLock

import ups_model
from orchestrator.worker.environment import (
    LOCK_CHECK_SECONDS,
    Environment,
    code_digest,
    driver_environment,
    faults,
    versions,
)
from tests.support.runs import SOLID, write_toy_sets
from ups_model.data.format.clip_set import ClipSet


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_toy_sets(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def own(clips):
    return Environment("head", "abc", code_digest(), versions(), {SOLID: ClipSet.open(clips[SOLID]).fingerprint})


def test_the_drivers_own_machine_has_no_faults(own, clips):
    assert faults(own, {SOLID: str(clips[SOLID])}) == []


def test_another_build_of_the_same_torch_is_the_same(own):
    plain = versions()["torch"].split("+")[0]
    assert faults(replace(own, versions={**versions(), "torch": f"{plain}+cu126"}), {}) == []


@pytest.mark.parametrize("name", ["torch", "numpy", "transformers", "ray", "python"])
def test_other_versions_are_refused_with_both_numbers(own, name):
    (fault,) = faults(replace(own, versions={**versions(), name: "0.9.1"}), {})
    assert name in fault and versions()[name] in fault and "0.9.1" in fault and "constraints.txt" in fault


def test_a_patch_of_python_is_no_other_version(own):
    python = ".".join(versions()["python"].split(".")[:2])
    assert faults(replace(own, versions={**versions(), "python": f"{python}.99"}), {}) == []


def test_other_code_is_refused(own):
    (fault,) = faults(replace(own, code="0" * 64), {})
    assert "send the same working tree" in fault


def test_the_codes_digest_changes_with_any_byte_of_it(tmp_path, monkeypatch):
    package = tmp_path / "ups_model"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text("width = 1\n")
    monkeypatch.setattr(ups_model, "__file__", str(package / "__init__.py"))
    code_digest.cache_clear()
    try:
        before = code_digest()
        (package / "model.py").write_text("width = 2\n")
        code_digest.cache_clear()
        assert code_digest() != before
    finally:
        code_digest.cache_clear()


def test_clips_that_are_not_there_or_others_are_refused(own, clips, tmp_path):
    (fault,) = faults(own, {SOLID: str(tmp_path / "nowhere")})
    assert SOLID in fault and "copy it to every node" in fault
    (fault,) = faults(replace(own, clips={SOLID: "another"}), {SOLID: str(clips[SOLID])})
    assert "is another than the driver's" in fault


def _send_faults(environment, pipe):
    pipe.send(faults(environment, {}))


def ask_another_process(environment):
    """The faults that a process of its own finds."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_send_faults, args=(environment, there))
    process.start()
    assert here.poll(60)
    answer = here.recv()
    process.join()
    return answer


@pytest.mark.slow
def test_a_folder_that_both_see_and_both_lock_is_one_storage(tmp_path):
    with driver_environment(tmp_path, "abc", {}) as environment:
        assert ask_another_process(environment) == []
    assert list(tmp_path.iterdir()) == [], "nothing is left of it"


def test_the_probe_of_a_driver_that_was_killed_is_cleared_away_and_that_of_a_living_one_is_not(tmp_path):
    (tmp_path / ".driver-dead").touch()
    with driver_environment(tmp_path, "abc", {}) as living, driver_environment(tmp_path, "abc", {}) as other:
        assert {file.name for file in tmp_path.iterdir()} == {
            living.probe.rsplit("/", 1)[1],
            other.probe.rsplit("/", 1)[1],
        }


def test_a_folder_of_the_nodes_own_is_refused_and_left_as_it_was(tmp_path):
    with driver_environment(tmp_path, "abc", {}) as environment:
        private = replace(environment, probe=environment.probe.replace("driver", "other"))
        (fault,) = faults(private, {})
        assert "is not the driver's folder here" in fault and "s3://" in fault
        assert len(list(tmp_path.iterdir())) == 1


def test_locks_that_do_not_reach_here_are_refused(tmp_path):
    """A file that is there and that anybody can lock: what a mount with nolock shows of a driver elsewhere."""
    probe = tmp_path / ".driver-1"
    probe.touch()
    (fault,) = faults(Environment("head", "abc", code_digest(), {}, {}, str(probe)), {})
    assert "locks don't reach from head to" in fault and "twice" in fault


def test_another_worker_that_checks_at_the_same_moment_is_not_taken_for_the_driver(tmp_path):
    probe = tmp_path / ".driver-1"
    probe.touch()
    other = FileLock(probe, thread_local=False)
    other.acquire()
    threading.Timer(LOCK_CHECK_SECONDS / 4, other.release).start()
    (fault,) = faults(Environment("head", "abc", code_digest(), {}, {}, str(probe)), {})
    assert "locks don't reach" in fault


def test_an_object_store_needs_no_probe():
    with driver_environment(None, "abc", {}) as environment:
        assert environment.probe == ""
        assert faults(environment, {}) == []
