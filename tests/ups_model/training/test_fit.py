"""How a batch is cut changes rounding alone: parts of it, several processes, blocks computed again; and memory."""

import dataclasses
import json
import logging
import multiprocessing
import os
import signal
from functools import partial

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

import ups_model.training.fit
import ups_model.training.run
from tests.support.runs import newest, options, stop_at, toy_config, weights
from ups_model.training.build import build
from ups_model.training.finite import NonFiniteLoss
from ups_model.training.fit import MARGIN, Peak, peak_bytes
from ups_model.training.losses import sequence_loss, target_tokens
from ups_model.training.parallel.launch import ProcessDied, train_in_processes
from ups_model.training.run import train

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


def every_loss(out, cache, **changes):
    return options(out, cache, log_every=1, **changes)


def losses(out):
    """The loss of each step, by its task."""
    rows = [json.loads(line) for line in (out / "progress.jsonl").read_text().splitlines()]
    values = [(row["step"], value) for row in rows for name, value in row.items() if name.endswith("_loss")]
    return [value for _, value in sorted(values)]


@pytest.fixture(scope="module")
def whole(toy_sets, cache, tmp_path_factory):
    """Losses and result of runs whose batches are not cut, by variant."""
    runs = {}
    for variant in VARIANTS:
        out = tmp_path_factory.mktemp("whole")
        result = train(config_of(variant), toy_sets, every_loss(out, cache))
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
def test_parts_of_a_batch_train_as_the_whole_does(size, variant, whole, toy_sets, cache, tmp_path):
    result = train(config_of(variant), toy_sets, every_loss(tmp_path, cache, micro_batch=size))
    assert_same_training(variant, tmp_path, result, whole)
    assert set(result.about["micro_batch"].values()) == {size}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_that_are_computed_again_train_as_those_that_are_kept(variant, whole, toy_sets, cache, tmp_path):
    result = train(config_of(variant), toy_sets, every_loss(tmp_path, cache, activation_checkpointing="on"))
    assert_same_training(variant, tmp_path, result, whole)
    assert result.about["activation_checkpointing"] is True


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "processes", "size"), [("joint", 2, 0), ("joint", 4, 1), ("everything", 2, 3)])
def test_several_processes_train_as_one(variant, processes, size, whole, toy_sets, cache, tmp_path, caplog):
    """Of 7 clips, so that shares and parts are unequal."""
    caplog.set_level(logging.INFO)
    run, heard = every_loss(tmp_path, cache, micro_batch=size), []

    def hear(step, metrics):
        heard.append((os.getpid(), len(children()), {"step": step, **metrics}))

    result = train_in_processes(processes, config_of(variant), toy_sets, run, on_metrics=hear)
    rows = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [row for *_, row in heard] == [{name: row[name] for name in row if name != "time"} for row in rows]
    assert {(process, others) for process, others, _ in heard} == {(os.getpid(), processes)}
    assert_same_training(variant, tmp_path, result, whole)
    assert result.about["processes"] == processes
    assert any("training pe+ar2d+eap+ar3d on cpu" in line for line in caplog.messages), "the parent hears their logs"


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(whole, toy_sets, cache, tmp_path):
    config, saved = config_of(), []
    run = every_loss(tmp_path, cache, checkpoint_every=10)
    stopped = train_in_processes(
        2, config, toy_sets, run, should_stop=lambda: bool(saved), on_checkpoint=lambda: saved.append(1)
    )
    assert stopped.status == "stopped" and 10 <= stopped.step < STEPS
    at = stopped.step
    assert train(config, toy_sets, run, should_stop=stop_at(5)).step == at + 5
    assert_same_training("joint", tmp_path, train_in_processes(3, config, toy_sets, run), whole)


def children():
    """Process numbers of this process's children that run a part of a training."""
    return sorted(child.pid for child in multiprocessing.active_children())


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_run_which_then_goes_on(victim, whole, toy_sets, cache, tmp_path):
    config = config_of()
    run = every_loss(tmp_path, cache, checkpoint_every=5)

    def kill():
        os.kill(children()[victim], signal.SIGKILL)

    with pytest.raises(ProcessDied, match=f"process {victim} of 2 ended with signal SIGKILL"):
        train_in_processes(2, config, toy_sets, run, on_checkpoint=kill)
    assert not children(), "the other one was ended too"
    assert newest(tmp_path).name == "step-00000005"
    assert_same_training("joint", tmp_path, train(config, toy_sets, run), whole)


