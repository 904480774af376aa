"""Outcomes: every metric can be made from them again, row by row of the clip set."""

import hashlib

import numpy as np
import pytest
import torch

from tests.support.runs import FLAT, POSE, SOLID, options, toy_config
from ups_model.data.format.clip_set import ClipSet
from ups_model.evaluation.metric_names import OUTCOMES
from ups_model.evaluation.metrics import topk_accuracy
from ups_model.evaluation.outcomes import class_outcomes, load_outcomes, pose_outcomes, save_outcomes
from ups_model.training.loop import train


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
    outcomes = pose_outcomes(error, error / 2, clip, camera, frame, subject=np.array([0, 0, 9, 0, 5]))
    assert outcomes["clip"].tolist() == [2, 4, 4] and outcomes["camera"].tolist() == [0, 0, 1]
    assert outcomes["subject"].tolist() == [9, 5, 5] and outcomes["frames"].tolist() == [1, 2, 1]
    assert outcomes["error_sum_mm"].tolist() == pytest.approx([30.004, 1010, 20])
    assert outcomes["p_error_sum_mm"].tolist() == pytest.approx([15.002, 505, 10])
    # Row by row, frames in order; 1000 mm is beyond what a frame's error can say.
    assert outcomes["frame"].tolist() == [0, 5, 7, 3] and outcomes["frame_error"].tolist() == [3000, 65535, 1000, 2000]


def test_equal_outcomes_are_one_file_and_a_damaged_one_is_refused(tmp_path):
    values = {"b": np.arange(3), "a": np.zeros(2, np.float16)}
    first = save_outcomes(tmp_path, values)
    content = (tmp_path / OUTCOMES).read_bytes()
    assert save_outcomes(tmp_path, dict(reversed(values.items()))) == first == hashlib.sha256(content).hexdigest()
    (tmp_path / OUTCOMES).write_bytes(content[:40])
    with pytest.raises(ValueError, match=r"outcomes\.npz: not a file of outcomes"):
        load_outcomes(tmp_path / OUTCOMES)


@pytest.fixture(scope="module")
def run(toy_sets, cache, tmp_path_factory):
    """A tested joint run: its result and its outcomes."""
    out = tmp_path_factory.mktemp("outcomes")
    result = train(toy_config(steps=20), toy_sets, options(out, cache))
    return result, load_outcomes(out / OUTCOMES), hashlib.sha256((out / OUTCOMES).read_bytes()).hexdigest()


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
