"""The compact recogniser: its streams by hand, absent persons, invariance, size."""

import pytest
import torch

from baselines.dd_net import DDNet, fast_motion, joint_distances, slow_motion
from baselines.persons import mean_over_persons
from tests.support.small_models import generator, stir


def test_the_distances_are_those_of_each_pair():
    triangle = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 4, 0]]).view(1, 1, 3, 3)
    assert joint_distances(triangle).tolist() == [[[3.0, 4.0, 5.0]]]


def test_motion_is_over_one_and_over_two_frames_and_its_end_is_held():
    x = torch.tensor([0.0, 1, 4, 9, 16]).view(1, 5, 1, 1)
    assert slow_motion(x).flatten().tolist() == [1, 3, 5, 7, 7]
    assert fast_motion(x).flatten().tolist() == [4, 12, 12]
    assert slow_motion(x[:, :1]).flatten().tolist() == [0]


def test_distances_alone_do_not_see_how_the_body_is_turned_or_where_it_is():
    model = stir(DDNet(5, 3, 4, width=4, blocks=1, streams=("distance",)).double().eval())
    x = torch.randn(2, 1, 8, 5, 3, generator=generator(0), dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator(1), dtype=torch.float64)).Q
    with torch.no_grad():
        assert torch.allclose(model(x), model(x @ turn + 3.0), atol=1e-10)


@pytest.mark.parametrize("frames", [1, 2, 7, 32])
def test_clips_of_any_length_are_scored(frames):
    model = DDNet(5, 2, 4, width=4, streams=("distance", "slow", "fast", "position")).eval()
    assert model(torch.zeros(3, 1, frames, 5, 2)).shape == (3, 4)


def test_an_absent_person_changes_nothing():
    model = stir(DDNet(5, 3, 4, width=4).double().eval())
    x = torch.randn(2, 2, 8, 5, 3, generator=generator(0), dtype=torch.float64)
    mask = torch.tensor([[True, False], [True, True]])
    other = x.clone()
    other[0, 1] = 7.0
    with torch.no_grad():
        assert torch.equal(model(x, mask), model(other, mask))
        assert torch.allclose(model(x, mask)[0], model(x[:1, :1])[0], atol=1e-12)
        assert not torch.allclose(model(x, mask)[1], model(x[1:, :1])[0])


def test_the_mean_over_persons_counts_those_that_are_there():
    x = torch.tensor([[[1.0], [3.0]], [[5.0], [9.0]]])
    assert mean_over_persons(x, torch.tensor([[True, True], [True, False]])).tolist() == [[2.0], [5.0]]
    assert mean_over_persons(x, None).tolist() == [[2.0], [7.0]]


def test_the_default_and_the_published_width_have_under_two_million_parameters():
    def size(width):
        return sum(value.numel() for value in DDNet(22, 3, 27, width).parameters())

    assert size(48) < 1.1e6 and size(64) < 2e6
