"""How a batch is cut changes rounding alone: parts of it, several processes, blocks computed again; and memory."""

import dataclasses
import json
import logging
import multiprocessing
import os
import signal

import pytest
import torch

import ups_model.training.fit
import ups_model.training.loop
from tests.support.runs import newest, options, session_folder, stop_at, toy_config, weights, write_toy_sets
from ups_model.training.fit import peak_bytes, saved_bytes
from ups_model.training.loop import train
from ups_model.training.processes import ProcessDied, train_in_processes

STEPS = 30
VARIANTS = {
    "joint": {"dropout": 0.1, "decoder_dropout": 0.1},
    "everything": {
        "update": "cycle",
        "routing_execution": "dense",
        "mask_inputs": True,
        "bin_sigma": 1.0,
        "expectation_weight": 0.5,
        "label_smoothing": 0.1,
        "ema": 0.9,
        "data.pe.targets_per_window": 2,
        "steps": 32,
    },
}


def config_of(variant="joint"):
    changes = {"steps": STEPS, "learning_rate": 1e-3, "data.validation_subjects": 1} | VARIANTS[variant]
    sizes = {f"data.{task}.batch_size": 7 for task in ("pe", "ar2d", "eap", "ar3d")}
    return toy_config(**sizes, **changes)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_toy_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return session_folder(tmp_path_factory, "cache")


def every_loss(out, cache, **changes):
    return options(out, cache, log_every=1, **changes)


def losses(out):
    """The loss of each step, by its task."""
    rows = [json.loads(line) for line in (out / "progress.jsonl").read_text().splitlines()]
    values = [(row["step"], value) for row in rows for name, value in row.items() if name.endswith("_loss")]
    return [value for _, value in sorted(values)]


@pytest.fixture(scope="module")
def whole(paths, cache, tmp_path_factory):
    """Losses and result of runs whose batches are not cut, by variant."""
    runs = {}
    for variant in VARIANTS:
        out = tmp_path_factory.mktemp("whole")
        result = train(config_of(variant), paths, every_loss(out, cache))
        runs[variant] = losses(out), result
    return runs


def assert_same_training(variant, out, result, whole):
    """The same losses to 1e-5 of their size, the same metrics to rounding, the same weights but for Adam's steps of
    full length at gradients that are rounding errors."""
    expected, one = whole[variant]
    assert losses(out) == pytest.approx(expected, rel=1e-5)
    assert result.status == "finished" and result.key == one.key and result.routes == one.routes
    ours, theirs = weights(result.checkpoint), weights(one.checkpoint)
    for name, value in theirs.items():
        if not name.endswith("key_value.bias") and value.is_floating_point():
            assert torch.allclose(ours[name], value, atol=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [1, 3, 6])
def test_parts_of_a_batch_train_as_the_whole_does(size, variant, whole, paths, cache, tmp_path):
    result = train(config_of(variant), paths, every_loss(tmp_path, cache, micro_batch=size))
    assert_same_training(variant, tmp_path, result, whole)
    assert set(result.about["micro_batch"].values()) == {size}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_that_are_computed_again_train_as_those_that_are_kept(variant, whole, paths, cache, tmp_path):
    result = train(config_of(variant), paths, every_loss(tmp_path, cache, activation_checkpointing="on"))
    assert_same_training(variant, tmp_path, result, whole)
    assert result.about["activation_checkpointing"] is True


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "processes", "size"), [("joint", 2, 0), ("joint", 4, 1), ("everything", 2, 3)])
def test_several_processes_train_as_one(variant, processes, size, whole, paths, cache, tmp_path, caplog):
    """Of 7 clips, so that shares and parts are unequal."""
    caplog.set_level(logging.INFO)
    run = every_loss(tmp_path, cache, micro_batch=size)
    result = train_in_processes(processes, config_of(variant), paths, run)
    assert_same_training(variant, tmp_path, result, whole)
    assert result.about["processes"] == processes
    assert any("training pe+ar2d+eap+ar3d on cpu" in line for line in caplog.messages), "the parent hears their logs"


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(whole, paths, cache, tmp_path):
    config, saved = config_of(), []
    run = every_loss(tmp_path, cache, checkpoint_every=10)
    stopped = train_in_processes(2, config, paths, run, None, lambda: bool(saved), lambda: saved.append(1))
    assert stopped.status == "stopped" and 10 <= stopped.step < STEPS
    at = stopped.step
    assert train(config, paths, run, should_stop=stop_at(5)).step == at + 5
    assert_same_training("joint", tmp_path, train_in_processes(3, config, paths, run), whole)


