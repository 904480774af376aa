"""Training of one baseline. Every step depends on (seed, step) alone.

A run that is killed at any moment goes on from its newest whole checkpoint when it is started again, and ends with the
same bits as one that was not killed (CPU).
"""

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from baselines.build import count_parameters, save_facts
from baselines.config import RunConfig
from baselines.learner import Learner, SingleTask
from baselines.schedule import learning_rate, norm_momentum
from ups_model.config import digest
from ups_model.data.batching.batches import Source
from ups_model.data.batching.configured import open_sets
from ups_model.device import (
    Precision,
    autocast_dtype,
    device_name,
    flush_denormal_numbers,
    pick_device,
    pick_precision,
)
from ups_model.evaluation.health import CURVE_CLIPS, curve_steps, health_line, judge
from ups_model.evaluation.metric_names import OUTCOMES
from ups_model.evaluation.outcomes import Outcomes, save_outcomes
from ups_model.model.layers import seed_for
from ups_model.model.ups import UPS
from ups_model.training.build import data_identity
from ups_model.training.checkpoint import load_checkpoint, load_weights, named_best_steps, save_checkpoint
from ups_model.training.finite import FiniteCheck
from ups_model.training.progress import append_row, duration, forget_after, short_line
from ups_model.training.result import Result, finished_result, run_facts, write_result
from ups_model.training.run_folder import STATE, keep_steps, prune_checkpoints
from ups_model.training.run_state import Metrics, RunState

logger = logging.getLogger(__name__)

KEEP = 2
"""Checkpoints kept to resume from."""
LOG_EVERY = 50
"""Steps between progress lines."""


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
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
    with flush_denormal_numbers():
        run = Run(config, paths, folder, learner, device, precision, log)
        if (result := _finished(folder, run.key, test)) is not None:
            logger.info("run %s is finished; nothing to train", run.key)
            return result
        run.start_or_resume()
        state, steps, stopped = run.state, config.optim.steps, False
        while state.step < steps and not stopped:
            run.train_step()
            if state.step % LOG_EVERY == 0 or state.step == steps:
                run.log_progress()
            if state.step in run.curve_at:
                run.measure_curve()
            if run.is_validation_step():
                run.validate()
            elif state.step in measure_at:
                run.measure()
            stopped = state.step < steps and should_stop is not None and should_stop()
            if state.step % checkpoint_every == 0 or state.step == steps or stopped:
                run.save(on_checkpoint)
        return run.finish(stopped, test)


