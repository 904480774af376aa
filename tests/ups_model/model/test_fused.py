"""Autograd functions with a backward of their own against plain ones: values and gradients, in float64."""

import pytest
import torch
import torch.nn.functional as F

from tests.support.small_models import generator, stir
from ups_model.model import chunks, layers, tokenizer
from ups_model.model.fused import Attention, LayerNormRelu, MaxOfThree
from ups_model.model.layers import Dropout, Scene
from ups_model.model.tokenizer import GcnUnit

SLOTS = torch.tensor([0, 1, 2, 20, 24])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def value_and_gradients(function, *tensors):
    """What a function gives, and the gradients of its tensors for a random gradient of its answer."""
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    answer = function(*tensors)
    return answer, *torch.autograd.grad(answer, tensors, random(*answer.shape, seed=9), allow_unused=True)


def assert_same(one, other):
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first, second)


@pytest.fixture(params=[1, 10**9], ids=["clip by clip", "whole"])
def pieces(request, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", request.param)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("inputs", "width"), [(16, 16), (12, 16)], ids=["own residual", "projected residual"])
def test_a_fused_gcn_unit_equals_the_plain_one_with_all_gradients(inputs, width, masked, monkeypatch):
    unit = stir(GcnUnit(inputs, width, "layer").double())
    mask_BN = torch.arange(6) < torch.tensor([[6], [4], [1]]) if masked else None
    scene = Scene(0, SLOTS, mask_BN)
    names = [name for name, _ in unit.named_parameters()]

    def run(x_BDJN, *parameters):
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(unit, given, (x_BDJN.permute(0, 3, 2, 1), scene))

    tensors = [random(3, inputs, 5, 6), *(parameter.detach() for parameter in unit.parameters())]
    fused = value_and_gradients(run, *tensors)
    monkeypatch.setattr(tokenizer, "runs_fused", lambda _: False)
    plain = value_and_gradients(run, *tensors)
    assert_same(fused, plain)
    assert all(gradient.abs().max() > 0 for gradient in fused[1:])


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("residual", [False, True])
def test_layer_norm_with_relu_equals_torch_layer_norm_then_relu(residual):
    def plain(x_BDJN, weight_D, bias_D, *more):
        normed = F.layer_norm(x_BDJN.permute(0, 3, 2, 1), (6,), weight_D, bias_D).permute(0, 3, 2, 1)
        return F.relu(normed + sum(more))

    def fused(x_BDJN, weight_D, bias_D, *more):
        return LayerNormRelu.apply(x_BDJN, weight_D, bias_D, *(more or [None]))

    tensors = [random(3, 6, 4, 5), random(6, seed=1), random(6, seed=2), *([random(3, 6, 4, 5, seed=3)] * residual)]
    assert_same(value_and_gradients(fused, *tensors), value_and_gradients(plain, *tensors))


def test_the_greatest_of_three_equals_max_pooling_also_where_values_are_equal():
    x = random(2, 3, 4, 9).relu()
    x[0, :, :, 3:7] = 0.5
    x[1, :, :, 2] = x[1, :, :, 3]
    plain = value_and_gradients(lambda x: F.max_pool2d(x, (1, 3), stride=1, padding=(0, 1)), x)
    assert_same(value_and_gradients(MaxOfThree.apply, x), plain)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_attention_equals_torch_attention_with_all_gradients(together, causal):
    sizes = [(2, 5, 18)] if together else [(2, 5, 6), (2, 7 - 2 * causal, 12)]
    tensors = [random(*size, seed=seed) for seed, size in enumerate(sizes)]
    mask_KM = torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1) if causal else None

    def fused(first, key_value=None):
        return Attention.apply(first, key_value, 3, mask_KM)

    def plain(first, key_value=None):
        parts = first.chunk(3, dim=-1) if key_value is None else [first, *key_value.chunk(2, dim=-1)]
        query, key, value = (layers.split_heads(part, 3) for part in parts)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return out.transpose(1, 2).flatten(2)

    assert_same(value_and_gradients(fused, *tensors), value_and_gradients(plain, *tensors))


def test_dropout_drops_its_share_keeps_the_mean_and_gives_the_gradient_where_it_kept():
    torch.manual_seed(4)
    x = torch.ones(3, 400, 500).transpose(0, 2).requires_grad_()
    dropped = Dropout(0.1)(x)
    kept = dropped != 0
    # Six standard deviations of a share of 600,000 draws.
    assert abs(float(kept.double().mean()) - 0.9) < 0.0024
    torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], 1 / 0.9), rtol=1e-4, atol=0)
    # No place is drawn together with the next one, which comes from the same random number.
    pairs = kept.transpose(0, 2).reshape(-1, 4).double()
    assert (torch.corrcoef(pairs.T) - torch.eye(4, dtype=torch.float64)).abs().max() < 0.02
    dropped.sum().backward()
    torch.testing.assert_close(x.grad, dropped.detach())
    torch.manual_seed(4)
    assert torch.equal(Dropout(0.1)(x), dropped)
    assert torch.equal(Dropout(0.1).eval()(x), x)
