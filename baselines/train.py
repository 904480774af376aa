"""Training of one baseline."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baselines.build import save_facts
from baselines.config import RunConfig
from baselines.learner import Learner, SingleTask
from baselines.schedule import learning_rate, norm_momentum
from ups_model.config import digest
from ups_model.data.batching.batches import Source
from ups_model.data.batching.configured import open_sets
from ups_model.device import Precision, autocast_dtype, flush_denormal_numbers
from ups_model.evaluation.metric_names import OUTCOMES
from ups_model.evaluation.outcomes import Outcomes, save_outcomes
from ups_model.model.layers import seed_for
from ups_model.training.base_run import BaseRun
from ups_model.training.build import data_identity
from ups_model.training.checkpoint import save_checkpoint
from ups_model.training.options import RunOptions
from ups_model.training.result import Result
from ups_model.training.run_state import Metrics


def train(
    config: RunConfig,
    paths: Mapping[str, Path],
    *,
    folder: Path,
    learner: type[Learner] = SingleTask,
    device: str = "auto",
    precision: Precision = "auto",
    test: bool = True,
    should_stop: Callable[[], bool] | None = None,
    on_checkpoint: Callable[[], None] | None = None,
    log: Callable[[int, Metrics], None] | None = None,
    checkpoint_every: int = 500,
    measure_at: Collection[int] = (),
) -> Result:
    """Train, resume or just report a run.

    Args:
        config: everything that can change the result.
        paths: folder of each clip set.
        learner: what is trained; it fits the kind of configuration.
        folder: of `config.json`, checkpoints, `best/`, `progress.jsonl`, `outcomes.npz` and `result.json`.
        test: measure the test split at the end.
        should_stop: asked after each step; True saves a checkpoint and returns a result with status "stopped".
        on_checkpoint: called after a checkpoint is written and older ones are deleted; what it raises ends the run.
        log: called with (step, metrics) at every progress line and validation.
        checkpoint_every: steps between checkpoints; a kill loses at most so many.
        measure_at: steps after which the validation subjects are measured for the progress alone.

    Raises:
        ValueError: a configuration, data set or checkpoint that cannot be used; nothing was started.
        NonFiniteLoss: the loss was not finite.
    """
    options = RunOptions(folder, device, precision, checkpoint_every, test=test, measure_at=tuple(measure_at))
    with flush_denormal_numbers():
        return Run(config, paths, options, learner, log).drive(should_stop, on_checkpoint)


def measure(
    config: RunConfig,
    paths: Mapping[str, Path],
    weights: Path,
    trained: Mapping[str, Any],
    health: Mapping[str, Any],
    *,
    folder: Path,
    learner: type[Learner] = SingleTask,
    device: str = "auto",
    precision: Precision = "auto",
    test: bool = True,
) -> Result:
    """Measure chosen weights of a run again without training; see `BaseRun.measure_weights`, and `train`."""
    with flush_denormal_numbers():
        run = Run(config, paths, RunOptions(folder, device, precision, test=test), learner, None)
        return run.measure_weights(weights, trained, health)


class Run(BaseRun):
    """A learner's batches, loss and measures; `drive` is the loop."""

    config: RunConfig

    def __init__(
        self,
        config: RunConfig,
        paths: Mapping[str, Path],
        options: RunOptions,
        learner: type[Learner],
        on_metrics: Callable[[int, Metrics], None] | None,
    ) -> None:
        super().__init__(config, config.as_ups, options, on_metrics)
        self.sets = open_sets(config.as_ups, paths)
        ((name, (clips, split)),) = self.sets.items()
        self.learner = learner(config, Source(clips, split, self.device, name))
        self.model = self.learner.model
        self.key = digest({"baseline": config.canonical(), "data": data_identity(self.sets)})
        self.state = self.new_state(self.model, amsgrad=config.optim.amsgrad)
        self.headlines = self.learner.headlines

    @property
    def title(self) -> str:
        return f"{self.learner.system} for {self.learner.name}"

    def train_step(self) -> None:
        """One batch and an update."""
        state, config = self.state, self.config
        batch = self.learner.feed.train(state.step)
        # Dropout draws from the global generator: seeding it by step makes a step independent of what ran before it.
        torch.manual_seed(seed_for(config.seed, "dropout", state.step))
        momentum = norm_momentum(config, state.step)
        self.learner.prepare(state.step)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = momentum
        with torch.autocast(self.device.type, dtype=autocast_dtype(self.precision), enabled=self.precision != "fp32"):
            answer = self.model(batch.inputs)
        loss = self.learner.loss(answer, batch)
        state.scaler.scale(loss).backward()
        state.step += 1
        self.count(self.learner.name, loss.detach(), self.update())

    def learning_rate(self, step: int) -> float:
        return learning_rate(self.config, step, self.learner.items)

    def measure_validation(self, max_clips: int = 0) -> Metrics:
        return self._measure("validation", None, max_clips)

    def measure_test(self) -> tuple[Metrics, str]:
        outcomes: Outcomes = {}
        metrics = self._measure("test", outcomes, 0)
        return metrics, save_outcomes(self.options.out / OUTCOMES, outcomes)

    def _measure(self, part: str, outcomes: Outcomes | None, max_clips: int) -> Metrics:
        self.model.eval()
        metrics = self.learner.measure(part, outcomes, max_clips)
        self.model.train()
        return metrics

    def score(self, metrics: Metrics) -> float:
        return self.learner.score(metrics)

    def trivial(self) -> dict[str, float]:
        return self.learner.trivial()

    def save_weights(self, metrics: Metrics) -> Path:
        state = {
            "key": self.key,
            **save_facts(self.config, self.learner.shape),
            "data": data_identity(self.sets),
            "metrics": metrics,
        }
        return save_checkpoint(self.options.out / "best", self.state.step, {"model": self.model.state_dict()}, state)

    def facts(self) -> dict[str, Any]:
        return {
            "config": self.config.canonical(),
            "data": data_identity(self.sets),
            "synthetic": sorted({clips.name for clips, _ in self.sets.values() if clips.info.synthetic}),
            "mean_pose_mm": self.learner.mean_pose_mm,
            "flops": self.learner.flops(),
        }
