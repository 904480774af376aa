"""On real recordings: the recogniser learns more than the plain methods that the data's README lists."""

import pytest

from baselines.config import base
from baselines.train import train
from ups_model.data.readers import open_sets

pytestmark = pytest.mark.open_data

LOGISTIC_REGRESSION = 67.4
"""Test accuracy on UTD-MHAD, as the data's README states it."""


@pytest.mark.slow
def test_a_hundred_steps_beat_logistic_regression_on_utd_mhad(open_data, tmp_path):
    clips = open_sets.prepare("utd_mhad", open_data, tmp_path / "utd_mhad")
    config = base("small", "dd_net").with_fields({"steps": 100, "validation_subjects": 0, "width": 32})
    result = train(config, {"utd_mhad": clips.path}, folder=tmp_path / "run", device="cpu")
    assert result.metrics["test/ar3d/clips"] == 430
    assert result.metrics["test/ar3d/top1"] > LOGISTIC_REGRESSION + 10
