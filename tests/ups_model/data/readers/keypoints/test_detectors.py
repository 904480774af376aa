"""What detectors write as it comes, in layouts and files of their own: COCO's 17 joints, as they were written."""

import csv

import numpy as np
import pytest

from tests.support.writers_own import (
    COCO,
    MEDIAPIPE,
    coco_results,
    landmarks_of,
    mmpose_frames,
    person_2d,
    write_json,
    write_keypoint_arrays,
    write_text,
)
from ups_model.data.prepare.runner import prepare_reading
from ups_model.data.readers.detect import clip_names, read_recording
from ups_model.data.readers.keypoints import reader as keypoints

POSES = person_2d(6, seed=1)
SCORES = np.round(np.linspace(0.2, 0.9, 6 * 17), 4).reshape(6, 17)
SIZE = {"width": 1280, "height": 720}
# OpenPose's layouts by name, as its documentation numbers them.
BODY_25 = [
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "mid_hip", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye", "left_eye",
    "right_ear", "left_ear", "left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe",
    "right_heel",
]  # fmt: skip
COCO_18 = [*BODY_25[:8], *BODY_25[9:19]]


def wider(pose, score, count):
    """[count, 3]: COCO's joints, and behind them others elsewhere."""
    rest = np.tile([-50.0, 9000.0, 0.99], (count - 17, 1))
    return np.concatenate([np.concatenate([pose, score[:, None]], axis=1), rest])


def named(pose, score, names):
    """[len(names), 3]: COCO's joints where their names are."""
    triples = np.tile([-50.0, 9000.0, 0.99], (len(names), 1))
    for joint, name in enumerate(COCO):
        triples[names.index(name)] = [*pose[joint], score[joint]]
    return triples


def frames_of(count):
    return [wider(pose, score, count) for pose, score in zip(POSES, SCORES, strict=True)]


def people(names, key="pose_keypoints_2d"):
    """OpenPose's content of each frame; the hands of somebody else are there alone."""
    return [
        {
            "version": 1.3,
            "people": [
                {"person_id": [-1], key: named(pose, score, names).ravel().tolist()},
                {"person_id": [-1], key: [], "hand_left_keypoints_2d": [1.0, 2.0, 0.5]},
            ],
        }
        for pose, score in zip(POSES, SCORES, strict=True)
    ]


def openpose(folder, names, video="walk_", key="pose_keypoints_2d", first=0):
    for number, content in enumerate(people(names, key), start=first):
        write_json(folder / f"{video}{number:012d}_keypoints.json", content)
    return folder


def ultralytics(pose, score, **more):
    points = {"x": pose[:, 0].tolist(), "y": pose[:, 1].tolist(), "visible": score.tolist()}
    box = {"x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": 4.0}
    return {"name": "person", "class": 0, "confidence": 0.9, "box": box, **more, "keypoints": points}


def instances(count):
    return [
        {"frame_id": n, "instances": [{"keypoints": xyc[:, :2].tolist(), "keypoint_scores": xyc[:, 2].tolist()}]}
        for n, xyc in enumerate(frames_of(count))
    ]


def annotations(count=17, size=SIZE):
    """COCO ground truth of frames 10 to 15; one joint is hidden, one isn't labelled, and a chair is there."""
    images = [{"id": 100 + n, "file_name": f"walk/{10 + n:06d}.jpg", **size} for n in range(6)]
    entries = [{"id": 9, "image_id": 100, "category_id": 62, "bbox": [0, 0, 1, 1]}]
    for number, xyc in enumerate(frames_of(count)):
        xyc[:, 2], xyc[3, 2], xyc[4, :] = 2, 1, 0
        entries.append({"id": number, "image_id": 100 + number, "category_id": 1, "keypoints": xyc.ravel().tolist()})
    return {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "person", "keypoints": COCO}]}


def halpe_results(count):
    results = coco_results([[(pose, score)] for pose, score in zip(POSES, SCORES, strict=True)], "{}.jpg")
    return [entry | {"keypoints": xyc.ravel().tolist()} for entry, xyc in zip(results, frames_of(count), strict=True)]


