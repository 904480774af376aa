"""The joint tokenizer against plain float64 loops written from the formulas of CTR-GC and the TCN-GCN layer."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.support.small_models import generator, some_slots, stir
from ups_model.model.layers import Scene
from ups_model.model.tokenizer import GcnUnit, JointTokenizer, TcnGcnLayer, convolve_frames, graph_partitions, time_mean

MASK_BN = torch.tensor([[True] * 5, [True, True, True, False, False]])
EIGHT_SLOTS = (0, 1, 4, 8, 12, 16, 20, 24)


def scene(slots=range(25), mask=None):
    return Scene(1, torch.tensor(list(slots)), mask)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# --- the graph


def test_partitions_are_identity_inward_and_outward_with_hand_worked_degrees():
    identity, inward, outward = graph_partitions()
    assert torch.equal(identity, torch.eye(25))
    # Joint 21 (slot 20, spine at the shoulders) is where 2, 3, 5 and 9 (slots 1, 2, 4, 8) lead: a quarter from each.
    assert inward[20].nonzero()[:, 0].tolist() == [1, 2, 4, 8]
    assert inward[20, 1] == 0.25
    # Joint 1 (base of the spine) takes from both hips, 13 and 17; joint 2 from joint 1 alone.
    assert inward[0].nonzero()[:, 0].tolist() == [12, 16] and inward[0, 12] == 0.5
    assert inward[1].nonzero()[:, 0].tolist() == [0] and inward[1, 0] == 1
    # Ends of limbs have nobody further out: head 4, feet 16 and 20, left tip 22, right tip 24.
    assert (inward.sum(dim=1) == 0).nonzero()[:, 0].tolist() == [3, 15, 19, 21, 23]
    # Outward every joint but the middle takes from its one parent, with weight 1.
    assert outward[20].sum() == 0
    assert (outward.sum(dim=1) == 1).sum() == 24 and (outward.max(dim=1).values[[0, 24]] == 1).all()
    assert outward[24, 11] == 1 and outward[23, 24] == 1
    assert int((inward > 0).sum()) == int((outward > 0).sum()) == 24


# --- CTR-GC


def convolve_by_hand(unit, x_BNJC, slots, mask_BN):
    """output_u = sum over k, v of (A_k[u, v] + alpha * W4 tanh(W1 x_u - W2 x_v)) * W3 x_v, one joint pair at a time."""
    batch, frames, joints, _ = x_BNJC.shape
    width, relations = unit.width, unit.relation_width
    out = torch.zeros(batch, frames, joints, width, dtype=torch.float64)
    for b in range(batch):
        there = range(frames) if mask_BN is None else mask_BN[b].nonzero()[:, 0].tolist()
        for k in range(3):
            rows = slice(k * relations, (k + 1) * relations)
            w1, b1 = unit.query.weight[rows], unit.query.bias[rows]
            w2, b2 = unit.key.weight[rows], unit.key.bias[rows]
            w3, b3 = (value[k * width : (k + 1) * width] for value in (unit.value.weight, unit.value.bias))
            for u in range(joints):
                a_R = sum(w1 @ x_BNJC[b, n, u] + b1 for n in there) / len(there)
                for v in range(joints):
                    b_R = sum(w2 @ x_BNJC[b, n, v] + b2 for n in there) / len(there)
                    relation_R = torch.tensor([math.tanh(float(value)) for value in a_R - b_R], dtype=torch.float64)
                    refined_D = unit.refine_KDR[k] @ relation_R + unit.refine_bias_KD[k]
                    topology_D = unit.adjacency_KUV[k, slots[u], slots[v]] + unit.alpha * refined_D
                    for n in range(frames):
                        out[b, n, u] += topology_D * (w3 @ x_BNJC[b, n, v] + b3)
    return out


@pytest.mark.parametrize("mask", [None, MASK_BN], ids=["whole", "padded"])
@pytest.mark.parametrize("inputs", [3, 16])
@torch.no_grad()
def test_graph_convolution_equals_a_loop_over_partitions_joints_and_channels(inputs, mask):
    unit = stir(GcnUnit(inputs, 16, "layer").double())
    assert unit.relation_width == {3: 8, 16: 2}[inputs]
    assert float(unit.alpha) != 0
    x_BNJC = random(2, 5, 8, inputs)
    expected = convolve_by_hand(unit, x_BNJC, EIGHT_SLOTS, mask)
    torch.testing.assert_close(unit.convolve(x_BNJC, scene(EIGHT_SLOTS, mask)), expected)


@torch.no_grad()
def test_graph_convolution_over_all_25_slots_equals_the_loop():
    unit = stir(GcnUnit(3, 4, "layer").double())
    x_BNJC = random(1, 2, 25, 3)
    torch.testing.assert_close(unit.convolve(x_BNJC, scene()), convolve_by_hand(unit, x_BNJC, range(25), None))


@torch.no_grad()
def test_an_unrefined_graph_convolution_is_the_sum_of_three_plain_graph_products():
    unit = GcnUnit(3, 4, "layer").double()
    torch.nn.init.normal_(unit.value.weight, generator=generator(3))
    x_BNJC = random(2, 3, 25, 3)
    weights = unit.value.weight.view(3, 4, 3)
    expected = sum(
        torch.einsum("uv,bnvc,dc->bnud", graph_partitions()[k].double(), x_BNJC, weights[k]) for k in range(3)
    )
    torch.testing.assert_close(unit.convolve(x_BNJC, scene()), expected)


@torch.no_grad()
def test_a_gcn_unit_starts_as_the_rectified_identity_where_it_keeps_its_width():
    unit = GcnUnit(8, 8, "layer").double()
    torch.nn.init.normal_(unit.value.weight, generator=generator(3))
    x_BNJD = random(2, 3, 25, 8)
    torch.testing.assert_close(unit(x_BNJD, scene()), F.relu(x_BNJD), rtol=0, atol=1e-5)


# --- the multi-scale temporal convolution


def torch_convolution(weights, bias, x_BNJQ, dilation):
    """torch's conv1d over frames, kernel 5, zeros beyond the ends; `weights` hold the taps one after another."""
    batch, _, joints, quarter = x_BNJQ.shape
    kernel = torch.stack(weights.split(quarter, dim=1), dim=-1)
    line = x_BNJQ.permute(0, 2, 3, 1).flatten(0, 1)
    out = F.conv1d(line, kernel, bias, padding=2 * dilation, dilation=dilation)
    return out.unflatten(0, (batch, joints)).permute(0, 3, 1, 2)


