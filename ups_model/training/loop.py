"""The training loop of one run: joint, one task alone, or fine-tuning. Every step depends on (seed, step) alone.

A run that is killed at any moment goes on from its newest whole checkpoint when it is started again, and ends with the
same bits as one that was not killed (CPU).
"""

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
        run = Run(config, paths, options, parent, on_metrics)
        if (result := run.finished()) is not None:
            return result
        run.start_or_resume()
        state, steps, stopped = run.state, config.optim.steps, False
        while state.step < steps and not stopped:
            run.train_step()
            if state.step % options.log_every == 0 or state.step == steps:
                run.log_progress()
            if state.step in run.curve_at:
                run.measure_curve()
            if state.step == config.optim.trunk_steps:
                run.save_trunk()
            if run.is_validation_step():
                run.validate()
            elif state.step in options.measure_at:
                run.measure()
            stopped = run.agree(state.step < steps and should_stop is not None and should_stop())
            if state.step % options.checkpoint_every == 0 or state.step == steps or stopped:
                run.save(on_checkpoint)
        return run.finish(stopped)
