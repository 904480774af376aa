"""The synthetic sets: repeatable, shaped like bodies, and neither trivial nor impossible to classify."""

import math

import numpy as np
import pytest

from ups_model.data.format.cameras import project
from ups_model.data.format.clip_set import ClipSet
from ups_model.data.format.splits import check_no_leak
from ups_model.data.readers.synthetic import reader as synthetic
from ups_model.data.readers.synthetic.body import POINTS, draw_body, pose
from ups_model.data.readers.synthetic.motion import ACTIONS, ANGLES
from ups_model.skeletons import to_slots

NAMES = tuple(synthetic.SYNTHETIC_SETS)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    return {name: synthetic.prepare(name, folder / name) for name in NAMES}


def _point(name):
    return POINTS.index(name)


def _still(rows=1, **angles):
    """A body of 1.7 m, facing -y, in a pose of constant angles: [P, 3]."""
    angles_FA = np.zeros((rows, len(ANGLES)))
    for name, value in angles.items():
        angles_FA[:, ANGLES.index(name.replace("_", "."))] = value
    offsets = draw_body(_NoVariation())[None]
    return pose(offsets, angles_FA, np.array([True]), np.array([0.0]))[0]


class _NoVariation:
    def normal(self, mean, deviation):
        return mean


def test_the_same_seed_gives_the_same_bits_and_another_seed_gives_others(tmp_path):
    for name in NAMES:
        made = [
            synthetic.prepare(name, tmp_path / f"{name}{run}", seed, subjects=2, repetitions=1)
            for run, seed in enumerate((3, 3, 4))
        ]
        assert made[0].fingerprint == made[1].fingerprint
        assert np.array_equal(made[0].positions, made[1].positions)
        assert made[0].positions.shape != made[2].positions.shape or (made[0].positions != made[2].positions).any()


@pytest.mark.slow
def test_fingerprints_are_the_recorded_ones(sets):
    # Identities of finished runs rest on these: raise GENERATOR_VERSION when they change, and remake them with
    # python -m ups_model.data prepare synthetic --out FOLDER
    assert synthetic.GENERATOR_VERSION == 1
    assert {name: clips.fingerprint[:16] for name, clips in sets.items()} == {
        "synthetic_ntu25": "a7b1eaba8aa9af4f",
        "synthetic_openpose18": "e165d6fd7257a70a",
        "synthetic_h36m17": "169bb979ff7d7e61",
    }


def test_more_subjects_or_repetitions_leave_the_others_as_they_were(tmp_path):
    few = synthetic.prepare("synthetic_ntu25", tmp_path / "few", subjects=2, repetitions=1)
    many = synthetic.prepare("synthetic_ntu25", tmp_path / "many", subjects=3, repetitions=2)
    places = {name: row for row, name in enumerate(many.clip_id.tolist())}
    for row, name in enumerate(few.clip_id.tolist()):
        assert np.array_equal(few.clip(row)[0][1], many.clip(places[name])[0][1])


def test_sets_hold_ten_people_doing_twelve_actions_and_half_of_them_are_for_testing(sets):
    for name, repetitions in (("synthetic_ntu25", 4), ("synthetic_openpose18", 4), ("synthetic_h36m17", 2)):
        clips = sets[name]
        clips.verify()
        assert len(clips) == 10 * 12 * repetitions and clips.info.synthetic and "synthetic" in clips.info.description
        assert set(np.bincount(clips.label)) == {10 * repetitions} and len(clips.info.classes) == 12
        split = clips.split(validation_subjects=1)
        assert [len(np.unique(clips.subject[part])) for part in (split.train, split.validation, split.test)] == [
            4,
            1,
            5,
        ]
    check_no_leak([(clips, clips.split(1)) for clips in sets.values()])


def test_a_resting_body_is_upright_with_its_left_at_the_left_of_where_it_faces():
    body = _still()
    facing = np.array([0.0, -1.0])
    left = body[_point("l_shoulder")] - body[_point("r_shoulder")]
    assert np.cross([*facing, 0], [0, 0, 1]) @ left < 0  # facing x up points to the right
    assert body[_point("nose"), 1] < body[_point("head"), 1]  # the nose is in front
    height = body[_point("head_top"), 2]
    assert 1.6 < height < 1.8 and body[:, 2].min() == 0.0


def test_angles_move_limbs_the_way_their_names_say():
    rest = _still()
    up, out = _still(d_flex=180), _still(o_abd=90)
    assert up[_point("r_wrist"), 2] > up[_point("head"), 2] > rest[_point("r_wrist"), 2]
    assert math.isclose(out[_point("l_wrist"), 2], out[_point("l_shoulder"), 2], abs_tol=1e-9)
    assert out[_point("l_wrist"), 0] > out[_point("l_shoulder"), 0] + 0.5  # to the left, which is +x
    ahead = _still(d_elbow=90)
    assert ahead[_point("r_wrist"), 1] < rest[_point("r_wrist"), 1] - 0.2  # forward is -y
    kick, heel, bow = _still(d_hip=90), _still(d_knee=90), _still(bend=60)
    assert kick[_point("r_ankle"), 1] < -0.7 and heel[_point("r_ankle"), 1] > 0.3 and bow[_point("head"), 1] < -0.2


