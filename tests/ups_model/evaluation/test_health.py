"""Health: hand-worked gains and verdicts, and what a trained run leaves of it."""

import json

import numpy as np
import pytest

from tests.support.runs import POSE, options, toy_config
from ups_model.data.format.clip_set import ClipSet, to_camera
from ups_model.evaluation.health import TaskHealth, check_health, curve_steps, health_line, judge
from ups_model.training.loop import train
from ups_model.training.progress import read_rows


def top1(*values, trivial=20.0):
    return TaskHealth("ar3d/top1", trivial, tuple((10 * (k + 1), value) for k, value in enumerate(values)))


def test_the_gain_is_the_share_of_the_way_from_the_trivial_answer_to_a_perfect_one():
    assert top1(20, 60, 100).gains == pytest.approx((0, 0.5, 1))
    # 160 mm is nothing, 40 mm three quarters of the way to 0 mm; worse than the mean pose is below 0.
    assert TaskHealth("pe/mpjpe_mm", 160, ((1, 160), (2, 40), (3, 176))).gains == pytest.approx((0, 0.75, -0.1))


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ((20, 60, 80, 90, 91), "converged"),  # The last fifth gained 1 / 80.
        ((20, 40, 60, 80, 90), "not converged"),  # It gained 10 / 80.
        ((20, 21, 22, 23, 25), "not learnt"),  # 5 / 80 of the way.
        ((20, 20, 20, 20, 22), "collapsed"),  # 2 / 80: no better than the trivial answer.
        ((20, 60, 80, 90, 50), "collapsed"),  # 30 / 80, less than half of the 70 / 80 that it had.
        ((20, 60, 80, 90, 58), "not converged"),  # 38 / 80, more than half, but far below the best.
        ((20, 60, 80, 90, 88), "converged"),  # 2 / 80 below the best.
        ((90,), "learnt"),  # One point tells nothing of convergence.
    ],
)
def test_a_curve_has_one_of_five_states(values, state):
    assert top1(*values).state == state


def test_with_one_class_alone_there_is_nothing_to_gain_and_a_perfect_run_has_not_collapsed():
    assert top1(100, 100, trivial=100.0).state == "converged"
    assert top1(100, 50, trivial=100.0).state == "collapsed"


@pytest.mark.parametrize("damage", [[], "x", {}, {"curve": []}, {"trivial": "much"}, {"metric": 5}, {"curve": [[1]]}])
def test_health_that_is_none_is_refused(damage):
    plain = damage if not isinstance(damage, dict) or not damage else {**top1(20, 60).to_plain(), **damage}
    with pytest.raises(ValueError, match="health of a task"):
        check_health(plain)
    check_health(top1(20, 60).to_plain())


def test_a_run_worse_than_the_mean_pose_has_collapsed():
    assert TaskHealth("pe/mpjpe_mm", 162, ((1, 170), (2, 165))).collapsed


def test_curves_are_measured_at_every_fifth_of_a_run_and_once_a_step_in_a_short_one():
    assert curve_steps(480) == (96, 192, 288, 384, 480)
    assert curve_steps(3) == (1, 2, 3)
    assert curve_steps(1) == (1,)


def test_plain_data_and_back_is_the_same_health():
    health = top1(20, 60, 90)
    plain = json.loads(json.dumps(health.to_plain()))
    assert TaskHealth.from_plain(plain) == health
    assert {name: plain[name] for name in ("learnt", "converged", "collapsed")} == {
        "learnt": True,
        "converged": False,
        "collapsed": False,
    }


def test_tasks_without_a_curve_are_not_judged():
    curve = {5: {"ar3d/top1": 50.0}, 10: {"ar3d/top1": 90.0}}
    health = judge(curve, {"ar3d/top1": 20.0, "pe/mpjpe_mm": 160.0})
    assert list(health) == ["ar3d"] and health_line(health) == "ar3d not converged"
    assert judge({}, {"ar3d/top1": 20.0}) == {}


@pytest.mark.slow
def test_a_run_leaves_the_curve_of_every_task_the_same_after_a_stop(toy_sets, cache, tmp_path):
    config = toy_config(steps=20, validation_subjects=1)
    whole = train(config, toy_sets, options(tmp_path / "whole", cache))
    answers = iter([False] * 9 + [True])
    train(config, toy_sets, options(tmp_path / "cut", cache), should_stop=lambda: next(answers))
    cut = train(config, toy_sets, options(tmp_path / "cut", cache))
    assert whole.health == cut.health and list(whole.health) == ["pe", "ar2d", "eap", "ar3d"]
    assert [step for step, _ in whole.health["ar3d"]["curve"]] == [4, 8, 12, 16, 20]
    # Two classes, two clips of each: half of them are of one class.
    assert whole.health["ar3d"]["trivial"] == 50
    assert whole.health["pe"]["trivial"] == pytest.approx(mean_pose_by_hand(toy_sets[POSE]), abs=1e-3)
    rows = [row for row in read_rows(tmp_path / "whole" / "progress.jsonl") if "curve/ar3d/top1" in row]
    assert [[row["step"], row["curve/ar3d/top1"]] for row in rows] == whole.health["ar3d"]["curve"]


def mean_pose_by_hand(folder):
    """MPJPE in mm of the mean training pose, in camera axes with the root at 0, on the validation clips."""
    clips = ClipSet.open(folder)
    split = clips.split(1)

    def poses(rows):
        for row in rows:
            for camera in clips.cameras(row):
                pose_NJ3 = to_camera(clips.clip(row)[0][1].astype(np.float64), camera)
                yield pose_NJ3 - pose_NJ3[:, :1]

    mean_J3 = np.concatenate(list(poses(split.train))).mean(axis=0)
    error_NJ3 = np.concatenate(list(poses(split.validation))) - mean_J3
    return 1000 * np.linalg.norm(error_NJ3, axis=-1).mean()


def test_nothing_is_judged_where_no_subject_is_held_out(toy_sets, cache, tmp_path):
    assert train(toy_config(validation_subjects=0), toy_sets, options(tmp_path, cache)).health == {}
