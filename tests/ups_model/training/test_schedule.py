"""What a step depends on besides its batch, against hand-worked values and counting."""

import itertools
import math

import pytest
import torch

from tests.support.runs import toy_config
from ups_model.training.schedule import gumbel_noise, input_mask, learning_rate, temperature


def rates(**changes):
    config = toy_config(**{"steps": 100, "learning_rate": 1e-3, "warmup_share": 0.05, "warmup_steps": 0} | changes)
    return [learning_rate(config, step) for step in range(config.optim.steps)]


def test_the_rate_rises_linearly_to_its_peak_and_falls_along_half_a_cosine():
    curve = rates()
    # Five steps of warm-up, a fifth of the peak more each.
    assert curve[:5] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    # Then 1/2 (1 + cos): the peak at its start, 3/4 of it after a third of the way (30 of 90 steps).
    assert curve[5] == pytest.approx(1e-3)
    assert rates(steps=95, warmup_share=5 / 95)[5 + 30] == pytest.approx(7.5e-4)
    assert max(curve) == pytest.approx(1e-3)
    assert all(earlier > later for earlier, later in itertools.pairwise(curve[5:]))


def test_the_cosine_is_symmetric_about_its_middle():
    curve = [*rates(), learning_rate(toy_config(steps=100, learning_rate=1e-3, warmup_share=0.05, warmup_steps=0), 100)]
    assert [curve[5 + k] + curve[100 - k] for k in range(96)] == pytest.approx([1e-3] * 96)


@pytest.mark.parametrize(
    ("steps", "share", "least", "expected"),
    [(1000, 0.05, 100, 100), (4000, 0.05, 100, 200), (120, 0.05, 100, 60), (1, 0.05, 100, 1), (1000, 0.05, 0, 50)],
)
def test_the_warm_up_is_a_share_of_the_run_but_no_fewer_than_its_least_steps_and_they_no_more_than_half(
    steps, share, least, expected
):
    curve = rates(steps=steps, warmup_share=share, warmup_steps=least)
    assert [curve[step] for step in (0, expected - 1)] == pytest.approx([1e-3 / expected, 1e-3])


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("share", [0, 0.05, 0.5, 1])
def test_no_update_has_a_rate_of_0_not_even_the_last(steps, share):
    curve = rates(steps=steps, warmup_share=share)
    assert all(0 < rate <= 1e-3 * (1 + 1e-12) for rate in curve)
    assert max(curve) == pytest.approx(1e-3)


def test_the_last_rate_is_that_of_one_step_before_the_cosine_ends():
    # 1/2 (1 + cos(pi - x)) = sin^2(x / 2), x = pi / 95.
    assert rates()[-1] == pytest.approx(1e-3 * math.sin(math.pi / 190) ** 2)


def test_a_constant_rate_decays_by_the_square_root_and_longer_runs_share_all_before_that():
    def made(steps):
        return toy_config(steps=steps, warmup_steps=0, learning_rate=1e-3, schedule="constant", horizon=100)

    short, long = made(100), made(250)
    assert (short.optim.trunk_steps, long.optim.trunk_steps) == (80, 200)
    curve = [learning_rate(short, step) for step in range(100)]
    # Five steps of warm-up; then the peak; by hand 1 - sqrt(5 / 20) = 1/2 and 1 - sqrt(19 / 20) in the decay of 20.
    assert curve[:6] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3])
    assert set(curve[5:81]) == {1e-3}
    assert [curve[85], curve[99]] == pytest.approx([5e-4, 1e-3 * (1 - math.sqrt(0.95))])
    for step in range(81):
        assert learning_rate(long, step) == curve[step]
        assert temperature(long, step) == temperature(short, step)
        assert torch.equal(gumbel_noise(long, step), gumbel_noise(short, step))
    assert temperature(long, 249) == temperature(short, 100) == pytest.approx(short.model.gumbel_end)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "constant", "horizon": 101}, "at most steps = 100, got 101; give the steps of the shortest run"),
        ({"schedule": "constant", "horizon": 50, "decay_share": 0}, "decay_share"),
        ({"horizon": 50}, "horizon needs schedule='constant', got 'cosine'"),
        ({"decay_share": 0.1}, "decay_share needs schedule='constant'"),
    ],
)
def test_a_schedule_says_what_it_lacks(fields, message):
    with pytest.raises(ValueError, match=message):
        toy_config(steps=100, **fields)


