"""Measures: what a faultless, a partly right and a garbled answer must score, worked out by hand."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import ups_model.evaluation.measure
from tests.support.runs import FLAT, FRONT, POSE, SOLID, make_feed, set_info, write_toy_sets
from ups_model.config import EvalConfig, TaskData
from ups_model.data.batching.batches import Feed, Source
from ups_model.data.format.clip_set import ClipSet
from ups_model.data.format.writer import Clip, Track, write_clip_set
from ups_model.evaluation.measure import measure, mirror_inputs, score
from ups_model.evaluation.metric_names import is_headline, metric_names
from ups_model.model.decoding import ClassAnswer, PoseAnswer
from ups_model.model.vocabulary import Quantiser, Vocabulary
from ups_model.skeletons import SKELETONS

FLIP = SKELETONS["h36m17"].flip.tolist()


class Oracle(nn.Module):
    """Stands where a model would; knows the truth of the batch that is being measured and answers as told."""

    def __init__(self, monkeypatch, datasets=(FLAT, SOLID)):
        super().__init__()
        self.encoder = SimpleNamespace(exit_layer=0)
        self.vocabulary = Vocabulary(tuple((name, ("wave", "kick")) for name in datasets), 20)
        self.quantiser = Quantiser((-2.0, -2.0, -2.0), (2.0, 2.0, 2.0), 20)
        self.label = lambda batch: batch.label_B
        self.pose = lambda batch, inputs: batch.pose_BRJ3.flatten(0, 1)
        self.modes = set()
        evaluate = Feed.evaluate

        def remembered(feed, *args, **kwargs):
            for batch in evaluate(feed, *args, **kwargs):
                self.batch = batch
                yield batch

        monkeypatch.setattr(Feed, "evaluate", remembered)
        monkeypatch.setattr(ups_model.evaluation.measure, "classify", self._classify)
        monkeypatch.setattr(ups_model.evaluation.measure, "estimate_poses", self._estimate)

    def _classify(self, model, inputs, dataset):
        self.modes.add(self.training)
        label_B = self.label(self.batch)
        logits = torch.zeros(len(label_B), 2).scatter(1, label_B[:, None], 1.0)
        return ClassAnswer(logits, label_B + self.vocabulary.class_ids(dataset).start, label_B == 1)

    def _estimate(self, model, inputs, coordinates, decoding):
        self.modes.add(self.training)
        pose_BJ3 = self.pose(self.batch, inputs)
        return PoseAnswer(pose_BJ3, None, torch.full((len(pose_BJ3),), 0.75))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    paths = write_toy_sets(tmp_path_factory.mktemp("sets"))
    return {name: ClipSet.open(path) for name, path in paths.items()}


@pytest.fixture
def oracle(monkeypatch):
    return Oracle(monkeypatch)


def pose_feed(sets, **changes):
    return {"pe": make_feed(sets[POSE], "pe", TaskData(**({"frames": 4, "batch_size": 3} | changes)))}


def test_a_faultless_classifier_scores_100(sets, oracle):
    feeds = {
        "ar2d": make_feed(sets[FLAT], "ar2d", TaskData(frames=4, batch_size=1)),
        "eap": make_feed(sets[SOLID], "eap", TaskData(frames=4)),
    }
    metrics = measure(oracle, feeds, "test", EvalConfig(ratios=(0.2, 0.5)))
    # Of the 4 test clips 2 are "kick", after which the oracle ends its answer.
    assert metrics == {
        "ar2d/top1": 100, "ar2d/free_top1": 100, "ar2d/ended": 50, "ar2d/clips": 4,
        "eap/top1@0.2": 100, "eap/free_top1@0.2": 100, "eap/ended@0.2": 50, "eap/clips": 4,
        "eap/top1@0.5": 100, "eap/free_top1@0.5": 100, "eap/ended@0.5": 50, "eap/top1": 100,
    }  # fmt: skip


def test_accuracy_counts_right_clips_and_early_predictions_top1_is_the_mean_over_ratios(sets, oracle):
    # "wave" is always answered at first, the truth once more than half of the clip is seen.
    calls = itertools.count()
    oracle.label = lambda batch: batch.label_B * (next(calls) > 0)
    feed = {"eap": make_feed(sets[SOLID], "eap", TaskData(frames=4))}
    metrics = measure(oracle, feed, "test", EvalConfig(ratios=(0.2, 0.6)))
    assert (metrics["eap/top1@0.2"], metrics["eap/top1@0.6"], metrics["eap/top1"]) == (50, 100, 75)


def test_the_free_answer_counts_only_where_the_whole_vocabulary_says_the_right_class(sets, oracle, monkeypatch):
    plain = oracle._classify

    def elsewhere(model, inputs, dataset):
        answer = plain(model, inputs, dataset)
        other = (
            answer.free_token_B - oracle.vocabulary.class_ids(dataset).start
        )  # The like-named class of the first set.
        return ClassAnswer(answer.logits_BK, other, answer.ended_B)

    monkeypatch.setattr(ups_model.evaluation.measure, "classify", elsewhere)
    metrics = measure(oracle, {"ar3d": make_feed(sets[SOLID], "ar3d", TaskData(frames=4))}, "test", EvalConfig())
    assert metrics["ar3d/top1"] == 100 and metrics["ar3d/free_top1"] == 0


def test_the_plain_key_is_the_first_sources(sets, monkeypatch, tmp_path):
    rows = [Clip(str(row), (Track(np.zeros((3, 20, 3))),), row % 2, row, row > 0) for row in range(4)]
    clips = write_clip_set(tmp_path / "second", set_info("second", "kinect20"), rows)
    oracle = Oracle(monkeypatch, (SOLID, "second"))
    oracle.label = lambda batch: batch.label_B if batch.source == SOLID else 1 - batch.label_B
    sources = [Source(each, each.split(0), torch.device("cpu")) for each in (sets[SOLID], clips)]
    feed = Feed("ar3d", TaskData((SOLID, "second"), frames=4), sources, 0)
    metrics = measure(oracle, {"ar3d": feed}, "test", EvalConfig())
    assert metrics["ar3d/top1"] == metrics[f"ar3d/{SOLID}/top1"] == 100 and metrics["ar3d/second/top1"] == 0
    assert metrics["ar3d/clips"] == 4 and metrics["ar3d/second/clips"] == 3


def test_a_faultless_pose_has_no_error_and_a_faultless_bin_has_the_floors(sets, oracle):
    metrics = measure(oracle, pose_feed(sets), "test", EvalConfig())
    frames = int(sets[POSE].clip_length[sets[POSE].split(0).test].sum())
    assert metrics["pe/mpjpe_mm"] == metrics["pe/frames_mpjpe_mm"] == metrics["pe/mpjve_mm_per_frame"] == 0
    assert metrics["pe/p_mpjpe_mm"] == pytest.approx(0, abs=1e-3) and metrics["pe/poses"] == 2 * frames
    assert metrics["pe/in_grammar"] == 75 and metrics["pe/clip_rate"] == 0
    oracle.pose = lambda batch, inputs: oracle.quantiser.decode(oracle.quantiser.encode(batch.pose_BRJ3.flatten(0, 1)))
    binned = measure(oracle, pose_feed(sets), "test", EvalConfig())
    assert binned["pe/frames_mpjpe_mm"] == pytest.approx(metrics["pe/floor_mm"], rel=1e-5)
    # Three axes of 200 mm bins, errors uniform within one: about 0.48 bins.
    assert metrics["pe/floor_mm"] == pytest.approx(0.48 * 200, rel=0.1)


def test_coordinates_outside_the_range_are_counted(sets, oracle):
    oracle.quantiser = Quantiser((-2.0, -2.0, -2.0), (2.0, 2.0, 1e-9), 20)
    metrics = measure(oracle, pose_feed(sets), "test", EvalConfig())
    assert 5 < metrics["pe/clip_rate"] < 100 / 3, "only depths behind the root are outside, at most a third of all"


def test_the_headline_error_is_the_mean_over_actions_and_not_over_frames(tmp_path, oracle):
    lengths = {0: (10,), 1: (2, 4)}
    world = np.random.default_rng(0).normal(size=(10, 17, 3)).astype(np.float32)
    rows = [Clip("train", (Track(world),), 0, 0, False, camera_group=0)]
    for label, each in lengths.items():
        for number, frames in enumerate(each):
            rows.append(Clip(f"{label}-{number}", (Track(world[:frames]),), label, 1, True, camera_group=0))
    info = set_info("uneven", "h36m17", up_axis="z", camera_groups=((FRONT,),))
    clips = write_clip_set(tmp_path / "uneven", info, rows)

    def off(batch, inputs):  # 10 mm off in "wave", 40 mm in "kick", at every joint.
        error_B = torch.tensor([0.01, 0.04])[batch.label_B].repeat_interleave(batch.frame_BR.shape[1])
        return batch.pose_BRJ3.flatten(0, 1) + error_B[:, None, None] * torch.tensor([0.0, 0.6, 0.8])

    oracle.pose = off
    feed = {"pe": make_feed(clips, "pe", TaskData(frames=4, batch_size=1))}
    metrics = measure(oracle, feed, "test", EvalConfig())
    assert metrics["pe/mpjpe_mm/wave"] == pytest.approx(10, rel=1e-4)
    assert metrics["pe/mpjpe_mm/kick"] == pytest.approx(40, rel=1e-4)
    assert metrics["pe/mpjpe_mm"] == pytest.approx(25, rel=1e-4)
    assert metrics["pe/frames_mpjpe_mm"] == pytest.approx((10 * 10 + 6 * 40) / 16, rel=1e-4)
    # A constant error of a clip has no velocity.
    assert metrics["pe/mpjve_mm_per_frame"] == pytest.approx(0, abs=1e-3)
    assert metrics["pe/p_mpjpe_mm"] == pytest.approx(0, abs=1e-3)


def test_frames_past_a_clips_end_are_not_counted(sets, oracle):
    def garbled(batch, inputs):
        pose_BJ3 = batch.pose_BRJ3.flatten(0, 1).clone()
        pose_BJ3[batch.frame_BR.flatten() < 0] = math.nan
        return pose_BJ3

    oracle.pose = garbled
    metrics = measure(oracle, pose_feed(sets, evaluate_targets=4, frames=5), "test", EvalConfig())
    assert metrics["pe/mpjpe_mm"] == 0
    assert metrics["pe/poses"] == 2 * int(sets[POSE].clip_length[sets[POSE].split(0).test].sum())


@pytest.mark.parametrize(
    ("frame_stride", "evaluate_targets", "evaluate_stride"), [(1, 1, 1), (2, 3, 1), (1, 4, 2), (2, 4, 2), (2, 4, 4)]
)
def test_velocity_is_measured_in_frame_order_and_only_where_every_frame_is_predicted(
    sets, oracle, frame_stride, evaluate_targets, evaluate_stride
):
    def drifting(batch, inputs):  # 5 mm a frame, and a constant that differs between clips and cameras.
        frame_B = batch.frame_BR.flatten()
        repeats = batch.frame_BR.shape[1]
        start_B = (3 * batch.clip_B + 7 * batch.camera_B).repeat_interleave(repeats)
        return batch.pose_BRJ3.flatten(0, 1) + 0.001 * (5 * frame_B + 100 * start_B)[:, None, None] * torch.eye(3)[0]

    oracle.pose = drifting
    feed = pose_feed(
        sets, frame_stride=frame_stride, evaluate_targets=evaluate_targets, evaluate_stride=evaluate_stride
    )
    metrics = measure(oracle, feed, "test", EvalConfig())
    if evaluate_stride == 1:
        assert metrics["pe/mpjve_mm_per_frame"] == pytest.approx(5, rel=1e-3)
        of_actions = [value for name, value in metrics.items() if name.startswith("pe/mpjve_mm_per_frame/")]
        assert of_actions == pytest.approx([5] * len(of_actions), rel=1e-3) and of_actions
    else:
        assert "pe/mpjve_mm_per_frame" not in metrics


def test_an_action_of_single_frames_has_no_velocity_and_the_others_have_theirs(tmp_path, oracle):
    world = np.random.default_rng(0).normal(size=(4, 17, 3)).astype(np.float32)
    info = set_info("still", "h36m17", up_axis="z", camera_groups=((FRONT,),), classes=("move", "stand"))

    def measured(lengths):
        rows = [Clip("train", (Track(world),), 0, 0, False, camera_group=0)]
        for label, frames in enumerate(lengths):
            rows.append(Clip(f"{label}", (Track(world[:frames]),), label, 1, True, camera_group=0))
        clips = write_clip_set(tmp_path / str(lengths[0]), info, rows)
        metrics = measure(oracle, {"pe": make_feed(clips, "pe", TaskData(frames=4))}, "test", EvalConfig())
        return sorted(name for name in metrics if "mpjve" in name)

    assert measured((4, 1)) == ["pe/mpjve_mm_per_frame", "pe/mpjve_mm_per_frame/move"]
    assert measured((1, 1)) == []


def test_errors_of_an_action_and_of_all_have_standard_errors_over_clips(sets, oracle):
    def off(batch, inputs):
        shift_B = 0.01 * (batch.clip_B + 1).repeat_interleave(batch.frame_BR.shape[1])
        return batch.pose_BRJ3.flatten(0, 1) + shift_B[:, None, None] * torch.tensor([0.0, 1.0, 0.0])

    oracle.pose = off
    metrics = measure(oracle, pose_feed(sets), "test", EvalConfig())
    # Clips 0 and 2, of 14 and 16 frames, wave and err by 10 and 30 mm; 1 and 3, of 15 and 17, kick, by 20 and 40 mm.
    assert metrics["pe/mpjpe_mm/wave"] == pytest.approx((14 * 10 + 16 * 30) / 30, rel=1e-3)
    assert metrics["pe/mpjpe_mm/kick"] == pytest.approx((15 * 20 + 17 * 40) / 32, rel=1e-3)
    assert metrics["pe/mpjpe_mm/wave_se"] == pytest.approx(10, rel=1e-3)
    assert metrics["pe/mpjpe_mm/kick_se"] == pytest.approx(10, rel=1e-3)
    assert metrics["pe/mpjpe_mm_se"] == pytest.approx(np.std([10, 20, 30, 40], ddof=1) / 2, rel=1e-3)


def test_flip_averaging_puts_the_mirrored_answer_back(sets, oracle):
    def seen(batch, inputs):
        pose_BJ3 = batch.pose_BRJ3.flatten(0, 1)
        if torch.equal(inputs.pose_BPNSC, batch.inputs.pose_BPNSC):
            return pose_BJ3 + torch.tensor([0.02, 0.0, 0.0])
        assert torch.equal(mirror_inputs(inputs).pose_BPNSC, batch.inputs.pose_BPNSC)
        # What a faultless model says of the mirrored window, off to the same side of the image as before.
        return pose_BJ3[:, FLIP] * torch.tensor([-1.0, 1.0, 1.0]) + torch.tensor([0.02, 0.0, 0.0])

    oracle.pose = seen
    assert measure(oracle, pose_feed(sets), "test", EvalConfig())["pe/frames_mpjpe_mm"] == pytest.approx(20, rel=1e-3)
    flipped = measure(oracle, pose_feed(sets), "test", EvalConfig(flip=True))
    assert flipped["pe/frames_mpjpe_mm"] == pytest.approx(0, abs=1e-3) and flipped["pe/in_grammar"] == 75


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_measured_in_evaluation_mode_and_left_in_the_mode_it_was_in(sets, oracle, training):
    oracle.train(training)
    measure(oracle, pose_feed(sets), "test", EvalConfig())
    assert oracle.modes == {False} and oracle.training == training
    oracle.pose = lambda batch, inputs: pytest.fail("told to")
    with pytest.raises(pytest.fail.Exception):
        measure(oracle, pose_feed(sets), "test", EvalConfig())
    assert oracle.training == training


def test_an_empty_part_is_an_error_and_not_a_score(sets, oracle):
    for feeds in (pose_feed(sets), {"ar3d": make_feed(sets[SOLID], "ar3d", TaskData(frames=4))}):
        with pytest.raises(ValueError, match="validation split must have clips, got none in 'toy_"):
            measure(oracle, feeds, "validation", EvalConfig())


def test_the_score_is_the_mean_share_solved():
    metrics = {"pe/mpjpe_mm": 50.0, "ar2d/top1": 40.0, "eap/top1": 60.0, "ar3d/top1": 90.0}
    # Of 200 mm, 50 mm are left: 75 % solved.
    assert score(metrics, ("pe", "ar2d", "eap", "ar3d"), 200.0) == pytest.approx((75 + 40 + 60 + 90) / 4)
    assert score(metrics, ("pe",), 25.0) == pytest.approx(-100)


def test_headlines_are_the_measures_a_table_shows():
    assert [
        name
        for name in (
            "pe/mpjpe_mm", "pe/mpjpe_mm/Sitting", "pe/frames_mpjpe_mm", "ar2d/top1", "ar2d/free_top1", "ar2d/clips",
            "eap/top1@0.2", "ar3d/other/top1",
        )
        if is_headline(name)
    ] == ["pe/mpjpe_mm", "ar2d/top1", "eap/top1@0.2"]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "name", "changes"),
    [
        ("ar2d", FLAT, {}),
        ("eap", SOLID, {}),
        ("ar3d", SOLID, {}),
        ("pe", POSE, {}),
        ("pe", POSE, {"evaluate_stride": 2}),
    ],
    ids=["ar2d", "eap", "ar3d", "pe", "pe thinned"],
)
def test_the_names_told_beforehand_are_those_that_are_measured(sets, oracle, task, name, changes):
    data = TaskData(frames=4, batch_size=3, evaluate_targets=2, **changes)
    config = EvalConfig(ratios=(0.2, 0.5))
    metrics = measure(oracle, {task: make_feed(sets[name], task, data)}, "test", config)
    assert sorted(metric_names(task, data, config, sets[name].info.classes)) == sorted(metrics)
