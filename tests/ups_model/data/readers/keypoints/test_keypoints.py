"""Keypoint files of every format: the same coordinates, persons kept apart, sizes and rates, and whole sets."""

import math
import zipfile

import numpy as np
import pytest

from tests.support.writers_own import (
    coco_results,
    landmarks_of,
    mediapipe_frames,
    mmpose_frames,
    person_2d,
    write_json,
    write_keypoint_arrays,
    write_text,
)
from ups_model.data.prepare.runner import prepare_reading, read_left_out
from ups_model.data.readers.keypoints import reader as keypoints
from ups_model.data.readers.keypoints.tracks import associate, distances

POSES = person_2d(6, seed=1)
SCORES = np.linspace(0.2, 0.9, 6 * 17).reshape(6, 17)
ONE = [[(pose, score)] for pose, score in zip(POSES, SCORES, strict=True)]
SIZE = {"width": 1280, "height": 720}


def formats(folder):
    """One person in every format, each with its size known."""
    arrays = np.concatenate([POSES, SCORES[..., None]], axis=-1)
    landmarks = [landmarks_of(pose / (1280, 720), score) for pose, score in zip(POSES, SCORES, strict=True)]
    return {
        "mmpose": write_json(folder / "mmpose.json", mmpose_frames(ONE)),
        "mmpose_meta": write_json(
            folder / "mmpose_meta.json",
            {"meta_info": {"dataset_name": "coco", **SIZE}, "instance_info": mmpose_frames(ONE)},
        ),
        "coco_int": write_json(folder / "coco_int.json", coco_results(ONE, "{}", number=True)),
        "coco_text": write_json(folder / "coco_text.json", coco_results(ONE, "video_{:06d}.jpg")),
        "mediapipe": write_json(folder / "mediapipe.json", {"frames": mediapipe_frames(landmarks), "fps": 30, **SIZE}),
        "mediapipe_plain": write_json(folder / "mediapipe_plain.json", {"frames": landmarks, **SIZE}),
        "mediapipe_tasks": write_json(
            folder / "tasks.json", {"frames": [{"pose_landmarks": [x]} for x in landmarks], **SIZE}
        ),
        "mediapipe_message": write_json(
            folder / "message.json", {"frames": [{"pose_landmarks": {"landmark": x}} for x in landmarks], **SIZE}
        ),
        "npz": write_keypoint_arrays(folder / "a.npz", keypoints=arrays),
        "npz_persons": write_keypoint_arrays(folder / "b.npz", keypoints=POSES[None], scores=SCORES[None], **SIZE),
        "npz_float32": write_keypoint_arrays(folder / "c.npz", keypoints=arrays.astype(np.float32)),
    }


NAMES = (
    "mmpose",
    "mmpose_meta",
    "coco_int",
    "coco_text",
    "mediapipe",
    "mediapipe_plain",
    "mediapipe_tasks",
    "mediapipe_message",
    "npz",
    "npz_persons",
    "npz_float32",
)


@pytest.mark.parametrize("name", NAMES)
def test_each_format_gives_the_pixels_and_scores_that_were_written(tmp_path, name):
    file = formats(tmp_path)[name]
    recording = keypoints.read_recording(file, file.stem)
    (track,) = recording.tracks
    assert np.allclose(track.positions, POSES, rtol=1e-6, atol=1e-4)
    assert np.allclose(track.confidence, SCORES, atol=1e-6)
    assert track.offset == 0 and recording.length == 6
    assert (recording.skeleton, recording.dims, recording.units, recording.up_axis) == ("coco17", 2, "pixel", "-y")
    assert recording.fps == 30 and keypoints.clip_names(file) == (file.stem,)
    knows_size = name.startswith("mediapipe") or name in ("mmpose_meta", "npz_persons")
    assert recording.size == ((1280.0, 720.0) if knows_size else None)


