"""The whole network: what is absent changes nothing, persons are a set, text features are whitened."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tests.support.small_models import clips, generator, small_config, small_model, some_slots, stir
from ups_model.model.inputs import Inputs
from ups_model.model.ups import whiten
from ups_model.skeletons import SLOT_PARENTS, get_skeleton
from ups_model.tasks import TASKS

MEMORIES = ("joints", "frames", "frames+joints")
TEMS = (0, 16)
PERSON_PRESENT = torch.tensor([[True, True], [True, False], [False, True]])


def model_of(memory="joints", tem_width=16, **changes):
    small = {
        "token_width": 4,
        "tokenizer_layers": 2,
        "encoder_layers": 1,
        "input_features": ("position", "velocity", "bone"),
    }
    return small_model(small_config(decoder_memory=memory, tem_width=tem_width, **{**small, **changes}))


@torch.no_grad()
def answers(model, inputs):
    """Logits of a fixed target sequence: all that a clip's answer is made of."""
    targets = 1 if inputs.target_frame_BR is None else inputs.target_frame_BR.shape[1]
    length = TASKS[inputs.task].target_length(model.pose_joints)
    row = torch.randint(model.vocabulary.size, (length,), generator=generator(7))
    return model(inputs, row.expand(len(inputs.pose_BPNSC) * targets, -1))


def changed(inputs, **what):
    return dataclasses.replace(inputs, **what)


def with_garbage(inputs, where):
    """`inputs` with other numbers at `where` (a mask that broadcasts over poses)."""
    noise = 9 * torch.randn(inputs.pose_BPNSC.shape, generator=generator(99), dtype=torch.float64)
    return changed(inputs, pose_BPNSC=torch.where(where, noise, inputs.pose_BPNSC))


def assert_same(one, two):
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


every_model = pytest.mark.parametrize("normalisation", ["layer", "task_batch"])
every_memory = pytest.mark.parametrize("memory", MEMORIES)
every_tem = pytest.mark.parametrize("tem_width", TEMS, ids=["full", "bottleneck"])


# --- absent slots


@pytest.mark.slow
@every_tem
@every_memory
@every_model
def test_coordinates_of_an_absent_slot_change_no_answer(memory, tem_width, normalisation):
    model = model_of(memory, tem_width, normalisation=normalisation)
    slots_S = torch.zeros(25, dtype=torch.bool)
    slots_S[list(get_skeleton("h36m17").slots_present)] = True
    for task in ("pe", "ar3d"):
        inputs = clips(task, slot_mask_S=slots_S)
        other = with_garbage(inputs, ~slots_S[:, None])
        assert not torch.equal(other.pose_BPNSC, inputs.pose_BPNSC)
        assert_same(answers(model, other), answers(model, inputs))


def test_a_bone_that_starts_at_an_absent_slot_does_not_see_what_is_stored_there():
    model = model_of()
    elbow, shoulder = 5, SLOT_PARENTS[5]
    slots_S = some_slots(shoulder)
    assert slots_S[elbow]
    inputs = clips(slot_mask_S=slots_S)
    other = with_garbage(inputs, ~slots_S[:, None])
    assert_same(answers(model, other), answers(model, inputs))
    statistics = []
    for one in (inputs, other):
        model.set_input_statistics(one)
        statistics.append(torch.stack([model.input_mean_TC, model.input_scale_TC]))
    assert torch.equal(*statistics)


def test_coordinates_of_a_present_slot_change_the_answer():
    model, inputs = model_of(), clips(slot_mask_S=some_slots(21, 22, 23, 24))
    for slot in (0, 11, 20):
        moved = with_garbage(inputs, ~some_slots(slot)[:, None])
        assert (answers(model, moved) - answers(model, inputs)).abs().max() > 1e-6


# --- padded frames