@pytest.mark.slow
def test_an_error_of_a_process_is_that_of_the_run(toy_sets, cache, tmp_path):
    with pytest.raises(NonFiniteLoss, match="is not finite at step") as raised:
        train_in_processes(2, config_of().with_fields({"learning_rate": 1e30}), toy_sets, options(tmp_path, cache))
    assert "Traceback" in raised.value.__notes__[0], "where it was raised is told too"
    with pytest.raises(ValueError, match="at least the number of processes, got 7 and 8"):
        train_in_processes(8, config_of(), toy_sets, options(tmp_path / "other", cache))


def test_statistics_of_whole_batches_are_refused_with_parts(toy_sets, cache, tmp_path):
    config = toy_config(normalisation="task_batch")
    rule = "takes statistics of whole batches, got --micro-batch 2; use normalisation='layer'"
    with pytest.raises(ValueError, match=rule):
        train(config, toy_sets, options(tmp_path, cache, micro_batch=2))


def counted(room, monkeypatch):
    """Let the host have so much memory for a run."""
    monkeypatch.setattr(ups_model.training.fit, "room_bytes", lambda device: room)


@pytest.mark.slow
def test_auto_takes_parts_that_fit_and_computes_blocks_again_where_they_are_small(
    toy_sets, cache, tmp_path, monkeypatch
):
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
    about = train(config, toy_sets, run).about
    assert "micro_batch" not in about, "all of it fits"
    assert list(peaks) == [False]
    largest = max(peaks[False])  # Of 4 clips.
    moments = 2 * 4 * about["parameters"]
    counted((largest + moments) / (1 - MARGIN), monkeypatch)
    fitted = train(
        config, toy_sets, dataclasses.replace(run, out=tmp_path / "less", activation_checkpointing="off")
    ).about
    assert min(fitted["micro_batch"].values()) == 4 and not fitted.get("activation_checkpointing")
    assert train(config, toy_sets, dataclasses.replace(run, out=tmp_path / "twice")).about["activation_checkpointing"]
    counted(1.0, monkeypatch)
    least = train(config, toy_sets, dataclasses.replace(run, out=tmp_path / "least")).about
    assert set(least["micro_batch"].values()) == {1}


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(30, 500), torch.nn.Linear(500, 2)

    def forward(self, x):
        return self.second(self.first(x).relu()).sum()


def test_the_peak_of_a_network_is_the_one_worked_out_by_hand():
    """Weights and gradients all along. The most is alive when the ReLU's gradient is made from that of its output:
    the input is the caller's; the ReLU's output and both gradients are of 100 x 500 numbers."""
    network, x = Network(), torch.zeros(100, 30)
    parameters = 30 * 500 + 500 + 500 * 2 + 2
    by_hand = 4 * (2 * parameters + 3 * 100 * 500)
    assert by_hand <= peak_bytes(network, lambda: network(x)) <= by_hand + 4 * (500 * 2 + 2 * 100 * 2 + 100)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.slow
def test_peaks_of_a_real_step_are_those_that_torch_s_own_tracker_sees(toy_sets, cache):
    config = config_of("everything").with_fields({"token_width": 32, "decoder_width": 64, "update": "iteration"})
    parts = build(config, toy_sets, torch.device("cpu"), cache / "text")
    model = parts.model.train()
    for task, feed in parts.feeds.items():
        batch = feed.train(0)

        def loss(clips, batch=batch):
            part = batch[:clips]
            tokens_BK = target_tokens(model, part)
            logits_BKV = model(part.inputs, tokens_BK, None, torch.zeros(2, 2))
            return sequence_loss(model, part, logits_BKV, tokens_BK, config.optim)

        counted = {}
        for clips in (2, 4, 7):
            counted[clips] = peak_bytes(model, partial(loss, clips))
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            tracker = MemTracker()
            tracker.track_external(model, *(parameter.grad for parameter in model.parameters()))
            with tracker:
                loss(clips).backward()
            (seen,) = tracker.get_tracker_snapshot("peak").values()
            assert counted[clips] == pytest.approx(seen["Total"], rel=0.02), (task, clips)
        line = Peak.through(2, counted[2], 4, counted[4])
        assert line.of(7) == pytest.approx(counted[7], rel=0.05), task


def test_the_largest_part_is_what_the_line_says():
    peak = Peak.through(2, 1200.0, 4, 1400.0)
    assert (peak.fixed, peak.each, peak.of(10)) == (1000.0, 100.0, 2000.0)
    assert peak.largest(1550.0, 100) == 5 and peak.largest(1e9, 100) == 100 and peak.largest(10.0, 100) == 1
