"""Sizes of a plan's models against models that are really built and counted, and times against hand-worked ones."""

import dataclasses

import pytest
import torch
from filelock import FileLock
from torch.utils.flop_counter import FlopCounterMode

from cluster.rule_tables import RULES
from orchestrator.planning.estimate import (
    BACKWARD,
    MEASURING,
    Measured,
    borrowers,
    estimate,
    on_slots,
    operations_of,
)
from orchestrator.planning.inputs import read_inputs
from orchestrator.record import Record
from orchestrator.ups import sizes
from orchestrator.ups.sizes import TEXT_WIDTHS, peaks_of, persons, sizes_of
from tests.support.drivers import Bench
from tests.support.paper_sets import write_paper_sets
from tests.support.runs import session_folder, toy_config, write_toy_sets
from ups_model.config.presets import paper
from ups_model.data.format.clip_set import ClipSet
from ups_model.training.build import build
from ups_model.training.fit import MARGIN, peak_bytes
from ups_model.training.losses import sequence_loss, target_tokens
from ups_model.training.schedule import gumbel_noise


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of each toy clip set, and one for text features."""
    folder = session_folder(tmp_path_factory, "estimate")
    with FileLock(folder / "lock"):
        if not (folder / "done").exists():
            write_toy_sets(folder / "clips")
            (folder / "done").touch()
    return {file.name: file for file in (folder / "clips").iterdir()}, folder / "text"


@pytest.fixture(scope="module")
def sets(made):
    return {name: ClipSet.open(path) for name, path in made[0].items()}


def parts_of(config, made):
    return build(config, made[0], torch.device("cpu"), made[1])


VARIANTS = {
    "routed": {},
    "all blocks": {"routing": False},
    "dense": {"routing_execution": "dense", "blocks_per_layer": 3},
    "aligned, ordered, several targets": {
        "decoder_alignment": True,
        "vocabulary_ordinal": True,
        "pe.targets_per_window": 2,
        "input_features": "position,velocity",
    },
    "all joint tokens": {"decoder_memory": "joints", "tem_width": 0, "tem_heads": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", VARIANTS)
def test_sizes_are_those_of_the_model_that_is_trained(case, made, sets):
    config = toy_config(**VARIANTS[case])
    parts, forecast = parts_of(config, made), sizes_of(config, sets)
    assert parts.model.text_VE.shape[1] < TEXT_WIDTHS["minilm"], "as wide as their rank"
    # Of the text features' rank a plan knows a bound, whatever has been computed here before.
    bound = min(TEXT_WIDTHS["minilm"], parts.model.vocabulary.size - 1)
    more = (bound - parts.model.text_VE.shape[1]) * config.model.decoder_width
    assert forecast.parameters == sum(value.numel() for value in parts.model.parameters()) + more
    parts.model.train()
    for task, feed in parts.feeds.items():
        batch = feed.train(0)
        target_BK = target_tokens(parts.model, batch)
        with FlopCounterMode(display=False) as counter:
            parts.model(batch.inputs, target_BK, None, gumbel_noise(config, 0), 1.0)
        clips = batch.inputs.pose_BPNSC.shape[0]
        counted = counter.get_total_flops() / clips
        # Scoring blocks and embedding tasks, which the estimate leaves out, is next to nothing.
        assert forecast.flops[task] == pytest.approx(counted, rel=0.01), task


@pytest.mark.slow
def test_a_model_is_counted_once_for_a_cache(sets, tmp_path, monkeypatch):
    def counted(**changes):
        for function in (sizes._parameters, sizes._forward_flops):
            function.cache_clear()  # As in another process.
        return sizes_of(toy_config(**changes), sets)

    monkeypatch.setenv("UPS_CACHE", str(tmp_path))
    before = counted()
    assert counted() == before
    files = sorted((tmp_path / "sizes").iterdir())
    assert len(files) == 6, "parameters with all routes and with one, operations of four tasks"
    monkeypatch.setattr(sizes, "_without_values", None)
    assert counted() == before, "nothing is counted again"
    with pytest.raises(TypeError):
        counted(token_width=16)
    monkeypatch.undo()
    monkeypatch.setenv("UPS_CACHE", str(tmp_path))
    for file in files:
        file.write_text("{")
    assert counted() == before, "a damaged file is counted anew"
    monkeypatch.setenv("UPS_CACHE", str(files[0]))
    assert counted() == before, "a cache that can't be written to"


@pytest.mark.slow
def test_a_wider_mlp_costs_what_its_two_matrices_do(sets):
    narrow, wide = (sizes_of(toy_config(decoder_mlp_ratio=ratio), sets) for ratio in (1, 2))
    # Decoder width 16, one layer: 16 x 16 more weights in each of two matrices, and 16 more biases. A multiplication
    # and an addition for each weight and token; a class task has 2 tokens (class, end), a pose 3 x 17 + 1.
    assert wide.parameters - narrow.parameters == 2 * 16 * 16 + 16
    for task, tokens in (("ar3d", 2), ("ar2d", 2), ("eap", 2), ("pe", 3 * 17 + 1)):
        assert wide.flops[task] - narrow.flops[task] == tokens * 2 * 2 * 16 * 16, task


@pytest.mark.slow
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("case", ["routed", "all blocks", "aligned, ordered, several targets"])
def test_the_memory_foretold_is_that_of_a_real_step(case, twice, made, sets):
    """Of other clips than those it was counted on, of a model with real weights, within a tenth of the peak."""
    config = toy_config(
        **VARIANTS[case], token_width=32, decoder_width=64, tem_width=64, dropout=0.1, label_smoothing=0.1,
        **{"data.pe.batch_size": 12, "data.ar2d.batch_size": 12},
    )  # fmt: skip
    foretold = peaks_of(config, sets, half=False, activation_checkpointing=twice)
    parts = parts_of(config, made)
    model = parts.model.train()
    model.set_activation_checkpointing(twice)
    moments = 2 * sum(value.nbytes for value in model.parameters())
    for task in ("pe", "ar2d"):
        batch = parts.feeds[task].train(0)

        def loss(task=task, batch=batch):
            tokens_BK = target_tokens(model, batch)
            logits_BKV = model(batch.inputs, tokens_BK, None, gumbel_noise(config, 0), 1.0)
            return sequence_loss(model, batch, logits_BKV, tokens_BK, config.optim)

        assert foretold[task].of(12) == pytest.approx(peak_bytes(model, loss) + moments, rel=0.1), task


def test_persons_are_counted_as_a_model_sees_them(sets):
    assert {persons(clips) for clips in sets.values()} == {1.0}


@pytest.mark.slow
def test_a_routed_layer_costs_one_block_and_an_unrouted_one_all(sets):
    one, two, five = (sizes_of(toy_config(blocks_per_layer=blocks), sets) for blocks in (1, 2, 5))
    assert one.flops == two.flops == five.flops
    assert five.parameters - two.parameters == pytest.approx(3 * (two.parameters - one.parameters))
    free = [sizes_of(toy_config(blocks_per_layer=blocks, routing=False), sets).flops["ar3d"] for blocks in (1, 2, 3)]
    assert free[2] - free[1] == free[1] - free[0] > 0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The toy study on its clips, two seeds."""
    bench = Bench.make(tmp_path_factory.mktemp("bench"), 16)
    return read_inputs(str(bench.study), "tiny", [f"{name}={path}" for name, path in bench.data.items()], [], 2)


