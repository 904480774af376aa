"""Outcomes: every metric can be made from them again, row by row of the clip set."""

import hashlib

import numpy as np
import pytest
import torch

from tests.support.runs import FLAT, POSE, SOLID, options, toy_config
from ups_model.data.format.cameras import project, to_camera
from ups_model.data.format.clip_set import ClipSet
from ups_model.evaluation.metric_names import OUTCOMES
from ups_model.evaluation.metrics import topk_accuracy
from ups_model.evaluation.outcomes import class_outcomes, load_outcomes, pose_examples, pose_outcomes, save_outcomes
from ups_model.training.run import train


def test_rank_and_margin_of_the_true_class_by_hand():
    logits_BK = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 0.0, 5.0]])
    outcomes = class_outcomes(logits_BK, torch.tensor([0, 1, 2]), "@0.2")
    assert outcomes["predicted@0.2"].tolist() == [0, 0, 2]
    assert outcomes["rank@0.2"].tolist() == [0, 2, 0]
    assert outcomes["margin@0.2"].tolist() == [1, -2, 5]


def test_of_equal_scores_the_lower_class_counts_as_better_as_in_the_accuracy():
    logits_BK = torch.zeros(3, 3)
    outcomes = class_outcomes(logits_BK, torch.tensor([0, 1, 2]))
    assert outcomes["rank"].tolist() == [0, 1, 2]
    assert float(topk_accuracy(logits_BK, torch.tensor([0, 1, 2]), 1)) == pytest.approx((outcomes["rank"] == 0).mean())


def test_errors_of_frames_are_added_up_by_clip_and_camera():
    clip, camera, frame = (torch.tensor(values) for values in ([4, 4, 2, 4], [0, 1, 0, 0], [7, 3, 0, 5]))
    error = torch.tensor([10.0, 20.0, 30.004, 1000.0], dtype=torch.float64)
    of_clips = {"subject": np.array([0, 0, 9, 0, 5]), "label": np.array([-1, -1, 3, -1, 2])}
    outcomes = pose_outcomes(error, error / 2, clip, camera, frame, **of_clips)
    assert outcomes["label"].tolist() == [3, 2, 2]
    unnamed = pose_outcomes(error, error / 2, clip, camera, frame, of_clips["subject"], np.array([0, 0, -1, 0, 1]))
    assert "label" not in unnamed
    assert outcomes["clip"].tolist() == [2, 4, 4] and outcomes["camera"].tolist() == [0, 0, 1]
    assert outcomes["subject"].tolist() == [9, 5, 5] and outcomes["frames"].tolist() == [1, 2, 1]
    assert outcomes["error_sum_mm"].tolist() == pytest.approx([30.004, 1010, 20])
    assert outcomes["p_error_sum_mm"].tolist() == pytest.approx([15.002, 505, 10])
    # Row by row, frames in order; 1000 mm is beyond what a frame's error can say.
    assert outcomes["frame"].tolist() == [0, 5, 7, 3] and outcomes["frame_error"].tolist() == [3000, 65535, 1000, 2000]


def examples(errors, clips):
    """Of poses whose coordinates are their number."""
    number = torch.arange(float(len(errors)))
    places = torch.tensor([[clip, 0, 5] for clip in clips])
    poses = [number[:, None, None].expand(-1, 2, width) + offset for width, offset in ((2, 0), (3, 100), (3, 200))]
    return pose_examples(torch.tensor(errors), places, *poses, bones=[(1, 0)])


def test_examples_are_the_smallest_the_lower_median_and_the_largest_error():
    arrays = examples([4.0, 1.0, 3.0, 2.0], [0, 1, 2, 3])
    assert arrays["example_clip"].tolist() == [1, 3, 0]
    assert arrays["example_input"][:, 0, 0].tolist() == [1, 3, 0]
    assert arrays["example_pose_mm"][:, 1, 2].tolist() == [101, 103, 100]
    assert arrays["example_truth_mm"][:, 1, 2].tolist() == [201, 203, 200]
    assert arrays["example_bones"].tolist() == [[1, 0]] and arrays["example_frame"].tolist() == [5, 5, 5]


def test_of_equal_errors_the_first_clip_is_the_example_whatever_the_order_of_batches():
    arrays = examples([2.0, 1.0, 1.0, 2.0, 2.0], [9, 8, 7, 6, 5])
    assert arrays["example_clip"].tolist() == [7, 5, 5]
    assert arrays["example_pose_mm"][:, 0, 0].tolist() == [102, 104, 104]


def test_errors_that_are_not_finite_are_no_examples():
    nan, inf = float("nan"), float("inf")
    assert examples([nan, 3.0, inf, 1.0], [0, 1, 2, 3])["example_clip"].tolist() == [3, 3, 1]
    assert examples([nan, nan], [0, 1]) == {}


