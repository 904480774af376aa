"""A run of any model: its state, the loop, and what is reported, measured and kept at a step.

A run that is killed at any moment goes on from its newest whole checkpoint when it is started again, and ends with the
same bits as one that was not killed (CPU), as long as every step depends on (seed, step) alone.
"""

import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ups_model.config import Config
from ups_model.device import device_name, memory_mb, pick_device, pick_precision
from ups_model.evaluation.health import CURVE_CLIPS, curve_steps, health_line, judge
from ups_model.training.checkpoint import load_checkpoint, load_weights, named_best_steps
from ups_model.training.finite import FiniteCheck
from ups_model.training.options import RunOptions
from ups_model.training.parallel.group import mean_over_processes, wait_for_all
from ups_model.training.progress import append_row, duration, forget_after, short_line
from ups_model.training.result import Result, finished_result, run_facts, write_result
from ups_model.training.run_folder import STATE, keep_steps, prune_checkpoints, verify_checkpoint
from ups_model.training.run_state import Metrics, RunState, make_optimizer

logger = logging.getLogger(__name__)


class BaseRun(ABC):
    """One run in this process. A model's own run adds its batches and losses, and how it is measured.

    All processes of a run take the same steps; the first one alone measures, reports and writes.
    """

    rank, processes = 0, 1
    key: str
    state: RunState
    headlines: tuple[str, ...]
    """Metrics by which health is judged."""

    def __init__(
        self, config: Any, settings: Config, options: RunOptions, on_metrics: Callable[[int, Metrics], None] | None
    ) -> None:
        """Args:
        config: of the model's own kind.
        settings: what of it UPS has too: steps, validation, clips.
        """
        self.config, self.options, self.on_metrics = config, options, on_metrics
        self.device = pick_device(options.device, self.rank)
        self.precision = pick_precision(options.precision, self.device)
        self.curve_at = curve_steps(settings.optim.steps) if settings.data.validation_subjects else ()
        self.check_finite = FiniteCheck(settings)
        self.recent: dict[str, list[Tensor]] = {}
        """Losses since the last progress line, by task."""

    # -- what a model's own run has ------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def title(self) -> str:
        """What is trained, for people."""

    @abstractmethod
    def train_step(self) -> None:
        """One batch and, at the end of a cycle or after each batch, an update."""

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """Of the update after `step` steps."""

    @abstractmethod
    def measure_validation(self, max_clips: int = 0) -> Metrics:
        """Metrics of the validation subjects, on at most so many clips if it isn't 0."""

    @abstractmethod
    def measure_test(self) -> tuple[Metrics, str]:
        """Metrics of the test split, and the SHA-256 of the file with its outcomes, which this writes."""

    @abstractmethod
    def score(self, metrics: Metrics) -> float:
        """One number to choose weights by, higher is better."""

    @abstractmethod
    def trivial(self) -> dict[str, float]:
        """Headline metrics of the trivial answer on the validation subjects."""

    @abstractmethod
    def save_weights(self, metrics: Metrics) -> Path:
        """Write the weights that are measured, with all that it takes to load them; returns their folder in `best`."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """A record's entries on configuration and data."""

    def routes(self) -> dict[str, list[int]]:
        """The block that each task takes in each layer, of a model that has a choice."""
        return {}

    # -- the loop ------------------------------------------------------------------------------------------------------

    def drive(self, should_stop: Callable[[], bool] | None, on_checkpoint: Callable[[], None] | None) -> Result:
        """Train, resume or just report. The arguments are those of `run.train`."""
        if (result := self.finished()) is not None:
            return result
        self.start_or_resume()
        state, options, steps, stopped = self.state, self.options, self.config.optim.steps, False
        while state.step < steps and not stopped:
            self.train_step()
            if state.step % options.log_every == 0 or state.step == steps:
                self.log_progress()
            if state.step in self.curve_at:
                self.measure_curve()
            self.after_step()
            if self.is_validation_step():
                self.validate()
            elif state.step in options.measure_at:
                self.measure()
            stopped = self.agree(state.step < steps and should_stop is not None and should_stop())
            if state.step % options.checkpoint_every == 0 or state.step == steps or stopped:
                self.save(on_checkpoint)
        return self.finish(stopped)

    def finished(self) -> Result | None:
        """The result of the finished run in the folder, so that no test split is measured twice. Its checkpoints may
        have been deleted to save space: what counts is the result and the chosen weights.

        Raises:
            ValueError: the weights are damaged.
        """
        result = finished_result(self.options.out, self.key)
        if result is None or (self.options.test and not result.tested):
            return None
        weights = self.options.out / "best" / Path(result.checkpoint).name
        if not (weights / STATE).is_file():
            return None
        verify_checkpoint(weights)
        if self.rank == 0:
            logger.info("run %s is finished; nothing to train", self.key)
        return result

    def start_or_resume(self) -> None:
        """Take up the newest checkpoint, or begin; from here on there is something to keep."""
        state, steps, out = self.state, self.config.optim.steps, self.options.out
        state.model.train()
        checkpoint = self.restore()
        if checkpoint is not None:
            if self.rank == 0:
                forget_after(out / "progress.jsonl", state.step)
                logger.info("resuming at step %d of %d from %s", state.step, steps, checkpoint)
        elif self.rank == 0:
            parameters = sum(parameter.numel() for parameter in state.model.parameters())
            logger.info(
                "training %s on %s (%s), %.2f M parameters, run %s",
                self.title, self.device, self.precision, parameters / 1e6, self.key,
            )  # fmt: skip
        if self.rank == 0:
            out.mkdir(parents=True, exist_ok=True)
            (out / "config.json").write_text(json.dumps(self.config.canonical(), indent=1), "utf-8")
        here = [device_name(self.device), self.precision]
        if state.made_on[-1:] != [here]:
            state.made_on = [*state.made_on, here]
        self.first_step = state.step
        self.logged_step, self.started = state.step, time.monotonic()
        self.last_logged = self.started

    def restore(self) -> Path | None:
        """The checkpoint that the state now comes from; None where the run begins."""
        return self.state.restore(self.options.out / "checkpoints", self.key)

    def after_step(self) -> None:  # noqa: B027  # most have nothing to do
        """What else is due after a step."""

    def new_state(self, model: nn.Module, average: Any = None, amsgrad: bool = False) -> RunState:
        """The state of a run that begins."""
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        return RunState(model, make_optimizer(model, self.config.optim, amsgrad), scaler, average)

    def update(self) -> Tensor:
        """Change the weights by the gradients, at the end of a step that has been counted; returns the gradients' norm
        before clipping."""
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = self.learning_rate(state.step - 1)
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), self.config.optim.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        if state.average is not None:
            state.average.update_parameters(state.model)
        return norm

    def count(self, task: str, loss: Tensor, norm: Tensor | None) -> None:
        """Take a step's loss and the norm of its gradients, if there was an update."""
        self.recent.setdefault(task, []).append(loss)
        # With fp16 the scaler skips an update that is not finite and lowers its scale.
        self.check_finite.add(self.state.step, task, loss, None if self.precision == "fp16" else norm)

    def log_progress(self) -> None:
        """Mean losses since the last line, speed and memory."""
        self.check_finite()
        step, steps, now = self.state.step, self.config.optim.steps, time.monotonic()
        line = {
            f"train/{task}_loss": mean_over_processes(torch.stack(self.recent[task]).mean(), self.processes)
            for task in sorted(self.recent)
        }
        line["learning_rate"] = self.learning_rate(step - 1)
        line["steps_per_second"] = (step - self.logged_step) / max(now - self.last_logged, 1e-9)
        line["memory_mb"] = memory_mb(self.device)
        self.recent, self.last_logged, self.logged_step = {}, now, step
        if self.rank == 0:
            left = (steps - step) * (now - self.started) / max(step - self.first_step, 1)
            logger.info("step %d/%d  %s  %s left", step, steps, short_line(line), duration(left))
            self._record(line)

    def measure_curve(self) -> None:
        """One point of the curve from which the run's health is judged."""
        self.check_finite()
        if self.rank == 0:
            metrics = self._measured(CURVE_CLIPS)
            point = {name: metrics[name] for name in self.headlines}
            self.state.curve[self.state.step] = point
            self._record({f"curve/{name}": value for name, value in point.items()})
        wait_for_all(self.processes)

    def is_validation_step(self) -> bool:
        """Whether the run is measured on its validation subjects now: every `evaluate_every` steps and at the end."""
        step, optim = self.state.step, self.config.optim
        due = step == optim.steps or (optim.evaluate_every > 0 and step % optim.evaluate_every == 0)
        return due and bool(self.config.data.validation_subjects)

    def validate(self) -> None:
        """Measure the validation subjects; the weights of the best score are kept."""
        self.check_finite()
        state = self.state
        if self.rank == 0:
            before = time.monotonic()
            row = self._validation_row()
            if state.best is None or row["validation/score"] > state.best["score"]:
                state.best = {"step": state.step, "score": row["validation/score"], "metrics": row}
                self.save_weights(row)
            logger.info("step %d  %s  (%.0f s)", state.step, short_line(row), time.monotonic() - before)
            self._record(row)
        wait_for_all(self.processes)

    def measure(self) -> None:
        """Measure the validation subjects for the progress alone."""
        self.check_finite()
        if self.rank == 0:
            self._record(self._validation_row())
        wait_for_all(self.processes)

    def agree(self, stop: bool) -> bool:
        """Whether any process was told to stop: all of them end at the same step."""
        if self.processes == 1:  # No number goes to the device and back.
            return stop
        return mean_over_processes(torch.tensor(float(stop), device=self.device), self.processes) > 0

    def save(self, on_checkpoint: Callable[[], None] | None) -> None:
        """Write a checkpoint and delete those that are no longer needed."""
        self.check_finite()
        if self.rank != 0:
            return
        checkpoints = self.options.out / "checkpoints"
        self.state.save(checkpoints, self.key, self._seconds())
        prune_checkpoints(checkpoints, self.options.keep)
        # A best that a kept checkpoint names must outlive a later best, or resuming from it would find nothing.
        keep_steps(self.options.out / "best", named_best_steps(checkpoints))
        if on_checkpoint is not None:
            on_checkpoint()

    def finish(self, stopped: bool) -> Result:
        """Choose the weights, measure them once on the test split and write `result.json`; all processes return it."""
        seconds = self._seconds()
        wait_for_all(self.processes)
        result = self._result(stopped, seconds) if self.rank == 0 else None
        if self.processes > 1:
            shared = [result]
            dist.broadcast_object_list(shared)
            result = shared[0]
        return result  # type: ignore[return-value]  # the first process has sent it to all

    def _result(self, stopped: bool, seconds: float) -> Result:
        state, out = self.state, self.options.out
        chosen_step = state.best["step"] if state.best else state.step
        checkpoint, metrics, health, outcomes = "", {}, {}, ""
        if not stopped:
            checkpoint = str(self._choose_weights())
            metrics = dict(state.best["metrics"]) if state.best else {}
            if self.options.test:
                tested, outcomes = self._tested()
                metrics |= tested
            if state.curve:
                health = judge(state.curve, self.trivial())
                logger.info("health, on validation subjects: %s", health_line(health, metrics))
        about = {
            **self.facts(),
            "chosen_step": chosen_step,
            "chosen_by": self.config.chosen_by,
            "train_seconds": round(seconds, 1),
            **run_facts(state),
        }
        status = "stopped" if stopped else "finished"
        result = Result(status, self.key, state.step, metrics, self.routes(), checkpoint, about, health, outcomes)  # type: ignore[arg-type]
        write_result(out, result)
        if checkpoint:
            keep_steps(out / "best", {chosen_step})
        return result

    def measure_weights(self, weights: Path, trained: Mapping[str, Any], health: Mapping[str, Any]) -> Result:
        """Measure chosen weights of this run again, as at its end, and write `result.json`; no step is trained.

        Args:
            trained: `Result.about` of the run that trained them; stays, except for configuration and data.
            health: `Result.health` of that run; stays.

        Raises:
            ValueError: weights of another run, or that can't be read.
        """
        tensors, saved = load_checkpoint(weights)
        if saved.get("key") != self.key:
            raise ValueError(f"{weights}: weights of another run ({saved.get('key')}, this one is {self.key})")
        load_weights(self.state.evaluated, tensors["model"], weights)
        self.state.step, outcomes = int(saved["step"]), ""
        logger.info("measuring the weights of step %d, without training", self.state.step)
        metrics = self._validation_row() if self.config.data.validation_subjects else {}
        if self.options.test:
            tested, outcomes = self._tested()
            metrics |= tested
        about, steps = {**trained, **self.facts()}, self.config.optim.steps
        result = Result(
            "finished", self.key, steps, metrics, self.routes(), str(weights), about, dict(health), outcomes
        )
        write_result(self.options.out, result)
        return result

    def _choose_weights(self) -> Path:
        """Folder of the chosen weights, which the evaluated model then has."""
        best = self.state.best
        if best is None:
            return self.save_weights({})
        checkpoint = self.options.out / "best" / f"step-{best['step']:08d}"
        tensors, _ = load_checkpoint(checkpoint)
        load_weights(self.state.evaluated, tensors["model"], checkpoint)
        return checkpoint

    def _measured(self, max_clips: int = 0) -> Metrics:
        with self.check_finite.measuring(self.state.step):
            return self.measure_validation(max_clips)

    def _tested(self) -> tuple[Metrics, str]:
        with self.check_finite.measuring(self.state.step):
            measured, outcomes = self.measure_test()
        row = {f"test/{name}": number for name, number in measured.items()}
        return row | {"test/score": self.score(measured)}, outcomes

    def _validation_row(self) -> Metrics:
        metrics = self._measured()
        row = {f"validation/{name}": number for name, number in metrics.items()}
        return row | {"validation/score": self.score(metrics)}

    def _record(self, row: Metrics) -> None:
        append_row(self.options.out / "progress.jsonl", {"step": self.state.step, **row})
        if self.on_metrics is not None:
            self.on_metrics(self.state.step, row)

    def _seconds(self) -> float:
        return self.state.seconds + time.monotonic() - self.started