def test_a_visibility_of_null_counts_as_seen_like_an_absent_one(tmp_path):
    landmarks = [{"x": index / 100, "y": 0.5, "z": 0.0} for index in range(33)]
    nulls = [landmark | {"visibility": None} for landmark in landmarks]
    tracks = [
        keypoints.read_recording(write_json(tmp_path / f"{name}.json", {"frames": [content] * 2, **SIZE})).tracks[0]
        for name, content in (("absent", landmarks), ("null", nulls))
    ]
    assert np.array_equal(tracks[0].positions, tracks[1].positions)
    assert (tracks[0].confidence == 1).all() and (tracks[1].confidence == 1).all()


def test_mediapipe_landmarks_are_those_of_its_documentation(tmp_path):
    points = [{"x": index / 100, "y": 0.5, "z": 0.0, "visibility": 1.0} for index in range(33)]
    (track,) = keypoints.read_recording(write_json(tmp_path / "a.json", [points])).tracks
    # nose, left eye, right eye, left ear, right ear, shoulders, elbows, wrists, hips, knees, ankles
    expected = [0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28]
    assert np.allclose(track.positions[0, :, 0] * 100, expected, atol=1e-5)


def test_mediapipe_without_size_is_normalised_and_nobody_in_null_frames(tmp_path):
    points = landmarks_of(POSES[0] / 1000, SCORES[0])
    file = write_json(
        tmp_path / "a.json", [None, points, None, [], {"pose_landmarks": None}, {"landmarks": points}, None]
    )
    recording = keypoints.read_recording(file)
    (track,) = recording.tracks
    assert recording.units == "normalised" and recording.size is None
    assert track.offset == 1 and len(track.positions) == 5
    assert (track.confidence[1:4] == 0).all() and (track.positions[1:4] == 0).all()
    assert np.allclose(track.positions[[0, 4]], POSES[0] / 1000, atol=1e-6)


def test_joints_of_score_0_or_less_are_not_seen_and_stored_at_0(tmp_path):
    scores = SCORES.copy()
    scores[2, 3], scores[4, 5], scores[5, 6] = 0, -0.5, 1e-9
    frames = [[(pose, score)] for pose, score in zip(POSES, scores, strict=True)]
    (track,) = keypoints.read_recording(write_json(tmp_path / "a.json", mmpose_frames(frames))).tracks
    unseen = np.zeros((6, 17), dtype=bool)
    unseen[2, 3] = unseen[4, 5] = unseen[5, 6] = True
    assert np.array_equal(track.confidence == 0, unseen) and (track.positions[unseen] == 0).all()
    assert np.allclose(track.positions[~unseen], POSES[~unseen], atol=1e-4)


def two_persons(order, ids):
    """Person 1 walks right at 200.., person 2 stands at 600; `order` tells who is written first in each frame."""
    first, second = person_2d(6, at=(200, 300), velocity=(8, 0)), person_2d(6, at=(600, 300))
    frames = []
    for index, flip in enumerate(order):
        both = [(first[index], SCORES[0], ids[0]), (second[index], SCORES[0], ids[1])]
        frames.append(both[::-1] if flip else both)
    return first, second, frames


@pytest.mark.parametrize("ids", [(None, None), (7, 3), (-1, -1)], ids=["no_ids", "ids", "untracked"])
def test_persons_are_followed_whatever_the_order_in_each_frame(tmp_path, ids):
    first, second, frames = two_persons([0, 1, 0, 1, 1, 0], ids)
    if ids[0] is None:
        frames = [[entry[:2] for entry in frame] for frame in frames]
    tracks = keypoints.read_recording(write_json(tmp_path / "a.json", mmpose_frames(frames))).tracks
    assert np.allclose(tracks[0].positions, first, atol=1e-3)
    assert np.allclose(tracks[1].positions, second, atol=1e-3)


def test_track_ids_count_more_than_nearness(tmp_path):
    first, second, frames = two_persons([0] * 6, (1, 2))
    for frame in frames[3:]:  # The numbers change over: as the file says, the persons changed places.
        frame[0], frame[1] = (*frame[0][:2], 2), (*frame[1][:2], 1)
    tracks = keypoints.read_recording(write_json(tmp_path / "a.json", mmpose_frames(frames))).tracks
    assert np.allclose(tracks[0].positions, np.concatenate([first[:3], second[3:]]), atol=1e-3)