def written(folder, name):
    """A file or folder of a format."""
    ultra = [[ultralytics(pose, score)] for pose, score in zip(POSES, SCORES, strict=True)]
    contents = {
        "halpe26_results": lambda: halpe_results(26),
        "halpe136_results": lambda: halpe_results(136),
        "wholebody_results": lambda: halpe_results(133),
        "halpe26_mmpose": lambda: {"meta_info": {"dataset_name": "halpe26"}, "instance_info": instances(26)},
        "wholebody_mmpose": lambda: instances(133),
        "mmpose_0": lambda: [[{"bbox": [0, 0, 9, 9, 0.9], "keypoints": xyc.tolist()}] for xyc in frames_of(17)],
        "wholebody_mmpose_0": lambda: [[{"keypoints": xyc.tolist()}] for xyc in frames_of(133)],
        "ultralytics": lambda: ultra,
    }
    if name in contents:
        return write_json(folder / f"{name}.json", contents[name]())
    if name == "openpose_folder":
        return openpose(folder / "frames", BODY_25)
    if name == "openpose_18":
        return openpose(folder / "frames", COCO_18)
    if name == "openpose_old":
        return openpose(folder / "frames", COCO_18, key="pose_keypoints")
    if name == "videopose3d":
        return videopose3d(folder / "data_2d_custom_mine.npz", {"walk": POSES})
    return write_keypoint_arrays(folder / "wide.npz", keypoints=np.stack(frames_of(133)))


def videopose3d(file, videos, **metadata):
    about = {name: {"w": 1280, "h": 720} for name in videos}
    metadata = {"layout_name": "coco", "num_joints": 17, "video_metadata": about} | metadata
    positions = {name: {"custom": [pose.astype("float32")]} for name, pose in videos.items()}
    np.savez_compressed(file, positions_2d=np.array(positions, object), metadata=np.array(metadata, object))
    return file


FORMATS = (
    "halpe26_results", "halpe136_results", "wholebody_results", "halpe26_mmpose", "wholebody_mmpose", "mmpose_0",
    "wholebody_mmpose_0", "ultralytics", "openpose_folder", "openpose_18", "openpose_old", "videopose3d", "npz",
)  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_each_detectors_output_gives_cocos_joints(tmp_path, name):
    recording = read_recording(written(tmp_path, name))
    (track,) = recording.tracks
    assert np.allclose(track.positions, POSES, atol=1e-3)
    assert np.allclose(track.confidence, 1 if name == "videopose3d" else SCORES, atol=1e-6)
    assert (recording.skeleton, recording.units, recording.first_frame) == ("coco17", "pixel", 0)
    assert recording.size == ((1280.0, 720.0) if name == "videopose3d" else None)


@pytest.mark.parametrize("count", [17, 26])
def test_annotations_of_coco_keep_hidden_joints_and_frame_numbers_of_the_images(tmp_path, count):
    content = annotations(count)
    del content["annotations"][3]  # Nobody in frame 12.
    recording = read_recording(write_json(tmp_path / "a.json", content))
    (track,) = recording.tracks
    assert (recording.first_frame, recording.size) == (10, (1280.0, 720.0))
    assert (track.confidence > 0).any(axis=1).tolist() == [True, True, False, True, True, True]
    seen = [joint for joint in range(17) if joint != 4]
    assert (track.confidence[0, seen] == 1).all() and (track.confidence[:, 4] == 0).all()
    assert np.allclose(track.positions[0, seen], POSES[0, seen], atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content["categories"][0].update(keypoints=[*COCO[::-1]]),
            "nose as joint 0, got 'right_ankle'",
        ),
        (lambda content: content["annotations"][1].update(image_id=7), r"\[1\]\.image_id must be the id of one of the"),
        (lambda content: content["annotations"][1].update(category_id=3), r"\[1\]\.category_id must be 1, a person"),
        (
            lambda content: content["images"][1].update(id=100),
            r"images\[1\]\.id must be a number or text, and stand on",
        ),
        (lambda content: content["images"][1].update(file_name="run/7.jpg"), "must be of one video; part the file"),
    ],
)
def test_annotations_that_break_a_rule_are_refused(tmp_path, change, message):
    content = annotations()
    change(content)
    with pytest.raises(ValueError, match=rf"a\.json: .*{message}"):
        read_recording(write_json(tmp_path / "a.json", content))


