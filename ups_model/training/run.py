"""Training of one UPS: joint, one task alone, or fine-tuning."""

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ups_model.config import Config, TaskName
from ups_model.config.identity import run_key, trunk_key
from ups_model.data.batching.batch import Batch
from ups_model.device import autocast_dtype, flush_denormal_numbers
from ups_model.evaluation.measure import measure, measure_test, score, trivial_values
from ups_model.evaluation.metric_names import headline_metric
from ups_model.model.layers import seed_for
from ups_model.model.text_features import text_identity
from ups_model.model.ups import UPS
from ups_model.training.base_run import BaseRun
from ups_model.training.build import build, data_identity
from ups_model.training.fit import Fit, choose_fit
from ups_model.training.losses import sequence_loss, target_tokens
from ups_model.training.options import RunOptions
from ups_model.training.parallel.group import agreed_fit, check_shares, in_parallel, start_processes
from ups_model.training.result import Result, data_facts, save_weights, start_from_parent
from ups_model.training.run_folder import TRUNK
from ups_model.training.run_state import Metrics
from ups_model.training.schedule import exit_layer, gumbel_noise, input_mask, learning_rate, temperature

logger = logging.getLogger(__name__)


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


class Run(BaseRun):
    """The turns of the tasks, batches in parts, several processes; `drive` is the loop."""

    config: Config

    def __init__(
        self,
        config: Config,
        paths: Mapping[str, Path],
        options: RunOptions,
        parent: Path | None,
        on_metrics: Callable[[int, Metrics], None] | None,
    ) -> None:
        self.rank, self.processes = start_processes(options.device)
        super().__init__(config, config, options, on_metrics)
        self.parts = build(config, paths, self.device, options.cache / "text")
        parent_key = start_from_parent(self.parts, parent)
        data, text = data_identity(self.parts.sets), text_identity(config.model.text_model)
        self.key = run_key(config, data, text, parent_key)
        self.trunk_key = trunk_key(config, data, text, parent_key)
        check_shares(config, self.processes, options.micro_batch)
        self.model = self.parts.model
        self.state = self.new_state(
            self.model,
            AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.optim.ema))
            if config.optim.ema
            else None,
        )
        self.parallel = in_parallel(self.model, self.processes)
        self.headlines = tuple(map(headline_metric, config.optim.tasks))

    @property
    def title(self) -> str:
        return "+".join(self.config.optim.tasks)

    @property
    def evaluated(self) -> UPS:
        """The model that is measured."""
        return self.state.evaluated  # type: ignore[return-value]

    def start_or_resume(self) -> None:
        self.turns = dict.fromkeys(self.config.optim.tasks, 0)
        self.state.model.train()
        self.fit = self._choose_fit()  # Before gradients of half a cycle are restored.
        super().start_or_resume()
        self.turns = self.config.optim.turns_before(self.state.step)

    def restore(self) -> Path | None:
        checkpoint = super().restore()
        if checkpoint is None and self.options.trunk is not None:
            checkpoint = self._take_over(self.options.trunk)
        return checkpoint

    def _take_over(self, trunk: Path) -> Path | None:
        """Begin from another run's trunk; None where it can't be read."""
        state = self.state
        if (path := state.restore(trunk.parent, self.trunk_key)) is not None:
            state.curve = {step: point for step, point in state.curve.items() if step in self.curve_at}
            state.taken_over, state.seconds = state.step, 0.0
        return path

    def _choose_fit(self) -> Fit:
        """How batches are cut, the same way in all processes."""
        model, data, tasks = self.model, self.config.data, self.config.optim.tasks
        shares = {task: len(range(self.rank, getattr(data, task).batch_size, self.processes)) for task in tasks}
        feeds, share = self.parts.feeds, (self.rank, self.processes)
        fit = choose_fit(
            self.options, model, shares, lambda task: feeds[task].train(0, share), partial(self._loss, model)
        )
        fit = agreed_fit(fit, tasks, self.processes, self.device)
        model.set_activation_checkpointing(fit.activation_checkpointing)
        if self.rank == 0 and (words := fit.describe(shares)):
            logger.info("%s", words)
        return fit

    def train_step(self) -> None:
        """One batch of the task whose turn it is and, at the end of a cycle or after each batch, an update."""
        state, config, optim = self.state, self.config, self.config.optim
        task = optim.cycle[state.step % len(optim.cycle)]
        batch = self.parts.feeds[task].train(self.turns[task], (self.rank, self.processes))
        accumulated = len(optim.cycle) if optim.update == "cycle" else 1
        loss = torch.zeros((), device=self.device)
        parts = list(batch.parts(self.fit.part(task) or len(batch)))
        for part in parts:
            # Gradients of the processes are averaged once a step, with the last part.
            alone = nullcontext() if part is parts[-1] or self.processes == 1 else self.parallel.no_sync()  # type: ignore[operator]  # DistributedDataParallel's
            with alone:
                # Shares may be unequal: a process with more of the batch's clips has more of the weight.
                weight = len(part) * self.processes / getattr(config.data, task).batch_size
                part_loss = self._loss(self.parallel, task, part) * weight
                state.scaler.scale(part_loss / accumulated).backward()
            loss += part_loss.detach()
        self.turns[task] += 1
        state.step += 1
        self.count(task, loss, self.update() if state.step % accumulated == 0 else None)

    def _loss(self, model: nn.Module, task: TaskName, batch: Batch) -> Tensor:
        """Mean loss of the clips of one part of a step's batch."""
        state, config = self.state, self.config
        # Dropout draws from the global generator: seeding it by step makes a step independent of what ran before it,
        # and a part of how the batch was cut.
        torch.manual_seed(seed_for(config.seed, "dropout", state.step))
        target_BK = target_tokens(self.model, batch)
        self.model.encoder.exit_layer = exit_layer(config, state.step)
        low_precision = self.precision != "fp32"
        with torch.autocast(self.device.type, dtype=autocast_dtype(self.precision), enabled=low_precision):
            logits_BKV = model(
                batch.inputs,
                target_BK,
                input_mask(config, task, self.turns[task], target_BK, batch.inputs.place_B),
                gumbel_noise(config, state.step).to(self.device, non_blocking=True),
                temperature(config, state.step),
            )
        return sequence_loss(self.model, batch, logits_BKV, target_BK, config.optim)

    def learning_rate(self, step: int) -> float:
        return learning_rate(self.config, step)

    def after_step(self) -> None:
        """Keep the state before the rate decays, for runs that are longer."""
        if self.state.step != self.config.optim.trunk_steps:
            return
        self.check_finite()
        if self.rank == 0 and self.trunk_key:
            self.state.save(self.options.out / TRUNK, self.trunk_key, self._seconds())

    def measure_validation(self, max_clips: int = 0) -> Metrics:
        feeds, evaluation = self.parts.feeds, self.config.evaluation
        return measure(self.evaluated, feeds, "validation", evaluation, max_clips=max_clips)

    def measure_test(self) -> tuple[Metrics, str]:
        return measure_test(self.evaluated, self.parts.feeds, self.config.evaluation, self.options.out)

    def score(self, metrics: Metrics) -> float:
        return score(metrics, self.config.optim.tasks, self.parts.mean_pose_mm)

    def trivial(self) -> dict[str, float]:
        return trivial_values(self.parts.feeds, self.parts.validation_mean_pose_mm)

    def save_weights(self, metrics: Metrics) -> Path:
        best = self.options.out / "best"
        return save_weights(best, self.state.step, self.evaluated, self.parts, self.key, metrics)

    def facts(self) -> dict[str, Any]:
        return {**data_facts(self.parts), **self.fit.facts(self.processes)}

    def routes(self) -> dict[str, list[int]]:
        return self.evaluated.routes()
