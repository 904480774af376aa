"""The graph network: its graph on every skeleton, the graph convolution by hand, absent persons, size."""

import numpy as np
import pytest
import torch

from baselines.st_gcn import STGCN, bones, partitioned_adjacency
from tests.support.small_models import generator, stir
from ups_model.skeletons import SKELETONS, SLOT_NAMES


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
def test_each_skeleton_is_one_tree_whose_receivers_weigh_one(skeleton):
    slots = skeleton.slots_present
    adjacency = partitioned_adjacency(slots)
    assert len(bones(slots)) == len(slots) - 1
    assert np.allclose(adjacency.sum(axis=(0, 2)), 1)
    linked = adjacency.sum(axis=0) > 0
    assert (linked == linked.T).all() and np.array_equal(adjacency[0] > 0, np.eye(len(slots), dtype=bool))
    # What is nearer for one end of a bone is farther for the other.
    assert np.array_equal(adjacency[1] > 0, (adjacency[2] > 0).T)


def test_the_partitions_of_an_arm_are_those_of_the_paper():
    slots = SKELETONS["h36m17"].slots_present
    place = {SLOT_NAMES[slot]: index for index, slot in enumerate(slots)}
    adjacency = partitioned_adjacency(slots)
    elbow, shoulder, wrist = (place[name] for name in ("l_elbow", "l_shoulder", "l_wrist"))
    third = pytest.approx(1 / 3)
    assert (adjacency[0, elbow, elbow], adjacency[1, elbow, shoulder], adjacency[2, elbow, wrist]) == (third,) * 3
    assert adjacency[1, wrist, elbow] == 0.5 and adjacency[2, shoulder, elbow] == third


def test_a_joint_whose_parent_is_not_there_hangs_on_the_nearest_ancestor():
    arm = [SLOT_NAMES.index(name) for name in ("spine_shoulder", "l_shoulder", "l_wrist")]
    assert bones(arm) == [(1, 0), (2, 1)]


def test_slots_that_are_not_connected_are_refused():
    with pytest.raises(ValueError, match="one connected skeleton, got 2 parts"):
        partitioned_adjacency([SLOT_NAMES.index("l_shoulder"), SLOT_NAMES.index("r_shoulder")])


def test_the_graph_convolution_is_the_papers_sum_over_partitions():
    slots = SKELETONS["jhmdb15"].slots_present
    model = stir(STGCN(slots, 3, 4, width=4, blocks=2).double().eval())
    unit = model.units[0]
    x = torch.randn(2, 3, 5, len(slots), generator=generator(0), dtype=torch.float64)
    adjacency = torch.tensor(partitioned_adjacency(slots)).float().double()
    with torch.no_grad():
        expected = torch.zeros(2, 4, 5, len(slots), dtype=torch.float64)
        for partition in range(3):
            rows = slice(4 * partition, 4 * partition + 4)
            sent = torch.einsum("dc,qcni->qdni", unit.graph.weight[rows, :, 0, 0], x)
            sent += unit.graph.bias[rows].view(1, 4, 1, 1)
            for receiver in range(len(slots)):
                edge_I = adjacency[partition, receiver] * unit.edges[partition, receiver]
                expected[..., receiver] += (sent * edge_I).sum(dim=-1)
        assert torch.allclose(unit.graph_convolution(x), expected, atol=1e-12)


def test_an_absent_person_changes_nothing():
    slots = SKELETONS["kinect20"].slots_present
    model = stir(STGCN(slots, 3, 4, width=4, blocks=3).double().eval())
    x = torch.randn(2, 2, 8, len(slots), 3, generator=generator(0), dtype=torch.float64)
    mask = torch.tensor([[True, False], [True, True]])
    other = x.clone()
    other[0, 1] = 7.0
    with torch.no_grad():
        assert torch.equal(model(x, mask), model(other, mask))
        assert not torch.allclose(model(x, mask)[1], model(x[1:, :1])[0])


def test_later_stages_have_twice_the_channels_and_half_the_frames():
    slots = SKELETONS["kinect20"].slots_present
    model = STGCN(slots, 3, 4, width=4, blocks=6).eval()
    x, shapes = torch.zeros(1, 3, 16, len(slots)), []
    for unit in model.units:
        x = unit(x)
        shapes.append(tuple(x.shape[1:3]))
    assert shapes == [(4, 16), (4, 16), (8, 8), (8, 8), (16, 4), (16, 4)]


def test_the_default_has_under_two_million_parameters():
    model = STGCN(SKELETONS["ntu25"].slots_present, 3, 60)
    assert sum(value.numel() for value in model.parameters()) < 0.6e6
