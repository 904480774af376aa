"""Training of one UPS: joint, one task alone, or fine-tuning."""

from collections.abc import Callable, Mapping
from pathlib import Path

from ups_model.config import Config
from ups_model.device import flush_denormal_numbers
from ups_model.training.options import RunOptions
from ups_model.training.result import Result
from ups_model.training.run import Run
from ups_model.training.run_state import Metrics


def train(
    config: Config,
    paths: Mapping[str, Path],
    options: RunOptions,
    parent: Path | None = None,
    on_metrics: Callable[[int, Metrics], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_checkpoint: Callable[[], None] | None = None,
) -> Result:
    """Train, resume or just report a run.

    Args:
        config: everything that can change the result.
        paths: folder of each clip set.
        parent: checkpoint folder whose weights are the start (fine-tuning).
        on_metrics: called with (step, metrics) at every progress line and validation.
        should_stop: asked after each step; True saves a checkpoint and returns a result with status "stopped".
        on_checkpoint: called after a checkpoint is written and older ones are deleted; what it raises ends the run.

    Raises:
        ValueError: a configuration, data set or checkpoint that cannot be used; nothing was started.
        NonFiniteLoss: the loss was not finite.
    """
    with flush_denormal_numbers():
        return Run(config, paths, options, parent, on_metrics).drive(should_stop, on_checkpoint)
