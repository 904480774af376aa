"""The presets: what they are, what the paper says of them, and how many parameters they have.

python -m tests.ups_model.config.test_presets        # prints the counts that stand in PARAMETERS
"""

import pytest
import torch

import ups_model.model.ups
from search_spaces import find_study
from ups_model.config import TASK_NAMES, Config
from ups_model.config.presets import PRESETS, preset
from ups_model.data.prepare.catalog import SOURCES
from ups_model.model.inputs import Inputs
from ups_model.model.ups import UPS
from ups_model.model.vocabulary import Quantiser, Vocabulary
from ups_model.skeletons import SLOTS, get_skeleton
from ups_model.tasks import TASKS

CLASSES = {
    "synthetic_ntu25": 12,
    "synthetic_openpose18": 12,
    "utd_mhad": 27,
    "jhmdb": 14,
    "ntu120": 120,
    "kinetics": 400,
}
"""Classes of each set, as docs/data.md and the data sets' papers give them."""

TEXT_WIDTH = {"minilm": 384, "roberta-base": 768}
"""Features of the language models; whitening may drop some directions of a real vocabulary's."""

PARAMETERS = {"tiny": 560_421, "small": 2_751_981, "paper": 187_510_541, "paper_twin": 12_304_261}
"""With all directions of the text features. Remade by `python -m tests.ups_model.config.test_presets`."""


def vocabulary_of(config: Config) -> Vocabulary:
    """A vocabulary of the right size, its classes without their names."""
    class_tasks = [getattr(config.data, task) for task in TASK_NAMES if TASKS[task].kind == "class"]
    names = dict.fromkeys(name for data in class_tasks for name in data.sources)
    classes = tuple((name, tuple(f"class {label}" for label in range(CLASSES[name]))) for name in names)
    return Vocabulary(classes, config.model.n_bins)


def model_of(config: Config) -> UPS:
    """The preset's model as `ups_model.training.build` makes it for pose estimation of 17 joints."""
    vocabulary = vocabulary_of(config)
    return UPS(
        config.model,
        vocabulary,
        Quantiser((-1, -1, -1), (1, 1, 1), config.model.n_bins),
        torch.randn(vocabulary.size, TEXT_WIDTH[config.model.text_model]),
        max_frames=max(getattr(config.data, task).frames for task in TASK_NAMES),
        pose_joints=17,
        pose_slots=get_skeleton("h36m17").native_slot,
    )


def counted(config: Config) -> UPS:
    """The model without memory for its weights: the paper's has 0.75 GB of them."""
    drawn = ups_model.model.ups.initialise
    ups_model.model.ups.initialise = lambda model, seed: None  # Draws numbers, of which the meta device holds none.
    try:
        with torch.device("meta"):
            return model_of(config)
    finally:
        ups_model.model.ups.initialise = drawn


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- parameters by hand


def linear(inputs, outputs):
    return inputs * outputs + outputs


def attention_block(width, ratio):
    """Two norms, query, key, value and merge, two layers of an MLP."""
    return 4 * width + 4 * linear(width, width) + linear(width, ratio * width) + linear(ratio * width, width)


def graph_unit(inputs, width):
    relation = 8 if inputs < 16 else inputs // 8
    scores = 2 * linear(inputs, 3 * relation) + 3 * linear(relation, width)
    residual = 0 if inputs == width else linear(inputs, width)
    # Three adjacency matrices, alpha; a norm.
    return 3 * SLOTS**2 + 1 + scores + linear(inputs, 3 * width) + 2 * width + residual


def temporal_unit(inputs, width):
    quarter = width // 4
    branches = linear(width, width) + 2 * linear(5 * quarter, quarter) + 2 * 3 * quarter + 2 * width
    return graph_unit(inputs, width) + branches + (0 if inputs == width else linear(inputs, width))