@every_tem
@every_memory
@every_model
def test_a_padded_clip_is_answered_like_the_unpadded_one_whatever_its_batch_mates(memory, tem_width, normalisation):
    model = model_of(memory, tem_width, normalisation=normalisation)
    lengths = torch.tensor([7, 3, 1])
    mask_BN = torch.arange(7) < lengths[:, None]
    for task in ("ar2d", "ar3d", "pe"):
        inputs = clips(task, frames=7, frame_mask_BN=mask_BN)
        together = answers(model, inputs)
        assert_same(answers(model, with_garbage(inputs, ~mask_BN[:, None, :, None, None])), together)
        for clip, length in enumerate(lengths.tolist()):
            alone = Inputs(task, inputs.pose_BPNSC[clip : clip + 1, :, :length], inputs.slot_mask_S)
            assert_same(answers(model, alone), together[clip : clip + 1])


def test_numbers_in_padded_frames_may_be_as_large_as_they_like():
    model = model_of().float()
    mask_BN = torch.arange(6) < torch.tensor([[6], [3], [1]])
    inputs = clips("ar3d", frame_mask_BN=mask_BN)
    inputs = changed(inputs, pose_BPNSC=inputs.pose_BPNSC.float())
    huge = torch.where(mask_BN[:, None, :, None, None], inputs.pose_BPNSC, 3e37)
    assert torch.equal(answers(model, changed(inputs, pose_BPNSC=huge)), answers(model, inputs))


@every_memory
def test_a_padded_clip_of_two_persons_is_answered_like_the_unpadded_one(memory):
    model = model_of(memory)
    mask_BN = torch.arange(7) < torch.tensor([[7], [3], [5]])
    inputs = clips("ar3d", persons=2, frames=7, frame_mask_BN=mask_BN, person_mask_BP=PERSON_PRESENT)
    together = answers(model, inputs)
    assert_same(answers(model, with_garbage(inputs, ~mask_BN[:, None, :, None, None])), together)
    for clip, length in enumerate((7, 3, 5)):
        own = slice(clip, clip + 1)
        alone = Inputs("ar3d", inputs.pose_BPNSC[own, :, :length], inputs.slot_mask_S, None, PERSON_PRESENT[own])
        assert_same(answers(model, alone), together[own])


@every_memory
def test_a_mask_that_leaves_nothing_out_is_no_mask(memory):
    model, inputs = model_of(memory), clips("ar3d", persons=2)
    full = changed(
        inputs, frame_mask_BN=torch.ones(3, 6, dtype=torch.bool), person_mask_BP=torch.ones(3, 2, dtype=torch.bool)
    )
    assert torch.equal(answers(model, full), answers(model, inputs))


@every_model
def test_batch_mates_change_no_answer_in_evaluation(normalisation):
    model = model_of(normalisation=normalisation)
    inputs = clips("ar3d")
    alone = [answers(model, changed(inputs, pose_BPNSC=pose)) for pose in inputs.pose_BPNSC.split(1)]
    assert_same(torch.cat(alone), answers(model, inputs))


@every_memory
def test_the_target_frame_left_out_is_the_centre_frame(memory):
    model, inputs = model_of(memory), clips("pe", frames=7)
    centre = changed(inputs, target_frame_BR=torch.full((3, 1), 3))
    beside = changed(inputs, target_frame_BR=torch.full((3, 1), 4))
    assert torch.equal(answers(model, inputs), answers(model, centre))
    assert (answers(model, inputs) - answers(model, beside)).abs().max() > 1e-6