def record(unit, seconds, trained=0.0):
    about = {"started": 1000.0, "ended": 1000.0 + seconds, "train_seconds": trained}
    return Record(unit.key, "finished", {"test/score": 1.0}, about=about)


@pytest.mark.slow
def test_operations_are_three_forward_passes_of_every_sample(inputs):
    expected = estimate(inputs.plan.units, inputs.sets, {}, 2)
    for _key, unit in inputs.plan.units.items():
        flops = sizes_of(unit.config, inputs.sets).flops
        turns = unit.config.optim.turns_before(unit.config.optim.steps)
        by_hand = sum(4 * turns[task] * flops[task] for task in unit.config.optim.tasks)  # Batches of 4.
        assert operations_of(unit, inputs.sets) == pytest.approx((1 + BACKWARD) * by_hand)
    assert expected.measured == 0
    assert expected.total == expected.left == pytest.approx(sum(expected.seconds.values()))
    assert 0.499 * expected.left <= expected.makespan <= expected.left


@pytest.mark.slow
def test_measured_times_replace_guesses_also_for_other_seeds(inputs):
    plan = inputs.plan
    unit = next(iter(plan.units.values()))
    twin = next(one for one in plan.units.values() if one.arm == unit.arm and one.slug == "joint-seed1")
    expected = estimate(plan.units, inputs.sets, {unit.key: record(unit, 50.0)}, 1)
    assert expected.seconds[unit.key] == expected.seconds[twin.key] == 50.0
    assert expected.measured == 1
    assert expected.left == pytest.approx(expected.total - 50.0)
    # All others at the rate of the one that was measured.
    rate = operations_of(unit, inputs.sets) / 50.0
    other = next(one for one in plan.units.values() if one.stage == "separate")
    assert expected.seconds[other.key] == pytest.approx(operations_of(other, inputs.sets) / rate)


def test_units_of_other_studies_give_the_rate_where_none_of_this_one_was_measured(inputs):
    units = inputs.plan.units
    joint = next(unit for unit in units.values() if unit.stage == "joint")
    others = [Measured(joint.project, "joint", "", 400.0, 2.0), Measured(joint.project, "separate", "pe", 100.0, 1.0)]
    expected = estimate(units, inputs.sets, {}, 1, others=lambda: others)
    assert expected.measured == 0 and expected.measured_elsewhere == 2
    assert expected.seconds[joint.key] == pytest.approx(operations_of(joint, inputs.sets) / 200)
    known = {joint.key: record(joint, 50.0)}
    assert estimate(units, inputs.sets, known, 1, others=lambda: pytest.fail("needless")).measured_elsewhere == 0