def temporal_encoding(model):
    if not model.tem_width:
        return attention_block(SLOTS * model.token_width, model.tem_mlp_ratio)
    frame = SLOTS * model.token_width
    bottleneck = 2 * model.token_width + linear(frame, model.tem_width) + linear(model.tem_width, frame)
    return attention_block(model.tem_width, model.tem_mlp_ratio) + bottleneck


def by_hand(config, vocabulary_size, text_width):
    """Each part's parameters, from the description of the network alone."""
    model = config.model
    d, w = model.token_width, model.decoder_width
    frames = max(getattr(config.data, task).frames for task in TASK_NAMES)
    features = 3 * len(model.input_features)
    block = 2 * graph_unit(d, d) + temporal_encoding(model)
    # Self-attention and MLP as in a TEM; attention to the memory is a norm and four matrices more.
    layer = attention_block(w, model.decoder_mlp_ratio) + 2 * w + 4 * linear(w, w)
    blocks = model.encoder_layers * model.blocks_per_layer
    sizes = {
        "tokenizer": temporal_unit(features, d) + (model.tokenizer_layers - 1) * temporal_unit(d, d),
        "encoder": blocks * block + (4 + blocks) * model.router_width,
        "decoder": model.decoder_layers * layer + 2 * w + (3 * SLOTS + 1 + 2 * frames - 1 + 1) * w,
        "start": linear(model.router_width, w),
        "project_text": text_width * w,
        "embeddings": (SLOTS + frames) * d + 2 * d + 2 * w + 1,  # Slots, frames, a norm; persons; logit scale.
    }
    if model.decoder_memory != "joints":
        sizes["frame_memory"] = linear(SLOTS * d, w)
    if model.decoder_memory != "frames":
        sizes["joint_memory"] = linear(d, w) + SLOTS * w
    if model.decoder_alignment:
        sizes["align"] = linear(d, w)
    if model.vocabulary_residual:
        sizes["residual"] = vocabulary_size * w
    if model.vocabulary_ordinal:
        sizes["ordinal"] = 3 * 14 * w
    return sizes


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_of_a_preset_equal_hand_arithmetic_and_the_golden_count(name):
    config = preset(name)
    model = counted(config)
    expected = by_hand(config, model.vocabulary.size, model.text_VE.shape[1])
    for part in ("tokenizer", "encoder", "decoder", "start", "project_text"):
        assert parameters(getattr(model, part)) == expected[part], part
    assert parameters(model) == sum(expected.values())
    assert parameters(model) == PARAMETERS[name], "a size changed: see the top of this file"


def test_the_papers_six_tems_have_30_72_million_weights_in_matrices_each():
    config = preset("paper")
    model = counted(config)
    tems = [block.tem for layer in model.encoder.layers for block in layer]
    # 12 (J d)^2, J = 25, d = 64: 4 for attention, 8 for an MLP of ratio 4.
    matrices = [sum(p.numel() for p in tem.parameters() if p.ndim == 2) for tem in tems]
    assert matrices == 6 * [30_720_000]
    assert sum(matrices) / parameters(model) > 0.98


# --- every preset builds


@pytest.mark.parametrize("name", ["tiny", "small"])
@torch.no_grad()
def test_a_preset_that_fits_memory_answers_every_task(name):
    config = preset(name)
    model = model_of(config).eval()
    for task in TASK_NAMES:
        frames = getattr(config.data, task).frames
        inputs = Inputs(task, torch.randn(2, 1, frames, SLOTS, 3), torch.ones(SLOTS, dtype=torch.bool))
        steps = 52 if task == "pe" else 2
        logits = model(inputs, torch.zeros(2, steps, dtype=torch.int64))
        assert logits.shape == (2, steps, model.vocabulary.size) and torch.isfinite(logits).all()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_all_four_tasks_in_rotation_and_survives_its_canonical_form(name):
    config = preset(name)
    lifting = ("pe", "ar2d", "pe", "eap", "pe", "ar3d")
    assert config.optim.cycle == (lifting if name == "small" else ("pe", "ar2d", "eap", "ar3d"))
    assert config.optim.update == "iteration"
    assert config.model.routing and config.model.blocks_per_layer == 2
    assert Config.from_canonical(config.canonical()) == config
    assert len({preset(other).fingerprint() for other in PRESETS}) == len(PRESETS)


