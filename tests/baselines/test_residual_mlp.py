"""The residual MLP lifter against its equations, and the windows that lifters see."""

import torch

from baselines.lifter import relative_to_root, target_windows
from baselines.residual_mlp import ResidualMLP
from tests.support.small_models import generator, stir


def test_it_computes_what_its_equations_say():
    model = stir(ResidualMLP(3, inputs=4, joints=5, width=6, blocks=2).double().eval())
    x = torch.randn(7, 3, 4, 2, generator=generator(0), dtype=torch.float64)

    def layer(part, x_BD):
        x_BD = x_BD @ part.linear.weight.T + part.linear.bias
        x_BD = (x_BD - part.norm.running_mean) / (part.norm.running_var + part.norm.eps).sqrt()
        return (x_BD * part.norm.weight + part.norm.bias).clamp(min=0)

    with torch.no_grad():
        hidden = layer(model.enter, x.reshape(7, -1))
        for first, second in model.blocks:
            hidden = hidden + layer(second, layer(first, hidden))
        expected = (hidden @ model.leave.weight.T + model.leave.bias).reshape(7, 5, 3)
        assert torch.allclose(model(x), expected, rtol=1e-12, atol=1e-12)


def test_the_sizes_are_those_the_docstring_names():
    def millions(width):
        return sum(value.numel() for value in ResidualMLP(27, 17, 17, width).parameters()) / 1e6

    assert round(millions(512), 2) == 2.08 and round(millions(480), 2) == 1.86


def test_each_target_has_the_frames_around_it():
    frames = torch.arange(10.0).view(1, 10, 1, 1).expand(2, 10, 1, 2) + torch.tensor([0.0, 100.0]).view(2, 1, 1, 1)
    windows = target_windows(frames, torch.tensor([[1, 8], [4, 5]]), 3)
    assert windows[..., 0, 0].tolist() == [[0, 1, 2], [7, 8, 9], [103, 104, 105], [104, 105, 106]]


def test_joints_relative_to_the_root_are_the_same_numbers():
    x = torch.randn(3, 5, 4, 2, generator=generator(1), dtype=torch.float64)
    centred = relative_to_root(x, 1)
    assert torch.equal(centred[:, :, 1], x[:, :, 1])
    for joint in (0, 2, 3):
        assert torch.equal(centred[:, :, joint], x[:, :, joint] - x[:, :, 1])