def test_equal_outcomes_are_one_file_and_a_damaged_one_is_refused(tmp_path):
    values = {"b": np.arange(3), "a": np.zeros(2, np.float16)}
    first = save_outcomes(tmp_path / OUTCOMES, values)
    content = (tmp_path / OUTCOMES).read_bytes()
    again = save_outcomes(tmp_path / OUTCOMES, dict(reversed(values.items())))
    assert again == first == hashlib.sha256(content).hexdigest()
    (tmp_path / OUTCOMES).write_bytes(content[:40])
    with pytest.raises(ValueError, match=r"outcomes\.npz: not a file of outcomes"):
        load_outcomes(tmp_path / OUTCOMES)


@pytest.fixture(scope="module")
def run(toy_sets, cache, tmp_path_factory):
    """A tested joint run: its result and its outcomes."""
    out = tmp_path_factory.mktemp("outcomes")
    result = train(toy_config(steps=20), toy_sets, options(out, cache))
    return result, load_outcomes(out / OUTCOMES), hashlib.sha256((out / OUTCOMES).read_bytes()).hexdigest()


@pytest.mark.slow
def test_the_result_names_the_files_hash(run):
    assert run[0].outcomes == run[2]


@pytest.mark.parametrize(("task", "source", "at"), [("ar3d", SOLID, ""), ("ar2d", FLAT, ""), ("eap", SOLID, "@0.5")])
def test_accuracy_is_the_share_of_ranks_of_0_over_the_test_clips_in_their_order(run, toy_sets, task, source, at):
    result, outcomes, _ = run
    clips = ClipSet.open(toy_sets[source])
    test = clips.split(0).test
    assert outcomes[f"{task}/{source}/clip"].tolist() == test.tolist()
    assert outcomes[f"{task}/{source}/subject"].tolist() == clips.subject[test].tolist()
    assert outcomes[f"{task}/{source}/label"].tolist() == clips.label[test].tolist()
    right = outcomes[f"{task}/{source}/predicted{at}"] == clips.label[test]
    assert 100 * right.mean() == pytest.approx(result.metrics[f"test/{task}/top1{at}"])
    assert (right == (outcomes[f"{task}/{source}/rank{at}"] == 0)).all()


def test_mpjpe_is_the_sum_of_errors_over_the_number_of_frames(run):
    result, outcomes, _ = run
    own = {name: outcomes[f"pe/{POSE}/{name}"] for name in ("error_sum_mm", "p_error_sum_mm", "frames", "frame_error")}
    frames = own["frames"].sum()
    assert own["error_sum_mm"].sum() / frames == pytest.approx(result.metrics["test/pe/frames_mpjpe_mm"])
    assert own["p_error_sum_mm"].sum() / frames == pytest.approx(result.metrics["test/pe/frames_p_mpjpe_mm"])
    first = np.cumsum([0, *own["frames"][:-1]])
    whole = np.maximum.reduceat(own["frame_error"], first) < 65535
    assert whole.any()
    of_frames = 0.01 * np.add.reduceat(own["frame_error"].astype(float), first)
    assert of_frames[whole] == pytest.approx(own["error_sum_mm"][whole], abs=0.005 * own["frames"].max())


def test_examples_are_frames_of_the_clip_set_as_the_model_sees_them(run, toy_sets):
    _, outcomes, _ = run
    own = {name.split("/")[2]: values for name, values in outcomes.items() if name.startswith(f"pe/{POSE}/")}
    clips = ClipSet.open(toy_sets[POSE])
    error = np.linalg.norm(own["example_pose_mm"] - own["example_truth_mm"], axis=-1).mean(axis=-1)
    ends = [own["frame_error"].min(), own["frame_error"].max()]
    assert np.minimum(error[[0, 2]], 655.35) == pytest.approx(0.01 * np.array(ends), abs=0.006)
    for place in range(3):
        clip, camera, frame = (int(own[f"example_{name}"][place]) for name in ("clip", "camera", "frame"))
        body_J3 = clips.positions[clips.frames(clips.tracks(clip)[0])][frame]
        view = clips.cameras(clip)[camera]
        relative_J3 = 1000 * (to_camera(body_J3, view) - to_camera(body_J3[:1], view))
        assert own["example_truth_mm"][place] == pytest.approx(relative_J3, abs=0.1)
        width, height = view.wh
        screen_J2 = project(body_J3, view) / width * 2 - [1, height / width]
        assert own["example_input"][place] == pytest.approx(screen_J2, abs=1e-4)
    assert own["example_bones"].shape == (clips.skeleton.joints - 1, 2)
    assert sum(values.nbytes for name, values in own.items() if name.startswith("example")) < 4000
