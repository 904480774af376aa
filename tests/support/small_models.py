"""Small models, clips and vocabularies that the tests of the network share; everything from seeds, in float64."""

from __future__ import annotations

import torch

from ups_model.config import ModelConfig
from ups_model.model.inputs import Inputs
from ups_model.model.ups import UPS
from ups_model.model.vocabulary import Quantiser, Vocabulary
from ups_model.skeletons import SLOTS

CLASSES = (("left", ("a", "b", "c")), ("right", ("a", "b", "c", "d", "e", "f")))


def generator(seed: int) -> torch.Generator:
    """A generator of its own for each use."""
    return torch.Generator().manual_seed(seed)


def small_config(**changes: object) -> ModelConfig:
    """A configuration that runs in milliseconds."""
    small = {
        "token_width": 8,
        "tokenizer_layers": 1,
        "encoder_layers": 2,
        "router_width": 16,
        "tem_width": 16,
        "tem_heads": 2,
        "tem_mlp_ratio": 2,
        "decoder_layers": 2,
        "decoder_width": 16,
        "decoder_heads": 2,
        "n_bins": 6,
    }
    return ModelConfig(**{**small, **changes})


def small_model(
    config: ModelConfig | None = None, seed: int = 0, max_frames: int = 8, pose_joints: int = 4, stirred: bool = True
) -> UPS:
    """A float64 model in evaluation mode; `stirred` moves it off its initial zeros, so that all parts matter."""
    config = config or small_config()
    vocabulary = Vocabulary(CLASSES, config.n_bins)
    quantiser = Quantiser((-1.0, -2.0, -0.5), (1.0, 1.0, 2.5), config.n_bins)
    text_VE = torch.randn(vocabulary.size, 12, generator=generator(1))
    model = UPS(config, vocabulary, quantiser, text_VE, max_frames, pose_joints, seed).double().eval()
    return stir(model) if stirred else model


def stir(module: torch.nn.Module, seed: int = 5, scale: float = 0.4) -> torch.nn.Module:
    """Add noise to every parameter and every floating-point statistic: zeros and ones of the start hide faults."""
    source = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=source, dtype=torch.float64).to(parameter.dtype)
        for name, buffer in module.named_buffers():
            if any(word in name for word in ("mean_", "variance_", "scale_")):
                noise = torch.rand(buffer.shape, generator=source, dtype=torch.float64).to(buffer.dtype)
                buffer += noise  # Stays positive where it must.
    return module


def some_slots(*absent: int) -> torch.Tensor:
    """Mask of the 25 slots without `absent`."""
    mask_S = torch.ones(SLOTS, dtype=torch.bool)
    mask_S[list(absent)] = False
    return mask_S


def clips(
    task: str = "ar3d", batch: int = 3, persons: int = 1, frames: int = 6, seed: int = 2, **more: object
) -> Inputs:
    """Random clips; absent slots, frames and persons are given in `more` and hold random garbage."""
    pose = torch.randn(batch, persons, frames, SLOTS, 3, generator=generator(seed), dtype=torch.float64)
    more.setdefault("slot_mask_S", some_slots())
    return Inputs(task, pose, **more)
