"""What a step depends on besides its batch: rate and momentum, each a function of (configuration, step)."""

from baselines.config import RunConfig
from ups_model.training import schedule


def learning_rate(config: RunConfig, step: int, items: int) -> float:
    """Rate of the update after `step` steps.

    Args:
        items: training clips, or frames in all cameras: a pass. `exponential` takes the factor `decay` after each
            (Pavllo et al., section 5: 0.95), or after `decay_samples` samples.
    """
    optim, data = config.optim, config.task_data
    if optim.schedule == "cosine":
        return schedule.learning_rate(config.as_ups, step)
    warm = schedule.warmup(config.as_ups)
    samples = step * data.batch_size * (data.targets_per_window if optim.task == "pe" else 1)
    decayed = optim.learning_rate * optim.decay ** (samples // (optim.decay_samples or items))
    return decayed * min(1.0, (step + 1) / warm)


def norm_momentum(config: RunConfig, step: int) -> float:
    """Share of a batch in batch normalisation's running statistics: geometric from start to end over the run, as
    Pavllo et al. let it fall from 0.1 to 0.001 (section 5)."""
    optim = config.optim
    return optim.norm_momentum * (optim.norm_momentum_end / optim.norm_momentum) ** (step / optim.steps)