@torch.no_grad()
def test_joint_tokens_beside_frames_are_those_of_the_target_frame_or_the_mean_over_frames_that_are_there():
    model = model_of("frames+joints")
    targets = torch.tensor([[1, 4], [0, 5], [3, 2]])
    memory, encoded, scene = model.encode(clips("pe", target_frame_BR=targets, slot_mask_S=some_slots(3)))
    assert memory.repeats == 2 and encoded.shape == (3, 6, 24, 4)
    for row, frame in enumerate(targets.flatten().tolist()):
        for joint, slot in enumerate(scene.slots.tolist()):
            expected = (
                model.joint_memory(model.memory_norm(encoded[row // 2, frame, joint])) + model.joint_memory_SW[slot]
            )
            torch.testing.assert_close(memory.target_BMW[row, joint], expected)
        assert (memory.offset_BM[row] - (model.max_frames - 1)).tolist() == [n - frame for n in range(6)]
    mask_BN = torch.arange(6) < torch.tensor([[6], [4], [1]])
    memory, encoded, _ = model.encode(clips("ar3d", frame_mask_BN=mask_BN))
    for clip, length in enumerate((6, 4, 1)):
        mean_JD = model.memory_norm(encoded[clip, :length]).mean(dim=0)
        torch.testing.assert_close(memory.target_BMW[clip], model.joint_memory(mean_JD) + model.joint_memory_SW)


# --- persons


@every_tem
@every_memory
@every_model
def test_coordinates_of_an_absent_person_change_no_answer(memory, tem_width, normalisation):
    model = model_of(memory, tem_width, normalisation=normalisation)
    inputs = clips("ar3d", persons=2, person_mask_BP=PERSON_PRESENT)
    other = with_garbage(inputs, ~PERSON_PRESENT[:, :, None, None, None])
    assert_same(answers(model, other), answers(model, inputs))
    first = with_garbage(inputs, PERSON_PRESENT[:, :, None, None, None])
    assert (answers(model, first) - answers(model, inputs)).abs().flatten(1).amax(dim=1).min() > 1e-6


@every_memory
def test_person_order_matters_through_the_person_embedding_alone(memory):
    model = model_of(memory)
    inputs = clips("ar3d", persons=2, person_mask_BP=PERSON_PRESENT)
    swapped = changed(inputs, pose_BPNSC=inputs.pose_BPNSC.flip(1), person_mask_BP=PERSON_PRESENT.flip(1))
    assert (answers(model, swapped) - answers(model, inputs)).abs().max() > 1e-6
    with torch.no_grad():
        model.person_PW[1] = model.person_PW[0]
    assert_same(answers(model, swapped), answers(model, inputs))


@every_memory
def test_room_for_a_second_person_adds_the_embedding_of_the_first_and_nothing_else(memory):
    model = model_of(memory)
    inputs = clips("ar3d", persons=2, person_mask_BP=torch.tensor([[True, False]] * 3))
    alone = Inputs("ar3d", inputs.pose_BPNSC[:, :1], inputs.slot_mask_S)
    with torch.no_grad():
        model.person_PW.zero_()
        if memory == "frames+joints":
            # Among persons the joint tokens stand at offset 0, in a memory of one person they have no offset.
            model.decoder.offset_OW[model.max_frames - 1] = 0
    assert_same(answers(model, inputs), answers(model, alone))


@torch.no_grad()
def test_persons_are_encoded_one_by_one():
    model = model_of()
    inputs = clips("ar3d", persons=2)
    both = model.encode(inputs)[1]
    one = model.encode(Inputs("ar3d", inputs.pose_BPNSC.flatten(0, 1)[:, None], inputs.slot_mask_S))[1]
    assert_same(both, one)


# --- precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@every_tem
@every_memory
@every_model
def test_gradients_in_half_precision_point_where_those_of_single_precision_do(memory, tem_width, normalisation, dtype):
    execution = "dense" if dtype == torch.float16 else "sparse"
    how = {"normalisation": normalisation, "routing_execution": execution, "dropout": 0.0, "decoder_dropout": 0.0}
    config = small_config(decoder_memory=memory, tem_width=tem_width, encoder_layers=1, **how)
    # Stirred little: a badly scaled network magnifies any rounding.
    model = stir(small_model(config, stirred=False), scale=0.05).float().train()
    mask_BN = torch.arange(6) < torch.tensor([[6], [4], [3]])
    inputs = clips("ar3d", persons=2, frame_mask_BN=mask_BN, person_mask_BP=PERSON_PRESENT)
    inputs = changed(inputs, pose_BPNSC=inputs.pose_BPNSC.float())
    target_BK, noise_LH = torch.tensor([[3, 27]] * 3), torch.tensor([[0.5, -0.5]])
    losses, slopes = [], []
    for half in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=half):
            logits_BKV = model(inputs, target_BK, None, noise_LH, 0.7)
        loss = F.cross_entropy(logits_BKV.float().flatten(0, 1), target_BK.flatten())
        loss.backward()
        losses.append(loss.detach())
        slopes.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(losses[1], losses[0], rtol=0.1, atol=0.1)
    assert torch.isfinite(slopes[1]).all()
    assert float(F.cosine_similarity(slopes[0], slopes[1], dim=0)) > 0.99


# --- features and their scale


@torch.no_grad()
def test_features_are_position_difference_to_the_last_frame_and_bone_from_the_parent():
    model, pose = model_of(), clips().pose_BPNSC[:, 0]
    features_BFJC = model.features(pose)
    assert features_BFJC.shape == (3, 6, 25, 9)
    assert torch.equal(features_BFJC[..., :3], pose)
    assert not features_BFJC[:, 0, :, 3:6].any()
    assert torch.equal(features_BFJC[:, 4, 7, 3:6], pose[:, 4, 7] - pose[:, 3, 7])
    # The left hand hangs on the left wrist.
    assert torch.equal(features_BFJC[:, 2, 7, 6:], pose[:, 2, 7] - pose[:, 2, 6])


def test_after_their_statistics_are_taken_input_features_of_the_task_have_mean_0_and_deviation_1():
    model = small_model(small_config(input_features=("position", "velocity")), stirred=False)
    mask_BN = torch.arange(6) < torch.tensor([[6], [4], [2]])
    slots_S = some_slots(21, 23)
    inputs = clips("ar2d", persons=2, frame_mask_BN=mask_BN, person_mask_BP=PERSON_PRESENT, slot_mask_S=slots_S)
    inputs = changed(inputs, pose_BPNSC=5 + 3 * inputs.pose_BPNSC * torch.tensor([1.0, 1.0, 0.0]))
    model.set_input_statistics(inputs)
    values = []
    for b in range(3):
        for p in range(2):
            if PERSON_PRESENT[b, p]:
                pose = inputs.pose_BPNSC[b, p, : int(mask_BN[b].sum())][:, slots_S]
                velocity = torch.cat([torch.zeros_like(pose[:1]), pose[1:] - pose[:-1]])
                values.append(torch.cat([pose, velocity], dim=-1).flatten(0, 1))
    values = torch.cat(values)
    assert_same(model.input_mean_TC[1], values.mean(dim=0))
    expected = values.std(dim=0)
    expected[[2, 5]] = 1  # Constant in 2D: nothing to scale.
    assert_same(model.input_scale_TC[1], expected)
    assert (model.input_scale_TC[[0, 2, 3]] == 1).all() and not model.input_mean_TC[[0, 2, 3]].any()


# --- text features


def nearly_parallel(count=40, width=24):
    """Features like those of prompts that differ in one number: a common direction and small differences."""
    common = torch.randn(1, width, generator=generator(0), dtype=torch.float64)
    return 10 * common + 0.5 * torch.randn(count, width, generator=generator(1), dtype=torch.float64)


def test_whitened_columns_have_mean_0_variance_1_and_are_orthogonal():
    text_VE = nearly_parallel()
    white = whiten(text_VE).double()
    assert white.shape == (40, 24)
    torch.testing.assert_close(white.mean(dim=0), torch.zeros(24, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(white.T @ white / 40, torch.eye(24, dtype=torch.float64), rtol=0, atol=1e-5)


def test_whitening_parts_prompts_that_were_nearly_parallel():
    def cosines(x_VE):
        unit = F.normalize(x_VE, dim=1)
        return (unit @ unit.T)[~torch.eye(len(x_VE), dtype=torch.bool)]

    text_VE = nearly_parallel()
    assert cosines(text_VE).min() > 0.9
    white = cosines(whiten(text_VE).double())
    assert white.max() < 0.8 and abs(float(white.mean())) < 0.1


def test_whitening_drops_directions_that_hold_only_rounding():
    text_VE = torch.randn(30, 5, generator=generator(0), dtype=torch.float64) @ torch.randn(
        5, 12, generator=generator(1), dtype=torch.float64
    )
    noisy = text_VE + 1e-6 * torch.randn(30, 12, generator=generator(2), dtype=torch.float64)
    assert whiten(noisy).shape == (30, 5)


def test_whitening_fixes_the_sign_of_each_direction():
    white = whiten(nearly_parallel(width=6))
    for column in white.T:
        assert column[column.abs().argmax()] > 0
    order = torch.randperm(40, generator=generator(3))  # The order of tokens moves rows and flips nothing.
    torch.testing.assert_close(whiten(nearly_parallel(width=6)[order]), white[order], rtol=0, atol=1e-4)
