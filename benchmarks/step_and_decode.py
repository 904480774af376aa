"""What routing costs in a training step, and what the key/value cache saves in decoding.

    python benchmarks/step_and_decode.py [--threads 2] [--rounds 7]

Both comparisons alternate within one process, A B A B ..., and the ratio is taken pair by pair, so that a machine whose
speed drifts does not decide them. Prints the median, least and greatest of each ratio.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch

from ups_model.config import Config
from ups_model.config.presets import small
from ups_model.model.decoding import decode_poses, estimate_poses
from ups_model.model.inputs import Inputs
from ups_model.model.ups import UPS
from ups_model.model.vocabulary import Quantiser, Vocabulary
from ups_model.skeletons import get_skeleton


def make_model(config: Config) -> UPS:
    """A model of the preset's size with random text features: their values do not matter to speed."""
    vocabulary = Vocabulary((("utd_mhad", tuple(f"action {index}" for index in range(27))),), config.model.n_bins)
    generator = torch.Generator().manual_seed(0)
    text_VE = torch.randn(vocabulary.size, 384, generator=generator)
    quantiser = Quantiser((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), config.model.n_bins)
    slots = get_skeleton("h36m17").native_slot
    return UPS(config.model, vocabulary, quantiser, text_VE, 64, len(slots), seed=0, pose_slots=slots)


def pose_windows(count: int, frames: int, targets: int) -> Inputs:
    """Random windows of the 17-joint layout, `targets` poses asked of each."""
    mask_S = torch.zeros(25, dtype=torch.bool)
    mask_S[list(get_skeleton("h36m17").slots_present)] = True
    generator = torch.Generator().manual_seed(1)
    pose = torch.randn(count, 1, frames, 25, 3, generator=generator) * mask_S[:, None]
    first = (frames - targets) // 2
    return Inputs("pe", pose, mask_S, target_frame_BR=torch.arange(first, first + targets).expand(count, -1))


def ratios(first: Callable[[], None], second: Callable[[], None], rounds: int) -> tuple[list[float], float, float]:
    """Pairwise time ratios second / first after one warm-up each, and the median seconds of both."""
    first(), second()
    pairs = []
    for _ in range(rounds):
        times = []
        for function in (first, second):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        pairs.append(times)
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    return [b / a for a, b in pairs], *medians


def training_step(model: UPS, inputs: Inputs) -> Callable[[], None]:
    """Forward, backward and AdamW update of one batch; the route is chosen by the sample of the step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    count = inputs.target_frame_BR.numel()
    target_BK = torch.randint(0, model.vocabulary.size, (count, 52), generator=torch.Generator().manual_seed(2))
    noise_LH = torch.zeros(model.config.encoder_layers, model.config.blocks_per_layer)

    def step() -> None:
        logits_BKV = model(inputs, target_BK, noise_LH=noise_LH)
        torch.nn.functional.cross_entropy(logits_BKV.flatten(0, 1), target_BK.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def show(title: str, found: tuple[list[float], float, float], first: str, second: str) -> None:
    values, a, b = found
    print(
        f"{title}: median {statistics.median(values):.3f} (least {min(values):.3f}, greatest {max(values):.3f}, "
        f"{len(values)} pairs; median seconds {first} {a:.3f}, {second} {b:.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {platform.machine()}, {given.threads} threads, preset small")

    one, two = (make_model(small().with_fields({"blocks_per_layer": blocks})) for blocks in (1, 2))
    inputs = pose_windows(32, 27, 2)
    found = ratios(training_step(one, inputs), training_step(two, inputs), given.rounds)
    show("training step, H = 2 sparse / H = 1", found, "H=1", "H=2")
    dense = make_model(small().with_fields({"routing_execution": "dense"}))
    found = ratios(training_step(one, inputs), training_step(dense, inputs), given.rounds)
    show("training step, H = 2 dense / H = 1", found, "H=1", "H=2")

    two.eval()
    windows = pose_windows(64, 27, 1)
    with torch.no_grad():
        memory, _, _ = two.encode(windows)
    found = ratios(
        lambda: decode_poses(two, memory, cached=True),
        lambda: decode_poses(two, memory, cached=False),
        given.rounds,
    )
    show("decoding 64 poses, uncached / cached", found, "cached", "uncached")
    found = ratios(
        lambda: estimate_poses(two, windows, cached=True),
        lambda: estimate_poses(two, windows, cached=False),
        given.rounds,
    )
    show("encoding and decoding 64 poses, uncached / cached", found, "cached", "uncached")
    found = ratios(
        lambda: estimate_poses(two, windows, decoding="parallel"),
        lambda: estimate_poses(two, windows),
        given.rounds,
    )
    show("encoding and decoding 64 poses, autoregressive cached / parallel", found, "parallel", "cached")


if __name__ == "__main__":
    main()
