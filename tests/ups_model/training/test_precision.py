"""Training in bfloat16 on a CPU, and an optimizer's state from before it was fused."""

import pytest
import torch

from tests.support.runs import assert_same_run, options, stop_at, toy_config
from ups_model.training.checkpoint import optimizer_tensors, restore_optimizer
from ups_model.training.run import train


def losses_of(toy_sets, folder, cache, precision):
    """Losses by step of a toy run in which nothing is dropped."""
    losses = {}

    def take(step, row):
        losses[step], *_ = [value for name, value in row.items() if name.endswith("_loss")] or [losses.get(step)]

    config = toy_config(dropout=0.0, decoder_dropout=0.0)
    result = train(config, toy_sets, options(folder, cache, precision=precision, log_every=1, test=False), None, take)
    assert result.about["precision"] == precision
    return torch.tensor([losses[step] for step in range(1, result.step + 1)])


@pytest.mark.slow
def test_losses_in_bf16_on_a_cpu_stay_within_one_percent_of_those_in_fp32(toy_sets, cache, tmp_path):
    full, half = (losses_of(toy_sets, tmp_path / name, cache, name) for name in ("fp32", "bf16"))
    assert not torch.equal(full, half)
    assert ((half - full) / full).abs().max() < 0.01


@pytest.mark.slow
def test_a_run_in_bf16_on_a_cpu_that_was_stopped_ends_with_the_bits_of_one_that_was_not(toy_sets, cache, tmp_path):
    config, one, other = toy_config(), tmp_path / "one", tmp_path / "other"
    train(config, toy_sets, options(one, cache, precision="bf16"))
    train(config, toy_sets, options(other, cache, precision="bf16"), should_stop=stop_at(7))
    train(config, toy_sets, options(other, cache, precision="bf16"))
    assert_same_run(one, other)


def test_the_state_of_an_optimizer_that_was_not_fused_goes_on_in_one_that_is():
    gradients = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
    weights = []
    for fused in (False, True):
        weight = torch.nn.Parameter(torch.ones(3, 5))
        optimizers = [torch.optim.AdamW([weight], lr=1e-2, fused=late) for late in (False, fused)]
        for index, gradient in enumerate(gradients):
            if index == 2:
                restore_optimizer(optimizers[1], optimizer_tensors(optimizers[0]))
            weight.grad = gradient.clone()
            optimizers[index // 2].step()
        weights.append(weight.detach())
    torch.testing.assert_close(weights[1], weights[0])
