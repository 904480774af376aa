"""The decoder against torch's own transformer layer; decoding, cached and not, against teacher forcing."""

import dataclasses

import pytest
import torch
from torch import nn

from tests.support.small_models import CLASSES, clips, generator, small_config, small_model, some_slots, stir
from ups_model.model.decoder import Decoder, Memory
from ups_model.model.decoding import classify, estimate_poses
from ups_model.model.inputs import Inputs
from ups_model.model.layers import initialise
from ups_model.model.ups import UPS, bin_waves
from ups_model.tasks import TASKS

MEMORIES = ("joints", "frames", "frames+joints")
JOINTS = 4
TARGETS = torch.tensor([[1, 3, 4], [0, 2, 5], [3, 4, 5]])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def pose_model(memory="joints", **changes):
    return small_model(small_config(decoder_memory=memory, **changes), pose_joints=JOINTS)


def tokens_of(model, bins_BK):
    """Target tokens [B, 3J + 1] of decoded bins, axis by axis, and the end."""
    starts = [model.vocabulary.coordinate_ids(step % 3).start for step in range(bins_BK.shape[1])]
    end = torch.full_like(bins_BK[:, :1], model.vocabulary.eot_id("PE"))
    return torch.cat([bins_BK + torch.tensor(starts), end], dim=1)


def random_targets(model, task, batch, seed=0):
    length = TASKS[task].target_length(JOINTS)
    return torch.randint(model.vocabulary.size, (batch, length), generator=generator(seed))


# --- the layer


def reference_layer(layer, width, heads):
    """torch's pre-norm decoder layer with the weights of ours."""
    theirs = nn.TransformerDecoderLayer(
        width, heads, 2 * width, 0.0, "gelu", norm_first=True, batch_first=True
    ).double()
    pairs = {
        "self_attn.in_proj_weight": layer.self_query_key_value.weight,
        "self_attn.in_proj_bias": layer.self_query_key_value.bias,
        "self_attn.out_proj.weight": layer.self_merge.weight,
        "self_attn.out_proj.bias": layer.self_merge.bias,
        "multihead_attn.in_proj_weight": torch.cat([layer.cross_query.weight, layer.cross_key_value.weight]),
        "multihead_attn.in_proj_bias": torch.cat([layer.cross_query.bias, layer.cross_key_value.bias]),
        "multihead_attn.out_proj.weight": layer.cross_merge.weight,
        "multihead_attn.out_proj.bias": layer.cross_merge.bias,
        "linear1.weight": layer.mlp.inner.weight,
        "linear1.bias": layer.mlp.inner.bias,
        "linear2.weight": layer.mlp.outer.weight,
        "linear2.bias": layer.mlp.outer.bias,
    }
    for number, norm in enumerate((layer.self_norm, layer.cross_norm, layer.mlp_norm), start=1):
        pairs |= {f"norm{number}.weight": norm.weight, f"norm{number}.bias": norm.bias}
    theirs.load_state_dict(pairs)
    return theirs.eval()


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_the_decoder_equals_torch_transformer_layers_over_memory_plus_offset_embeddings(masked):
    model = small_model()
    decoder: Decoder = model.decoder
    window_GMW, offset_BM = random(2, 5, 16), torch.randint(15, (6, 5), generator=generator(1))
    mask_GM = torch.tensor([[True] * 5, [True, False, True, True, False]]) if masked else None
    own_BMW, tokens_BKW = random(6, 3, 16, seed=2), random(6, 7, 16, seed=3)
    cache = decoder.start(Memory(window_GMW, mask_GM, offset_BM, own_BMW))
    out_BKW = decoder(tokens_BKW, cache)
    # A memory of its own for each of the three targets of a window, written out.
    memory = torch.cat([window_GMW.repeat_interleave(3, dim=0) + decoder.offset_OW[offset_BM], own_BMW], dim=1)
    absent = None
    if masked:
        absent = torch.cat([~mask_GM.repeat_interleave(3, dim=0), torch.zeros(6, 3, dtype=torch.bool)], dim=1)
    x_BKW = tokens_BKW + decoder.position_KW[:7]
    future = torch.ones(7, 7, dtype=torch.bool).triu(1)
    for layer in decoder.layers:
        x_BKW = reference_layer(layer, 16, 2)(x_BKW, memory, tgt_mask=future, memory_key_padding_mask=absent)
    torch.testing.assert_close(out_BKW, decoder.norm(x_BKW))