@pytest.mark.parametrize("form", ["mmpose 1", "mmpose 0", "ultralytics", "openpose"])
def test_one_image_is_a_clip_of_one_frame(tmp_path, form):
    xyc = frames_of(17)[0]
    person = {"keypoints": POSES[0].tolist(), "keypoint_scores": SCORES[0].tolist(), "bbox": [[0, 0, 9, 9]]}
    content = {
        "mmpose 1": [person],
        "mmpose 0": [{"keypoints": xyc.tolist(), "bbox": [0, 0, 9, 9, 0.5]}],
        "ultralytics": [ultralytics(POSES[0], SCORES[0], track_id=3)],
        "openpose": people(BODY_25)[0],
    }[form]
    recording = read_recording(write_json(tmp_path / "000012_keypoints.json", content))
    (track,) = recording.tracks
    assert recording.first_frame == 12 and track.positions.shape == (1, 17, 2)
    assert np.allclose(track.positions[0], POSES[0], atol=1e-3) and np.allclose(track.confidence[0], SCORES[0])


def test_persons_without_a_frame_are_kept_apart_in_lists_of_mmpose_0(tmp_path):
    content = [
        [
            {"keypoints": xyc.tolist(), "track_id": 1},
            {"keypoints": (xyc + np.array([300, 0, 0])).tolist(), "track_id": 2},
        ]
        for xyc in frames_of(17)
    ]
    content[2] = []
    recording = read_recording(write_json(tmp_path / "a.json", content))
    assert [len(track.positions) for track in recording.tracks] == [6, 6]
    assert not recording.tracks[0].confidence[2].any()
    assert np.allclose(recording.tracks[1].positions[3], POSES[3] + [300, 0], atol=1e-3)


@pytest.mark.parametrize("form", ["ultralytics", "openpose"])
def test_coordinates_in_parts_of_the_image_are_told_from_pixels(tmp_path, form):
    parts = POSES / [1280, 720]
    if form == "ultralytics":
        file = write_json(tmp_path / "a.json", [[ultralytics(p, s)] for p, s in zip(parts, SCORES, strict=True)])
    else:
        triples = np.concatenate(
            [named(parts[0], SCORES[0], BODY_25)[:, :2], named(POSES[0], SCORES[0], BODY_25)[:, 2:]], 1
        )
        content = {"people": [{"pose_keypoints_2d": triples.ravel().tolist()}], **SIZE}
        file = write_json(tmp_path / "a.json", content)
    recording = read_recording(file)
    assert recording.units == ("pixel" if form == "openpose" else "normalised")
    expected = POSES[0] if form == "openpose" else parts[0]
    assert np.allclose(recording.tracks[0].positions[0], expected, atol=1e-3)


def test_joints_of_ultralytics_without_scores_are_seen_but_at_the_corner(tmp_path):
    person = ultralytics(POSES[0], SCORES[0])
    del person["keypoints"]["visible"]
    person["keypoints"]["x"][5] = person["keypoints"]["y"][5] = 0
    (track,) = read_recording(write_json(tmp_path / "a.json", [[person]])).tracks
    assert track.confidence[0].tolist() == [float(joint != 5) for joint in range(17)]


def landmark_rows():
    """x, y, visibility of 33 landmarks in each frame, by number."""
    marks = [landmarks_of(pose / (1280, 720), score) for pose, score in zip(POSES, SCORES, strict=True)]
    return [[(mark["x"], mark["y"], mark["visibility"]) for mark in frame] for frame in marks]


