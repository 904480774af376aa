"""The networks that UPS is timed beside are what they are called."""

import os
import re
import subprocess
import sys

import pytest
import torch


@pytest.fixture
def peers(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(repo_root / "benchmarks")
    import peers

    return peers


@pytest.mark.parametrize(("blocks", "frames", "millions"), [(2, 27, 8.56), (3, 81, 12.75), (4, 243, 16.95)])
def test_videopose3d_has_the_published_size_and_receptive_field(peers, blocks, frames, millions):
    """Complexity table of arXiv 1811.11742: 8.56 M, 12.75 M and 16.95 M parameters at 27, 81 and 243 frames."""
    body = peers.VideoPose3D(peers.Shape(frames, 17, 2), blocks)
    head = torch.nn.Linear(body.width, 17 * 3)
    assert peers.parameters_of(body) + peers.parameters_of(head) == pytest.approx(millions * 1e6, abs=0.005e6)

    small = peers.VideoPose3D(peers.Shape(frames, 17, 2), blocks, width=32).eval().double()
    x_BNJC = torch.randn(1, frames + 20, 17, 2, dtype=torch.float64, requires_grad=True)
    middle = (frames + 20) // 2
    out_BNW = small(x_BNJC)
    assert out_BNW.shape == (1, frames + 20, 32)
    out_BNW[0, middle].sum().backward()
    seen = x_BNJC.grad.abs().sum(dim=(0, 2, 3)).nonzero()[:, 0]
    assert (seen[0], seen[-1]) == (middle - (frames - 1) // 2, middle + (frames - 1) // 2)


@pytest.mark.parametrize("parameters", [300_000, 2_750_000])
def test_the_transformer_has_as_many_parameters_as_asked(peers, parameters):
    body = peers.equal_transformer(peers.Shape(27, 17, 2), parameters)
    assert peers.parameters_of(body) == pytest.approx(parameters, rel=0.06)
    assert body(torch.randn(2, 27, 17, 2)).shape == (2, 27, 17, body.width)


@pytest.mark.slow
def test_all_networks_are_timed_and_exponents_fitted(repo_root):
    command = [sys.executable, "benchmarks/peers.py", "--quick", "--rounds", "1", "--scaling-rounds", "1"]
    environment = {**os.environ, "PYTHONPATH": str(repo_root)}
    done = subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(.{30}) +([\d.]+) M +(\d+) +(\d+) +(\d+) +(\d+) +([\d.]+) times$", done.stdout, re.MULTILINE)
    names = [row[0].strip() for row in rows]
    assert len(names) == 8 and len(set(names)) == 4 and names[:4] == names[4:]
    assert all(float(ratio) == 1 for name, *_, ratio in rows if name.startswith("UPS"))
    fits = re.findall(r"^pe +(frames|bins) .* (-?[\d.]+) ± ([\d.]+)$", done.stdout, re.MULTILINE)
    assert [axis for axis, *_ in fits] == ["frames", "bins"]
    assert all(-1 < float(exponent) < 3 for _, exponent, _ in fits)