@pytest.mark.parametrize("key", ["idx", "track_id"])
def test_alphapose_numbers_persons_and_says_0_for_all_where_it_does_not(tmp_path, key):
    first, second, frames = two_persons([0, 1, 1, 0, 1, 0], (5.0, [4.0]))
    file = write_json(tmp_path / "a.json", coco_results(frames, "{}.jpg", person_key=key))
    tracks = keypoints.read_recording(file).tracks
    assert np.allclose(tracks[0].positions, first, atol=1e-3)
    same = [[(pose, score, 0.0) for pose, score, _ in frame] for frame in frames]
    file = write_json(tmp_path / "b.json", coco_results(same, "{}.jpg", person_key=key))
    if key == "idx":
        tracks = keypoints.read_recording(file).tracks
        assert np.allclose(tracks[0].positions, first, atol=1e-3)
        assert np.allclose(tracks[1].positions, second, atol=1e-3)
    else:
        with pytest.raises(ValueError, match=r"b\.json: frame 0 must have each track_id once, got 0 2 times"):
            keypoints.read_recording(file)


def test_the_two_who_are_seen_longest_are_kept_the_longest_first(tmp_path):
    seen = {1: range(0, 2), 2: range(1, 6), 3: range(3, 6), 4: range(4, 6)}
    frames = [
        [(POSES[index] + 100 * who, SCORES[index], who) for who, there in seen.items() if index in there]
        for index in range(6)
    ]
    tracks = keypoints.read_recording(write_json(tmp_path / "a.json", mmpose_frames(frames))).tracks
    assert [(track.offset, len(track.positions)) for track in tracks] == [(1, 5), (3, 3)]
    assert np.allclose(tracks[0].positions, POSES[1:] + 200, atol=1e-3)


def test_frames_without_the_person_inside_a_track_have_confidence_0(tmp_path):
    results = coco_results([ONE[0], [], [], ONE[3], ONE[4], []], "{}.jpg")
    (track,) = keypoints.read_recording(write_json(tmp_path / "a.json", results)).tracks
    assert len(track.positions) == 5 and (track.confidence > 0).all(axis=1).tolist() == [True, False, False, True, True]


def test_a_person_who_comes_back_after_more_than_30_frames_is_another_one():
    pose, score = POSES[:1].repeat(2, axis=0), SCORES[:1].repeat(2, axis=0)
    assert associate(np.array([0, 30]), pose, score).tolist() == [0, 0]
    assert associate(np.array([0, 31]), pose, score).tolist() == [0, 1]


def test_a_person_who_jumps_by_more_than_half_the_box_is_another_one():
    square = np.zeros((1, 17, 2))
    square[0, 0], square[0, 1:] = (0, 0), (30, 40)  # a diagonal of 50
    score = np.ones((1, 17))
    for step, who in ((24, 0), (26, 1)):
        pose = np.concatenate([square, square + np.array([step, 0])])
        assert associate(np.array([0, 1]), pose, score.repeat(2, axis=0)).tolist() == [0, who]
        assert distances(pose[:1], score, pose[1:], score)[0, 0] == pytest.approx(step / 50)


def test_association_never_looks_ahead():
    rng = np.random.default_rng(0)
    frame = np.repeat(np.arange(40), 3)
    pose = person_2d(120, seed=3) + rng.uniform(0, 900, (120, 1, 2))
    score = rng.uniform(0, 1, (120, 17))
    whole = associate(frame, pose, score)
    for count in (1, 3, 30, 77):
        assert np.array_equal(associate(frame[:count], pose[:count], score[:count]), whole[:count])


def test_frames_are_counted_from_the_first_and_sorted(tmp_path):
    results = coco_results(ONE, "{:05d}.png", first=17)
    (track,) = keypoints.read_recording(write_json(tmp_path / "a.json", results[::-1])).tracks
    assert track.offset == 0 and np.allclose(track.positions, POSES, atol=1e-4)