HEADERS = {
    "x_0": lambda index, value: f"{value}_{index}",
    "landmark_0_x": lambda index, value: f"landmark_{index}_{value}",
    "x1 to x33, v": lambda index, value: f"{'v' if value == 'visibility' else value}{index + 1}",
    "nose_x": lambda index, value: f"{MEDIAPIPE[index]}_{value}",
    "LEFT SHOULDER.X": lambda index, value: f"{MEDIAPIPE[index].upper().replace('_', ' ')}.{value.upper()}",
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("frames", [None, "frame", "Frame_Number"])
def test_tables_of_mediapipe_are_read_by_the_names_of_their_columns(tmp_path, header, frames):
    name = HEADERS[header]
    columns = [name(index, value) for index in range(33) for value in ("x", "y", "visibility")]
    rows = [[value for mark in frame for value in mark] for frame in landmark_rows()]
    rows[2] = ["" for _ in rows[2]]  # Nobody is seen.
    if frames is not None:
        columns, rows = [frames, *columns], [[40 + number, *row] for number, row in enumerate(rows)]
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    recording = read_recording(tmp_path / "a.csv")
    (track,) = recording.tracks
    assert (recording.units, recording.first_frame) == ("normalised", 0 if frames is None else 40)
    seen = [0, 1, 3, 4, 5]
    assert np.allclose(track.positions[seen], (POSES / (1280, 720))[seen], atol=1e-6)
    assert np.allclose(track.confidence[seen], SCORES[seen]) and not track.confidence[2].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have a line of column names and a row a frame, got 0 lines"),
        ("a,b\n1,2\n", r"columns must have x of nose, such as x_0 or nose_x, got a, b"),
        ("x_0,x_0\n1,2\n", r"column x_0 must stand once, got x of 0 twice"),
        ("WIDE\n1,2\n", r"line 2 must have \d+ columns, got 2 of them"),
        ("WIDE\nBAD\n", r"line 2, x of nose must be a number, got 'walk'"),
        ("WIDE\nINF\n", r"line 2, x of nose\[0\] must be a number within 100, got inf"),
        ("frame,WIDE\nnan,ONE\n", r"line 2, frame\[0\] must be a number within 1e\+06, got nan"),
        ("frame,WIDE\n1.5,ONE\n", r"line 2, frame must be a frame's number"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused_with_line_and_column(tmp_path, text, message):
    wide = [f"{value}_{index}" for index in range(33) for value in "xy"]
    for word, cells in {"WIDE": wide, "BAD": ["walk"] * 66, "INF": ["inf"] * 66, "ONE": ["0.5"] * 66}.items():
        text = text.replace(word, ",".join(cells))
    with pytest.raises(ValueError, match=rf"a\.csv: .*{message}"):
        keypoints.read_recording(write_text(tmp_path / "a.csv", text))


def test_a_folder_of_openpose_holds_a_clip_for_each_video(tmp_path):
    openpose(tmp_path / "frames", BODY_25, "walk_", first=30)
    openpose(tmp_path / "frames", BODY_25, "run_")
    assert clip_names(tmp_path / "frames") == ["run", "walk"]
    recording = read_recording(tmp_path / "frames", "walk")
    assert (recording.name, recording.first_frame, recording.length) == ("walk", 30, 6)
    with pytest.raises(ValueError, match=r"frames: holds 2 clips; name one with --clip, such as run, got None"):
        read_recording(tmp_path / "frames")


def test_a_set_has_openposes_videos_and_videopose3ds_as_clips_of_their_folders_class(tmp_path):
    openpose(tmp_path / "set" / "walk", BODY_25, "a_")
    openpose(tmp_path / "set" / "walk" / "b", BODY_25, "")
    videopose3d(write_text(tmp_path / "set" / "run" / "data_2d_custom_x.npz", ""), {"c": POSES, "d": POSES[:4]})
    clips = prepare_reading(tmp_path / "out", keypoints.reading(tmp_path / "set"))
    assert clips.clip_id.tolist() == ["run/data_2d_custom_x/c", "run/data_2d_custom_x/d", "walk/a", "walk/b"]
    assert clips.label.tolist() == [0, 0, 1, 1] and clips.info.classes == ("run", "walk")
    assert clips.clip_length.tolist() == [6, 4, 6, 6]
    assert np.allclose(clips.clip(1)[0][1], POSES[:4] / 1280, atol=1e-6)


def test_frames_right_in_the_folder_of_a_set_are_a_clip_too(tmp_path):
    openpose(tmp_path / "set", BODY_25, "")
    clips = prepare_reading(tmp_path / "out", keypoints.reading(tmp_path / "set"))
    assert clips.clip_id.tolist() == ["frames"] and clips.clip_length.tolist() == [6]


def test_an_image_called_by_a_date_is_frame_0(tmp_path):
    file = write_json(tmp_path / "IMG_20260101.json", [{"keypoints": frames_of(17)[0].tolist()}])
    assert read_recording(file).first_frame == 0


def test_a_frame_of_openpose_that_stands_twice_is_refused(tmp_path):
    openpose(tmp_path / "f", BODY_25, "a_")
    write_json(tmp_path / "f" / "a_5_keypoints.json", people(BODY_25)[0])
    with pytest.raises(ValueError, match=r"keypoints\.json: the file's name must have a number of its own, got 5"):
        read_recording(tmp_path / "f")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            BODY_25[:15],
            r"numbers, 3 for each of 25 joints \(BODY_25\) or 18 \(COCO\), of which COCO's 17 are kept, got 45",
        )
    ],
)
def test_openposes_other_layouts_are_refused_with_those_that_are_kept(tmp_path, names, message):
    content = {"people": [{"pose_keypoints_2d": [1.0] * 3 * len(names)}]}
    with pytest.raises(ValueError, match=rf"a\.json: people\[0\]\.pose_keypoints_2d must have {message} of them"):
        read_recording(write_json(tmp_path / "a.json", content))