class Run:
    """One run in this process: its parts, its state and what is done with them at a step. `train` is the loop."""

    def __init__(
        self,
        config: RunConfig,
        paths: Mapping[str, Path],
        folder: Path,
        learner: type[Learner],
        device: str,
        precision: Precision,
        log: Callable[[int, Metrics], None] | None,
    ) -> None:
        self.config, self.folder, self.log = config, folder, log
        self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)
        self.sets = open_sets(config.as_ups, paths)
        ((name, (clips, split)),) = self.sets.items()
        self.learner = learner(config, Source(clips, split, self.device, name))
        self.model = self.learner.model
        self.key = digest({"baseline": config.canonical(), "data": data_identity(self.sets)})
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        # A run's state asks nothing of its model that other networks lack.
        self.state = RunState(cast(UPS, self.model), make_optimizer(self.model, config), scaler, None)
        self.curve_at = curve_steps(config.optim.steps) if config.data.validation_subjects else ()
        self.check_finite = FiniteCheck(config.as_ups)
        self.recent: list[Tensor] = []
        """Losses since the last progress line."""

    def start_or_resume(self) -> None:
        """Take up the newest checkpoint, or begin; from here on there is something to keep."""
        state, steps = self.state, self.config.optim.steps
        checkpoint = state.restore(self.folder / "checkpoints", self.key)
        if checkpoint is not None:
            forget_after(self.folder / "progress.jsonl", state.step)
            logger.info("resuming at step %d of %d from %s", state.step, steps, checkpoint)
        else:
            logger.info(
                "training %s for %s on %s (%s), %.2f M parameters, run %s",
                self.learner.system, self.learner.name, self.device, self.precision,
                count_parameters(self.model) / 1e6, self.key,
            )  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.json").write_text(json.dumps(self.config.canonical(), indent=1), "utf-8")
        here = [device_name(self.device), self.precision]
        if state.made_on[-1:] != [here]:
            state.made_on = [*state.made_on, here]
        self.model.train()
        self.first_step = state.step
        self.started = self.last_logged = time.monotonic()

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
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(config, state.step, self.learner.items)
        with torch.autocast(self.device.type, dtype=autocast_dtype(self.precision), enabled=self.precision != "fp32"):
            answer = self.model(batch.inputs)
        loss = self.learner.loss(answer, batch)
        state.scaler.scale(loss).backward()
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        self.recent.append(loss.detach())
        # With fp16 the scaler skips an update that is not finite and lowers its scale.
        self.check_finite.add(state.step, self.learner.name, loss, None if self.precision == "fp16" else norm)

    def log_progress(self) -> None:
        """Mean loss since the last line, and speed."""
        self.check_finite()
        step, steps, now = self.state.step, self.config.optim.steps, time.monotonic()
        line = {
            f"train/{self.learner.name}_loss": float(torch.stack(self.recent).mean()),
            "learning_rate": learning_rate(self.config, step - 1, self.learner.items),
            "steps_per_second": len(self.recent) / max(now - self.last_logged, 1e-9),
        }
        self.recent, self.last_logged = [], now
        left = (steps - step) * (now - self.started) / max(step - self.first_step, 1)
        logger.info("step %d/%d  %s  %s left", step, steps, short_line(line), duration(left))
        self._record(line)

    def measure_curve(self) -> None:
        """One point of the curve from which the run's health is judged."""
        self.check_finite()
        metrics = self._measure("validation", max_clips=CURVE_CLIPS)
        point = {name: metrics[name] for name in self.learner.headlines}
        self.state.curve[self.state.step] = point
        self._record({f"curve/{name}": value for name, value in point.items()})

    def is_validation_step(self) -> bool:
        """Whether the run is measured on its validation subjects now: every `evaluate_every` steps and at the end."""
        step, optim = self.state.step, self.config.optim
        due = step == optim.steps or (optim.evaluate_every > 0 and step % optim.evaluate_every == 0)
        return due and bool(self.config.data.validation_subjects)

    def validate(self) -> None:
        """Measure the validation subjects; the weights of the best score are kept."""
        self.check_finite()
        state = self.state
        row = self._validation_row()
        if state.best is None or row["validation/score"] > state.best["score"]:
            state.best = {"step": state.step, "score": row["validation/score"], "metrics": row}
            self._save_weights(row)
        logger.info("step %d  %s", state.step, short_line(row))
        self._record(row)

    def measure(self) -> None:
        """Measure the validation subjects for the progress alone."""
        self.check_finite()
        self._record(self._validation_row())

    def save(self, on_checkpoint: Callable[[], None] | None) -> None:
        """Write a checkpoint and delete those that are no longer needed."""
        self.check_finite()
        checkpoints = self.folder / "checkpoints"
        self.state.save(checkpoints, self.key, self._seconds())
        prune_checkpoints(checkpoints, KEEP)
        # A best that a kept checkpoint names must outlive a later best, or resuming from it would find nothing.
        keep_steps(self.folder / "best", named_best_steps(checkpoints))
        if on_checkpoint is not None:
            on_checkpoint()

    def finish(self, stopped: bool, test: bool) -> Result:
        """Choose the weights, measure them once on the test split and write `result.json`."""
        state, config, seconds = self.state, self.config, self._seconds()
        chosen_step = state.best["step"] if state.best else state.step
        checkpoint, metrics, health, outcomes_hash = "", {}, {}, ""
        if not stopped:
            checkpoint = str(self._choose_weights())
            metrics = dict(state.best["metrics"]) if state.best else {}
            if test:
                outcomes: Outcomes = {}
                measured = self._measure("test", outcomes)
                outcomes_hash = save_outcomes(self.folder / OUTCOMES, outcomes)
                metrics |= {f"test/{name}": value for name, value in measured.items()}
                metrics["test/score"] = self.learner.score(measured)
            if state.curve:
                health = judge(state.curve, self.learner.trivial())
                logger.info("health, on validation subjects: %s", health_line(health))
        about = {
            "config": config.canonical(),
            "data": data_identity(self.sets),
            "synthetic": sorted({clips.name for clips, _ in self.sets.values() if clips.info.synthetic}),
            "mean_pose_mm": self.learner.mean_pose_mm,
            "chosen_step": chosen_step,
            "chosen_by": config.chosen_by,
            "train_seconds": round(seconds, 1),
            "flops": self.learner.flops(),
            **run_facts(state),
        }
        status = "stopped" if stopped else "finished"
        result = Result(status, self.key, state.step, metrics, {}, checkpoint, about, health, outcomes_hash)  # type: ignore[arg-type]
        write_result(self.folder, result)
        if checkpoint:
            keep_steps(self.folder / "best", {chosen_step})
        return result

    def _choose_weights(self) -> Path:
        """Folder of the chosen weights, which the model then has."""
        best = self.state.best
        if best is None:
            return self._save_weights({})
        checkpoint = self.folder / "best" / f"step-{best['step']:08d}"
        tensors, _ = load_checkpoint(checkpoint)
        load_weights(self.model, tensors["model"], checkpoint)
        return checkpoint

    def _save_weights(self, metrics: Metrics) -> Path:
        state = {
            "key": self.key,
            **save_facts(self.config, self.learner.shape),
            "data": data_identity(self.sets),
            "metrics": metrics,
        }
        return save_checkpoint(self.folder / "best", self.state.step, {"model": self.model.state_dict()}, state)

    def _measure(self, part: str, outcomes: Outcomes | None = None, max_clips: int = 0) -> Metrics:
        with self.check_finite.measuring(self.state.step):
            self.model.eval()
            metrics = self.learner.measure(part, outcomes, max_clips)
            self.model.train()
            return metrics

    def _validation_row(self) -> Metrics:
        metrics = self._measure("validation")
        row = {f"validation/{name}": number for name, number in metrics.items()}
        return row | {"validation/score": self.learner.score(metrics)}

    def _record(self, row: Metrics) -> None:
        append_row(self.folder / "progress.jsonl", {"step": self.state.step, **row})
        if self.log is not None:
            self.log(self.state.step, row)

    def _seconds(self) -> float:
        return self.state.seconds + time.monotonic() - self.started


def _finished(folder: Path, key: str, test: bool) -> Result | None:
    """The result of a finished run whose weights are there, so that no test split is measured twice."""
    result = finished_result(folder, key)
    if result is None or not (result.tested or not test):
        return None
    weights = folder / "best" / Path(result.checkpoint).name / STATE
    return result if weights.is_file() else None


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone; without decay it is Adam."""
    optim = config.optim
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, optim.beta2), amsgrad=optim.amsgrad, fused=True)