def children():
    """Process numbers of this process's children that run a part of a training."""
    return sorted(child.pid for child in multiprocessing.active_children())


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_run_which_then_goes_on(victim, whole, paths, cache, tmp_path):
    config = config_of()
    run = every_loss(tmp_path, cache, checkpoint_every=5)

    def kill():
        os.kill(children()[victim], signal.SIGKILL)

    with pytest.raises(ProcessDied, match=f"process {victim} of 2 ended with signal SIGKILL"):
        train_in_processes(2, config, paths, run, on_checkpoint=kill)
    assert not children(), "the other one was ended too"
    assert newest(tmp_path).name == "step-00000005"
    assert_same_training("joint", tmp_path, train(config, paths, run), whole)


@pytest.mark.slow
def test_an_error_of_a_process_is_that_of_the_run(paths, cache, tmp_path):
    with pytest.raises(ups_model.training.loop.NonFiniteLoss, match="is not finite at step"):
        train_in_processes(2, config_of().with_fields({"learning_rate": 1e30}), paths, options(tmp_path, cache))
    with pytest.raises(ValueError, match="at least the number of processes, got 7 and 8"):
        train_in_processes(8, config_of(), paths, options(tmp_path / "other", cache))


def test_statistics_of_whole_batches_are_refused_with_parts(paths, cache, tmp_path):
    config = toy_config(normalisation="task_batch")
    rule = "takes statistics of whole batches, got --micro-batch 2; use normalisation='layer'"
    with pytest.raises(ValueError, match=rule):
        train(config, paths, options(tmp_path, cache, micro_batch=2))


def counted(room, monkeypatch):
    """Let the host have so much memory for a run."""
    monkeypatch.setattr(ups_model.training.fit, "room_bytes", lambda device: room)


def test_auto_takes_parts_that_fit_and_computes_blocks_again_where_they_are_small(paths, cache, tmp_path, monkeypatch):
    config = config_of().with_fields({"steps": 4})
    run = options(tmp_path, cache, micro_batch="auto")
    peaks = {}
    original = ups_model.training.fit.peak_bytes

    def recorded(model, loss):
        peak = original(model, loss)
        peaks.setdefault(model.encoder.activation_checkpointing, []).append(peak)
        return peak

    monkeypatch.setattr(ups_model.training.fit, "peak_bytes", recorded)
    counted(1e15, monkeypatch)
    assert "micro_batch" not in train(config, paths, run).about, "all of it fits"
    assert list(peaks) == [False]
    largest = max(peaks[False])  # Of 4 clips.
    counted(1.35 * largest, monkeypatch)
    fitted = train(config, paths, dataclasses.replace(run, out=tmp_path / "less")).about
    assert fitted["activation_checkpointing"] and all(1 <= size < 7 for size in fitted["micro_batch"].values())
    counted(1.0, monkeypatch)
    least = train(config, paths, dataclasses.replace(run, out=tmp_path / "least")).about
    assert set(least["micro_batch"].values()) == {1}


def test_kept_bytes_are_those_of_a_network_whose_bytes_are_known():
    """Of Linear, ReLU, Linear autograd keeps the input, and the ReLU's output once though two operations want it."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logit_scale = torch.nn.Parameter(torch.zeros(()))
            self.first, self.second = torch.nn.Linear(3, 50), torch.nn.Linear(50, 2)

        def forward(self, x):
            return self.second(self.first(x).relu()).sum()

    network, x = Network(), torch.zeros(10, 3)
    assert saved_bytes(network, lambda: network(x)) == 4 * (10 * 3 + 10 * 50)
    parameters = 1 + 3 * 50 + 50 + 50 * 2 + 2
    assert peak_bytes(network, lambda: network(x)) == 4 * (10 * 3 + 10 * 50) + 2 * 4 * parameters
