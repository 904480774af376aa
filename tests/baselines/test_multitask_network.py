"""The multi-task network against hand computations in float64, and its early exits against truncated networks."""

import numpy as np
import pytest
import torch

from baselines.multitask.config import MultitaskNetwork, MultitaskTraining
from baselines.multitask.losses import confidence_loss, elastic_net, multitask_loss
from baselines.multitask.network import Exit, MultitaskNet, locate, soft_argmax

SMALL = MultitaskNetwork(layers=3, joint_width=4, action_width=5, grid=3, kernel=3, dropout=0.2)
INPUTS, JOINTS, CLASSES = 5, 6, 4


def random_maps(grid, joints=2):
    generator = torch.Generator().manual_seed(0)
    logits, depth = torch.randn(2, joints, grid * grid, generator=generator, dtype=torch.float64) * 2
    return logits.softmax(dim=-1), depth.sigmoid()


def test_soft_argmax_and_depth_are_equations_8_and_9_by_hand():
    """Row by row and column by column, as the sums are written; W_h = H_h = 3."""
    heat_JM, depth_JM = random_maps(grid=4)
    heat, depth = heat_JM.numpy().reshape(2, 4, 4), depth_JM.numpy().reshape(2, 4, 4)
    expected = np.zeros((2, 3))
    for joint in range(2):
        for row in range(4):
            for column in range(4):
                expected[joint, 0] += column / 3 * heat[joint, row, column]
                expected[joint, 1] += row / 3 * heat[joint, row, column]
                expected[joint, 2] += heat[joint, row, column] * depth[joint, row, column]
    np.testing.assert_allclose(soft_argmax(heat_JM, depth_JM, 4).numpy(), expected, rtol=0, atol=1e-15)
    # In the precision of training.
    single = soft_argmax(heat_JM.float(), depth_JM.float(), 4)
    np.testing.assert_allclose(single.numpy(), expected, rtol=0, atol=3e-7)


def test_a_pointed_map_gives_its_own_place_and_depth_and_full_confidence():
    heat_M, depth_M = torch.zeros(9), torch.linspace(0.1, 0.9, 9)
    heat_M[5] = 1  # second row, third column
    place_3, confidence = locate(heat_M, depth_M)
    assert place_3.tolist() == pytest.approx([1.0, 0.5, 0.6]) and confidence == 1
    _, confidence = locate(torch.full((9,), 1 / 9), depth_M)
    assert confidence == pytest.approx(1 / 9)


def test_depth_is_weighted_by_the_map():
    heat_M, depth_M = torch.tensor([0.75, 0.0, 0.0, 0.25]), torch.tensor([0.2, 9.0, 9.0, 0.6])
    assert soft_argmax(heat_M, depth_M, 2).tolist() == pytest.approx([0.25, 0.25, 0.75 * 0.2 + 0.25 * 0.6])


def test_the_elastic_net_is_a_hand_worked_number():
    pose_J3 = torch.tensor([[0.5, 0.5, 0.5], [0.2, 0.4, 0.9]])
    true_J3 = torch.tensor([[0.5, 0.4, 0.7], [0.5, 0.4, 0.5]])
    # (0.1 + 0.2) + (0.01 + 0.04) and (0.3 + 0.4) + (0.09 + 0.16), over two joints.
    assert elastic_net(pose_J3, true_J3).item() == pytest.approx((0.35 + 0.95) / 2)


def test_confidence_is_to_say_whether_a_joint_is_in_range():
    true_J3 = torch.tensor([[0.5, 0.5, 0.5], [0.5, 1.2, 0.5]])
    loss = confidence_loss(torch.tensor([0.8, 0.3]), true_J3)
    assert loss.item() == pytest.approx(-(np.log(0.8) + np.log(0.7)) / 2, abs=1e-6)


def exits_for_losses():
    """Two exits; poses off by 0.1 and 0.2 in one coordinate, confidence 0.5, both classes alike."""
    true_BRJ3 = torch.full((1, 1, 1, 3), 0.5)
    exits = []
    for error in (0.1, 0.2):
        pose_BNJ3 = torch.full((1, 2, 1, 3), 0.9)
        pose_BNJ3[0, 1, 0] = torch.tensor([0.5, 0.5 + error, 0.5])
        exits.append(Exit(pose_BNJ3, torch.full((1, 2, 1), 0.5), torch.zeros(1, 2)))
    return exits, true_BRJ3, torch.tensor([[1]]), torch.tensor([0])