@pytest.mark.parametrize(
    ("videos", "metadata", "message"),
    [
        (
            {"a": POSES},
            {"layout_name": "h36m"},
            "layout_name and num_joints must be coco and 17, got 'h36m' and 17; det",
        ),
        ({"a": POSES}, {"num_joints": 16}, "must be coco and 17, got 'coco' and 16"),
        ({"a": POSES[:, :16]}, {}, r"\['a'\]: must be numbers \[frames, 17, 2\], got float32 \[6, 16, 2\]"),
        ({"a": POSES * np.nan}, {}, r"must be within 1e\+06, got nan in frame 0"),
        ({}, {}, "must be a dict of videos, got an empty one"),
        ({"a": POSES}, {"video_metadata": {"a": {"w": 5}}}, "height must be pixels"),
        ({"a": POSES}, {"video_metadata": {"a": {"fps": 0}}}, "fps must be in"),
    ],
)
def test_a_file_of_videopose3d_that_breaks_a_rule_is_refused(tmp_path, videos, metadata, message):
    file = videopose3d(tmp_path / "data_2d_custom_a.npz", videos, **metadata)
    with pytest.raises(ValueError, match=rf"data_2d_custom_a\.npz.*{message}"):
        read_recording(file)


def test_a_rate_that_files_have_wrong_is_overridden(tmp_path):
    frames = [[(pose, score)] for pose, score in zip(POSES, SCORES, strict=True)]
    write_json(tmp_path / "set" / "a.json", {"instance_info": mmpose_frames(frames), "fps": 60, **SIZE})
    write_json(tmp_path / "set" / "b.json", {"instance_info": mmpose_frames(frames), "fps": 15, **SIZE})
    clips = prepare_reading(tmp_path / "out", keypoints.reading(tmp_path / "set", 25))
    assert clips.info.fps == 25 and clips.clip_length.tolist() == [6, 6]
    assert np.allclose(clips.clip(1)[0][1], POSES / 1280, atol=1e-6)