# --- causality


@pytest.mark.parametrize("memory", MEMORIES)
@torch.no_grad()
def test_changing_a_target_token_changes_no_logits_up_to_its_own_step(memory):
    model = pose_model(memory)
    inputs = clips("pe", batch=2)
    target_BK = random_targets(model, "pe", 2)
    before = model(inputs, target_BK)
    assert before.shape == (2, 3 * JOINTS + 1, model.vocabulary.size)
    for step in range(target_BK.shape[1]):
        other = target_BK.clone()
        other[:, step] = (other[:, step] + 1) % model.vocabulary.size
        after = model(inputs, other)
        assert torch.equal(after[:, : step + 1], before[:, : step + 1]), step
        if step + 1 < target_BK.shape[1]:  # The last token is never read.
            assert (after[:, step + 1 :] - before[:, step + 1 :]).abs().amin(dim=1).amax() > 1e-6


# --- poses


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("coordinates", ["expectation", "argmax"])
def test_cached_decoding_equals_decoding_the_whole_prefix_anew(memory, coordinates):
    model = pose_model(memory)
    inputs = clips("pe", target_frame_BR=TARGETS)
    fast, slow = (estimate_poses(model, inputs, coordinates, cached=cached) for cached in (True, False))
    assert fast.bins_BK.shape == (9, 3 * JOINTS) and fast.pose_BJ3.shape == (9, JOINTS, 3)
    assert torch.equal(fast.bins_BK, slow.bins_BK)
    assert len({tuple(row) for row in fast.bins_BK.tolist()}) > 1
    torch.testing.assert_close(fast.pose_BJ3, slow.pose_BJ3)
    torch.testing.assert_close(fast.in_grammar_B, slow.in_grammar_B)


@pytest.mark.parametrize("memory", MEMORIES)
def test_decoding_several_targets_of_a_window_equals_decoding_each_alone(memory):
    model = pose_model(memory)
    together = estimate_poses(model, clips("pe", target_frame_BR=TARGETS))
    apart = [estimate_poses(model, clips("pe", target_frame_BR=TARGETS[:, r : r + 1])) for r in range(3)]
    assert torch.equal(together.bins_BK.view(3, 3, -1), torch.stack([one.bins_BK for one in apart], dim=1))
    poses = torch.stack([one.pose_BJ3 for one in apart], dim=1)
    torch.testing.assert_close(together.pose_BJ3, poses.flatten(0, 1))
    assert (poses[:, 0] - poses[:, 1]).abs().max() > 1e-4  # The target frame matters.


