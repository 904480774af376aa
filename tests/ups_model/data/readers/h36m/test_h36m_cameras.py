"""The calibration of Human3.6M: against the published numbers, a transform worked by hand, and scipy."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.support.writers_h36m import CALIBRATION, rotate_back
from ups_model.data.format.cameras import project, to_camera
from ups_model.data.readers.h36m.cameras import CAMERA_IDS, SIZES, SUBJECTS, cameras_of, rotation


@pytest.fixture(scope="module")
def calibration(open_data):
    return json.loads((open_data / "published" / "human36m_cameras.json").read_text())


def test_the_table_is_the_published_calibration_to_the_last_digit(calibration):
    assert list(CAMERA_IDS) == [camera["id"] for camera in calibration["cameras"]]
    views_by_subject = {subject: views for subject, views in calibration["extrinsics"].items() if views[0]}
    assert list(SUBJECTS) == list(views_by_subject) == ["S1", "S5", "S6", "S7", "S8", "S9", "S11"]
    for subject, views in views_by_subject.items():
        for camera, inner, outer, size in zip(cameras_of(subject), calibration["cameras"], views, SIZES, strict=True):
            assert list(camera.f) == inner["focal_length"] and list(camera.c) == inner["center"]
            assert camera.wh == size == (inner["res_w"], inner["res_h"])
            assert list(camera.center) == [value / 1000 for value in outer["translation"]]
            x, y, z, w = Rotation.from_matrix(np.array(camera.R).T).as_quat(canonical=True)
            assert np.allclose((w, x, y, z), outer["orientation"], atol=1e-7)  # published as float32


def test_miniature_files_are_written_with_the_published_calibration(calibration):
    for place, inner in enumerate(CALIBRATION["cameras"]):
        assert inner.items() <= calibration["cameras"][place].items()
    assert CALIBRATION["extrinsics"].items() <= calibration["extrinsics"].items()


def test_world_to_camera_is_the_inverse_quaternion_applied_to_x_less_t():
    points = np.random.default_rng(0).uniform(-2, 2, (50, 3))
    for subject, views in CALIBRATION["extrinsics"].items():
        for camera, outer in zip(cameras_of(subject), views, strict=True):
            expected = rotate_back(outer["orientation"], points - np.array(outer["translation"]) / 1000)
            assert np.abs(to_camera(points, camera) - expected).max() < 2e-6


def test_a_point_of_s1_lies_where_the_quaternion_formula_puts_it():
    # Camera 54138969 of subject 1. q^-1 (X - t) q, term by term, for X = (0, 0, 1) m.
    w, x, y, z = 0.1407056450843811, -0.1500701755285263, -0.755240797996521, 0.6223280429840088
    a, b, c = 0 - 1.8411070556640625, 0 - 4.95528466796875, 1 - 1.5634454345703125
    right = (1 - 2 * (y * y + z * z)) * a + 2 * (x * y + w * z) * b + 2 * (x * z - w * y) * c
    down = 2 * (x * y - w * z) * a + (1 - 2 * (x * x + z * z)) * b + 2 * (y * z + w * x) * c
    ahead = 2 * (x * z + w * y) * a + 2 * (y * z - w * x) * b + (1 - 2 * (x * x + y * y)) * c
    camera = cameras_of("S1")[0]
    assert np.allclose(to_camera(np.array([0.0, 0.0, 1.0]), camera), (right, down, ahead), atol=1e-6)
    assert 5 < ahead < 6 and abs(right) < 1 and abs(down) < 1  # the middle of the room, five metres ahead
    pixel = (
        1145.0494384765625 * right / ahead + 512.54150390625,
        1143.7811279296875 * down / ahead + 515.4514770507812,
    )
    assert np.allclose(project(np.array([0.0, 0.0, 1.0]), camera), pixel, atol=1e-3)


def test_a_point_on_the_optical_axis_is_at_its_distance_and_at_the_principal_point():
    for camera in (camera for subject in SUBJECTS for camera in cameras_of(subject)):
        ahead = np.array(camera.R)[2]
        point = np.array(camera.center) + 3.5 * ahead
        assert np.allclose(to_camera(point, camera), [0, 0, 3.5]) and np.allclose(project(point, camera), camera.c)


def test_cameras_look_inward_from_the_height_of_a_head_and_up_is_up():
    for camera in (camera for subject in SUBJECTS for camera in cameras_of(subject)):
        assert 1.4 < camera.center[2] < 1.7 and 4 < np.hypot(*camera.center[:2]) < 6
        head, foot = project(np.array([[0, 0, 1.7], [0, 0, 0.0]]), camera)
        assert foot[1] - head[1] > 250  # y grows downward


def test_a_rotation_is_scipys_and_its_quaternions_length_does_not_matter():
    for quaternion in np.random.default_rng(1).normal(size=(20, 4)):
        expected = Rotation.from_quat(quaternion[[1, 2, 3, 0]]).as_matrix()
        assert np.allclose(rotation(tuple(quaternion)), expected, atol=1e-12)
        assert np.allclose(rotation(tuple(3 * quaternion)), expected, atol=1e-12)


def test_a_subject_without_calibration_is_refused():
    with pytest.raises(ValueError, match="subjects with a calibration are S1, S5, S6, S7, S8, S9, S11, got 'S2'"):
        cameras_of("S2")
