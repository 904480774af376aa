"""The configuration: what is refused and how, one canonical form, a fingerprint of every field, text values."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest

from ups_model import RECIPE
from ups_model.config import (
    TASK_NAMES,
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    TaskData,
    canonical,
    digest,
)
from ups_model.config.presets import preset


def base(**optim):
    """A configuration in which every field can be changed alone."""
    sources = {
        task: TaskData(sources=(f"set_{task}",), evaluate_targets=4, targets_per_window=2) for task in TASK_NAMES
    }
    return Config(data=DataConfig(**sources), optim=OptimConfig(mask_inputs=True, **{"exits": "drawn"} | optim))


def leaves(section, prefix=""):
    """(dotted name, value) of every field that is not itself a group of fields."""
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def one_line(section, *words, **values):
    """The error of building `section` with `values`, which must be one line that holds every one of `words`."""
    with pytest.raises(ValueError) as caught:
        section(**values)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


# --- canonical form and fingerprint

OTHERS = {  # Values that differ from the default, where adding one would not be allowed.
    "model.token_width": 128,
    "model.decoder_width": 512,
    "model.tem_width": 64,
    "model.tem_heads": 4,
    "model.decoder_heads": 4,
    "model.routing_execution": "dense",
    "model.decoder_memory": "frames",
    "model.input_features": ("position", "bone"),
    "model.normalisation": "task_batch",
    "model.dropout": 0.2,
    "model.text_model": "minilm",
    "model.routing_explore_share": 0.25,
    "optim.cycle": ("pe", "ar3d"),
    "optim.update": "cycle",
    "optim.beta2": 0.9,
    "optim.exits": "last",
    "optim.schedule": "constant",
    "optim.steps": 20_004,
    "evaluation.ratios": (0.5,),
    "evaluation.coordinates": "argmax",
    "evaluation.decoding": "parallel",
}
OTHER_ENDINGS = {
    "sources": ("other",),
    "actions": ("wave",),
    "crop_min": 0.5,
    "detections": "stored",
    "leaks": "drop",
    "evaluate_targets": 8,
    "evaluate_stride": 2,
}


def another(name, value):
    """A value that field `name` may have and has not."""
    if name in OTHERS:
        return OTHERS[name]
    ending = name.rsplit(".", 1)[-1]
    if ending in OTHER_ENDINGS:
        return OTHER_ENDINGS[ending]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value + 0.125


ALL_LEAVES = dict(leaves(base()))
NEEDS = {name: {"optim.schedule": "constant"} for name in ("optim.horizon", "optim.decay_share")}
"""Fields that others must allow."""


def test_every_field_of_every_section_is_a_leaf():
    assert len(ALL_LEAVES) > 100
    names = {name.split(".")[0] for name in ALL_LEAVES}
    assert names == {"model", "data", "optim", "evaluation", "freeze_routes", "seed"}


def test_the_fingerprint_changes_with_every_field_and_never_to_the_same_value():
    start = base()
    seen = {start.fingerprint(): "nothing"}
    for name, value in ALL_LEAVES.items():
        other, needs = another(name, value), NEEDS.get(name, {})
        assert other != value, name
        changed = start.with_fields(needs | {name: other})
        assert dict(leaves(changed)) == {**ALL_LEAVES, **needs, name: other}, name
        fingerprint = changed.fingerprint()
        assert fingerprint not in seen, f"{name} and {seen.get(fingerprint)} have one fingerprint"
        seen[fingerprint] = name
        assert changed.with_fields({name: value}).fingerprint() == start.with_fields(needs).fingerprint()


def test_a_configuration_comes_back_from_its_canonical_form_through_json():
    changed = base().with_fields({name: another(name, value) for name, value in ALL_LEAVES.items() if "optim" in name})
    for config in (base(), changed):
        plain = json.loads(json.dumps(config.canonical()))
        assert plain["recipe"] == RECIPE
        again = Config.from_canonical(plain)
        assert again == config and again.fingerprint() == config.fingerprint()


def test_equal_numbers_have_one_canonical_form():
    whole, decimal = (base().with_fields({"optim.clip_norm": value}) for value in (1, 1.0))
    assert whole == decimal and whole.fingerprint() == decimal.fingerprint()
    assert json.dumps(canonical(OptimConfig(learning_rate=1))) == json.dumps(canonical(OptimConfig(learning_rate=1.0)))


def test_a_fingerprint_is_the_same_in_another_process():
    code = "from ups_model.config import *; print(digest(canonical(ModelConfig())))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert process.stdout.strip() == digest(canonical(ModelConfig()))


def test_key_order_does_not_matter_to_a_digest_and_list_order_does():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    # python -c "import hashlib; print(hashlib.sha256(b'{\"a\":[1,true]}').hexdigest()[:16])"
    assert digest({"a": [1, True]}) == "82e73b6eda113eba"


NO_FORM = {
    "nan": math.nan,
    "infinity": math.inf,
    "number as key": {1: 2},
    "object": object(),
    "set": {"a": {3}},
    "bytes": [b"x"],
    "class": ModelConfig,
}


@pytest.mark.parametrize("value", NO_FORM.values(), ids=NO_FORM)
def test_what_has_no_canonical_form_raises(value):
    with pytest.raises(ValueError, match="canonical form"):
        canonical({"field": value} if not isinstance(value, dict) else value)


def test_a_canonical_form_of_another_recipe_or_with_an_unknown_field_is_refused():
    plain = base().canonical()
    with pytest.raises(ValueError, match=f"made with recipe {RECIPE + 1}, this code trains recipe {RECIPE}; retrain"):
        Config.from_canonical({**plain, "recipe": RECIPE + 1})
    with pytest.raises(ValueError, match="ModelConfig has no field 'token_with'; near: token_width"):
        Config.from_canonical({**plain, "model": {**plain["model"], "token_with": 8}})
    with pytest.raises(ValueError, match=r"Config\.model must be a group of fields, got 3"):
        Config.from_canonical({**plain, "model": 3})


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        base().model.token_width = 8
    with pytest.raises(dataclasses.FrozenInstanceError):
        base().seed = 8


def test_planning_imports_no_torch():
    code = "import sys, ups_model.config; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# --- what is refused


def test_all_faults_of_a_section_are_named_at_once_with_rule_value_and_way_out():
    message = one_line(ModelConfig, n_bins=1, token_width=30, decoder_width=250, encoder_layers=0, dropout=1.5)
    assert "n_bins must be at least 2, got 1" in message
    assert "token_width must be divisible by the 4 branches of a temporal convolution, got 30; try 32" in message
    assert "decoder_width must be divisible by decoder_heads, got 250 and 8; try 256" in message
    assert "encoder_layers must be at least 1, got 0" in message
    assert "dropout must lie in [0, 0.99], got 1.5" in message
    assert message.count("ModelConfig: ") == message.count("; ModelConfig: ") + 1


def test_a_tem_whose_width_its_heads_do_not_divide_is_refused_with_and_without_a_bottleneck():
    one_line(ModelConfig, "tem_width must be divisible by tem_heads, got 100 and 8; try 104", tem_width=100)
    one_line(ModelConfig, "25 * token_width must be divisible by tem_heads, got 1600 and 7; try 1603", tem_heads=7)
    one_line(ModelConfig, "tem_heads", tem_heads=0)


@pytest.mark.parametrize("name", ["dropout", "gumbel_start", "gumbel_end"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(name, value):
    one_line(ModelConfig, f"ModelConfig: {name} must be finite, got {value}", **{name: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"token_width": 64.0}, "token_width must be a whole number, got 64.0"),
        ({"token_width": "64"}, "token_width must be a whole number, got '64'"),
        ({"token_width": True}, "token_width must be a whole number, got True"),
        ({"routing": 1}, "routing must be true or false, got 1"),
        ({"dropout": "0.1"}, "dropout must be a number, got '0.1'"),
        ({"dropout": True}, "dropout must be a number, got True"),
        ({"text_model": 3}, "text_model must be text, got 3"),
        ({"decoder_memory": "joint"}, "decoder_memory must be one of joints, frames, frames+joints, got 'joint'"),
        (
            {"input_features": ["position"]},
            "input_features must be a list of one of position, relative, velocity, bone, got",
        ),
        (
            {"input_features": ("position", "speed")},
            "input_features must be a list of one of position, relative, velocity, bone, got ('position', 'speed')",
        ),
        ({"token_width": None}, "token_width must be a whole number, got None"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_refused_by_what_it_should_be(values, message):
    one_line(ModelConfig, "ModelConfig: " + message, **values)


def test_two_values_of_wrong_type_are_both_named():
    one_line(
        ModelConfig, "token_width must be a whole number", "routing must be true or false", token_width="a", routing=2
    )


def test_input_features_hold_position_and_no_feature_twice():
    for features in (("velocity",), (), ("position", "position")):
        one_line(ModelConfig, "input_features must hold 'position' and no feature twice", input_features=features)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cycle": ()}, "cycle must name at least one task, got ()"),
        ({"cycle": ("pe", "ar4d")}, "cycle must be a list of one of pe, ar2d, eap, ar3d, got ('pe', 'ar4d')"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"label_smoothing": 1.0}, "label_smoothing must lie in [0, 0.9], got 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
        ({"bin_sigma": -0.5}, "bin_sigma must be at least 0, got -0.5"),
        (
            {"update": "cycle", "steps": 4002},
            "steps must be whole cycles when update='cycle', got 4002 steps of 4; try 4004",
        ),
        ({"update": "step"}, "update must be one of iteration, cycle, got 'step'"),
    ],
    ids=str,
)
def test_training_that_cannot_be_is_refused(values, message):
    one_line(OptimConfig, "OptimConfig: " + message, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"evaluate_targets": 65}, "evaluate_targets must be at most frames, got 65 and 64"),
        ({"evaluate_targets": 0}, "evaluate_targets must be at least 1, got 0"),
        (
            {"evaluate_stride": 2},
            "evaluate_targets must be a multiple of evaluate_stride / frame_stride, got 1 and 2; try 2",
        ),
        (
            {"evaluate_stride": 6, "frame_stride": 2, "evaluate_targets": 4},
            "evaluate_targets must be a multiple of evaluate_stride / frame_stride, got 4 and 3; try 6",
        ),
        (
            {"evaluate_stride": 3, "frame_stride": 2},
            "of evaluate_stride and frame_stride one must be a multiple of the other, got 3 and 2",
        ),
        ({"crop_min": 0.0}, "crop_min must lie in [0.01, 1], got 0.0"),
        ({"rotation_deg": 181.0}, "rotation_deg must lie in [0, 180], got 181.0"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
    ],
    ids=str,
)
def test_clips_that_cannot_be_cut_are_refused(values, message):
    one_line(TaskData, "TaskData: " + message, **values)


@pytest.mark.parametrize(
    "values",
    [
        {"evaluate_stride": 2, "evaluate_targets": 4},
        {"evaluate_stride": 1, "frame_stride": 4},
        {"evaluate_stride": 4, "frame_stride": 2, "evaluate_targets": 6},
        {"frames": 1},
        {"frames": 5, "evaluate_targets": 5, "targets_per_window": 5},
    ],
    ids=str,
)
def test_windows_whose_targets_tile_a_recording_are_admitted(values):
    assert TaskData(**values).frames >= 1


def test_observation_ratios_are_shares_of_a_clip():
    for ratios in ((), (0.0,), (0.2, 1.1), (math.nan,), (-0.1,)):
        one_line(EvalConfig, f"ratios must lie in (0, 1], got {ratios}", ratios=ratios)
    assert EvalConfig(ratios=(1.0,)).ratios == (1.0,)


def test_a_trained_task_needs_clips_and_an_untrained_one_does_not():
    message = one_line(Config, "data.pe.sources must name a clip set", "data.ar3d.sources")
    assert "leave ar3d out of optim.cycle" in message
    alone = Config(data=DataConfig(eap=TaskData(sources=("ntu",))), optim=OptimConfig(cycle=("eap", "eap")))
    assert alone.optim.tasks == ("eap",)


def test_tasks_are_named_once_in_the_order_of_the_paper():
    assert OptimConfig(cycle=("ar3d", "pe", "ar3d")).tasks == ("pe", "ar3d")
    assert OptimConfig().tasks == ("pe", "ar2d", "eap", "ar3d")


def test_parallel_decoding_needs_masked_training():
    with pytest.raises(ValueError, match=r"decoding='parallel' needs optim\.mask_inputs=True, got False"):
        base().with_fields({"evaluation.decoding": "parallel", "optim.mask_inputs": False})
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        base().with_fields({"seed": -1})


# --- names


def test_an_unknown_field_lists_near_names():
    with pytest.raises(ValueError, match=r"unknown field 'encoder_layer'; near: .*encoder_layers"):
        base().with_fields({"encoder_layer": 2})
    with pytest.raises(ValueError, match=r"unknown field 'data\.pe\.frame'; near: data\.pe\.frames"):
        base().with_fields({"data.pe.frame": 2})
    with pytest.raises(ValueError, match="unknown field 'zzzz'; Config has model, data"):
        base().with_fields({"zzzz": 2})
    with pytest.raises(ValueError, match="ModelConfig has no field 'n_bin'; near: n_bins"):
        ModelConfig().replace(n_bin=3)


def test_a_short_name_is_enough_where_it_is_the_only_one():
    changed = base().with_fields({"encoder_layers": 2, "cycle": ("pe",), "seed": 5})
    assert (changed.model.encoder_layers, changed.optim.cycle, changed.seed) == (2, ("pe",), 5)
    with pytest.raises(ValueError, match=r"'frames' is ambiguous: write one of data\.pe\.frames, data\.ar2d\.frames"):
        base().with_fields({"frames": 27})


def test_changing_fields_leaves_the_original_alone():
    start = base()
    before = start.fingerprint()
    start.with_fields({"encoder_layers": 1, "data.pe.frames": 27})
    assert start.fingerprint() == before


def test_fields_that_depend_on_each_other_may_be_changed_together_but_not_apart():
    together = {"tem_width": 100, "tem_heads": 4}
    assert base().with_fields(together).model.tem_width == 100
    with pytest.raises(ValueError, match="tem_width must be divisible"):
        base().with_fields({"tem_width": 100})


# --- text, as on a command line


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("model.token_width", "128", 128),
        ("optim.learning_rate", "1e-3", 0.001),
        ("optim.clip_norm", "2", 2.0),
        ("model.routing", "false", False),
        ("model.routing", "True", True),
        ("model.routing", "False", False),
        ("model.routing", "off", False),
        ("freeze_routes", "on", True),
        ("model.text_model", "minilm", "minilm"),
        ("model.text_model", "123", "123"),
        ("model.decoder_memory", "frames+joints", "frames+joints"),
        ("optim.cycle", "pe", ("pe",)),
        ("optim.cycle", "pe,ar3d", ("pe", "ar3d")),
        ("optim.cycle", '["pe", "ar3d"]', ("pe", "ar3d")),
        ("evaluation.ratios", "0.5", (0.5,)),
        ("evaluation.ratios", "[0.25, 1]", (0.25, 1.0)),
        ("data.ar3d.sources", "ntu60", ("ntu60",)),
        ("data.ar3d.sources", "ntu60,utd", ("ntu60", "utd")),
    ],
    ids=str,
)
def test_text_is_read_as_the_type_of_its_field(name, text, value):
    changed = base().with_fields({name: text})
    leaf = dict(leaves(changed))[name]
    assert leaf == value and type(leaf) is type(value)
    assert changed == base().with_fields({name: value})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("model.token_width", "wide", "token_width must be a whole number, got 'wide'"),
        ("model.token_width", "64.5", "token_width must be a whole number, got 64.5"),
        ("model.routing", "maybe", "routing must be true or false, got 'maybe'"),
        ("model.routing", "0", "routing must be true or false, got 0"),
        ("optim.learning_rate", "NaN", "learning_rate must be finite, got nan"),
        ("optim.learning_rate", "fast", "learning_rate must be a number, got 'fast'"),
        ("optim.cycle", "pe,ar5d", "cycle must be a list of one of pe, ar2d, eap, ar3d, got ('pe', 'ar5d')"),
        ("optim.cycle", "", "cycle must name at least one task, got ()"),
        ("model.decoder_memory", "none", "decoder_memory must be one of joints, frames, frames+joints, got 'none'"),
    ],
    ids=str,
)
def test_text_that_does_not_fit_its_field_is_refused(name, text, message):
    with pytest.raises(ValueError) as caught:
        base().with_fields({name: text})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_seeds_take_turns_in_the_folds_and_hold_out_the_same_without_any():
    config = preset("tiny").with_fields({"validation_folds": 3, "validation_subjects": 2, "split_seed": 7})
    assert [config.replace(seed=seed).held_out for seed in range(4)] == [(2, 7, 0), (2, 7, 1), (2, 7, 2), (2, 7, 0)]
    assert config.with_fields({"validation_folds": 1, "seed": 5}).held_out == (2, 7, 0)


@pytest.mark.parametrize(
    ("subjects", "every", "steps", "chosen_by"),
    [
        (0, 0, 10, "last step"),
        (0, 5, 10, "last step"),
        (1, 0, 10, "last step, validated"),
        (1, 10, 10, "last step, validated"),
        (1, 5, 10, "validation subjects"),
    ],
)
def test_weights_are_chosen_only_where_several_are_validated(subjects, every, steps, chosen_by):
    config = preset("tiny").with_fields({"validation_subjects": subjects, "evaluate_every": every, "steps": steps})
    assert config.chosen_by == chosen_by and config.chooses == (chosen_by == "validation subjects")
