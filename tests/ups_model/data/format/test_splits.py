"""Subjects are split, never frames; and what one task is tested on no task is trained on."""

from dataclasses import replace

import numpy as np
import pytest

from ups_model.data.format.clip_set import ClipSetInfo, Split
from ups_model.data.format.splits import check_no_leak, without_leaks
from ups_model.data.format.writer import Clip, Track, write_clip_set

INFO = ClipSetInfo(
    name="toy",
    skeleton="jhmdb15",
    dims=2,
    fps=30,
    units="normalised",
    up_axis="-y",
    licence="none",
    classes=("a", "b"),
    synthetic=True,
    description="synthetic: a toy",
)
TRACKS = (Track(np.zeros((1, 15, 2))),)


def _toy(path, info=INFO, subjects=10, clips_each=6, with_subjects=True):
    """Subjects from 0; odd ones are for testing by default, the upper half by protocol "upper"."""
    rows = [(subject, clip) for subject in range(subjects) for clip in range(clips_each)]
    return write_clip_set(
        path,
        info,
        (
            Clip(
                f"s{subject}c{clip}",
                TRACKS,
                label=clip % 2,
                subject=subject if with_subjects else -1,
                split_test=subject % 2 == 1,
                extra={"split_test_upper": int(subject >= subjects // 2), "split_test_none": 0},
            )
            for subject, clip in rows
        ),
    )


def test_validation_subjects_are_whole_training_subjects(tmp_path):
    clips = _toy(tmp_path / "toy")
    split = clips.split(validation_subjects=2)
    parts = [set(clips.subject[part].tolist()) for part in (split.train, split.validation, split.test)]
    assert [len(part) for part in parts] == [3, 2, 5] and parts[2] == {1, 3, 5, 7, 9}
    everything = np.concatenate([split.train, split.validation, split.test])
    assert np.sort(everything).tolist() == list(range(60))


def test_folds_hold_out_other_subjects_until_all_have_had_their_turn(tmp_path):
    clips = _toy(tmp_path / "toy")  # Training subjects 0, 2, 4, 6, 8.
    held_out = [set(clips.subject[clips.split(1, fold=fold).validation].tolist()) for fold in range(5)]
    assert set.union(*held_out) == {0, 2, 4, 6, 8} and all(len(one) == 1 for one in held_out)
    assert set(clips.subject[clips.split(1, fold=5).validation].tolist()) == held_out[0]
    two = clips.split(2, fold=1)
    assert set(clips.subject[two.validation].tolist()) == held_out[2] | held_out[3]


def test_clips_of_one_group_are_never_parted(tmp_path):
    # Without subjects; 12 training clips of each label in groups of 4.
    rows = [Clip(f"c{i}", TRACKS, label=i % 2, subject=-1, extra={"group": i // 8}) for i in range(24)]
    rows += [Clip("test", TRACKS, label=0, subject=-1, split_test=True, extra={"group": 9})]
    clips = write_clip_set(tmp_path / "toy", INFO, rows)
    group = clips.extra["group"]
    seen = []
    for fold in range(3):
        split = clips.split(validation_subjects=2, fold=fold)  # A fifth of 12 is 2 clips, so one group of 4.
        for label in (0, 1):
            validation = split.validation[clips.label[split.validation] == label]
            train = split.train[clips.label[split.train] == label]
            assert len(validation) == 4 and not set(group[validation]) & set(group[train])
        seen += [
            (int(label), int(one))
            for label, one in zip(clips.label[split.validation], group[split.validation], strict=True)
        ]
    assert len(set(seen)) == 6  # Three groups of two labels, each held out by one fold.


def test_a_large_group_stays_in_training_and_of_two_groups_one_is_held_out(tmp_path):
    # Label 0: groups of 1 and 9 clips; label 1: ten single clips. A fifth of ten is two.
    rows = [Clip(f"a{i}", TRACKS, label=0, subject=-1, extra={"group": min(i, 1)}) for i in range(10)]
    rows += [Clip(f"b{i}", TRACKS, label=1, subject=-1, extra={"group": 10 + i}) for i in range(10)]
    rows += [Clip("test", TRACKS, label=0, subject=-1, split_test=True, extra={"group": 99})]
    clips = write_clip_set(tmp_path / "toy", INFO, rows)
    for fold in range(3):
        split = clips.split(validation_subjects=2, fold=fold)
        counts = np.bincount(clips.label[split.validation], minlength=2)
        assert counts.tolist() == [1, 2]


def test_a_set_whose_classes_are_one_group_each_can_hold_out_nothing_and_says_so(tmp_path):
    rows = [Clip(f"c{i}", TRACKS, label=i % 2, subject=-1, extra={"group": i % 2}) for i in range(8)]
    rows += [Clip("test", TRACKS, label=0, subject=-1, split_test=True, extra={"group": 9})]
    clips = write_clip_set(tmp_path / "toy", INFO, rows)
    with pytest.raises(ValueError, match="can be held out, for every class is one group"):
        clips.split(validation_subjects=1)
    assert not len(clips.split(0).validation)


def test_validation_subjects_depend_on_seed_and_set_and_on_no_global_state(tmp_path):
    clips = _toy(tmp_path / "toy", subjects=40)
    np.random.seed(1)
    first = clips.split(3, seed=5)
    np.random.seed(2)
    again = clips.split(3, seed=5)
    assert np.array_equal(first.validation, again.validation)
    other_set = _toy(tmp_path / "other", info=replace(INFO, name="other"), subjects=40)
    assert not np.array_equal(first.validation, clips.split(3, seed=6).validation)
    assert not np.array_equal(first.validation, other_set.split(3, seed=5).validation)


def test_no_validation_subjects_give_an_empty_validation_part(tmp_path):
    split = _toy(tmp_path / "toy").split(0)
    assert len(split.validation) == 0 and split.validation.dtype == np.int64 and len(split.train) == 30


def test_without_subjects_a_share_of_every_label_is_held_out(tmp_path):
    clips = _toy(tmp_path / "toy", with_subjects=False)
    split = clips.split(validation_subjects=2)
    assert np.bincount(clips.label[split.validation]).tolist() == [3, 3]  # 20 % of 15 training clips of each label
    assert len(set(split.train) & set(split.validation)) == 0 and len(split.train) == 24


def test_a_named_protocol_uses_its_column(tmp_path):
    clips = _toy(tmp_path / "toy")
    split = clips.split(1, protocol="upper")
    assert set(clips.subject[split.test].tolist()) == {5, 6, 7, 8, 9}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation_subjects": 5}, "must be below the 5 training subjects"),
        ({"validation_subjects": -1}, "must be >= 0, got -1"),
        ({"validation_subjects": 1, "protocol": "uper"}, "no protocol 'uper'; it has default, none, upper"),
        ({"validation_subjects": 1, "protocol": "none"}, "leaves no test clips"),
    ],
)
def test_impossible_splits_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        _toy(tmp_path / "toy").split(**arguments)


def test_a_clip_tested_by_one_task_and_trained_on_by_another_is_named(tmp_path):
    small = _toy(tmp_path / "small", info=replace(INFO, name="small", origin="shared"))
    large = _toy(tmp_path / "large", info=replace(INFO, name="large", origin="shared"), subjects=20)
    tasks = [(small, small.split(0)), (large, large.split(0, protocol="upper"))]
    with pytest.raises(ValueError, match=r"must not be in a training split: shared/s1c0 is trained on in large.*small"):
        check_no_leak(tasks)
    kept = without_leaks(tasks)
    check_no_leak([(clips, split) for (clips, _), split in zip(tasks, kept, strict=True)])
    assert len(kept[0].train) == 30 and len(kept[1].train) == 30  # large: subjects 0..9 without 1, 3, 5, 7, 9
    assert np.array_equal(kept[1].test, tasks[1][1].test)


def test_a_clip_validated_on_by_one_task_and_trained_on_by_another_is_a_leak_too(tmp_path):
    clips = _toy(tmp_path / "toy")
    with pytest.raises(ValueError, match="is in the validation split of toy"):
        check_no_leak([(clips, clips.split(1)), (clips, clips.split(0))])


def test_equal_ids_of_different_origins_are_different_clips(tmp_path):
    one, two = (
        _toy(tmp_path / "one", info=replace(INFO, name="one")),
        _toy(tmp_path / "two", info=replace(INFO, name="two")),
    )
    check_no_leak([(one, one.split(1)), (two, two.split(0, protocol="upper"))])


def test_a_task_left_without_training_clips_is_refused(tmp_path):
    clips = _toy(tmp_path / "toy")
    swapped = Split(clips.split(0).test, np.array([], dtype=np.int64), clips.split(0).train)
    with pytest.raises(ValueError, match="every training clip is in a validation or test split"):
        without_leaks([(clips, clips.split(0)), (clips, swapped)])
