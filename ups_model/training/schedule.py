"""What a step depends on besides its batch: rate, temperature, noise, masks; each a function of (configuration, step).

Shape suffixes: B target sequences, K target steps, L encoder layers, H blocks.
"""

import math

import torch
from torch import Tensor

from ups_model.config import Config, TaskName
from ups_model.model.layers import seed_for
from ups_model.tasks import TASKS


def learning_rate(config: Config, step: int) -> float:
    """Rate of the update after `step` steps: linear warm-up, then half a cosine that would reach 0 one step after the
    last; or constant, then 1 - sqrt(share) over the decay, which would also reach 0 then."""
    optim = config.optim
    warm = warmup(config)
    if step < warm:
        return optim.learning_rate * (step + 1) / warm
    if optim.schedule == "constant":
        decay = optim.steps - optim.trunk_steps
        return optim.learning_rate * (1 - math.sqrt(max(0, step - optim.trunk_steps) / decay))
    return optim.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, optim.steps - warm)))


def warmup(config: Config) -> int:
    """Steps over which the rate rises."""
    optim = config.optim
    least = optim.warmup_steps * (len(optim.cycle) if optim.update == "cycle" else 1)
    return max(1, round(optim.warmup_share * optim.layout_steps), min(least, optim.layout_steps // 2))


def temperature(config: Config, step: int) -> float:
    """Gumbel-Softmax temperature, geometric from start to end."""
    model = config.model
    return model.gumbel_start * (model.gumbel_end / model.gumbel_start) ** min(1.0, step / config.optim.layout_steps)


def gumbel_noise(config: Config, step: int) -> Tensor:
    """[L, H] Gumbel noise of a step, fading to 0 over the exploring share of the run; the same in every process."""
    generator = torch.Generator().manual_seed(seed_for(config.seed, "gumbel", step))
    uniform = torch.rand(config.model.encoder_layers, config.model.blocks_per_layer, generator=generator)
    exploring = config.model.routing_explore_share * config.optim.layout_steps
    strength = max(0.0, 1 - step / exploring) if exploring else 0.0
    if not config.model.gumbel_fades:
        strength = 1.0
    return -torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-7))) * strength


def exit_layer(config: Config, step: int) -> int:
    """Encoder layer after which a step decodes, 0 for the last; the same in every process."""
    if config.optim.exits == "last":
        return 0
    generator = torch.Generator().manual_seed(seed_for(config.seed, "exit", step))
    return 1 + int(torch.randint(config.model.encoder_layers, (), generator=generator))


def input_mask(
    config: Config, task: TaskName, turn: int, target_BK: Tensor, place_B: Tensor | None = None
) -> Tensor | None:
    """[B, K-1] True where a decoder input of a pose sequence is masked: a share u ~ U(0, 1) of each sequence.

    Args:
        place_B: of the part's windows in the whole batch; None = it is whole.
    """
    if not config.optim.mask_inputs or TASKS[task].kind != "pose":
        return None
    data = config.data.pe
    targets = len(target_BK) // (data.batch_size if place_B is None else len(place_B))
    generator = torch.Generator().manual_seed(seed_for(config.seed, "mask", task, turn))
    shape = (data.batch_size, targets, target_BK.shape[1] - 1)
    ratio = torch.rand(shape[:2], generator=generator)
    mask = torch.rand(shape, generator=generator) < ratio[..., None]
    return mask[slice(None) if place_B is None else place_B].flatten(0, 1).to(target_BK.device, non_blocking=True)
