"""One run: its parts, its state, and what is done with them at a step."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ups_model.config import Config, TaskName
from ups_model.config.identity import run_key, trunk_key
from ups_model.data.batching.batch import Batch
from ups_model.device import (
    autocast_dtype,
    device_name,
    memory_mb,
    pick_device,
    pick_precision,
)
from ups_model.evaluation.health import CURVE_CLIPS, curve_steps, health_line, judge
from ups_model.evaluation.measure import measure, measure_test, score, trivial_values
from ups_model.evaluation.metric_names import headline_metric
from ups_model.model.layers import seed_for
from ups_model.model.text_features import text_identity
from ups_model.training.build import build, data_identity
from ups_model.training.checkpoint import load_checkpoint, load_weights, named_best_steps
from ups_model.training.finite import FiniteCheck
from ups_model.training.fit import Fit, choose_fit
from ups_model.training.losses import sequence_loss, target_tokens
from ups_model.training.options import RunOptions
from ups_model.training.parallel.group import (
    agreed_fit,
    check_shares,
    in_parallel,
    mean_over_processes,
    start_processes,
    wait_for_all,
)
from ups_model.training.progress import append_row, duration, forget_after, short_line
from ups_model.training.result import (
    Result,
    data_facts,
    finished_result,
    run_facts,
    save_weights,
    start_from_parent,
    write_result,
)
from ups_model.training.run_folder import STATE, TRUNK, keep_steps, prune_checkpoints
from ups_model.training.run_state import Metrics, RunState, make_optimizer
from ups_model.training.schedule import exit_layer, gumbel_noise, input_mask, learning_rate, temperature

logger = logging.getLogger(__name__)


class Run:
    """One run in this process: its parts, its state and what is done with them at a step. `train` is the loop.

    All processes of a run take the same steps; the first one alone measures, reports and writes.
    """

    def __init__(
        self,
        config: Config,
        paths: Mapping[str, Path],
        options: RunOptions,
        parent: Path | None,
        on_metrics: Callable[[int, Metrics], None] | None,
    ) -> None:
        self.config, self.options, self.on_metrics = config, options, on_metrics
        self.rank, self.processes = start_processes(options.device)
        self.device = pick_device(options.device, self.rank)
        self.precision = pick_precision(options.precision, self.device)
        self.parts = build(config, paths, self.device, options.cache / "text")
        parent_key = start_from_parent(self.parts, parent)
        data, text = data_identity(self.parts.sets), text_identity(config.model.text_model)
        self.key = run_key(config, data, text, parent_key)
        self.trunk_key = trunk_key(config, data, text, parent_key)
        check_shares(config, self.processes, options.micro_batch)
        model = self.parts.model
        self.state = RunState(
            model,
            make_optimizer(model, config),
            torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16"),
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.optim.ema)) if config.optim.ema else None,
        )
        self.parallel = in_parallel(model, self.processes)
        self.curve_at = curve_steps(config.optim.steps) if config.data.validation_subjects else ()
        self.check_finite = FiniteCheck(config)
        self.recent: dict[str, list[Tensor]] = {}
        """Losses since the last progress line, by task."""

    def finished(self) -> Result | None:
        """The result of the finished run in the folder. Its checkpoints may have been deleted to save space: what
        counts is the result and the chosen weights."""
        result = finished_result(self.options.out, self.key)
        if result is None or not (self.options.out / "best" / Path(result.checkpoint).name / STATE).is_file():
            return None
        if self.options.test and not result.tested:
            return None
        if self.rank == 0:
            logger.info("run %s is finished; nothing to train", self.key)
        return result

    def start_or_resume(self) -> None:
        """Take up the newest checkpoint, or begin; from here on there is something to keep."""
        state, optim, out = self.state, self.config.optim, self.options.out
        state.model.train()
        self.turns = dict.fromkeys(optim.tasks, 0)
        self.fit = self._choose_fit()  # Before gradients of half a cycle are restored.
        checkpoint = state.restore(out / "checkpoints", self.key)
        if checkpoint is None and self.options.trunk is not None:
            checkpoint = self._take_over(self.options.trunk)
        if checkpoint is not None:
            if self.rank == 0:
                forget_after(out / "progress.jsonl", state.step)
                logger.info("resuming at step %d of %d from %s", state.step, optim.steps, checkpoint)
        elif self.rank == 0:
            parameters = sum(parameter.numel() for parameter in state.model.parameters())
            logger.info(
                "training %s on %s (%s), %.2f M parameters, run %s",
                "+".join(optim.tasks), self.device, self.precision, parameters / 1e6, self.key,
            )  # fmt: skip
        if self.rank == 0:
            out.mkdir(parents=True, exist_ok=True)
            (out / "config.json").write_text(json.dumps(self.config.canonical(), indent=1), "utf-8")
        here = [device_name(self.device), self.precision]
        if state.made_on[-1:] != [here]:
            state.made_on = [*state.made_on, here]
        self.turns = optim.turns_before(state.step)
        self.first_step = state.step
        self.started = self.last_logged = time.monotonic()

    def _take_over(self, trunk: Path) -> Path | None:
        """Begin from another run's trunk; None where it can't be read."""
        state = self.state
        if (path := state.restore(trunk.parent, self.trunk_key)) is not None:
            state.curve = {step: point for step, point in state.curve.items() if step in self.curve_at}
            state.taken_over, state.seconds = state.step, 0.0
        return path

    def _choose_fit(self) -> Fit:
        """How batches are cut, the same way in all processes."""
        model, data, tasks = self.state.model, self.config.data, self.config.optim.tasks
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
        self.recent.setdefault(task, []).append(loss)
        self.turns[task] += 1
        state.step += 1
        norm = self._update() if state.step % accumulated == 0 else None
        scaled = self.precision == "fp16"  # The scaler skips such an update and lowers its scale.
        self.check_finite.add(state.step, task, loss, None if scaled else norm)

    def _loss(self, model: nn.Module, task: TaskName, batch: Batch) -> Tensor:
        """Mean loss of the clips of one part of a step's batch."""
        state, config = self.state, self.config
        # Dropout draws from the global generator: seeding it by step makes a step independent of what ran before it,
        # and a part of how the batch was cut.
        torch.manual_seed(seed_for(config.seed, "dropout", state.step))
        target_BK = target_tokens(state.model, batch)
        state.model.encoder.exit_layer = exit_layer(config, state.step)
        low_precision = self.precision != "fp32"
        with torch.autocast(self.device.type, dtype=autocast_dtype(self.precision), enabled=low_precision):
            logits_BKV = model(
                batch.inputs,
                target_BK,
                input_mask(config, task, self.turns[task], target_BK, batch.inputs.place_B),
                gumbel_noise(config, state.step).to(self.device, non_blocking=True),
                temperature(config, state.step),
            )
        return sequence_loss(state.model, batch, logits_BKV, target_BK, config.optim)

    def _update(self) -> Tensor:
        """Change the weights by the gradients; returns the gradients' norm before clipping."""
        state, optim = self.state, self.config.optim
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, state.step - 1)
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), optim.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        if state.average is not None:
            state.average.update_parameters(state.model)
        return norm

    def log_progress(self) -> None:
        """Mean losses since the last line, speed and memory."""
        self.check_finite()
        step, steps, now = self.state.step, self.config.optim.steps, time.monotonic()
        line = {
            f"train/{task}_loss": mean_over_processes(torch.stack(self.recent[task]).mean(), self.processes)
            for task in sorted(self.recent)
        }
        line["learning_rate"] = learning_rate(self.config, step - 1)
        steps_since = min(self.options.log_every, step - self.first_step)
        line["steps_per_second"] = steps_since / max(now - self.last_logged, 1e-9)
        line["memory_mb"] = memory_mb(self.device)
        self.recent, self.last_logged = {}, now
        if self.rank == 0:
            left = (steps - step) * (now - self.started) / max(step - self.first_step, 1)
            logger.info("step %d/%d  %s  %s left", step, steps, short_line(line), duration(left))
            self._record(line)

    def measure_curve(self) -> None:
        """One point of the curve from which the run's health is judged."""
        self.check_finite()
        if self.rank == 0:
            metrics = self._measure_validation(max_clips=CURVE_CLIPS)
            point = {name: metrics[name] for name in map(headline_metric, self.config.optim.tasks)}
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
                save_weights(self.options.out / "best", state.step, state.evaluated, self.parts, self.key, row)
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

    def save_trunk(self) -> None:
        """Keep the state before the rate decays, for runs that are longer."""
        self.check_finite()
        if self.rank == 0 and self.trunk_key:
            self.state.save(self.options.out / TRUNK, self.trunk_key, self._seconds())

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
        state, parts, out, config = self.state, self.parts, self.options.out, self.config
        chosen_step = state.best["step"] if state.best else state.step
        checkpoint, metrics, health, outcomes = "", {}, {}, ""
        if not stopped:
            checkpoint = str(self._choose_weights())
            metrics = dict(state.best["metrics"]) if state.best else {}
            if self.options.test:
                with self.check_finite.measuring(state.step):
                    measured, outcomes = measure_test(state.evaluated, parts.feeds, config.evaluation, out)
                metrics |= {f"test/{name}": value for name, value in measured.items()}
                metrics["test/score"] = score(measured, config.optim.tasks, parts.mean_pose_mm)
            if state.curve:
                health = judge(state.curve, trivial_values(parts.feeds, parts.validation_mean_pose_mm))
                logger.info("health, on validation subjects: %s", health_line(health))
        about = {
            **data_facts(parts),
            "chosen_step": chosen_step,
            "chosen_by": config.chosen_by,
            "train_seconds": round(seconds, 1),
            **run_facts(state),
            **self.fit.facts(self.processes),
        }
        status, routes = "stopped" if stopped else "finished", state.evaluated.routes()
        result = Result(status, self.key, state.step, metrics, routes, checkpoint, about, health, outcomes)  # type: ignore[arg-type]
        write_result(out, result)
        if checkpoint:
            keep_steps(out / "best", {chosen_step})
        return result

    def _choose_weights(self) -> Path:
        """Folder of the chosen weights, which the evaluated model then has."""
        state, best = self.state, self.options.out / "best"
        if state.best is None:
            return save_weights(best, state.step, state.evaluated, self.parts, self.key, {})
        checkpoint = best / f"step-{state.best['step']:08d}"
        tensors, _ = load_checkpoint(checkpoint)
        load_weights(state.evaluated, tensors["model"], checkpoint)
        return checkpoint

    def _measure_validation(self, max_clips: int = 0) -> Metrics:
        with self.check_finite.measuring(self.state.step):
            model, evaluation = self.state.evaluated, self.config.evaluation
            return measure(model, self.parts.feeds, "validation", evaluation, max_clips=max_clips)

    def _validation_row(self) -> Metrics:
        metrics = self._measure_validation()
        value = score(metrics, self.config.optim.tasks, self.parts.mean_pose_mm)
        return {f"validation/{name}": number for name, number in metrics.items()} | {"validation/score": value}

    def _record(self, row: Metrics) -> None:
        append_row(self.options.out / "progress.jsonl", {"step": self.state.step, **row})
        if self.on_metrics is not None:
            self.on_metrics(self.state.step, row)

    def _seconds(self) -> float:
        return self.state.seconds + time.monotonic() - self.started
