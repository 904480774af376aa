"""A training step of UPS beside other networks on the same batch, and how it grows with its sizes.

    python benchmarks/peers.py [--rounds 7] [--scaling-rounds 3] [--quick]

UPS of preset `small` stands beside a transformer encoder over joints x frames tokens with as many parameters,
VideoPose3D's network (Pavllo et al. 2019) with a receptive field of 27 frames, the windows of the preset, and three
blocks of temporal convolutions. All get the same batch of synthetic clips, of pose estimation and of 3D recognition,
and take a whole training step each: forward, loss, backward, clipping, AdamW. One thread; times are CPU times, which
other processes change less than the clock's; the networks take turns in one process, and ratios are taken round by
round.

Then one size of UPS at a time is changed, in four steps, the others as in the preset: the exponent is the slope of log
time over log size, with the standard error of the least-squares fit. What does not grow with it (decoding, the update)
is part of a step, so that exponents lie below those of the operation that grows.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import linregress
from synthetic_runs import Fixed, stand_in, start, use_random_text
from torch import Tensor, nn

from ups_model.config import Config
from ups_model.data.batching.batches import Batch

CLASSES = 12
"""Of the synthetic sets."""
AXES: Mapping[str, Mapping[str, Sequence[int]]] = {
    "frames": {"data.{task}.frames": (16, 32, 64, 128)},
    "width": {"token_width": (16, 32, 48, 64), "tem_width": (64, 128, 192, 256), "decoder_width": (64, 128, 192, 256)},
    "depth": {"encoder_layers": (1, 2, 4, 8)},
    "blocks a layer (H)": {"blocks_per_layer": (1, 2, 4, 8)},
    "bins": {"n_bins": (100, 200, 400, 800)},
    "batch": {"data.{task}.batch_size": (8, 16, 32, 64)},
}
"""Fields of a size and their values; the first field's are those of the fit."""


@dataclass(frozen=True)
class Shape:
    """What a batch is like: frames, joints present, coordinates of a joint."""

    frames: int
    joints: int
    dims: int


class JointsAndFrames(nn.Module):
    """A transformer encoder whose tokens are joints of frames: [B, N, J, C] -> [B, N, J, W]."""

    def __init__(self, shape: Shape, width: int, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Linear(shape.dims, width)
        self.place = nn.Parameter(torch.zeros(shape.frames * shape.joints, width))
        # Without dropout, with which attention would take a slower way.
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, x_BNJC: Tensor) -> Tensor:
        tokens = self.embed(x_BNJC).flatten(1, 2) + self.place
        return self.encoder(tokens).unflatten(1, x_BNJC.shape[1:3])


class VideoPose3D(nn.Module):
    """The network of Pavllo et al. 2019 (arXiv 1811.11742): [B, N, J, C] -> [B, N, W].

    A convolution over 3 frames, then blocks of one over 3 dilated frames and one over 1 with a residual around both.
    The first and the last frame are repeated beyond the ends, so that every frame has an answer.
    """

    def __init__(self, shape: Shape, blocks: int, width: int = 1024, dropout: float = 0.25) -> None:
        super().__init__()
        self.width, self.frames = width, 3 ** (blocks + 1)
        self.dropout = nn.Dropout(dropout)
        self.first = nn.Conv1d(shape.joints * shape.dims, width, 3, bias=False)
        self.wide = nn.ModuleList(
            nn.Conv1d(width, width, 3, dilation=3 ** (block + 1), bias=False) for block in range(blocks)
        )
        self.narrow = nn.ModuleList(nn.Conv1d(width, width, 1, bias=False) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(2 * blocks + 1))

    def forward(self, x_BNJC: Tensor) -> Tensor:
        edge = (self.frames - 1) // 2
        x_BCN = F.pad(x_BNJC.flatten(2).transpose(1, 2), (edge, edge), mode="replicate")
        x_BWN = self._step(self.first, self.norms[0], x_BCN)
        for block, (wide, narrow) in enumerate(zip(self.wide, self.narrow, strict=True)):
            reach = 3 ** (block + 1)
            out_BWN = self._step(wide, self.norms[2 * block + 1], x_BWN)
            out_BWN = self._step(narrow, self.norms[2 * block + 2], out_BWN)
            x_BWN = x_BWN[:, :, reach:-reach] + out_BWN
        return x_BWN.transpose(1, 2)

    def _step(self, convolution: nn.Module, norm: nn.Module, x_BWN: Tensor) -> Tensor:
        return self.dropout(F.relu(norm(convolution(x_BWN))))


class ThreeBlocks(nn.Module):
    """Three residual blocks of a convolution over 3 frames with dilations 1, 2 and 4: [B, N, J, C] -> [B, N, W]."""

    def __init__(self, shape: Shape, width: int = 256) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Conv1d(shape.joints * shape.dims, width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv1d(width, width, 3, padding=reach, dilation=reach), nn.BatchNorm1d(width), nn.ReLU())
            for reach in (1, 2, 4)
        )

    def forward(self, x_BNJC: Tensor) -> Tensor:
        x_BWN = self.embed(x_BNJC.flatten(2).transpose(1, 2))
        for block in self.blocks:
            x_BWN = x_BWN + block(x_BWN)
        return x_BWN.transpose(1, 2)


