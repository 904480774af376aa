"""Several processes: the same losses and weights as one process with the same global batch."""

import json
import multiprocessing
import socket

import pytest
import torch

import ups_model.training.run
from tests.support.runs import options, toy_config, train_as_rank, weights
from ups_model.training.run import train

EXACT = {"dropout": 0.0, "decoder_dropout": 0.0, "steps": 8, "learning_rate": 1e-3}


def start(config, toy_sets, out, cache, processes=2):
    """Run `processes` ranks to their end; returns what each wrote: its losses and its result, or its error."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.runs"])
    ranks = [
        context.Process(target=train_as_rank, args=(rank, processes, port, config, toy_sets, options(out, cache)))
        for rank in range(processes)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(180)
    late = [rank for rank in ranks if rank.is_alive()]
    for rank in late:
        rank.kill()
        rank.join()
    assert not late, f"{len(late)} of {processes} processes hang"
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(processes)]


def with_gradient(name, value):
    """A weight without the biases of keys: one shifts all scores of a query alike, so that its gradient is rounding
    error alone, of which Adam makes a step of full length."""
    if name.endswith("query_key_value.bias"):
        query, _, values = value.chunk(3)
        return torch.cat([query, values])
    return value.chunk(2)[1] if name.endswith("key_value.bias") else value.double()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"update": "cycle", "routing_execution": "dense", "mask_inputs": True, "data.pe.targets_per_window": 2}],
    ids=["joint", "cycle update"],
)
def test_two_processes_train_as_one_does_on_the_same_global_batch(changes, toy_sets, cache, tmp_path, monkeypatch):
    config = toy_config(**EXACT, **changes)
    losses = []
    plain = ups_model.training.run.sequence_loss

    def recorded(*args):
        losses.append(plain(*args))
        return losses[-1]

    monkeypatch.setattr(ups_model.training.run, "sequence_loss", recorded)
    alone = train(config, toy_sets, options(tmp_path / "one", cache))
    shared = start(config, toy_sets, tmp_path / "two", cache)
    mean = torch.tensor([rank["losses"] for rank in shared], dtype=torch.float64).mean(dim=0)
    assert mean.tolist() == pytest.approx([loss.item() for loss in losses], abs=1e-5)
    assert shared[0]["losses"] != shared[1]["losses"], "each process has clips of its own"
    assert shared[0]["result"] == shared[1]["result"], "every process is told the same result"
    result = shared[0]["result"]
    assert result["status"] == "finished" and result["key"] == alone.key and result["routes"] == alone.routes
    one, two = weights(alone.checkpoint), weights(result["checkpoint"])
    for name in one:
        assert torch.allclose(with_gradient(name, two[name]), with_gradient(name, one[name]), atol=1e-4), name


def test_a_batch_that_processes_cannot_share_is_one_clear_error(toy_sets, cache, tmp_path):
    outcomes = start(toy_config(**EXACT, **{"data.eap.batch_size": 1}), toy_sets, tmp_path, cache)
    rule = "ValueError: data.eap.batch_size must be at least the number of processes, got 1 and 2"
    assert [rank["error"] for rank in outcomes] == [rule, rule]
    assert not (tmp_path / "checkpoints").exists()


def test_statistics_of_single_processes_are_refused(toy_sets, cache, tmp_path):
    outcomes = start(toy_config(**EXACT, normalisation="task_batch"), toy_sets, tmp_path, cache)
    assert all("got 2 processes; use normalisation='layer'" in rank["error"] for rank in outcomes)
