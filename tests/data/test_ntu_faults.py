"""NTU RGB+D: what the names of rows rest on, and what is no fault of a recording's content."""

import itertools

import numpy as np
import pytest

from tests.data.writers_ntu import padded_row, write_arrays
from ups_model.data import ntu

# Everybody does all of the actions before every camera, as in the published set but for its missing skeletons.
COMPLETE = [
    f"S{s:03d}C{c:03d}P{p:03d}R001A{a:03d}"
    for s, c, p, a in itertools.product((1, 2), (1, 2, 3), (1, 2, 3, 6), range(1, 61))
]


def _pose(name):
    """A body that tells its name: setup, camera and performer by where it stands, in metres."""
    return np.full((1, 25, 3), (int(name[1:4]), int(name[5:8]), int(name[9:12])), dtype=np.float32)


def _complete(folder, names, order):
    rows = {"train": [], "test": []}
    for name in sorted(names, key=order):
        part = "train" if name[8:12] in ("P001", "P002") else "test"
        rows[part].append((int(name[-3:]) - 1, padded_row([(0, _pose(name))], 1)))
    write_arrays(folder / "NTU60_CS.npz", rows["train"], rows["test"], 60)
    (folder / "skes_available_name.txt").write_text("\n".join(names))


def _as_listed(name):
    return 0


def _by_performer(name):
    return name[8:12]


@pytest.mark.parametrize("order", [_as_listed, _by_performer])
def test_rows_whose_labels_fit_both_orders_are_refused_with_the_two_names_of_one(tmp_path, order):
    _complete(tmp_path, COMPLETE, order)
    # Row 60 of the training part, by the list: performer 2 after the 60 actions of performer 1; else camera 2.
    with pytest.raises(
        ValueError,
        match=r"\[y_train\]: the labels do not tell in which order the rows are; .* row 60 is S001C001P002R001A001, or "
        "S001C002P001R001A001 if rows go performer by performer; move the list away",
    ):
        ntu.reading("ntu60", tmp_path)


@pytest.mark.parametrize("order", [_as_listed, _by_performer])
def test_one_missing_recording_tells_the_order_of_both_parts(tmp_path, order):
    # The labels of the test part fit both orders still; those of the training part do not.
    names = [name for name in COMPLETE if name != "S001C002P001R001A007"]
    _complete(tmp_path, names, order)
    reading = ntu.reading("ntu60", tmp_path)
    clips = [clip for job in reading.jobs for clip in job.read()]
    assert {clip.clip_id for clip in clips} == set(names) and len(clips) == 1439
    assert all(np.array_equal(clip.tracks[0].positions, _pose(clip.clip_id)) for clip in clips)


def test_two_orders_that_are_one_are_no_question(tmp_path):
    names = [name for name in COMPLETE if name[:8] == "S001C001"]
    _complete(tmp_path, names, _as_listed)
    clips = [clip for job in ntu.reading("ntu60", tmp_path).jobs for clip in job.read()]
    assert sorted(clip.clip_id for clip in clips) == names
