"""Training clips of some actions alone."""

import numpy as np
import pytest

from tests.support.runs import POSE, SOLID, write_toy_sets
from ups_model.config.presets import preset
from ups_model.data.batching.configured import open_sets, split_sets
from ups_model.data.format.clip_set import ClipSet

BASE = {
    "optim.cycle": ("pe",), "ar2d.sources": (), "eap.sources": (), "ar3d.sources": (), "pe.sources": (POSE,),
    "validation_subjects": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_toy_sets(tmp_path_factory.mktemp("clips"))


def config(**changes):
    return preset("tiny").with_fields({**BASE, **changes})


def test_a_specialist_trains_and_validates_on_its_actions_and_is_tested_on_all(paths):
    clips = ClipSet.open(paths[POSE])
    ((_, whole),) = open_sets(config(), paths).values()
    action = clips.info.classes[1]
    ((_, own),) = open_sets(config(**{"pe.actions": (action,)}), paths).values()
    for part in ("train", "validation"):
        expected = [row for row in getattr(whole, part) if clips.label[row] == 1]
        assert getattr(own, part).tolist() == expected and expected
    assert np.array_equal(own.test, whole.test) and len(set(clips.label[own.test].tolist())) > 1


def test_without_actions_nothing_changes_and_keys_stay():
    assert "actions" not in str(config().canonical())
    assert config(**{"pe.actions": ()}).fingerprint() == config().fingerprint()
    assert config(**{"pe.actions": ("a",)}).fingerprint() != config().fingerprint()


def test_an_action_that_the_set_lacks_is_named_with_near_ones(paths):
    clips = ClipSet.open(paths[POSE])
    wrong = f"{clips.info.classes[0]}s"
    with pytest.raises(ValueError, match=f"{POSE} has no action '{wrong}'; near: {clips.info.classes[0]}"):
        open_sets(config(**{"pe.actions": (wrong,)}), paths)
    with pytest.raises(ValueError, match="actions must be named once each, got a, a"):
        config(**{"pe.actions": ("a", "a")})


def test_tasks_of_one_source_name_the_same_actions(paths):
    clips = ClipSet.open(paths[SOLID])
    changes = {"optim.cycle": ("ar3d", "eap"), "pe.sources": (), "ar3d.sources": (SOLID,), "eap.sources": (SOLID,)}
    both = config(**changes, **{"ar3d.actions": clips.info.classes[:1]})
    with pytest.raises(ValueError, match=f"tasks of one source must name the same actions, got eap, ar3d of {SOLID}"):
        split_sets(both, {SOLID: clips})
