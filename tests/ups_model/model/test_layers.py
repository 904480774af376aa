"""Seeded initialisation, norms and slot-wise projections."""

import pytest
import torch

from tests.support.small_models import generator, small_config, small_model, some_slots, stir
from ups_model.model.layers import (
    Dropout,
    Scene,
    SlotsToToken,
    TokenNorm,
    TokenToSlots,
    attend,
    linear,
    run_layer,
    seed_for,
)


def scene(task=0, slots=range(25), mask=None):
    return Scene(task, torch.tensor(list(slots)), mask)


# --- initial weights


@pytest.mark.parametrize(
    "change",
    [{"encoder_layers": 3}, {"blocks_per_layer": 1}, {"blocks_per_layer": 3}, {"n_bins": 12}, {"decoder_layers": 3}],
    ids=str,
)
def test_two_configurations_of_one_seed_agree_wherever_name_and_shape_agree(change):
    first = dict(small_model(stirred=False, seed=3).named_parameters())
    second = dict(small_model(small_config(**change), stirred=False, seed=3).named_parameters())
    shared = [name for name in first.keys() & second.keys() if first[name].shape == second[name].shape]
    assert "tokenizer.layers.0.gcn.value.weight" in shared
    assert "decoder.layers.1.mlp.inner.weight" in shared
    for name in shared:
        assert torch.equal(first[name], second[name]), name


def test_another_seed_changes_every_drawn_parameter():
    first, second = (dict(small_model(stirred=False, seed=seed).named_parameters()) for seed in (0, 1))
    matrices = [name for name in first if first[name].ndim > 1 and first[name].any() and "adjacency" not in name]
    assert len(matrices) > 40
    for name in matrices:
        assert not torch.equal(first[name], second[name]), name


def test_building_a_model_neither_uses_nor_moves_the_global_generator():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = small_model(stirred=False)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    second = small_model(stirred=False)
    for (name, one), two in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_a_linear_layer_starts_with_variance_one_over_its_inputs_and_no_bias():
    model = small_model(small_config(decoder_width=64, decoder_heads=2), stirred=False)
    layer = model.decoder.layers[0].self_query_key_value
    assert float(layer.weight.detach().var()) == pytest.approx(1 / 64, rel=0.1)
    assert not layer.bias.any()
    assert not linear(3, 4).bias.any()


def test_seeds_depend_on_every_part_and_on_their_borders():
    seeds = {seed_for(0, "a", 1), seed_for(1, "a", 1), seed_for(0, "b", 1), seed_for(0, "a", 2), seed_for(0, "a1")}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    # python -c "import hashlib as h; print(int.from_bytes(h.sha256(b'0\x1fdropout\x1f7').digest()[:8], 'little') >> 1)"
    assert seed_for(0, "dropout", 7) == 2990894498049789657


# --- norms