def test_pixels_are_divided_by_the_width_where_it_is_known_else_by_the_extent(tmp_path):
    write_json(tmp_path / "set" / "a.json", {"instance_info": mmpose_frames(ONE), **SIZE})
    write_json(tmp_path / "set" / "b.json", mmpose_frames(ONE))
    clips = prepare_reading(tmp_path / "out", keypoints.reading(tmp_path / "set"))
    extent = max(np.ptp(POSES[..., 0]), np.ptp(POSES[..., 1]))
    assert np.allclose(clips.clip(0)[0][1], POSES / 1280, atol=1e-6)
    assert np.allclose(clips.clip(1)[0][1], POSES / extent, atol=1e-5)
    assert clips.info.units == "normalised" and not clips.info.filled


def test_files_of_another_rate_take_the_nearest_frame(tmp_path):
    write_json(tmp_path / "set" / "a.json", {"instance_info": mmpose_frames(ONE), "fps": 15, **SIZE})
    twelve = person_2d(12, seed=4)
    frames = [[(pose, SCORES[0])] for pose in twelve]
    write_json(tmp_path / "set" / "b.json", {"instance_info": mmpose_frames(frames), "fps": 40, **SIZE})
    clips = prepare_reading(tmp_path / "out", keypoints.reading(tmp_path / "set"))
    assert clips.info.fps == 15 and clips.clip_length.tolist() == [6, 5]
    # Instants 0, 1/15, ... in frames of 1/40: 0, 2.67, 5.33, 8, 10.67
    assert np.allclose(clips.clip(1)[0][1], twelve[[0, 3, 5, 8, 11]] / 1280, atol=1e-6)


def test_a_set_has_labels_splits_and_the_same_bits_for_any_number_of_processes(tmp_path):
    for index in range(6):
        write_json(tmp_path / "set" / "wave" / f"{index}.json", mmpose_frames([[(POSES[index], SCORES[index])]] * 3))
    write_keypoint_arrays(tmp_path / "set" / "bow" / "x.npz", keypoints=POSES)
    write_json(tmp_path / "set" / "bow" / "nobody.json", mmpose_frames([[], []]))
    write_text(tmp_path / "set" / "bow" / "damaged.json", '[{"frame_id": 0,\n "instances": [{]}')
    reading = keypoints.reading(tmp_path / "set")
    sets = [prepare_reading(tmp_path / f"out{n}", reading, workers=n) for n in (1, 2)]
    assert sets[0].fingerprint == sets[1].fingerprint
    clips = sets[0]
    clips.verify()
    assert clips.clip_id.tolist() == ["bow/x", *(f"wave/{i}" for i in range(6))]
    assert clips.label.tolist() == [0] + [1] * 6
    # Told before files are read: the damaged one is bow's test clip.
    assert clips.clip_id[clips.split_test].tolist() == ["wave/3", "wave/5"]
    left_out = {item.name: item for item in read_left_out(clips.path)}
    assert left_out["bow/nobody"].reason == "nobody seen" and left_out["bow/damaged"].reason == "unreadable"
    assert "damaged.json:2: not whole JSON" in left_out["bow/damaged"].detail