def test_siblings_of_equal_operations_are_estimated_equal(inputs):
    units = inputs.plan.units
    alone = [unit for unit in units.values() if unit.stage == "separate" and unit.seed == 0]
    tuned = next(unit for unit in units.values() if unit.stage == "joint")
    sibling = dataclasses.replace(alone[0], key="sibling", training_key="")
    measured = {alone[0].key: record(alone[0], 22.0), tuned.key: record(tuned, 1.0)}
    # The same operations in another configuration: a kind of its own, of the same stage and task.
    sibling = dataclasses.replace(sibling, config=sibling.config.with_fields({"dropout": 0.3}), arm="another")
    expected = estimate({**units, "sibling": sibling}, inputs.sets, measured, 1)
    assert expected.seconds["sibling"] == pytest.approx(22.0)


def test_a_unit_that_measures_the_weights_of_another_costs_a_share_of_its_training(inputs):
    unit = next(iter(inputs.plan.units.values()))
    elsewhere = dataclasses.replace(unit, key="elsewhere", config=unit.config.with_fields({"evaluation.flip": True}))
    units = {**inputs.plan.units, "elsewhere": elsewhere}
    assert elsewhere.kind != unit.kind
    assert borrowers(units) == {"elsewhere"}
    expected = estimate(units, inputs.sets, {unit.key: record(unit, 50.0)}, 1)
    assert expected.seconds["elsewhere"] == pytest.approx(MEASURING * 50.0)


def test_a_unit_that_was_resumed_counts_with_all_of_its_training(inputs):
    unit = next(iter(inputs.plan.units.values()))
    expected = estimate(inputs.plan.units, inputs.sets, {unit.key: record(unit, 2.0, trained=90.0)}, 1)
    assert expected.seconds[unit.key] == 90.0


def test_nothing_is_left_when_all_is_done_even_of_records_without_a_time(inputs):
    done = {key: Record(key, "finished", {"test/score": 1.0}) for key in inputs.plan.units}
    expected = estimate(inputs.plan.units, inputs.sets, done, 2)
    assert (expected.left, expected.makespan, expected.measured) == (0, 0, 0)


def test_what_has_to_be_made_again_is_left_too(inputs):
    done = {key: record(unit, 10.0) for key, unit in inputs.plan.units.items()}
    finished = estimate(inputs.plan.units, inputs.sets, done, 1)
    joint = next(key for key, unit in inputs.plan.units.items() if unit.stage == "joint")
    again = on_slots(finished, inputs.plan.units, [joint], 1)
    assert (finished.left, again.left, again.makespan) == (0, 10, 10)
    measured = on_slots(finished, inputs.plan.units, [joint], 1, {joint})
    assert (measured.left, measured.makespan) == (10 * MEASURING, 10 * MEASURING), "measuring takes less"


def test_slots_share_the_work(inputs):
    alone, many = (estimate(inputs.plan.units, inputs.sets, {}, slots) for slots in (1, 100))
    assert alone.makespan == pytest.approx(alone.left)
    joint = max(alone.seconds[key] for key, unit in inputs.plan.units.items() if unit.stage == "joint")
    assert joint < many.makespan < alone.makespan
    assert dataclasses.replace(alone, slots=100, makespan=many.makespan) == many


@pytest.fixture(scope="module")
def paper_sets(tmp_path_factory):
    return {name: ClipSet.open(path) for name, path in write_paper_sets(tmp_path_factory.mktemp("paper")).items()}


@pytest.mark.slow
def test_the_memory_of_preset_paper_is_what_cluster_check_knows(paper_sets):
    figures = RULES["paper"]
    peaks = peaks_of(paper(), paper_sets, half=True)
    largest = max(peaks.values(), key=lambda peak: peak.of(figures["batch"]))
    assert largest is peaks["ar2d"]
    assert largest.fixed / 1e9 == pytest.approx(figures["fixed_gb"], rel=0.02)
    assert largest.each / 1e9 == pytest.approx(figures["clip_gb"], rel=0.02)
    assert paper().data.ar2d.batch_size == figures["batch"] and figures["margin"] == MARGIN
    # Less than half of it with layers computed twice, and nearly twice as much in 32 bits.
    twice, full = (peaks_of(paper(), paper_sets, *how)["ar2d"].each for how in ((True, True), (False,)))
    assert twice < largest.each / 2 < full / 2.5


@pytest.mark.slow
def test_the_model_of_preset_paper_has_the_parameters_worked_out_by_hand(paper_sets):
    """Its largest part: a TEM of a width of 25 joints x 64 has 12 w^2 + 13 w, in 3 layers of 2 blocks."""
    width = 25 * paper().model.token_width
    tems = 3 * 2 * (12 * width**2 + 13 * width)
    assert tems < sizes_of(paper(), paper_sets).parameters < 1.35 * tems