def test_layer_norm_gives_each_token_mean_zero_and_variance_one():
    norm = TokenNorm(8, "layer").double()
    x_BNJD = 3 + 5 * torch.randn(2, 3, 25, 8, generator=generator(0), dtype=torch.float64)
    out = norm(x_BNJD, scene())
    torch.testing.assert_close(out.mean(dim=-1), torch.zeros(2, 3, 25, dtype=torch.float64))
    torch.testing.assert_close(
        out.var(dim=-1, unbiased=False), torch.ones(2, 3, 25, dtype=torch.float64), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("normalisation", ["layer", "task_batch"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_norm_residual_and_relu_in_one_have_the_values_and_gradients_of_the_three_apart(normalisation, residual):
    norm = stir(TokenNorm(8, normalisation)).double()
    x_BNJD, kept_BNJD, weight_BNJD = torch.randn(3, 2, 5, 4, 8, generator=generator(0), dtype=torch.float64)
    x_BNJD.requires_grad_()
    kept_BNJD.requires_grad_()
    plain = norm(x_BNJD, scene()) + (kept_BNJD if residual else 0)
    inputs = [x_BNJD, norm.weight, norm.bias, *([kept_BNJD] if residual else [])]
    expected = torch.autograd.grad((plain.clamp(min=0) * weight_BNJD).sum(), inputs)
    out = norm.relu(x_BNJD, scene(), kept_BNJD if residual else None)
    torch.testing.assert_close(out, plain.clamp(min=0))
    torch.testing.assert_close(torch.autograd.grad((out * weight_BNJD).sum(), inputs), expected)


def test_task_statistics_move_for_the_task_of_the_batch_alone():
    norm = TokenNorm(4, "task_batch").double()
    x_BNJD = 2 + 3 * torch.randn(2, 3, 5, 4, generator=generator(0), dtype=torch.float64)
    out = norm(x_BNJD, scene(task=2))
    flat = x_BNJD.reshape(-1, 4)
    torch.testing.assert_close(norm.mean_TD[2], 0.1 * flat.mean(dim=0))
    torch.testing.assert_close(norm.variance_TD[2], 0.9 + 0.1 * flat.var(dim=0))
    assert not norm.mean_TD[[0, 1, 3]].any() and (norm.variance_TD[[0, 1, 3]] == 1).all()
    torch.testing.assert_close(out.reshape(-1, 4).mean(dim=0), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("mask", [None, torch.tensor([[True, True, False], [True, False, False]])])
def test_a_batch_counts_once_in_statistics_where_its_layer_is_computed_again(mask):
    x_BNJD = torch.randn(2, 3, 5, 4, generator=generator(0), dtype=torch.float64)
    norms, gradients = [], []
    for again in (False, True):
        norm = stir(TokenNorm(4, "task_batch")).double()
        run_layer(norm, x_BNJD, scene(task=1, mask=mask), again).square().sum().backward()
        norms.append(norm)
        gradients.append(norm.weight.grad)
        norm(x_BNJD, scene(task=1, mask=mask))  # The next batch counts again.
    once, twice = norms
    torch.testing.assert_close(twice.mean_TD, once.mean_TD, rtol=0, atol=0)
    torch.testing.assert_close(twice.variance_TD, once.variance_TD, rtol=0, atol=0)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_padded_frames_take_no_part_in_batch_statistics():
    x_BNJD = torch.randn(2, 4, 5, 4, generator=generator(0), dtype=torch.float64)
    mask_BN = torch.tensor([[True, True, True, False], [True, False, False, False]])
    padded, packed = TokenNorm(4, "task_batch").double(), TokenNorm(4, "task_batch").double()
    out = padded(x_BNJD, scene(mask=mask_BN))
    there = packed(x_BNJD[mask_BN][:, None], scene())
    torch.testing.assert_close(out[mask_BN], there[:, 0])
    torch.testing.assert_close(padded.mean_TD, packed.mean_TD)
    torch.testing.assert_close(padded.variance_TD, packed.variance_TD)


def test_in_evaluation_batch_statistics_are_the_running_ones_of_the_task():
    norm = stir(TokenNorm(4, "task_batch")).double().eval()
    x_BNJD = torch.randn(2, 3, 5, 4, generator=generator(0), dtype=torch.float64)
    expected = (x_BNJD - norm.mean_TD[1]) / (norm.variance_TD[1] + 1e-5).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(x_BNJD, scene(task=1)), expected)


# --- projections between slots and tokens


def test_slot_projections_equal_dense_ones_over_25_slots_with_zeros_for_absent_slots():
    present = some_slots(3, 7, 24).nonzero()[:, 0]
    x_BJD = torch.randn(2, 22, 4, generator=generator(0), dtype=torch.float64)
    down, up = stir(SlotsToToken(4, 6).double()), stir(TokenToSlots(6, 4).double())
    full = torch.zeros(2, 25, 4, dtype=torch.float64)
    full[:, present] = x_BJD
    token_BW = full.flatten(1) @ down.weight.flatten(1).T + down.bias
    torch.testing.assert_close(down(x_BJD[:, None], scene(slots=present)), token_BW[:, None])
    back = (token_BW @ up.weight.flatten(0, 1).T + up.bias.flatten()).unflatten(1, (25, 4))
    torch.testing.assert_close(up(token_BW[:, None], scene(slots=present)), back[:, None, present])


# --- attention


@pytest.mark.parametrize(("causal", "masked"), [(False, False), (True, False), (False, True)])
def test_attention_equals_a_plain_softmax_loop(causal, masked):
    query, key, value = (torch.randn(2, 5, 6, generator=generator(seed), dtype=torch.float64) for seed in range(3))
    mask = None
    if masked:
        mask = torch.tensor([[True, False, True, True, False], [True] * 5])
    expected = torch.zeros(2, 5, 6, dtype=torch.float64)
    for clip in range(2):
        for head in range(3):
            part = slice(2 * head, 2 * head + 2)
            for q in range(5):
                seen = [k for k in range(5) if (not causal or k <= q) and (mask is None or mask[clip, k])]
                scores = torch.stack([query[clip, q, part] @ key[clip, k, part] / 2**0.5 for k in seen]).exp()
                weights = scores / scores.sum()
                expected[clip, q, part] = sum(w * value[clip, k, part] for w, k in zip(weights, seen, strict=True))
    there = None if mask is None else mask[:, None, None]
    together = attend(torch.cat([query, key, value], dim=-1), None, 3, there, causal)
    torch.testing.assert_close(together, expected)
    apart = attend(query, torch.cat([key, value], dim=-1), 3, there, causal)
    torch.testing.assert_close(apart, expected)


# --- dropout


def test_dropped_elements_are_independent_draws_of_the_rate_asked_for():
    rows, width = 600, 4096
    torch.manual_seed(0)
    kept = Dropout(0.1).mask(torch.Size((64, 64)), torch.arange(rows)).flatten(1).double()
    assert float(kept.mean()) == pytest.approx(0.9, abs=4 * (0.09 / rows / width) ** 0.5)
    # Of independent draws, means of rows and of columns deviate by the binomial's amount, and no two are correlated.
    assert float(kept.mean(dim=1).std()) == pytest.approx((0.09 / width) ** 0.5, rel=0.15)
    assert float(kept.mean(dim=0).std()) == pytest.approx((0.09 / rows) ** 0.5, rel=0.06)
    for samples, count in ((kept, width), (kept.T[:600], rows)):
        correlation = torch.corrcoef(samples)[*torch.triu_indices(600, 600, 1)]
        assert float(correlation.std()) == pytest.approx(count**-0.5, rel=0.05)
    rows_alike = torch.corrcoef(kept)[*torch.triu_indices(rows, rows, 1)]
    assert float(rows_alike.abs().max()) < 7 * width**-0.5


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_its_gradient_is_the_mask(rate):
    layer = Dropout(rate).train()
    x = torch.rand(50, 40, 30, generator=generator(0), dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    out = layer(x)
    torch.manual_seed(3)
    mask = layer.mask(x.shape[1:], torch.arange(50))
    assert float(mask.double().mean()) == pytest.approx(1 - rate, abs=0.01)
    assert torch.equal(out, torch.where(mask, x / (1 - rate), 0.0)) or torch.allclose(out, x * mask / (1 - rate))
    out.sum().backward()
    assert torch.allclose(x.grad, mask.double() / (1 - rate))
    assert layer.eval()(x) is x and Dropout(0.0).train()(x) is x


def test_a_row_has_its_mask_in_every_part_of_a_batch():
    layer, rows = Dropout(0.3).train(), torch.arange(7)
    masks = []
    for own in (rows, rows[2:5], rows[1::2]):
        torch.manual_seed(5)
        masks.append(layer.mask(torch.Size((8, 9)), own))
    assert torch.equal(masks[1], masks[0][2:5]) and torch.equal(masks[2], masks[0][1::2])
    torch.manual_seed(6)
    assert not torch.equal(layer.mask(torch.Size((8, 9)), rows), masks[0])