def changed(path, value):
    """MMPose's frames with one value changed."""
    content = mmpose_frames([[(*one, 1) for one in frame] for frame in ONE])
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold a list of frames or of detections, got an empty list"),
        ({}, "an object must have a list under instance_info or frames or annotations or people"),
        (7, "must hold a list of frames or of detections, got int"),
        (["a"], "entries must be MMPose's .* got str"),
        ([{"a": 1}], "entries must be MMPose's .* got keys a"),
        ([[{"x": 0, "y": 0}] * 25], r"\[0\] must have 33 landmarks, those of MediaPipe's pose, got 25 of them"),
        ([[{"x": 0}] * 33], r"\[0\]\[0\]\.xy\[1\] must be a number within 100, got None"),
        ([[{"x": 101, "y": 0}] * 33], r"\[0\]\[0\]\.xy\[0\] must be a number within 100, got 101"),
        (changed([1], None), r"\[1\] must be an object with a list under 'instances'"),
        (changed([2, "frame_id"], -1), r"\[2\]\.frame_id must be a frame's number in 0\.\.1000000, got -1"),
        (changed([2, "frame_id"], 1_000_001), r"\[2\]\.frame_id must be a frame's number"),
        (changed([2, "frame_id"], [1]), r"\[2\]\.frame_id must be a frame's number"),
        (changed([2, "frame_id"], 1), r"\[2\]\.frame_id must stand once, got 1"),
        (changed([2, "instances", 0, "keypoints"], [[0, 0]] * 16),
         r"must have 17 joints, those of COCO, or 26 \(Halpe\), .*whose first 17, COCO's, are kept, got 16"),
        (changed([2, "instances", 0, "keypoints", 4], [1, 2, 3]), r"keypoints\[4\] must have 2 numbers, got 3"),
        (changed([2, "instances", 0, "keypoints", 4], [1, "2"]),
         r"keypoints\[4\]\[1\] must be a number within 1e\+06, got '2'"),
        (changed([2, "instances", 0, "keypoints", 4], [1, True]), r"keypoints\[4\]\[1\] must be a number"),
        (changed([2, "instances", 0, "keypoints", 4], [1, 10**7]), r"keypoints\[4\]\[1\] must be a number"),
        (changed([2, "instances", 0, "keypoints", 4], [1, 10**400]), r"keypoints\[4\]\[1\] must be a number"),
        (changed([2, "instances", 0, "keypoints", 4], [1, math.nan]), r"numbers must be finite, got NaN"),
        (changed([2, "instances", 0, "keypoint_scores"], [1.0] * 5), r"must have 17 scores, got 5 of them"),
        (changed([2, "instances", 0, "track_id"], "p1"), r"track_id must be a whole number, got 'p1'"),
        ([{**coco_results(ONE, "{}.jpg")[0], "image_id": "x.jpg"}], r"\[0\]\.image_id must be a number, or text"),
        ([{**coco_results(ONE, "{}.jpg")[0], "image_id": "walk.mp4"}], r"\[0\]\.image_id must be a number, or text"),
        ([{**coco_results(ONE, "{}.jpg")[0], "image_id": "²"}], r"\[0\]\.image_id must be a number, or text"),
        ([{**coco_results(ONE, "{}.jpg")[0], "image_id": "٣.jpg"}], r"\[0\]\.image_id must be a number, or text"),
        ([{**coco_results(ONE, "{}.jpg")[0], "image_id": f"a_{10**18}2.jpg"}], "number of at most 18 digits, got 'a_1"),
        ([{**coco_results(ONE, "{}.jpg")[0], "image_id": "7" * 5000}], "a number of at most 18 digits, got '777"),
        (coco_results(ONE, "{}.jpg")[:1] + coco_results(ONE, "b/{}.jpg"), r"must be of one video; .* got '' and 'b/'"),
        ([coco_results(ONE, "{}.jpg")[0] | {"category_id": 2}], r"\[0\]\.category_id must be 1, a person, got 2"),
        ([coco_results(ONE, "{}.jpg")[0] | {"keypoints": [0.0] * 75}],
         r"must have numbers, 3 for each of 17 joints, those of COCO, or 26 .*, got 75 of them"),
        (coco_results([ONE[0]], "{}", number=True, first=9) + coco_results([ONE[0]], "{}", number=True, first=99_999),
         "frames must follow one another, 2 frames are there, got numbers 9..99999"),
        ({"frames": [None], "width": 0, "height": 5}, r"width must be pixels in 1\.\.1e\+06, got 0"),
        ({"frames": [None], "width": 640}, "height must be pixels"),
        ({"frames": [None], "fps": 0}, r"fps must be in 1\.\.1000, got 0"),
        ([None, None], "nobody is seen in it"),
        (mmpose_frames([[(POSES[0], SCORES[0])] * 201]), "a frame must have at most 200 persons, got 201"),
    ],
)  # fmt: skip
def test_what_breaks_a_format_is_named_with_its_place(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"a\.json: {message}|a\.json: .*{message}"):
        keypoints.read_recording(write_json(tmp_path / "a.json", content))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"poses": POSES}, "must have an array 'keypoints'"),
        ({"keypoints": POSES[:, :16]}, r"\[keypoints\]: must be \[N, 17, 2 or 3\].*got \[6, 16, 2\]"),
        ({"keypoints": POSES[:0]}, r"must have 1\.\.200 persons and 1\.\.1000000 frames, got \[1, 0, 17, 2\]"),
        ({"keypoints": POSES * 1e5}, r"must be numbers within 1e\+06, got .* for person 0, frame 0"),
        ({"keypoints": np.where(POSES > 400, np.nan, POSES)}, r"must be numbers within 1e\+06, got nan"),
        ({"keypoints": POSES, "scores": SCORES[:5]}, r"\[scores\]: must be \[6, 17\] as keypoints, got \[5, 17\]"),
        ({"keypoints": POSES[..., [0, 1, 1]], "scores": SCORES}, r"\[scores\]: scores must stand once"),
        ({"keypoints": POSES, "fps": np.array([1, 2])}, r"\[fps\]: must be one number, got \[2\]"),
        ({"keypoints": POSES, "fps": 0}, "fps must be in"),
        ({"keypoints": POSES, "width": 10}, "height must be pixels"),
        ({"keypoints": POSES.astype(object)}, r"not a whole .npz file .*keypoints.npy must hold numbers"),
        ({"keypoints": POSES.astype("U")}, "must hold numbers"),
        ({"keypoints": np.zeros((2, 17, 2))}, "nobody is seen in it"),
    ],
)  # fmt: skip
def test_what_breaks_the_layout_of_arrays_is_named(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=rf"a\.npz.*{message}"):
        keypoints.read_recording(write_keypoint_arrays(tmp_path / "a.npz", **arrays))