def test_the_temperature_falls_geometrically_from_its_start_to_its_end():
    config = toy_config(steps=100, gumbel_start=8.0, gumbel_end=0.5)
    temperatures = [temperature(config, step) for step in (0, 25, 50, 75, 100)]
    assert temperatures == pytest.approx([8, 4, 2, 1, 0.5])


def test_the_noise_of_a_step_is_the_same_each_time_and_another_for_another_step_or_seed():
    config = toy_config(steps=100, routing_explore_share=1.0)
    first = gumbel_noise(config, 3)
    torch.manual_seed(1)  # The global generator has no part in it.
    assert torch.equal(gumbel_noise(config, 3), first) and first.shape == (2, 2)
    assert not torch.equal(gumbel_noise(config, 4), first)
    assert not torch.equal(gumbel_noise(config.replace(seed=1), 3), first)


def test_noise_at_full_strength_is_of_the_gumbel_distribution():
    config = toy_config(encoder_layers=200, blocks_per_layer=200)
    noise = gumbel_noise(config, 0).double().flatten()
    # Mean 0.5772 (Euler's constant), deviation pi / sqrt(6); 40,000 draws know the mean to 0.0064.
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.03)
    assert float(noise.std()) == pytest.approx(math.pi / math.sqrt(6), abs=0.03)
    # P(g <= 0) = exp(-1).
    assert float((noise <= 0).double().mean()) == pytest.approx(math.exp(-1), abs=0.02)


def test_noise_that_does_not_fade_keeps_its_strength_to_the_last_step():
    config = toy_config(steps=100, routing_explore_share=0.4, gumbel_fades=False)
    endless = toy_config(steps=10**9, routing_explore_share=1.0)
    torch.testing.assert_close(gumbel_noise(config, 99), gumbel_noise(endless, 99))


def test_noise_fades_linearly_to_exactly_0_after_the_exploring_share():
    config = toy_config(steps=100, routing_explore_share=0.4)
    endless = toy_config(steps=10**9, routing_explore_share=1.0)  # The same draws, as good as not faded.
    for step in (0, 10, 20, 39):
        torch.testing.assert_close(gumbel_noise(config, step), gumbel_noise(endless, step) * (1 - step / 40))
    assert gumbel_noise(config, 39).abs().min() > 0
    for step in (40, 41, 99):
        assert not gumbel_noise(config, step).any()
    assert not gumbel_noise(toy_config(routing_explore_share=0.0), 0).any()


@pytest.mark.parametrize(
    "cycle", [("pe", "ar2d", "eap", "ar3d"), ("ar3d",), ("ar3d", "eap", "ar3d"), ("pe", "pe", "ar2d", "pe")]
)
def test_turns_before_a_step_equal_counting(cycle):
    config = toy_config(**{"optim.cycle": cycle})
    count = dict.fromkeys(config.optim.tasks, 0)
    for step in range(3 * len(cycle) + 2):
        assert config.optim.turns_before(step) == count, step
        count[cycle[step % len(cycle)]] += 1


def masks(config, turn=0, share=(0, 1), targets=2, length=31):
    place_B = torch.arange(config.data.pe.batch_size)[share[0] :: share[1]]
    return input_mask(config, "pe", turn, torch.zeros(len(place_B) * targets, length, dtype=torch.int64), place_B)


def test_inputs_are_masked_at_a_ratio_drawn_evenly_for_each_sequence():
    mask = masks(toy_config(**{"mask_inputs": True, "data.pe.batch_size": 1000}), length=301)
    assert mask.shape == (2000, 300) and mask.dtype == torch.bool
    ratio = mask.double().mean(dim=1)
    # U(0, 1) has mean 1/2 and deviation 1/sqrt(12); a tenth of the sequences lies in each tenth.
    assert float(ratio.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(ratio.std()) == pytest.approx(12**-0.5, abs=0.02)
    shares = torch.histc(ratio, 10, 0, 1) / 2000
    torch.testing.assert_close(shares, torch.full((10,), 0.1, dtype=torch.float64), rtol=0, atol=0.03)


def test_processes_share_the_masks_of_one_process():
    config = toy_config(mask_inputs=True)
    whole = masks(config, turn=5).view(4, 2, 30)
    parts = [masks(config, turn=5, share=(rank, 2)).view(2, 2, 30) for rank in range(2)]
    assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), whole)
    assert not torch.equal(masks(config, turn=6).view(4, 2, 30), whole)


def test_class_tasks_and_runs_without_masking_have_no_mask():
    target = torch.zeros(4, 2, dtype=torch.int64)
    assert input_mask(toy_config(mask_inputs=True), "ar3d", 0, target) is None
    assert masks(toy_config()) is None
