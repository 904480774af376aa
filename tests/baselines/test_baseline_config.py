"""Configurations of the baselines: refusals in one clear line, a canonical form, presets that hold the rules."""

import subprocess
import sys

import pytest

from baselines.config import LIFTERS, PRESETS, SYSTEMS, BaselineConfig, NetworkConfig, base
from ups_model.config.presets import preset


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_is_known_by_its_canonical_form(name, system):
    config = base(name, system)
    assert BaselineConfig.from_canonical(config.canonical()) == config
    assert config.fingerprint() == config.with_fields({"seed": 0}).fingerprint()
    assert config.fingerprint() != config.with_fields({"seed": 1}).fingerprint()


@pytest.mark.parametrize("system", SYSTEMS)
def test_clips_splits_and_measured_frames_are_those_of_ups(system):
    ours, theirs = base("small", system).data, preset("small").data
    for name in ("validation_subjects", "validation_folds", "split_seed", "leaks"):
        assert getattr(ours, name) == getattr(theirs, name)
    if system in LIFTERS:
        names = ("sources", "frame_stride", "evaluate_targets", "evaluate_stride", "rotation_deg", "bone_scale")
        assert all(getattr(ours.pe, name) == getattr(theirs.pe, name) for name in names)
    else:
        assert (ours.ar2d, ours.eap, ours.ar3d) == (theirs.ar2d, theirs.eap, theirs.ar3d)


@pytest.mark.parametrize(
    ("system", "changes", "message"),
    [
        ("dd_net", {"task": "pe"}, "system for task pe must be one of residual_mlp, videopose3d, got dd_net"),
        ("residual_mlp", {"task": "ar3d"}, "system for task ar3d must be one of dd_net, st_gcn, got residual_mlp"),
        ("residual_mlp", {"data.pe.frames": 27}, "evaluate_targets - 1 = 34, a window for each target, got 27"),
        ("videopose3d", {"receptive_field": 25}, "receptive_field of videopose3d must be a power of 3, got 25"),
        ("residual_mlp", {"receptive_field": 26}, "receptive_field must be odd, got 26"),
        ("dd_net", {"streams": ("slow", "slow")}, "streams must name at least one stream and none twice"),
        ("dd_net", {"kernel": 5}, "kernel means nothing to dd_net, got 5; leave it at 9"),
        ("videopose3d", {"blocks": 2}, "blocks means nothing to videopose3d, got 2; leave it at 3"),
        ("dd_net", {"centred": False}, "centred means nothing to dd_net, got False; leave it at True"),
        ("dd_net", {"data.ar3d.sources": ()}, "data.ar3d.sources must name one clip set, got 0"),
        ("dd_net", {"data.ar3d.sources": ("a", "b")}, "data.ar3d.sources must name one clip set, got 2"),
        ("dd_net", {"ratios": (0.2, 1.2)}, "ratios must lie in (0, 1], got (0.2, 1.2)"),
        ("dd_net", {"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ("dd_net", {"dropout": 1.0}, "dropout must lie in [0, 0.9], got 1.0"),
        ("dd_net", {"widht": 3}, "unknown field 'widht'; near: "),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_it(system, changes, message):
    with pytest.raises(ValueError) as error:
        base("small", system).with_fields(changes)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_preset_or_system_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="preset must be one of tiny, small, paper, got 'large'"):
        base("large")
    with pytest.raises(ValueError, match=r"system must be one of residual_mlp, .*, got 'mixste'"):
        base("small", "mixste")


def test_another_recipe_is_refused():
    plain = base("tiny").canonical()
    with pytest.raises(ValueError, match="made with recipe 0, this code trains recipe 1; retrain"):
        BaselineConfig.from_canonical({**plain, "recipe": 0})


@pytest.mark.parametrize(("frames", "widths"), [(1, (1, 1, 1)), (27, (3, 3, 3)), (81, (3,) * 4), (243, (3,) * 5)])
def test_the_filter_widths_are_those_of_the_receptive_fields_that_were_published(frames, widths):
    assert NetworkConfig("videopose3d", receptive_field=frames).filter_widths == widths


def test_planning_needs_no_torch(repo_root):
    program = "import sys, baselines.config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=repo_root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