def test_bones_of_the_motion_capture_set_keep_their_length(sets):
    clips = sets["synthetic_h36m17"]
    parents = np.array(clips.skeleton.parents)
    # All but thorax to nose: the neck bends between them.
    rigid = [joint for joint, name in enumerate(clips.skeleton.joint_names) if name not in ("pelvis", "nose", "head")]
    for clip in (0, 57, 200):
        pose_NJ3 = clips.clip(clip)[0][1]
        length_NB = np.linalg.norm(pose_NJ3[:, rigid] - pose_NJ3[:, parents[rigid]], axis=-1)
        assert np.ptp(length_NB, axis=0).max() < 3e-4  # metres; positions are rounded to 0.1 mm


def test_keypoints_are_noisy_projections_inside_the_image(sets):
    clips = sets["synthetic_h36m17"]
    for camera, view in enumerate(clips.cameras(0)):
        error_NJ2 = clips.keypoints[:, camera] - project(clips.positions, view)
        # 3 px of jitter and 4 px of slow error, which interpolation between knots lessens to about 2/3 in variance.
        assert math.isclose(error_NJ2.std(), math.sqrt(9 + 16 * 2 / 3), rel_tol=0.05)
        assert abs(error_NJ2.mean()) < 0.1
    assert clips.keypoints.min() > 0 and clips.keypoints.max() < 1000


def test_joints_the_detector_misses_are_zero_and_all_others_are_in_the_image(sets):
    clips = sets["synthetic_openpose18"]
    missed = np.asarray(clips.confidence) == 0
    assert 0.01 < missed.mean() < 0.1
    assert not clips.positions[missed].any() and np.abs(clips.positions).max() <= 0.5
    neck, ankle = clips.skeleton.joint_names.index("neck"), clips.skeleton.joint_names.index("l_ankle")
    both = ~missed[:, neck] & ~missed[:, ankle]
    assert (clips.positions[both, neck, 1] < clips.positions[both, ankle, 1]).mean() > 0.95  # y down


def test_kinect_set_has_the_handedness_of_a_real_kinect(sets):
    # UTD-MHAD, real recordings: people face the sensor, y is up, left minus right shoulder is about -0.3 m in x.
    clips = sets["synthetic_ntu25"]
    names = clips.skeleton.joint_names
    across = (clips.positions[:, names.index("l_shoulder")] - clips.positions[:, names.index("r_shoulder")]).mean(0)
    assert abs(across[0] + 0.3) < 0.1 and abs(across[1]) < 0.1
    assert (clips.positions[:, names.index("head"), 1] > clips.positions[:, names.index("l_foot"), 1]).mean() > 0.95
    assert clips.positions[..., 2].min() > 1.5 and clips.positions[..., 2].max() < 5


def _features(clips: ClipSet, rows: np.ndarray, ratio: float) -> np.ndarray:
    """Sixteen frames of the first `ratio` of each clip, relative to the base of the spine, as one vector per clip."""
    features = []
    for row in rows:
        frames = clips.frames(clips.tracks(row)[0])
        seen = None if clips.confidence is None else np.asarray(clips.confidence[frames]) > 0
        pose = to_slots(clips.positions[frames], clips.skeleton, seen)[:, list(clips.skeleton.slots_present)]
        pose = pose[: math.ceil(ratio * len(pose))]
        pose = pose[np.linspace(0, len(pose) - 1, 16).round().astype(int)]
        pose = pose - pose[:, :1]
        features.append((pose / np.abs(pose).max()).ravel())
    return np.array(features)


def _nearest_neighbour(clips: ClipSet, ratio: float) -> float:
    split = clips.split(0)
    train, test = _features(clips, split.train, ratio), _features(clips, split.test, ratio)
    distance = (test**2).sum(1)[:, None] - 2 * test @ train.T + (train**2).sum(1)
    return float((clips.label[split.train][distance.argmin(1)] == clips.label[split.test]).mean())


@pytest.mark.parametrize("name", NAMES)
def test_nearest_neighbour_on_new_people_is_between_chance_and_certainty_and_grows_with_what_is_seen(sets, name):
    accuracy = [_nearest_neighbour(sets[name], ratio) for ratio in (0.2, 0.4, 0.6, 1.0)]
    assert 1 / 12 < accuracy[0] < 0.4
    assert accuracy[0] + 0.1 < accuracy[1] < accuracy[2] - 0.1
    assert 0.4 < accuracy[3] < 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "synthetic_ntu"}, "unknown synthetic set 'synthetic_ntu'"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"subjects": 1}, "subjects must be >= 2, got 1"),
        ({"repetitions": 0}, "repetitions must be >= 1, got 0"),
    ],
)
def test_impossible_sizes_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic.prepare(**({"name": "synthetic_ntu25", "path": tmp_path / "x"} | arguments))


def test_actions_start_and_end_at_rest():
    for action in ACTIONS:
        times = [time for time, _ in action.keys]
        assert times == sorted(times) and min(times) > 0 and max(times) < 1
        assert all(0 < cycle.start < cycle.end < 1 for cycle in action.cycles)
