"""How much of the pose an untrained encoder lets through, with small and with full-strength residual starts.

    python benchmarks/untrained_encoder.py [--data uiprmd=PATH]

Fits a ridge regression from the features of all joints at the target frame to the root-relative pose, on augmented
training windows of preset `small`, and prints its error on windows not fitted: from the network's raw input features,
from the tokens of an untrained encoder, and from the same encoder with the residual starts set to full strength.
"""

import argparse
import logging

import torch
from torch import Tensor

from ups_model.cli import add_data_arguments, data_paths
from ups_model.config.presets import small
from ups_model.data.prepare.catalog import default_cache
from ups_model.model.encoder import Tem
from ups_model.model.tokenizer import TcnGcnLayer
from ups_model.training.build import build

BATCHES, FITTED = 32, 2400


def ridge_error_mm(features_XF: Tensor, pose_XJ3: Tensor) -> float:
    """Mean joint error, in millimetres, on the rows that were not fitted."""
    rows_XF = torch.cat([features_XF, torch.ones(len(features_XF), 1)], dim=1).double()
    pose_XC = pose_XJ3.flatten(1).double()
    gram = rows_XF[:FITTED].T @ rows_XF[:FITTED] + torch.eye(rows_XF.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, rows_XF[:FITTED].T @ pose_XC[:FITTED])
    error_XJ3 = (rows_XF[FITTED:] @ weight - pose_XC[FITTED:]).unflatten(1, (-1, 3))
    return 1000 * float(error_XJ3.norm(dim=-1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    given = parser.parse_args()
    logging.disable(logging.INFO)
    config = small()
    config = config.replace(optim=config.optim.replace(cycle=("pe",)))
    names = ("uiprmd", "jhmdb", "utd_mhad")
    parts = build(config, data_paths(given.data, names), torch.device("cpu"), default_cache() / "text")
    model, feed = parts.model.eval(), parts.feeds["pe"]

    def collect() -> tuple[Tensor, Tensor, Tensor]:
        raw, tokens, poses = [], [], []
        for turn in range(BATCHES):
            batch = feed.train(turn)
            with torch.no_grad():
                _, x_BNJD, scene = model.encode(batch.inputs)
                features_BNJC = model.features(batch.inputs.pose_BPNSC[:, 0])[:, :, scene.slots]
            features_BNJC = (features_BNJC - model.input_mean_TC[0]) / model.input_scale_TC[0]
            target_BR = batch.inputs.target_frame_BR
            rows, frames = torch.arange(len(target_BR)).repeat_interleave(target_BR.shape[1]), target_BR.flatten()
            raw.append(features_BNJC[rows, frames].flatten(1))
            tokens.append(x_BNJD[rows, frames].flatten(1))
            poses.append(batch.pose_BRJ3.flatten(0, 1))
        return torch.cat(raw), torch.cat(tokens), torch.cat(poses)

    raw, small_starts, poses = collect()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Tem):
                module.up.weight.mul_(10)
            if isinstance(module, TcnGcnLayer):
                module.norm.weight.fill_(1)
    _, full_starts, _ = collect()
    mean_pose = 1000 * float((poses - poses[:FITTED].mean(dim=0))[FITTED:].norm(dim=-1).mean())
    print(f"UI-PRMD, {FITTED} windows fitted, {len(poses) - FITTED} not; mean joint error in mm")
    print(f"mean pose                              {mean_pose:.1f}")
    print(f"raw input features                     {ridge_error_mm(raw, poses):.1f}")
    print(f"untrained encoder, small starts        {ridge_error_mm(small_starts, poses):.1f}")
    print(f"untrained encoder, full-strength starts {ridge_error_mm(full_starts, poses):.1f}")


if __name__ == "__main__":
    main()