class Answer(nn.Module):
    """A network's loss on a batch: distance to the poses of the target frames, or cross-entropy of the classes."""

    def __init__(self, body: nn.Module, batch: Batch) -> None:
        super().__init__()
        self.body = body
        self.slots = batch.inputs.slot_mask_S.nonzero()[:, 0]
        self.dims = 2 if batch.inputs.task == "pe" else 3
        joints = 1 if isinstance(body, JointsAndFrames) else len(self.slots)
        self.head = nn.Linear(body.width, 3 * joints if batch.inputs.task == "pe" else CLASSES)

    def forward(self, batch: Batch) -> Tensor:
        out = self.body(batch.inputs.pose_BPNSC[:, 0][:, :, self.slots, : self.dims])
        if batch.inputs.task != "pe":
            return F.cross_entropy(self.head(out.flatten(1, -2).mean(dim=1)), batch.label_B)
        target_BR = batch.inputs.target_frame_BR
        rows_B1 = torch.arange(len(target_BR))[:, None]
        pose_BRJ3 = self.head(out[rows_B1, target_BR]).reshape(batch.pose_BRJ3.shape)
        return (pose_BRJ3 - batch.pose_BRJ3).norm(dim=-1).mean()


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def equal_transformer(shape: Shape, parameters: int) -> JointsAndFrames:
    """The transformer whose number of parameters comes nearest."""
    with torch.device("meta"):
        widths = range(8, 513, 8)
        width = min(widths, key=lambda width: abs(parameters_of(JointsAndFrames(shape, width)) - parameters))
    return JointsAndFrames(shape, width)


def ups_step(config: Config) -> tuple[Callable[[], None], Batch, int]:
    """A training step of UPS on one batch, that batch, and the number of parameters."""
    run = start(config, "cpu", "fp32")
    (task,) = config.optim.tasks
    batch = run.parts.feeds[task].train(0)
    run.parts.feeds[task] = Fixed(batch)
    return run.train_step, batch, parameters_of(run.state.model)


def peer_step(body: nn.Module, batch: Batch, config: Config) -> tuple[Callable[[], None], int]:
    """A training step of another network on a batch, and its number of parameters."""
    model, optim = Answer(body, batch), config.optim
    optimizer = torch.optim.AdamW(model.parameters(), lr=optim.learning_rate, weight_decay=optim.weight_decay)

    def step() -> None:
        model(batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, parameters_of(model)


def in_turns(calls: Mapping[Any, Callable[[], None]], rounds: int) -> dict[Any, list[float]]:
    """Seconds of CPU time of each call in each round, after one round that is not counted."""
    for call in calls.values():
        call()
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.process_time()
            call()
            times[name].append(time.process_time() - started)
    return times


def compare(task: str, rounds: int, quick: bool) -> None:
    """The table of one task."""
    config = stand_in("small", {"optim.cycle": (task,)}, quick)
    step, batch, parameters = ups_step(config)
    clips, _, frames = batch.inputs.pose_BPNSC.shape[:3]
    shape = Shape(frames, int(batch.inputs.slot_mask_S.sum()), 2 if task == "pe" else 3)
    bodies = {
        "transformer, joints x frames": equal_transformer(shape, parameters),
        "VideoPose3D, 27 frames": VideoPose3D(shape, blocks=2),
        "three temporal convolutions": ThreeBlocks(shape),
    }
    steps, sizes = {"UPS": step}, {"UPS": parameters}
    for name, body in bodies.items():
        steps[name], sizes[name] = peer_step(body, batch, config)
    times = in_turns(steps, rounds)
    targets = "" if task != "pe" else f", {batch.inputs.target_frame_BR.shape[1]} poses of each"
    print(f"\n{task}: {clips} clips of {frames} frames, {shape.joints} joints{targets}; {rounds} rounds")
    print(f"{'':30}{'parameters':>12}{'ms a step':>12}{'least':>8}{'most':>8}{'clips/s':>9}{'UPS takes':>16}")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        ratio = statistics.median(ours / theirs for ours, theirs in zip(times["UPS"], seconds, strict=True))
        row = f"{name:<30}{sizes[name] / 1e6:>10.2f} M{1000 * median:>12.0f}{1000 * min(seconds):>8.0f}"
        print(f"{row}{1000 * max(seconds):>8.0f}{clips / median:>9.0f}{ratio:>10.2f} times")


def scaling(task: str, axis: str, rounds: int, quick: bool) -> None:
    """One line: times of four sizes, and the exponent."""
    fields = AXES[axis]
    sizes = next(iter(fields.values()))
    calls = {}
    for place, size in enumerate(sizes):
        changes = {field.format(task=task): values[place] for field, values in fields.items()}
        calls[size], _, _ = ups_step(stand_in("small", {"optim.cycle": (task,), **changes}, quick))
    medians = [statistics.median(seconds) for seconds in in_turns(calls, rounds).values()]
    fit = linregress(np.log(sizes), np.log(medians))
    cells = "".join(f"{f'{size}: {1000 * median:.0f}':>12}" for size, median in zip(sizes, medians, strict=True))
    print(f"{task:<6}{axis:<20}{cells}{fit.slope:>10.2f} ± {fit.stderr:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scaling-rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small networks and few sizes: shows that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    use_random_text()
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread, preset small on synthetic clips")
    for task in ("pe", "ar3d"):
        compare(task, options.rounds, options.quick)
    print(f"\nUPS by size, size: ms a step, median of {options.scaling_rounds} rounds; exponent ± standard error")
    for axis in ("frames", "bins") if options.quick else AXES:
        for task in ("pe",) if axis == "bins" or options.quick else ("pe", "ar3d"):
            scaling(task, axis, options.scaling_rounds, options.quick)


if __name__ == "__main__":
    main()