@pytest.mark.parametrize("memory", MEMORIES)
@torch.no_grad()
def test_teacher_forced_logits_of_the_emitted_tokens_say_what_decoding_said_step_by_step(memory):
    model = pose_model(memory)
    inputs = clips("pe", target_frame_BR=TARGETS)
    for coordinates in ("argmax", "expectation"):
        answer = estimate_poses(model, inputs, coordinates)
        logits_BKV = model(inputs, tokens_of(model, answer.bins_BK))
        admitted = torch.zeros(9, 3 * JOINTS)
        for step in range(3 * JOINTS):
            axis = step % 3
            ids = model.vocabulary.coordinate_ids(axis)
            axis_BQ = logits_BKV[:, step, ids.start : ids.stop]
            centres = model.quantiser.centres(axis, dtype=torch.float64)
            value_B = (
                axis_BQ.softmax(dim=1) @ centres if coordinates == "expectation" else centres[axis_BQ.argmax(dim=1)]
            )
            torch.testing.assert_close(answer.pose_BJ3[:, step // 3, axis].double(), value_B, rtol=0, atol=1e-5)
            best_B = logits_BKV[:, step].argmax(dim=1)
            admitted[:, step] = (best_B >= ids.start) & (best_B < ids.stop)
        torch.testing.assert_close(answer.in_grammar_B, admitted.mean(dim=1))
        assert 0 < float(answer.in_grammar_B.mean()) < 1


@pytest.mark.parametrize("decoding", ["autoregressive", "parallel"])
def test_emitted_coordinates_are_bins_of_axis_t_mod_3(decoding):
    model = pose_model()
    for coordinates in ("argmax", "expectation"):
        answer = estimate_poses(model, clips("pe", target_frame_BR=TARGETS), coordinates, decoding)
        assert answer.bins_BK.min() >= 0 and answer.bins_BK.max() < 6
        centres = model.quantiser.decode(answer.bins_BK.unflatten(1, (JOINTS, 3)))
        if coordinates == "argmax":
            torch.testing.assert_close(answer.pose_BJ3, centres)
        # A bin is 1/3, 1/2 and 1/2 wide on the three axes of the small quantiser: no expectation leaves its bin.
        assert ((answer.pose_BJ3 - centres).abs() <= torch.tensor([1 / 6, 1 / 4, 1 / 4]) + 1e-6).all()


@pytest.mark.parametrize("memory", MEMORIES)
@torch.no_grad()
def test_parallel_decoding_is_one_pass_with_every_input_masked(memory):
    model = pose_model(memory)
    inputs = clips("pe", target_frame_BR=TARGETS)
    answer = estimate_poses(model, inputs, "argmax", "parallel")
    anything = random_targets(model, "pe", 9)
    logits_BKV = model(inputs, anything, torch.ones(9, 3 * JOINTS, dtype=torch.bool))
    for step in range(3 * JOINTS):
        ids = model.vocabulary.coordinate_ids(step % 3)
        assert torch.equal(answer.bins_BK[:, step], logits_BKV[:, step, ids.start : ids.stop].argmax(dim=1)), step


@torch.no_grad()
def test_a_masked_input_hides_its_token_and_no_other():
    model = pose_model()
    inputs, target_BK = clips("pe", batch=2), random_targets(model, "pe", 2)
    mask_BK = torch.zeros(2, 3 * JOINTS, dtype=torch.bool)
    mask_BK[:, 4] = True
    hidden, shown = target_BK.clone(), target_BK.clone()
    hidden[:, 4] = (hidden[:, 4] + 1) % model.vocabulary.size
    shown[:, 5] = (shown[:, 5] + 1) % model.vocabulary.size
    before = model(inputs, target_BK, mask_BK)
    assert torch.equal(model(inputs, hidden, mask_BK), before)
    assert not torch.equal(model(inputs, shown, mask_BK), before)
    assert not torch.equal(model(inputs, target_BK), before)


# --- classes


@pytest.mark.parametrize("task", ["ar2d", "eap", "ar3d"])
@pytest.mark.parametrize("memory", MEMORIES)
@torch.no_grad()
def test_classify_ranks_only_the_classes_of_its_data_set_by_the_logits_of_the_model(task, memory):
    model = pose_model(memory)
    inputs = clips(task, batch=5)
    for dataset, names in CLASSES:
        answer = classify(model, inputs, dataset)
        ids = model.vocabulary.class_ids(dataset)
        first = model(inputs, random_targets(model, task, 5))[:, 0]
        assert answer.logits_BK.shape == (5, len(names))
        torch.testing.assert_close(answer.logits_BK.double(), first[:, ids.start : ids.stop], rtol=1e-5, atol=1e-6)
        assert torch.equal(answer.free_token_B, first.argmax(dim=1))
        best = answer.logits_BK.argmax(dim=1, keepdim=True) + ids.start
        second = model(inputs, torch.cat([best, best], dim=1))[:, 1]
        assert torch.equal(answer.ended_B, second.argmax(dim=1) == model.vocabulary.eot_id(TASKS[task].eot))


@torch.no_grad()
def test_a_clip_counts_as_ended_only_where_the_end_of_its_own_task_is_the_best_token():
    model = small_model(small_config(vocabulary_residual=True))
    inputs = clips("eap", batch=3)
    best = classify(model, inputs, "left").logits_BK.argmax(dim=1, keepdim=True)
    output = model.decoder(
        model.embed_prefix("eap", best, None, model.vocabulary_VW()), model.new_cache(model.encode(inputs)[0])
    )[:, 1]
    model.residual_VW[model.vocabulary.eot_id("AP")] += 100 * output[0] / output[0].norm() * model.logit_scale.sign()
    assert classify(model, inputs, "left").ended_B[0]
    assert not classify(model, Inputs("ar3d", inputs.pose_BPNSC, inputs.slot_mask_S), "left").ended_B.any()


@torch.no_grad()
def test_logits_are_scaled_products_with_the_projected_text_features():
    model = pose_model()
    output = random(1, 2, 16)
    expected = torch.einsum("bkw,we,ve->bkv", output, model.project_text.weight, model.text_VE) * model.logit_scale
    torch.testing.assert_close(model.logits(output, model.vocabulary_VW()), expected)


@torch.no_grad()
def test_a_vocabulary_residual_is_added_to_tokens_going_in_and_coming_out():
    model = small_model(small_config(vocabulary_residual=True))
    expected = model.text_VE @ model.project_text.weight.T + model.residual_VW
    torch.testing.assert_close(model.vocabulary_VW(), expected)
    assert small_model().vocabulary_VW().shape == expected.shape


# --- tokens aligned with the predicted joints


POSE_SLOTS = (3, 20, 0, 7)
"""Slots of the four predicted joints, in no order that a range would have."""


def aligned_model(memory="frames+joints", **changes):
    """As `pose_model`, with `decoder_alignment`."""
    config = small_config(decoder_memory=memory, decoder_alignment=True, **changes)
    plain = pose_model(memory)
    model = UPS(config, plain.vocabulary, plain.quantiser, plain.text_VE, 8, JOINTS, 0, POSE_SLOTS)
    return stir(model.double().eval())


@torch.no_grad()
def test_each_step_reads_the_encoded_token_of_its_own_joint_at_the_target_frame():
    model = aligned_model()
    inputs = clips("pe", target_frame_BR=TARGETS, slot_mask_S=some_slots(1, 2, 19))
    memory, encoded_BNJD, scene = model.encode(inputs)
    normed_BNJD = model.memory_norm(encoded_BNJD)  # As all tokens that the decoder sees.
    slots = scene.slots.tolist()
    assert len(slots) == 22 and memory.aligned_BKW.shape == (9, 3 * JOINTS + 1, 16)
    row = 0
    for clip in range(3):
        for frame in TARGETS[clip].tolist():
            for step in range(3 * JOINTS):
                token_D = normed_BNJD[clip, frame, slots.index(POSE_SLOTS[step // 3])]
                expected_W = model.align.weight @ token_D + model.align.bias
                torch.testing.assert_close(memory.aligned_BKW[row, step], expected_W)
            assert not memory.aligned_BKW[row, -1].any()  # The closing step predicts no joint.
            row += 1


@torch.no_grad()
def test_aligned_tokens_are_added_to_the_decoders_input_of_their_step():
    model = aligned_model()
    memory, _, _ = model.encode(clips("pe", target_frame_BR=TARGETS))
    tokens_BKW = random(9, 3 * JOINTS + 1, 16)
    out_BKW = model.decoder(tokens_BKW, model.new_cache(memory))
    bare = dataclasses.replace(memory, aligned_BKW=None)
    expected = model.decoder(tokens_BKW + memory.aligned_BKW, model.new_cache(bare))
    torch.testing.assert_close(out_BKW, expected)
    assert (out_BKW - model.decoder(tokens_BKW, model.new_cache(bare))).abs().max() > 0.01


@torch.no_grad()
def test_alignment_is_causal():
    model = aligned_model()
    memory, _, _ = model.encode(clips("pe", target_frame_BR=TARGETS))
    tokens_BKW = random(9, 3 * JOINTS + 1, 16)
    before = model.decoder(tokens_BKW, model.new_cache(memory))
    for step in range(3 * JOINTS + 1):
        aligned_BKW = memory.aligned_BKW.clone()
        aligned_BKW[:, step] += random(9, 16, seed=1)
        after = model.decoder(tokens_BKW, model.new_cache(dataclasses.replace(memory, aligned_BKW=aligned_BKW)))
        assert torch.equal(after[:, :step], before[:, :step]), step
        assert (after[:, step:] - before[:, step:]).abs().amin(dim=1).amax() > 1e-6


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("coordinates", ["expectation", "argmax"])
@torch.no_grad()
def test_cached_decoding_with_alignment_equals_the_whole_prefix_and_teacher_forcing(memory, coordinates):
    model = aligned_model(memory)
    inputs = clips("pe", target_frame_BR=TARGETS)
    fast, slow = (estimate_poses(model, inputs, coordinates, cached=cached) for cached in (True, False))
    assert torch.equal(fast.bins_BK, slow.bins_BK)
    torch.testing.assert_close(fast.pose_BJ3, slow.pose_BJ3)
    logits_BKV = model(inputs, tokens_of(model, fast.bins_BK))
    for step in range(3 * JOINTS):
        ids = model.vocabulary.coordinate_ids(step % 3)
        axis_BQ = logits_BKV[:, step, ids.start : ids.stop]
        if coordinates == "argmax":
            assert torch.equal(fast.bins_BK[:, step], axis_BQ.argmax(dim=1)), step
        else:
            value_B = axis_BQ.softmax(dim=1) @ model.quantiser.centres(step % 3, dtype=torch.float64)
            torch.testing.assert_close(fast.pose_BJ3[:, step // 3, step % 3].double(), value_B, rtol=0, atol=1e-5)


@pytest.mark.parametrize("memory", MEMORIES)
def test_alignment_of_several_targets_equals_that_of_each_alone(memory):
    model = aligned_model(memory)
    together = estimate_poses(model, clips("pe", target_frame_BR=TARGETS))
    apart = [estimate_poses(model, clips("pe", target_frame_BR=TARGETS[:, r : r + 1])) for r in range(3)]
    poses = torch.stack([one.pose_BJ3 for one in apart], dim=1)
    torch.testing.assert_close(together.pose_BJ3, poses.flatten(0, 1))
    assert (poses[:, 0] - poses[:, 1]).abs().max() > 1e-4


@torch.no_grad()
def test_class_tasks_have_no_aligned_tokens():
    memory, _, _ = aligned_model().encode(clips("ar3d"))
    assert memory.aligned_BKW is None


def test_a_predicted_joint_that_the_input_lacks_is_an_error_that_names_its_slot():
    model = aligned_model()
    with pytest.raises(ValueError, match=r"decoder_alignment needs every predicted joint .* none in slots \[7, 20\];"):
        model.encode(clips("pe", slot_mask_S=some_slots(20, 7, 1)))


@pytest.mark.parametrize("slots", [(), (1, 2, 3), (1, 2, 3, -1)])
def test_alignment_without_the_slot_of_every_joint_is_refused_when_the_model_is_built(slots):
    plain = pose_model()
    arguments = (plain.text_VE, 8, JOINTS, 0, slots)
    with pytest.raises(ValueError, match="decoder_alignment needs the slot of each of the 4 predicted joints"):
        UPS(small_config(decoder_alignment=True), plain.vocabulary, plain.quantiser, *arguments)
    # Without a coordinate range no pose is ever decoded: a model of class tasks alone.
    UPS(small_config(decoder_alignment=True), plain.vocabulary, None, *arguments)


# --- an ordered vocabulary


def ordinal_pair(n_bins=64):
    """Unstirred models of one seed without and with `vocabulary_ordinal`."""
    return [small_model(small_config(n_bins=n_bins, vocabulary_ordinal=on), stirred=False) for on in (False, True)]


@torch.no_grad()
def test_ordinal_places_change_coordinate_tokens_alone():
    plain, ordered = ordinal_pair()
    before, after = plain.vocabulary_VW(), ordered.vocabulary_VW()
    classes, coordinates = plain.vocabulary.n_classes, 3 * 64
    assert torch.equal(before[:classes], after[:classes])
    assert torch.equal(before[classes + coordinates :], after[classes + coordinates :])
    assert (before - after)[classes : classes + coordinates].abs().amax(dim=1).min() > 0.01


@torch.no_grad()
def test_each_coordinate_token_gains_its_axis_function_of_its_bins_place():
    plain, ordered = ordinal_pair()
    added = ordered.vocabulary_VW() - plain.vocabulary_VW()
    waves_QF = bin_waves(64)
    for axis in range(3):
        ids = ordered.vocabulary.coordinate_ids(axis)
        expected_QW = waves_QF.double() @ ordered.ordinal_AFW[axis]
        torch.testing.assert_close(added[ids.start : ids.stop], expected_QW, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_tokens_of_neighbouring_bins_are_more_alike_than_those_of_distant_ones():
    _, ordered = ordinal_pair(256)
    tokens_VW = ordered.vocabulary_VW()
    for axis in range(3):
        ids = ordered.vocabulary.coordinate_ids(axis)
        bins_QW = torch.nn.functional.normalize(tokens_VW[ids.start : ids.stop], dim=1)
        alike_QQ = bins_QW @ bins_QW.T
        next_one, far = alike_QQ.diagonal(1).mean(), alike_QQ.triu(64)[alike_QQ.triu(64) != 0].mean()
        assert next_one > far + 0.2, (axis, next_one, far)


@pytest.mark.parametrize("n_bins", [64, 200, 500, 1000])
def test_bin_waves_are_standardised_columns_of_the_bins_place(n_bins):
    waves_QF = bin_waves(n_bins).double()
    assert waves_QF.shape == (n_bins, 14)
    torch.testing.assert_close(waves_QF.mean(dim=0), torch.zeros(14, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(waves_QF.std(dim=0), torch.ones(14, dtype=torch.float64), rtol=1e-4, atol=0)
    # The first column is the place itself: evenly spaced, lowest bin first.
    steps = waves_QF[1:, 0] - waves_QF[:-1, 0]
    assert steps.min() > 0
    torch.testing.assert_close(steps, steps[:1].expand(n_bins - 1), rtol=1e-3, atol=0)
    # The second is its square: the same from both ends, least in the middle.
    torch.testing.assert_close(waves_QF[:, 1], waves_QF[:, 1].flip(0), rtol=0, atol=1e-4)
    assert int(waves_QF[:, 1].argmin()) in (n_bins // 2 - 1, n_bins // 2)


# --- positions relative to the root


def test_relative_features_are_0_at_the_root_and_do_not_see_where_the_body_is():
    model = small_model(small_config(input_features=("position", "relative")))
    pose_BNSC = random(2, 5, 25, 3)
    features = model.features(pose_BNSC)
    assert features.shape == (2, 5, 25, 6) and torch.equal(features[..., :3], pose_BNSC)
    assert not features[:, :, 0, 3:].any()
    # A walk: another displacement at every frame.
    moved = model.features(pose_BNSC + random(2, 5, 1, 3, seed=1))
    torch.testing.assert_close(moved[..., 3:], features[..., 3:])
    torch.testing.assert_close(features[0, 2, 7, 3:], pose_BNSC[0, 2, 7] - pose_BNSC[0, 2, 0])


# --- refusals


def test_each_decoder_refuses_tasks_of_the_other_kind():
    model = pose_model()
    with pytest.raises(ValueError, match="classify answers class tasks, got 'pe'; use estimate_poses"):
        classify(model, clips("pe"), "left")
    with pytest.raises(ValueError, match="estimate_poses answers pose estimation, got task 'eap'; use classify"):
        estimate_poses(model, clips("eap"))
    with pytest.raises(ValueError, match="unknown data set 'lft'; did you mean 'left'"):
        classify(model, clips("ar3d"), "lft")


def test_a_model_without_a_coordinate_range_says_so_when_asked_for_poses():
    model = pose_model()
    without = UPS(model.config, model.vocabulary, None, model.text_VE, 8).double().eval()
    with pytest.raises(ValueError, match="trained on poses, this one has no coordinate range"):
        estimate_poses(without, clips("pe"))


def test_decoding_keeps_no_gradients():
    model = pose_model()
    assert not estimate_poses(model, clips("pe")).pose_BJ3.requires_grad
    assert not classify(model, clips("ar3d"), "left").logits_BK.requires_grad


def test_the_offset_table_has_a_row_for_every_distance_within_the_longest_window():
    decoder = Decoder(small_config(), 10, 5)
    initialise(decoder, 0)
    assert decoder.offset_OW.shape == (9, 16) and decoder.position_KW.shape == (10, 16)
