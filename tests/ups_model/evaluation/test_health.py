"""Health: hand-worked gains and verdicts, and what a trained run leaves of it."""

import json

import numpy as np
import pytest

from tests.support.runs import POSE, options, toy_config
from ups_model.data.format.clip_set import ClipSet, to_camera
from ups_model.evaluation.health import (
    TaskHealth,
    check_health,
    curve_steps,
    health_line,
    judge,
    read_health,
    states_together,
)
from ups_model.training.progress import read_rows
from ups_model.training.run import train


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


@pytest.mark.parametrize(
    "damage", [[], "x", {}, {"curve": []}, {"trivial": "much"}, {"metric": 5}, {"curve": [[1]]}, {"clips": 0}]
)
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


def of_clips(clips, *counts, trivial=12.0):
    """An accuracy over so many clips, of which these counts are right, rounded as records have it."""
    curve = tuple((k + 1, round(100 * count / clips, 4)) for k, count in enumerate(counts))
    return TaskHealth("ar2d/top1", round(trivial, 4), curve, clips=clips)


@pytest.mark.parametrize(
    ("clips", "counts", "state"),
    [
        (50, (30, 38, 41, 41, 43), "converged"),  # Two clips are four points, and chance.
        (50, (30, 38, 38, 38, 43), "converged"),  # Five more: all the changes to one side, one case of 16.
        (50, (30, 38, 37, 37, 43), "not converged"),  # Six more: one of 32.
        (50, (30, 43, 41, 41, 38), "converged"),
        (51, (10, 14, 16, 17, 22), "converged"),
        (61, (10, 14, 16, 17, 23), "not converged"),
        (50, (30, 44, 41, 41, 38), "not converged"),
        (5000, (3000, 3800, 4000, 4000, 4087), "converged"),  # 1.76 points are 2 % of the way: many clips show it.
        (5000, (3000, 3800, 4000, 4000, 4088), "not converged"),
    ],
)
def test_a_change_of_five_clips_or_fewer_is_chance(clips, counts, state):
    assert of_clips(clips, *counts).state == state


def test_what_chance_may_do_in_each_run_it_does_not_do_in_all():
    rising = of_clips(50, 30, 36, 38, 38, 42)
    still = of_clips(50, 30, 40, 41, 42, 42)
    assert states_together([rising]) == ["converged"]
    # Twelve clips of 150 more: together they had not converged, whichever of them rose by 2 % of the way.
    assert states_together([rising] * 3) == ["not converged"] * 3
    # Eight: 5.3 points, more than five clips of 150.
    assert states_together([rising, rising, still]) == ["not converged", "not converged", "converged"]
    # Four: fewer than five.
    assert states_together([rising, still, still]) == ["converged"] * 3
    collapsed = of_clips(50, 30, 38, 38, 38, 8)
    assert states_together([rising, still, still, collapsed])[-1] == "collapsed"
    # Of a large run and a small one every clip counts the same: 3 of 550 more.
    assert states_together([of_clips(50, 30, 40, 40, 43), of_clips(500, 300, 400, 410, 410)]) == ["converged"] * 2
    assert states_together([rising, of_clips(5000, 3000, 3900, 4000, 4000, 4100)]) == ["not converged"] * 2
    lifted = TaskHealth("pe/mpjpe_mm", 160, ((1, 80), (2, 60), (3, 56)))
    assert states_together([lifted] * 2) == ["not converged"] * 2  # As each alone: 4 mm of 160.


def test_together_runs_are_judged_right_far_more_often_than_one_by_one():
    """Three seeds of 50 clips, a tenth of which change their answer between two measurements."""
    random = np.random.default_rng(0)

    def share(rise, judged):
        """Of 400 arms, those with a run that counts as not converged."""
        hits = 0
        for _ in range(400):
            counts = 42 - rise + random.binomial(5, 0.5, (3, 1)) - random.binomial(5, 0.5, (3, 1))
            ends = counts[:, 0] + random.binomial(5, 0.5, 3) - random.binomial(5, 0.5, 3) + rise
            runs = [of_clips(50, 25, 32, 36, before, after) for before, after in zip(counts[:, 0], ends, strict=True)]
            hits += "not converged" in judged(runs)
        return hits / 400

    def plainly(runs):
        return [TaskHealth.from_plain(run.to_plain() | {"clips": None}).state for run in runs]

    assert share(0, plainly) > 0.5  # Nothing improves, and yet most arms would count as not converged.
    assert share(0, states_together) < 0.2
    assert share(4, states_together) > 0.9  # Four clips of 50 in each run: eight points.


def test_the_clips_of_a_curve_come_from_the_record_s_metrics():
    plain = {"ar2d": TaskHealth("ar2d/top1", 12.0, ((1, 80.0), (2, 84.0))).to_plain()}
    assert read_health(plain, {})["ar2d"].clips is None
    assert read_health(plain, {"validation/ar2d/clips": 50.0})["ar2d"].clips == 50
    # On part of many clips: windows of four poses, as in 45 of 64 and 38 of 64.
    part = {"action": TaskHealth("action/top1", 12.0, ((1, 70.3125), (2, 59.375))).to_plain()}
    assert read_health(part, {"validation/action/clips": 704.0})["action"].clips == 64
    other = {"action": TaskHealth("action/top1", 12.0, ((1, 70.31), (2, 59.37))).to_plain()}
    assert read_health(other, {"validation/action/clips": 704.0})["action"].clips == 256
    few = {"ar3d": TaskHealth("ar3d/top1", 12.0, ((1, 50.0), (2, 100 * 203 / 256))).to_plain()}
    assert read_health(few, {"validation/ar3d/clips": 704.0})["ar3d"].clips == 256
    own = {"fit": TaskHealth("fit/r2", 0.0, ((1, 0.5), (2, 0.58)), perfect=1.0).to_plain()}
    assert read_health(own, {"validation/fit/clips": 0.0})["fit"].clips is None
    pose = {"pe": TaskHealth("pe/mpjpe_mm", 160.0, ((1, 80.0), (2, 50.0))).to_plain()}
    assert read_health(pose, {"validation/pe/clips": 50.0})["pe"].clips is None


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
    assert list(health) == ["ar3d"] and health_line(health, {}) == "ar3d not converged"
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
