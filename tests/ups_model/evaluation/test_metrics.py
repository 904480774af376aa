"""Metrics against hand-worked numbers and SciPy's Procrustes in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes
from scipy.spatial.transform import Rotation

from ups_model.evaluation.metrics import mpjpe_mm, mpjve_mm, n_mpjpe_mm, p_mpjpe_mm, per_action_mean, topk_accuracy

seeds = st.integers(0, 2**32 - 1)


def poses(seed, *leading, joints=17):
    return np.random.default_rng(seed).normal(scale=300.0, size=(*leading, joints, 3))


def rotation(seed):
    return Rotation.random(rng=np.random.default_rng(seed)).as_matrix()


def mirrored_pairs(count):
    """Random pairs; about half of them are best aligned by a reflection, which the protocol forbids."""
    return poses(1, count), poses(2, count)


# --- MPJPE


def test_a_constant_offset_of_3_4_12_mm_is_an_error_of_13_mm():
    target = poses(0, 5)
    assert mpjpe_mm(target + np.array([3.0, 4.0, 12.0]), target).item() == pytest.approx(13.0, abs=1e-9)


def test_mpjpe_averages_joints_then_poses():
    pred, target = torch.zeros(2, 2, 3), torch.zeros(2, 2, 3)
    pred[0, 0, 0], pred[1, 1, 2] = 4.0, -10.0
    assert mpjpe_mm(pred, target, reduction="none").tolist() == [2.0, 5.0]
    assert mpjpe_mm(pred, target).item() == 3.5


def test_float32_poses_are_averaged_in_float64():
    target = torch.zeros(200_000, 1, 3)
    pred = target + torch.tensor([0.1, 0.0, 0.0])
    assert mpjpe_mm(pred, target).item() == pytest.approx(float(np.float32(0.1)), rel=1e-12)


# --- P-MPJPE


@given(seeds, st.floats(0.1, 10.0))
def test_a_rotated_scaled_shifted_pose_has_p_mpjpe_0(seed, scale):
    target = poses(seed, 1)
    pred = scale * target @ rotation(seed) + np.array([100.0, -2000.0, 31.0])
    assert p_mpjpe_mm(pred, target).item() < 1e-7
    assert mpjpe_mm(pred, target).item() > 100.0


def test_a_mirrored_pose_does_not_have_p_mpjpe_0():
    target = poses(3, 1)
    mirrored = target * np.array([-1.0, 1.0, 1.0])
    assert p_mpjpe_mm(mirrored, target).item() > 50.0
    # SciPy's procrustes admits reflections and sees no difference: that is what the protocol excludes.
    assert procrustes(target[0], mirrored[0])[2] < 1e-12


def test_p_mpjpe_equals_scipy_orthogonal_procrustes_where_no_reflection_is_best():
    pred, target = mirrored_pairs(60)
    ours = p_mpjpe_mm(pred, target, reduction="none").numpy()
    proper = 0
    for index in range(60):
        a, b = pred[index] - pred[index].mean(0), target[index] - target[index].mean(0)
        matrix, singular_sum = orthogonal_procrustes(a, b)
        if np.linalg.det(matrix) < 0:
            continue
        proper += 1
        aligned = a @ matrix * singular_sum / np.square(a).sum()
        assert ours[index] == pytest.approx(np.linalg.norm(aligned - b, axis=1).mean(), rel=1e-10)
    assert 10 < proper < 50


def test_p_mpjpe_equals_scipy_align_vectors_also_where_a_reflection_would_be_better():
    pred, target = mirrored_pairs(60)
    ours = p_mpjpe_mm(pred, target, reduction="none").numpy()
    for index in range(60):
        a, b = pred[index] - pred[index].mean(0), target[index] - target[index].mean(0)
        turned = Rotation.align_vectors(b, a)[0].apply(a)  # least squares over proper rotations
        scale = (turned * b).sum() / np.square(a).sum()
        assert ours[index] == pytest.approx(np.linalg.norm(scale * turned - b, axis=1).mean(), rel=1e-6)


def test_a_single_joint_needs_only_a_shift():
    assert p_mpjpe_mm(poses(1, 5, joints=1), poses(2, 5, joints=1)).item() < 1e-9


def test_p_mpjpe_of_a_planar_and_of_a_straight_pose_is_finite_and_0_for_similar_ones():
    planar, straight = poses(4, 1), poses(5, 1)
    planar[..., 2] = 0.0
    straight[..., 1:] = 0.0
    for target in (planar, straight):
        assert p_mpjpe_mm(2.0 * target @ rotation(6) + 5.0, target).item() < 1e-6


def test_a_prediction_collapsed_to_a_point_is_moved_to_the_centre_of_the_target():
    target = torch.tensor([[[10.0, 0, 0], [-10.0, 0, 0]]])
    collapsed = torch.full((1, 2, 3), 7.0)
    assert p_mpjpe_mm(collapsed, target).item() == pytest.approx(10.0)
    assert p_mpjpe_mm(target, collapsed).item() == pytest.approx(0.0, abs=1e-9)
    assert p_mpjpe_mm(collapsed, collapsed).item() == 0.0


def test_each_pose_is_aligned_by_itself():
    pred, target = mirrored_pairs(6)
    together = p_mpjpe_mm(pred.reshape(2, 3, 17, 3), target.reshape(2, 3, 17, 3), reduction="none")
    alone = [p_mpjpe_mm(pred[index : index + 1], target[index : index + 1]).item() for index in range(6)]
    assert together.shape == (2, 3)
    assert together.flatten().tolist() == pytest.approx(alone, rel=1e-12)


# --- N-MPJPE


def test_a_pose_of_another_size_has_n_mpjpe_0_and_a_rotated_one_has_not():
    target = poses(7, 4)
    assert n_mpjpe_mm(0.25 * target, target).item() < 1e-9
    assert n_mpjpe_mm(target @ rotation(8), target).item() > 50.0


@given(seeds)
def test_the_scale_of_n_mpjpe_is_the_least_squares_one(seed):
    pred, target = poses(seed, joints=17), poses(seed + 1, joints=17)
    scale = np.linalg.lstsq(pred.reshape(-1, 1), target.ravel(), rcond=None)[0][0]
    expected = np.linalg.norm(scale * pred - target, axis=1).mean()
    assert n_mpjpe_mm(pred[None], target[None]).item() == pytest.approx(expected, rel=1e-9)


def test_a_prediction_of_zeros_has_a_finite_n_mpjpe():
    assert n_mpjpe_mm(torch.zeros(1, 1, 3), torch.tensor([[[3.0, 4.0, 0.0]]])).item() == pytest.approx(5.0)


# --- velocity


def test_a_constant_offset_has_no_velocity_error_and_a_drift_has_its_speed():
    target = poses(9, 6)
    drift = np.arange(6.0)[:, None, None] * np.array([0.0, 3.0, 4.0])
    assert mpjve_mm(target + 50.0, target).item() < 1e-9
    assert mpjve_mm(target + drift, target).item() == pytest.approx(5.0)


def test_no_velocity_crosses_from_one_sequence_to_the_next():
    target = torch.zeros(5, 1, 3)
    pred = torch.zeros(5, 1, 3)
    pred[2:] = 1000.0  # a jump exactly where the second sequence starts
    assert mpjve_mm(pred, target, lengths=[2, 3]).item() == 0.0
    assert mpjve_mm(pred, target).item() == pytest.approx(1000.0 * 3**0.5 / 4)
    assert mpjve_mm(pred, target, lengths=[2, 1, 2], reduction="none").shape == (2,)


@pytest.mark.parametrize("lengths", [[2, 2], [5, 0], [6, -1], []])
def test_lengths_that_do_not_add_up_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths must be positive and sum to the 5 frames"):
        mpjve_mm(torch.zeros(5, 1, 3), torch.zeros(5, 1, 3), lengths=lengths)


def test_single_frames_have_no_velocity():
    with pytest.raises(ValueError, match="at least 2 frames"):
        mpjve_mm(torch.zeros(2, 1, 3), torch.zeros(2, 1, 3), lengths=[1, 1])


# --- accuracy


def test_top_k_counts_labels_among_the_k_highest():
    logits = [[0.1, 0.9, 0.5], [0.8, 0.1, 0.3], [0.2, 0.3, 0.1]]
    labels = [2, 1, 1]
    assert topk_accuracy(logits, labels, 1).item() == pytest.approx(1 / 3)
    assert topk_accuracy(logits, labels, 2).item() == pytest.approx(2 / 3)
    assert topk_accuracy(logits, labels, 3).item() == 1.0
    assert topk_accuracy(logits, labels, 2, reduction="none").tolist() == [1.0, 0.0, 1.0]


def test_a_model_that_says_nothing_earns_chance_accuracy():
    assert topk_accuracy(torch.zeros(10, 10), torch.arange(10), 1).item() == pytest.approx(0.1)
    assert topk_accuracy(torch.zeros(10, 10), torch.arange(10), 5).item() == pytest.approx(0.5)


@given(seeds, st.integers(1, 7))
def test_top_k_equals_membership_in_torch_topk_without_ties(seed, k):
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(20, 7, generator=generator), torch.randint(7, (20,), generator=generator)
    expected = (logits.topk(k).indices == labels[:, None]).any(1).double().mean()
    assert topk_accuracy(logits, labels, k) == expected


# --- per action


def test_sitting_does_not_swallow_sitting_down_and_every_action_weighs_the_same():
    by_action, mean = per_action_mean([10.0, 20.0, 60.0], ["Sitting", "Sitting", "SittingDown"])
    assert by_action == {"Sitting": 15.0, "SittingDown": 60.0}
    assert mean == 37.5  # not 30, the mean over samples


# --- what is refused


POSE_METRICS = [mpjpe_mm, p_mpjpe_mm, n_mpjpe_mm, mpjve_mm]


@pytest.mark.parametrize("metric", POSE_METRICS)
@pytest.mark.parametrize(
    ("pred", "target"),
    [((4, 17, 3), (4, 16, 3)), ((4, 17, 2), (4, 17, 2)), ((17, 3), (17, 3)), ((0, 17, 3), (0, 17, 3))],
)
def test_wrong_shapes_are_refused(metric, pred, target):
    with pytest.raises(ValueError, match=r"\[..., J, 3\].*got"):
        metric(torch.zeros(pred), torch.zeros(target))


@pytest.mark.parametrize("metric", POSE_METRICS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_values_that_are_not_finite_are_refused(metric, bad, place):
    pair = [torch.zeros(4, 17, 3), torch.zeros(4, 17, 3)]
    pair[place][1, 2, 0] = bad
    with pytest.raises(ValueError, match="must be finite, got 1 of 204"):
        metric(*pair)


@pytest.mark.parametrize(
    ("logits", "labels", "k", "rule"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), 1, "labels must lie in 0..2"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), 1, "labels must lie in 0..2"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), 1, "labels must be integers"),
        (torch.zeros(2, 3), torch.tensor([0]), 1, "logits must be"),
        (torch.zeros(0, 3), torch.tensor([], dtype=torch.long), 1, "logits must be"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), 0, "k must lie in 1..3"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), 4, "k must lie in 1..3"),
        (torch.full((2, 3), float("nan")), torch.tensor([0, 1]), 1, "logits must be finite"),
    ],
)
def test_wrong_classification_inputs_are_refused(logits, labels, k, rule):
    with pytest.raises(ValueError, match=rule):
        topk_accuracy(logits, labels, k)


def test_wrong_action_inputs_are_refused():
    with pytest.raises(ValueError, match="one per action name"):
        per_action_mean([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="one per action name"):
        per_action_mean([], [])
    with pytest.raises(ValueError, match="must be finite"):
        per_action_mean([float("nan")], ["a"])


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="'mean' or 'none', got 'sum'"):
        mpjpe_mm(torch.zeros(1, 1, 3), torch.zeros(1, 1, 3), reduction="sum")