@pytest.mark.parametrize(
    ("name", "sources"),
    [
        ("tiny", ["synthetic_h36m17", "synthetic_openpose18", "synthetic_ntu25", "synthetic_ntu25"]),
        ("small", ["uiprmd", "jhmdb", "utd_mhad", "utd_mhad"]),
        ("paper", ["h36m", "kinetics", "ntu120", "ntu120"]),
        ("paper_twin", ["uiprmd", "jhmdb", "utd_mhad", "utd_mhad"]),
    ],
)
def test_the_tasks_of_a_preset_use_these_sets(name, sources):
    config = preset(name)
    assert [getattr(config.data, task).sources for task in TASK_NAMES] == [(source,) for source in sources]
    if name != "paper":
        assert set(sources) <= set(SOURCES)


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_mirrors_clips_whose_classes_name_a_side(name):
    data = preset(name).data
    # UTD-MHAD has "right arm swipe to the left", NTU RGB+D "side kick" and the like.
    assert not data.eap.flip and not data.ar3d.flip


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="preset must be one of tiny, small, paper, paper_twin, got 'large'"):
        preset("large")


# --- the paper's values


PAPER = {
    "model.tokenizer_layers": 3,
    "model.encoder_layers": 3,
    "model.decoder_layers": 3,
    "model.blocks_per_layer": 2,
    "model.router_width": 256,
    "model.n_bins": 500,
    "model.text_model": "roberta-base",
    "model.tem_width": 0,
    "model.input_features": ("position",),
    "model.decoder_memory": "joints",
    "model.decoder_alignment": False,
    "model.vocabulary_ordinal": False,
    "model.vocabulary_residual": False,
    "optim.weight_decay": 5e-4,
    "optim.expectation_weight": 0,
    "optim.bin_sigma": 0,
    "optim.label_smoothing": 0,
    "optim.mask_inputs": False,
    "optim.ema": 0,
    "optim.update": "iteration",
    "evaluation.coordinates": "argmax",
    "evaluation.decoding": "autoregressive",
    "evaluation.ratios": (0.2, 0.4, 0.6),
    **{f"data.{task}.batch_size": 1024 for task in TASK_NAMES},
}
"""Sections 3 and 4 of the paper; n_bins is our choice, as the paper gives none."""


TWIN = {"model.text_model", *(f"data.{task}.batch_size" for task in TASK_NAMES), "model.n_bins"}
"""What the twin has otherwise, beside widths, clip sets and lengths: smaller batches, fewer bins, the packaged text."""


@pytest.mark.parametrize("field", sorted(PAPER.keys() - TWIN))
def test_the_papers_twin_has_the_papers_value(field):
    assert _value(preset("paper_twin"), field) == PAPER[field]


def test_the_papers_rate_is_a_row_of_a_study_and_the_preset_has_the_rate_that_its_twin_learns_with():
    rows = find_study("published_rate").tables[0].rows
    assert 1e-2 in [row.changes["learning_rate"] for row in rows]
    assert preset("paper").optim.learning_rate == preset("paper_twin").optim.learning_rate == 5e-4


def _value(config, field):
    for part in field.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize("field", PAPER)
def test_the_paper_preset_has_the_papers_value(field):
    assert _value(preset("paper"), field) == PAPER[field]


def test_one_pose_a_window_is_predicted_in_the_paper_preset():
    data = preset("paper").data.pe
    assert (data.targets_per_window, data.evaluate_targets, data.evaluate_stride) == (1, 1, 1)


if __name__ == "__main__":
    print({name: parameters(counted(preset(name))) for name in PRESETS})