@pytest.mark.parametrize(
    ("phase", "changes", "expected"),
    [
        ("both", {}, 0.11 + 0.24 + 2 * 0.02 * np.log(2)),
        ("both", {"action_weight": 3.0, "confidence_weight": 0.0}, 0.11 + 0.24 + 6 * np.log(2)),
        ("both", {"supervision": "last", "confidence_weight": 2.0}, 0.24 + 2.01 * np.log(2)),
        ("pose", {}, 0.11 + 0.24 + 2 * 0.01 * np.log(2)),
        ("action", {}, 2 * 0.01 * np.log(2)),
    ],
)
def test_losses_of_exits_add_up_by_their_weights(phase, changes, expected):
    loss = multitask_loss(*exits_for_losses(), phase, MultitaskTraining(**changes))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_labels_are_smoothed_as_asked():
    logits = torch.tensor([[0.0, np.log(3.0)]])
    exits = [Exit(torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1), logits.float())]
    arguments = exits, torch.zeros(1, 1, 1, 3), torch.tensor([[0]]), torch.tensor([1])
    loss = multitask_loss(*arguments, "action", MultitaskTraining(action_weight=1.0), smoothing=0.2)
    # Probabilities 1/4 and 3/4; targets 0.1 and 0.9.
    assert loss.item() == pytest.approx(-(0.1 * np.log(0.25) + 0.9 * np.log(0.75)))


def test_the_weights_of_action_and_confidence_are_the_papers():
    assert (MultitaskTraining().action_weight, MultitaskTraining().confidence_weight) == (0.01, 0.01)


def fresh_network(config):
    torch.manual_seed(0)
    return MultitaskNet(INPUTS, JOINTS, CLASSES, config)


def make_network(config=SMALL):
    """With statistics of its own, as after training."""
    network = fresh_network(config)
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(6, 7, INPUTS, 2))
    return network.eval()


@pytest.mark.parametrize("kind", ["poses", "features", "combined", "decoupled"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_exit_is_the_truncated_network_bit_for_bit(kind, number):
    whole = make_network(SMALL.replace(action_input=kind))
    if kind == "decoupled":
        whole.decouple()
    truncated = MultitaskNet(INPUTS, JOINTS, CLASSES, SMALL.replace(action_input=kind, layers=number))
    weights = whole.state_dict()
    truncated.load_state_dict({name: weights[name] for name in truncated.state_dict()})
    screen_BNI2 = torch.randn(4, 7, INPUTS, 2)
    with torch.no_grad():
        all_exits = whole(screen_BNI2)
        for other in (truncated.eval()(screen_BNI2), whole(screen_BNI2, exits=number)):
            assert len(other) == number and len(all_exits) == 3
            for one, two in zip(all_exits, other, strict=False):
                for name in ("pose_BNJ3", "confidence_BNJ", "logits_BK"):
                    assert torch.equal(getattr(one, name), getattr(two, name))


def test_what_an_exit_says_is_re_injected_into_the_next():
    network = make_network()
    screen_BNI2 = torch.randn(2, 7, INPUTS, 2)
    with torch.no_grad():
        before = network(screen_BNI2)
        for name in ("heat_back", "depth_back"):
            getattr(network.pose_layers[0], name).weight.add_(0.3)
        poses = network(screen_BNI2)
        network.action_layers[0].back.weight.add_(0.3)
        actions = network(screen_BNI2)
    assert torch.equal(before[0].pose_BNJ3, poses[0].pose_BNJ3)
    assert not torch.equal(before[1].pose_BNJ3, poses[1].pose_BNJ3)
    assert torch.equal(poses[0].logits_BK, actions[0].logits_BK)
    assert not torch.equal(poses[1].logits_BK, actions[1].logits_BK)
    assert torch.equal(poses[2].pose_BNJ3, actions[2].pose_BNJ3)


def test_without_actions_none_are_scored_and_poses_are_the_same():
    network, screen_BNI2 = make_network(), torch.randn(2, 7, INPUTS, 2)
    with torch.no_grad():
        alone, both = network(screen_BNI2, actions=False), network(screen_BNI2)
    assert all(one.logits_BK is None for one in alone)
    assert all(torch.equal(one.pose_BNJ3, two.pose_BNJ3) for one, two in zip(alone, both, strict=True))


def test_decoupled_poses_begin_as_copies_and_then_take_the_action_gradient_alone():
    config = SMALL.replace(action_input="decoupled", dropout=0.0)
    network, screen_BNI2 = make_network(config), torch.randn(2, 7, INPUTS, 2)
    with torch.no_grad():
        before = network(screen_BNI2)
        network.decouple()
        after = network(screen_BNI2)
    assert all(torch.equal(one.logits_BK, two.logits_BK) for one, two in zip(before, after, strict=True))
    network(screen_BNI2, exits=1)[0].logits_BK.sum().backward()
    assert network.pose_layers[0].maps.heat.weight.grad is None
    assert network.action_maps[0].heat.weight.grad.abs().sum() > 0
    assert network.pose_layers[0].features.weight.grad.abs().sum() > 0  # The features stay shared.


def test_coupled_and_decoupled_networks_begin_alike():
    one, other = (fresh_network(SMALL.replace(action_input=kind)).state_dict() for kind in ("combined", "decoupled"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert any(name.startswith("action_maps.") for name in other)