def layer_by_torch(layer, x_BNJC, slots):
    """A TCN-GCN layer of whole clips from torch's own conv1d, max_pool1d and layer_norm."""
    branches = layer.branches(layer.gcn(x_BNJC, scene(slots)))
    quarter = branches.shape[-1] // 4
    moving = F.layer_norm(
        branches[..., : 3 * quarter], (3 * quarter,), layer.branch_norm.weight, layer.branch_norm.bias
    )
    moving = moving.clamp(min=0)
    near, far, pooled = moving.split(quarter, dim=-1)
    batch, _, joints, _ = x_BNJC.shape
    line = F.max_pool1d(pooled.permute(0, 2, 3, 1).flatten(0, 1), kernel_size=3, stride=1, padding=1)
    parts = [
        torch_convolution(layer.near.weight, layer.near.bias, near, 1),
        torch_convolution(layer.far.weight, layer.far.bias, far, 2),
        line.unflatten(0, (batch, joints)).permute(0, 3, 1, 2),
        branches[..., 3 * quarter :],
    ]
    out = F.layer_norm(torch.cat(parts, dim=-1), (4 * quarter,), layer.norm.weight, layer.norm.bias)
    return (out + layer.residual(x_BNJC)).clamp(min=0)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("inputs", [3, 16])
@torch.no_grad()
def test_a_tokenizer_layer_equals_torch_convolutions_of_dilation_1_and_2_and_a_maximum_over_3(inputs, frames):
    layer = stir(TcnGcnLayer(inputs, 16, "layer").double())
    x_BNJC = random(2, frames, 8, inputs)
    torch.testing.assert_close(layer(x_BNJC, scene(EIGHT_SLOTS)), layer_by_torch(layer, x_BNJC, EIGHT_SLOTS))


@pytest.mark.parametrize(
    ("tap", "dilation", "expected"),
    [(3, 1, [2, 3, 4, 0]), (0, 1, [0, 0, 1, 2]), (2, 2, [1, 2, 3, 4]), (0, 2, [0, 0, 0, 0]), (4, 2, [0, 0, 0, 0])],
)
@torch.no_grad()
def test_a_tap_looks_ahead_or_back_with_zeros_beyond_the_ends(tap, dilation, expected):
    layer = torch.nn.Linear(5, 1)
    layer.weight.copy_(torch.eye(5)[tap])
    layer.bias.zero_()
    x_BCJN = torch.arange(1.0, 5.0).view(1, 1, 1, 4)
    assert convolve_frames(x_BCJN, layer, dilation).flatten().tolist() == expected


def test_time_mean_counts_the_frames_that_are_there():
    x = torch.tensor([[2.0, 4.0, 100.0]]).view(1, 3, 1, 1)
    assert time_mean(x, torch.tensor([[True, True, False]])).item() == 3
    assert time_mean(x, None).item() == pytest.approx(106 / 3)


# --- what is absent


@pytest.mark.parametrize("normalisation", ["layer", "task_batch"])
@torch.no_grad()
def test_padded_frames_change_no_token_of_the_others(normalisation):
    tokenizer = stir(JointTokenizer(3, 8, 3, normalisation).double().eval())
    x_BNJC = random(2, 9, 8, 3)
    mask_BN = torch.arange(9) < torch.tensor([[9], [4]])
    padded = tokenizer(x_BNJC, scene(EIGHT_SLOTS, mask_BN))
    torch.testing.assert_close(padded[:1], tokenizer(x_BNJC[:1], scene(EIGHT_SLOTS)))
    torch.testing.assert_close(padded[1:, :4], tokenizer(x_BNJC[1:, :4], scene(EIGHT_SLOTS)))


@torch.no_grad()
def test_a_joint_takes_nothing_from_a_slot_that_is_not_present():
    unit = stir(GcnUnit(3, 4, "layer").double())
    present = some_slots(5, 6).nonzero()[:, 0].tolist()
    x_BNJC = random(1, 2, 25, 3)
    without = unit.convolve(x_BNJC[:, :, present], scene(present))
    # By hand: all slots, with the columns of the absent ones left out of the sum.
    topology = unit.topology(x_BNJC.mean(dim=1), scene()).view(1, 4, 3, 25, 25)
    value = unit.value(x_BNJC).unflatten(-1, (3, 4))
    expected = torch.einsum("bdkvu,bnvkd->bnud", topology[:, :, :, present][..., present], value[:, :, present])
    torch.testing.assert_close(without, expected)
