"""An encoder that ends after an earlier layer, and a run that trains for it."""

from collections import Counter

import pytest
import torch

from orchestrator.storage.ledger import Ledger
from orchestrator.ups.project import UPS
from orchestrator.ups.sizes import sizes_of
from orchestrator.worker.job import Job
from orchestrator.worker.run_unit import run_unit
from tests.support.runs import FLAT, POSE, SOLID, options, toy_config, write_toy_sets
from tests.support.small_models import clips, small_config, small_model
from ups_model.data.format.clip_set import ClipSet
from ups_model.model.encoder import Encoder
from ups_model.training.build import load_model
from ups_model.training.run import train
from ups_model.training.schedule import exit_layer


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return write_toy_sets(tmp_path_factory.mktemp("exits") / "clips")


@pytest.mark.slow
@pytest.mark.parametrize("routing", [True, False])
@pytest.mark.parametrize("task", ["pe", "ar3d"])
def test_an_exit_is_the_network_without_the_layers_behind_it_bit_for_bit(routing, task):
    whole = small_model(small_config(encoder_layers=3, routing=routing))
    inputs = clips(task)
    target = torch.zeros(len(inputs.pose_BPNSC), 2 if task == "ar3d" else 13, dtype=torch.int64)
    answers = []
    for layers in (1, 2, 3):
        whole.encoder.exit_layer = layers
        answers.append(whole(inputs, target))
        cut = small_model(small_config(encoder_layers=layers, routing=routing))
        own = {name: value for name, value in whole.state_dict().items() if name in cut.state_dict()}
        own["encoder.router.block_LHQ"] = own["encoder.router.block_LHQ"][:layers]
        own["encoder.router.frozen_TL"] = own["encoder.router.frozen_TL"][:, :layers]
        cut.load_state_dict(own)
        assert torch.equal(answers[-1], cut(inputs, target))
    assert not torch.equal(answers[0], answers[1]) and not torch.equal(answers[1], answers[2])
    whole.encoder.exit_layer = 0
    assert torch.equal(whole(inputs, target), answers[2])


def test_layers_behind_the_exit_get_no_gradient():
    model = small_model(small_config(encoder_layers=3, routing=False))
    model.encoder.exit_layer = 2
    model(clips("ar3d"), torch.zeros(len(clips("ar3d").pose_BPNSC), 2, dtype=torch.int64)).sum().backward()
    reached = [any(value.grad is not None for value in layer.parameters()) for layer in model.encoder.layers]
    assert reached == [True, True, False]


def test_exits_are_drawn_evenly_from_seed_and_step():
    config = toy_config(**{"encoder_layers": 3, "exits": "drawn", "steps": 3000})
    drawn = Counter(exit_layer(config, step) for step in range(3000))
    assert drawn.keys() == {1, 2, 3} and all(900 < times < 1100 for times in drawn.values())
    assert [exit_layer(config, step) for step in range(9)] == [exit_layer(config, step) for step in range(9)]
    assert {exit_layer(toy_config(encoder_layers=3), step) for step in range(9)} == {0}


def test_without_exits_keys_stay():
    assert "exit" not in str(toy_config(encoder_layers=3).canonical())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exit_layer": 1}, "evaluation.exit_layer=1 needs optim.exits='drawn', got 'last'"),
        ({"exit_layer": 4, "exits": "drawn"}, "exit_layer must be at most model.encoder_layers = 3, got 4"),
        ({"exit_layer": -1}, "exit_layer must be at least 0, got -1"),
        ({"exits": "all"}, "exits must be one of last, drawn, got 'all'"),
    ],
)
def test_exits_that_no_model_has_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        toy_config(encoder_layers=3, **changes)


@pytest.mark.slow
def test_a_model_comes_back_with_its_exit_and_exits_differ(sets, tmp_path):
    config = toy_config(**{"encoder_layers": 2, "exits": "drawn", "steps": 8, "exit_layer": 1})
    result = train(config, sets, options(tmp_path / "run", tmp_path / "cache"))
    model, again, _ = load_model(tmp_path / "run" / "best" / result.checkpoint.rsplit("/", 1)[-1], torch.device("cpu"))
    assert again.evaluation.exit_layer == model.encoder.exit_layer == 1


@pytest.mark.slow
def test_other_exits_of_a_trained_model_are_measured_without_training(sets, tmp_path, monkeypatch):
    data = {name: ClipSet.open(path).fingerprint for name, path in sets.items()}
    paths = {name: str(path) for name, path in sets.items()}
    ledger, metrics = Ledger(tmp_path / "storage"), {}
    from orchestrator.planning.plan import Unit

    for layer in (2, 1):
        config = toy_config(**{"encoder_layers": 2, "exits": "drawn", "steps": 8, "exit_layer": layer})
        text = UPS.inputs_identity(config)
        unit = Unit(
            UPS.key(config, data, text, ""), "joint", "", config, "", "arm", UPS.training_key(config, data, text, "")
        )
        job = Job(unit, None, str(tmp_path / "storage"), paths, str(tmp_path / "cache"), device="cpu")
        assert run_unit(job, lambda: False).status == "finished"
        metrics[layer] = ledger.finished(unit)
        monkeypatch.setattr("ups_model.training.run.sequence_loss", None)  # From now on nothing can be trained.
    assert metrics[1].about["trained_by"] == metrics[2].key
    assert metrics[1].metrics["test/pe/mpjpe_mm"] != metrics[2].metrics["test/pe/mpjpe_mm"]


@pytest.mark.slow
def test_an_earlier_exit_costs_less_and_training_the_mean_of_all(sets):
    opened = {name: ClipSet.open(sets[name]) for name in (POSE, SOLID, FLAT)}
    by_exit = [
        sizes_of(toy_config(**{"encoder_layers": 2, "exits": "drawn", "exit_layer": layer}), opened) for layer in (1, 2)
    ]
    assert by_exit[0].flops["pe"] < by_exit[1].flops["pe"] and by_exit[0].parameters == by_exit[1].parameters
    mean = (by_exit[0].flops["pe"] + by_exit[1].flops["pe"]) / 2
    assert by_exit[0].training_flops["pe"] == pytest.approx(mean)
    assert Encoder(small_config()).exit_layer == 0