@pytest.mark.parametrize("pattern", ["{}", "{:018d}.jpg", "v2_{}.jpeg", "a.b/c5-{:06d}.x1"])
def test_frames_are_numbered_by_the_digits_before_the_suffix(tmp_path, pattern):
    results = coco_results([ONE[0], [], ONE[2]], pattern, first=9)
    (track,) = keypoints.read_recording(write_json(tmp_path / "a.json", results)).tracks
    assert (track.confidence > 0).all(axis=1).tolist() == [True, False, True]


@pytest.mark.parametrize("packing", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_arrays_packed_as_numpy_never_packs_them_are_refused(tmp_path, packing):
    written = write_keypoint_arrays(tmp_path / "a.npz", keypoints=POSES)
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(tmp_path / "b.npz", "w", packing) as target:
        target.writestr("keypoints.npy", source.read("keypoints.npy"))
    with pytest.raises(ValueError, match=r"b\.npz: not a whole .*keypoints\.npy must be packed as NumPy packs it"):
        keypoints.read_recording(tmp_path / "b.npz")


def test_persons_of_arrays_without_scores_are_there_where_they_are_not_all_zero(tmp_path):
    both = np.stack([POSES, POSES + 300])
    both[1, :2] = both[1, 5] = 0
    tracks = keypoints.read_recording(write_keypoint_arrays(tmp_path / "a.npz", keypoints=both)).tracks
    assert [(track.offset, len(track.positions)) for track in tracks] == [(0, 6), (2, 3)]
    assert np.allclose(tracks[1].positions, POSES[2:5] + 300, atol=1e-3)


def test_a_wrong_clip_name_is_refused(tmp_path):
    file = write_json(tmp_path / "a.json", mmpose_frames(ONE))
    with pytest.raises(ValueError, match=r"a\.json: holds one clip, a, got 'b'"):
        keypoints.read_recording(file, "b")


def test_a_clip_at_one_point_has_no_extent_and_is_left_out(tmp_path):
    write_json(tmp_path / "set" / "a.json", mmpose_frames(ONE))
    write_json(tmp_path / "set" / "b.json", mmpose_frames([[(np.full((17, 2), 5.0), SCORES[0])]]))
    clips = prepare_reading(tmp_path / "out", keypoints.reading(tmp_path / "set"))
    assert clips.clip_id.tolist() == ["a"] and "must not all be at one point" in read_left_out(clips.path)[0].detail
