"""Target sequences and training losses against hand-worked cases."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.support.small_models import clips, generator, small_config, small_model
from ups_model.config import OptimConfig
from ups_model.data.batching.batches import Batch
from ups_model.model import chunks
from ups_model.tasks import TASKS
from ups_model.training.losses import sequence_loss, target_tokens

JOINTS = 2
PLAIN = OptimConfig()
# The small vocabulary: classes 0..2 of "left", 3..8 of "right", bins 9..26 (6 an axis), ends of AR 27, PE 28, AP 29.
# The small quantiser: bins 1/3, 1/2 and 1/2 wide from -1, -2 and -0.5.


@pytest.fixture(scope="module")
def model():
    return small_model(small_config(), pose_joints=JOINTS)


def class_batch(task="ar3d", source="right", labels=(0, 5)):
    return Batch(clips(task, batch=len(labels)), source, torch.arange(len(labels)), torch.tensor(labels))


def pose_batch(*poses, targets=1):
    """Windows of `targets` poses each, every pose a list of joints."""
    pose = torch.tensor(poses, dtype=torch.float64).unflatten(0, (-1, targets))
    return Batch(clips("pe", batch=len(pose)), "walk", torch.arange(len(pose)), None, pose)


def random_logits(rows, steps, seed=0):
    return 2 * torch.randn(rows, steps, 30, generator=generator(seed), dtype=torch.float64)


def nll(logits_V, token):
    return math.log(sum(math.exp(v) for v in logits_V.tolist())) - float(logits_V[token])


# --- targets


def test_class_targets_are_the_class_of_the_data_set_and_the_end_of_the_task(model):
    assert target_tokens(model, class_batch("ar3d", "right", (0, 5))).tolist() == [[3, 27], [8, 27]]
    assert target_tokens(model, class_batch("ar2d", "left", (2,))).tolist() == [[2, 27]]
    assert target_tokens(model, class_batch("eap", "left", (1,))).tolist() == [[1, 29]]


def test_pose_targets_are_bins_joint_by_joint_in_the_order_x_y_z_and_the_end(model):
    # x in thirds from -1: -0.9 is bin 0, 0.1 bin 3. y in halves from -2: -1.2 is 1, 0.9 is 5. z, too: 0 is 1, 2.4 is 5.
    batch = pose_batch([[-0.9, -1.2, 0.0], [0.1, 0.9, 2.4]])
    assert target_tokens(model, batch).tolist() == [[9 + 0, 15 + 1, 21 + 1, 9 + 3, 15 + 5, 21 + 5, 28]]


def test_coordinates_beyond_the_range_take_the_outermost_bins(model):
    batch = pose_batch([[-7.0, 7.0, 7.0], [7.0, -7.0, -7.0]])
    assert target_tokens(model, batch).tolist() == [[9, 20, 26, 14, 15, 21, 28]]


def test_targets_of_one_window_follow_each_other_as_rows(model):
    first, second, third, fourth = ([[0.1 * n, 0.2 * n, 0.3 * n]] * 2 for n in range(4))
    together = target_tokens(model, pose_batch(first, second, third, fourth, targets=2))
    apart = [target_tokens(model, pose_batch(pose)) for pose in (first, second, third, fourth)]
    assert torch.equal(together, torch.cat(apart))


def test_a_target_sequence_is_as_long_as_its_task_says(model):
    assert target_tokens(model, pose_batch([[0.0] * 3] * 2)).shape[1] == TASKS["pe"].target_length(JOINTS) == 7
    assert TASKS["pe"].target_length(17) == 52
    for task in ("ar2d", "eap", "ar3d"):
        assert TASKS[task].target_length(17) == 2


# --- likelihood


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary(model):
    for batch in (class_batch(), pose_batch([[0.0] * 3] * 2)):
        target = target_tokens(model, batch)
        loss = sequence_loss(model, batch, torch.zeros(*target.shape, 30), target, PLAIN)
        assert float(loss) == pytest.approx(math.log(30))


def test_the_loss_is_the_mean_negative_log_likelihood_over_steps_and_sequences(model):
    for batch in (class_batch(), pose_batch([[0.1, 0.2, 0.3]] * 2, [[-0.5, -1.5, 2.0]] * 2)):
        target = target_tokens(model, batch)
        rows, steps = target.shape
        logits = random_logits(rows, steps)
        costs = [nll(logits[b, k], int(target[b, k])) for b in range(rows) for k in range(steps)]
        loss = sequence_loss(model, batch, logits, target, PLAIN)
        assert float(loss) == pytest.approx(sum(costs) / (rows * steps), rel=1e-5)


def test_label_smoothing_spreads_mass_over_the_classes_of_the_data_set_and_spares_the_end(model):
    batch = class_batch("ar3d", "left", (1,))
    target = target_tokens(model, batch)
    logits = torch.zeros(1, 2, 30, dtype=torch.float64)
    logits[0, 0, :3] = torch.tensor([1.0, 2.0, 4.0])
    logits[0, 0, 3] = 5.0  # A class of the other data set: no mass goes there.
    logits[0, 1, 27] = 3.0
    total = math.log(math.e + math.e**2 + math.e**4 + math.e**5 + 26)
    first = 0.7 * (total - 2) + 0.3 * ((total - 1) + (total - 2) + (total - 4)) / 3
    end = math.log(29 + math.e**3) - 3
    loss = sequence_loss(model, batch, logits, target, OptimConfig(label_smoothing=0.3))
    assert float(loss) == pytest.approx((first + end) / 2, rel=1e-6)


def test_label_smoothing_leaves_poses_alone(model):
    batch = pose_batch([[0.1, 0.2, 0.3]] * 2)
    target = target_tokens(model, batch)
    logits = random_logits(1, 7)
    smooth = sequence_loss(model, batch, logits, target, OptimConfig(label_smoothing=0.3))
    assert torch.equal(smooth, sequence_loss(model, batch, logits, target, PLAIN))


# --- soft bins


def at_centres(model, bins):
    return torch.stack([model.quantiser.centres(axis, dtype=torch.float64)[bins[axis]] for axis in range(3)]).tolist()


def test_narrow_soft_bins_equal_the_one_hot_target_where_a_coordinate_is_at_the_centre_of_its_bin(model):
    batch = pose_batch([at_centres(model, (0, 3, 5)), at_centres(model, (5, 1, 2))])
    target, logits = target_tokens(model, batch), random_logits(1, 7)
    hard = sequence_loss(model, batch, logits, target, PLAIN)
    narrow = sequence_loss(model, batch, logits, target, OptimConfig(bin_sigma=0.01))
    wide = sequence_loss(model, batch, logits, target, OptimConfig(bin_sigma=1.0))
    assert float(narrow) == pytest.approx(float(hard), rel=1e-6)
    assert abs(float(wide) - float(hard)) > 1e-3


def test_a_soft_bin_is_a_normal_density_over_bins_around_the_coordinate(model):
    x, y, z = 0.1, -1.9, 2.3
    batch = pose_batch([[x, y, z]] * 2)
    target, logits = target_tokens(model, batch), random_logits(1, 7)
    sigma, low, width = 0.8, (-1, -2, -0.5), (1 / 3, 1 / 2, 1 / 2)
    total = nll(logits[0, 6], 28)
    for step in range(6):
        axis = step % 3
        # In bins: the coordinate's place, and that of the centre of bin q at q + 1/2.
        place = ((x, y, z)[axis] - low[axis]) / width[axis]
        place = min(max(place, 0.5), 5.5)  # At the ends the outermost centre is as far as a target goes.
        mass = [math.exp(-0.5 * ((q + 0.5 - place) / sigma) ** 2) for q in range(6)]
        total += sum(m / sum(mass) * nll(logits[0, step], 9 + 6 * axis + q) for q, m in enumerate(mass))
    loss = sequence_loss(model, batch, logits, target, OptimConfig(bin_sigma=sigma))
    assert float(loss) == pytest.approx(total / 7, rel=1e-5)


# --- expectation


def test_the_expectation_loss_adds_the_mean_distance_in_metres_of_expected_and_true_joints(model):
    # The first joint's bins 0 and 5 are equally likely on each axis: expected at the middle of the range, (0, -0.5, 1).
    # The second joint's mass is all in bin 0 of each axis: expected at (-5/6, -7/4, -1/4).
    logits = torch.zeros(1, 7, 30, dtype=torch.float64)
    for axis in range(3):
        start = 9 + 6 * axis
        logits[0, axis, start : start + 6] = torch.tensor([40.0, 0, 0, 0, 0, 40.0])
        logits[0, 3 + axis, start] = 60.0
    # 3-4-0 and 0-0-2 away from those.
    batch = pose_batch([[0 + 0.3, -0.5 + 0.4, 1.0], [-5 / 6, -7 / 4, -1 / 4 + 0.2]])
    target = target_tokens(model, batch)
    plain = sequence_loss(model, batch, logits, target, PLAIN)
    weighted = sequence_loss(model, batch, logits, target, OptimConfig(expectation_weight=10.0))
    assert float(weighted - plain) == pytest.approx(10 * (0.5 + 0.2) / 2, abs=1e-4)


def test_the_expectation_is_taken_over_the_bins_of_the_axis_alone(model):
    batch = pose_batch([[0.1, 0.2, 0.3]] * 2)
    target, logits = target_tokens(model, batch), random_logits(1, 7)
    only = OptimConfig(expectation_weight=1.0)
    other = logits.clone()
    other[0, 0, 0] += 5  # A class, as likely as it may be, is no coordinate.
    change = sequence_loss(model, batch, other, target, only) - sequence_loss(model, batch, logits, target, only)
    plain = sequence_loss(model, batch, other, target, PLAIN) - sequence_loss(model, batch, logits, target, PLAIN)
    assert float(change) == pytest.approx(float(plain), rel=1e-4)


def test_soft_bins_and_expectation_add_up(model):
    batch = pose_batch([[0.1, 0.2, 0.3]] * 2, [[-0.5, -1.5, 2.0]] * 2)
    target, logits = target_tokens(model, batch), random_logits(2, 7)

    def loss(**optim):
        return float(sequence_loss(model, batch, logits, target, OptimConfig(**optim)))

    distance = loss(expectation_weight=1.0) - loss()
    assert distance > 0.1
    assert loss(bin_sigma=1.0, expectation_weight=3.0) == pytest.approx(loss(bin_sigma=1.0) + 3 * distance, rel=1e-5)


def test_the_expectation_has_a_gradient_at_a_perfect_answer_that_is_finite(model):
    logits = torch.zeros(1, 7, 30, dtype=torch.float64, requires_grad=True)
    batch = pose_batch([[0.0, -0.5, 1.0]] * 2)  # Where uniform logits expect every joint.
    target = target_tokens(model, batch)
    sequence_loss(model, batch, logits, target, OptimConfig(expectation_weight=1.0)).backward()
    assert torch.isfinite(logits.grad).all()


def plain_pose_loss(model, batch, logits_BKV, target_BK, optim):
    """The pose loss in a few lines, its gradient left to autograd."""
    true_BJ3, first, bins = batch.pose_BRJ3.flatten(0, 1), 9, 6
    log_BKV = logits_BKV.log_softmax(dim=-1)
    centres_AQ = torch.stack([model.quantiser.centres(axis, dtype=torch.float64) for axis in range(3)])
    said = log_BKV[:, -1, 28].sum()
    expected = []
    for axis, centre_Q in enumerate(centres_AQ):
        ids = slice(first + axis * bins, first + (axis + 1) * bins)
        own_BJQ = log_BKV[:, axis:-1:3, ids]
        width = centre_Q[1] - centre_Q[0]
        nearest_BJ = true_BJ3[..., axis].clamp(centre_Q[0], centre_Q[-1])
        if optim.bin_sigma:
            distance_BJQ = (centre_Q - nearest_BJ[..., None]) / (optim.bin_sigma * width)
            wanted_BJQ = F.softmax(-0.5 * distance_BJQ.square(), dim=-1)
        else:
            wanted_BJQ = F.one_hot(target_BK[:, axis:-1:3] - ids.start, bins)
        said = said + (wanted_BJQ * own_BJQ).sum()
        expected.append(own_BJQ.softmax(dim=-1) @ centre_Q)
    loss = -said / target_BK.numel()
    if optim.expectation_weight:
        distance_BJ = ((torch.stack(expected, dim=-1) - true_BJ3).square().sum(dim=-1) + 1e-8).sqrt()
        loss = loss + optim.expectation_weight * distance_BJ.mean()
    return loss


@pytest.mark.parametrize("clips_at_once", [1, 10**9])
@pytest.mark.parametrize(("bin_sigma", "expectation_weight"), [(1.0, 10.0), (0.05, 0.0), (0.0, 3.0)])
def test_the_pose_loss_and_its_gradient_equal_those_of_a_plain_implementation(
    model, monkeypatch, bin_sigma, expectation_weight, clips_at_once
):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", clips_at_once)
    poses = 2 * torch.randn(6, JOINTS, 3, generator=generator(3), dtype=torch.float64)
    batch, optim = (
        pose_batch(*poses.tolist(), targets=2),
        PLAIN.replace(bin_sigma=bin_sigma, expectation_weight=expectation_weight),
    )
    logits = (3 * random_logits(6, 3 * JOINTS + 1)).requires_grad_()
    logits.data[0] += 200  # Beyond what an exponential holds, and still of no effect.
    target_BK = target_tokens(model, batch)
    losses = [
        sequence_loss(model, batch, logits, target_BK, optim),
        plain_pose_loss(model, batch, logits, target_BK, optim),
    ]
    torch.testing.assert_close(losses[0].double(), losses[1].double(), rtol=1e-4, atol=1e-5)
    ours, plain = (torch.autograd.grad(0.3 * loss, logits)[0] for loss in losses)
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pe", "ar2d", "eap", "ar3d"])
def test_a_few_steps_of_descent_lower_the_loss_of_every_task(task):
    model = small_model(small_config(dropout=0.0), pose_joints=JOINTS, stirred=False)
    batch = (
        pose_batch([[0.1, 0.2, 0.3]] * 2, [[-0.5, -1.5, 2.0]] * 2)
        if task == "pe"
        else class_batch(task, "left", (0, 2))
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    target, losses = target_tokens(model, batch), []
    for _ in range(30):
        loss = sequence_loss(model, batch, model(batch.inputs, target), target, PLAIN)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
