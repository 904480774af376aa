"""VideoPose3D: published size, equal outputs of both forms, a hand-written reference, no look beyond the window."""

import pytest
import torch
import torch.nn.functional as F

from baselines.videopose3d import VideoPose3D
from tests.support.small_models import generator, stir


@pytest.mark.parametrize(("widths", "millions"), [((3, 3, 3), 8.56), ((3,) * 4, 12.75), ((3,) * 5, 16.95)])
def test_the_published_sizes_come_out(widths, millions):
    model = VideoPose3D(17, 17, widths)
    assert round(sum(value.numel() for value in model.parameters()) / 1e6, 2) == millions
    assert model.receptive_field == 3 ** len(widths)


def small(widths):
    """In float64, with running statistics that are not those of the start."""
    model = VideoPose3D(4, 5, widths, width=6).double()
    model.train()(torch.randn(20, model.receptive_field, 4, 2, generator=generator(9), dtype=torch.float64))
    return stir(model, scale=0.2).eval()


@pytest.mark.parametrize("widths", [(1, 1, 1), (3, 3), (3, 3, 3), (3, 3, 3, 3), (3, 5), (5, 3, 1)])
def test_the_dilated_form_gives_the_outputs_of_the_strided_one(widths):
    model = small(widths)
    frames = model.receptive_field + 6
    x = torch.randn(2, frames, 4, 2, generator=generator(0), dtype=torch.float64)
    with torch.no_grad():
        dilated = model.dilated(x)
        strided = torch.stack([model(x[:, first : first + model.receptive_field]) for first in range(7)], dim=1)
    assert dilated.shape == (2, 7, 5, 3)
    assert torch.allclose(dilated, strided, rtol=1e-10, atol=1e-12)


def test_both_forms_agree_to_rounding_in_single_precision_at_243_frames():
    model = VideoPose3D(17, 17, (3,) * 5, width=32).eval()
    x = torch.randn(1, 250, 17, 2, generator=generator(0))
    with torch.no_grad():
        strided = torch.stack([model(x[:, first : first + 243]) for first in range(8)], dim=1)
        assert torch.allclose(model.dilated(x), strided, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", [[[1, 3]], [[1, 2, 3, 4, 5]]])
def test_targets_get_the_same_poses_in_either_form(targets):
    model = small((3,))
    x = torch.randn(2, 7, 4, 2, generator=generator(0), dtype=torch.float64)
    target_BR = torch.tensor(targets).expand(2, -1)
    with torch.no_grad():
        assert torch.allclose(model.lift(x, target_BR), super(VideoPose3D, model).lift(x, target_BR), atol=1e-12)


def test_it_computes_the_convolutions_of_figure_2():
    model = small((3, 3))
    x = torch.randn(1, 9, 4, 2, generator=generator(0), dtype=torch.float64)

    def layer(part, frames_DN):
        """Each output frame from its own window of three input frames (or one), by hand."""
        taps = part.weight.shape[2]
        outputs = []
        for first in range(0, frames_DN.shape[1] - taps + 1, taps):
            y = sum(part.weight[:, :, tap] @ frames_DN[:, first + tap] for tap in range(taps))
            y = (y - part.norm.running_mean) / (part.norm.running_var + part.norm.eps).sqrt()
            outputs.append(F.relu(y * part.norm.weight + part.norm.bias))
        return torch.stack(outputs, dim=1)

    with torch.no_grad():
        hidden = layer(model.expand, x[0].reshape(9, 8).T)
        block = model.blocks[0]
        top = hidden[:, 1] + layer(block.single, layer(block.wide, hidden))[:, 0]
        expected = (model.shrink.weight[:, :, 0] @ top + model.shrink.bias).reshape(5, 3)
        assert torch.allclose(model(x)[0], expected, rtol=1e-11, atol=1e-12)


def test_a_frame_outside_the_receptive_field_changes_nothing():
    model = small((3, 3))
    x = torch.randn(1, 11, 4, 2, generator=generator(0), dtype=torch.float64)
    other = x.clone()
    other[0, 10] += 5
    with torch.no_grad():
        one, two = model.dilated(x)[0], model.dilated(other)[0]
    assert torch.equal(one[:2], two[:2]) and not torch.allclose(one[2], two[2])
