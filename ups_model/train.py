"""Training of one run: joint, one task alone, or fine-tuning. One flat loop; every step depends on (seed, step) alone.

    python -m ups_model.train --preset tiny
    python -m ups_model.train --preset small --data uiprmd=PATH --data utd_mhad=PATH --data jhmdb=PATH --out runs/joint
    torchrun --nproc-per-node 8 -m ups_model.train --preset paper ...

A run that is killed at any moment goes on from its newest whole checkpoint when the same command is given again, and
ends with the same bits as one that was not killed (CPU).
"""

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ups_model.cli import (
    PRESETS,
    StopOnSignal,
    add_data_arguments,
    add_device_arguments,
    data_paths,
    read_config,
    report,
    start_logging,
)
from ups_model.config import TASK_NAMES, Config
from ups_model.config.identity import configured_sets, run_key
from ups_model.data.prepare.catalog import default_cache
from ups_model.device import Precision, autocast_dtype, device_name, memory_mb, pick_device, pick_precision
from ups_model.evaluation.health import CURVE_CLIPS, curve_steps, health_line, judge
from ups_model.evaluation.measure import headline_metric, measure, measure_test, score, trivial_values
from ups_model.model.layers import seed_for
from ups_model.model.text_features import text_identity
from ups_model.model.ups import UPS
from ups_model.model.vocabulary import NonFiniteValues
from ups_model.training.build import Parts, build, data_identity
from ups_model.training.checkpoint import (
    keep_steps,
    load_checkpoint,
    load_weights,
    named_best_steps,
    newest_checkpoint,
    optimizer_tensors,
    prune_checkpoints,
    restore_optimizer,
    save_checkpoint,
)
from ups_model.training.distributed import (
    check_shares,
    first_process,
    mean_over_processes,
    start_processes,
    wait_for_all,
)
from ups_model.training.losses import sequence_loss, target_tokens
from ups_model.training.progress import append_row, duration, forget_after, short_line
from ups_model.training.result import Result, finished_result, save_weights, start_from_parent, write_result
from ups_model.training.run_folder import STATE
from ups_model.training.schedule import gumbel_noise, input_mask, learning_rate, temperature

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  python -m ups_model.train --preset tiny
  python -m ups_model.train --preset small --data uiprmd=PATH --data utd_mhad=PATH --data jhmdb=PATH
  python -m ups_model.train --preset small --task ar3d --set encoder_layers=2 --seed 1 --out runs/ar3d-depth2
  python -m ups_model.train --preset small --task pe --parent runs/small/best/step-00004200 --out runs/small-pe
  torchrun --nproc-per-node 8 -m ups_model.train --preset paper --data h36m=PATH ...

--data may be left out for a set that `python -m ups_model.data prepare` has put in its usual place.
exit status: 0 done, 1 stopped or not finite, 2 usage or configuration, before anything starts"""


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message names the step and what to try."""


@dataclass(frozen=True)
class RunOptions:
    """Where and how a run is carried out; nothing here is part of its identity."""

    out: Path
    """Folder of `config.json`, checkpoints, `progress.jsonl` and `result.json`."""
    device: str = "auto"
    precision: Precision = "auto"
    """auto: bf16 from compute capability 8.0, fp16 with a loss scaler on older GPUs (V100), fp32 on the CPU."""
    checkpoint_every: int = 500
    """Steps between checkpoints; a kill loses at most so many."""
    keep: int = 2
    """Checkpoints kept to resume from."""
    log_every: int = 50
    """Steps between progress lines."""
    cache: Path = field(default_factory=default_cache)
    """Folder of clip sets and, under `text`, of text features."""
    test: bool = True
    """Measure the test split at the end."""


def train(
    config: Config,
    paths: Mapping[str, Path],
    options: RunOptions,
    parent: Path | None = None,
    on_metrics: Callable[[int, dict[str, float]], None] | None = None,
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
    # Second moments of small gradients are denormal numbers, with which a CPU computes many times slower.
    torch.set_flush_denormal(True)
    try:
        return _train(config, paths, options, parent, on_metrics, should_stop, on_checkpoint)
    finally:
        torch.set_flush_denormal(False)


def _train(
    config: Config,
    paths: Mapping[str, Path],
    options: RunOptions,
    parent: Path | None,
    on_metrics: Callable[[int, dict[str, float]], None] | None,
    should_stop: Callable[[], bool] | None,
    on_checkpoint: Callable[[], None] | None,
) -> Result:
    rank, processes = start_processes()
    device = pick_device(options.device, rank)
    precision = pick_precision(options.precision, device)
    parts = build(config, paths, device, options.cache / "text")
    model, feeds, optim = parts.model, parts.feeds, config.optim
    parent_key = start_from_parent(parts, parent)
    key = run_key(config, data_identity(parts.sets), text_identity(config.model.text_model), parent_key)
    check_shares(config, processes)
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(optim.ema)) if optim.ema else None
    parallel = DistributedDataParallel(model, find_unused_parameters=True) if processes > 1 else model
    curve_at = curve_steps(optim.steps) if config.data.validation_subjects else ()
    step, best, seconds = 0, None, 0.0
    curve: dict[int, dict[str, float]] = {}
    # Where a run that is moved was made: half of it in fp16 is another thing than all of it in bf16.
    made_on: list[list[str]] = []
    # Its checkpoints may have been deleted to save space: a finished run is told by its result and its chosen weights.
    done = finished_result(options.out, key)
    whole = done is not None and (options.out / "best" / Path(done.checkpoint).name / STATE).is_file()
    if done is not None and whole and (done.tested or not options.test):
        logger.info("run %s is finished; nothing to train", key)
        return done
    saved = newest_checkpoint(options.out / "checkpoints")
    if saved is not None:
        path, tensors, state = saved
        if state["key"] != key:
            raise ValueError(
                f"{options.out} holds another run ({state['key']}, this one is {key}); give another --out or delete it"
            )
        load_weights(model, tensors["model"], path)
        restore_optimizer(optimizer, tensors["optimizer"])
        if average is not None:
            average.load_state_dict(tensors["ema"])
        for name, parameter in model.named_parameters():
            if name in tensors.get("gradients", {}):
                parameter.grad = tensors["gradients"][name].to(device)
        if state["scaler"]:  # Empty where the run so far was not in fp16; the scale then starts anew.
            scaler.load_state_dict(state["scaler"])
        step, best, seconds = state["step"], state["best"], state["seconds"]
        made_on = state.get("made_on", made_on)
        curve = {int(point): values for point, values in state["curve"].items()}
        if rank == 0:
            forget_after(options.out / "progress.jsonl", step)
        logger.info("resuming at step %d of %d from %s", step, optim.steps, path)
    elif rank == 0:
        logger.info(
            "training %s on %s (%s), %.2f M parameters, run %s",
            "+".join(optim.tasks), device, precision, sum(p.numel() for p in model.parameters()) / 1e6, key,
        )  # fmt: skip

    if rank == 0:  # Everything that could be refused has been: from here on there is something to keep.
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "config.json").write_text(json.dumps(config.canonical(), indent=1), "utf-8")
    here = [device_name(device), precision]
    made_on = made_on if made_on[-1:] == [here] else [*made_on, here]
    turns = optim.turns_before(step)
    recent: dict[str, list[Tensor]] = {}
    started = last_logged = time.monotonic()
    first_step, stopped = step, False
    model.train()
    while step < optim.steps and not stopped:
        task = optim.cycle[step % len(optim.cycle)]
        batch = feeds[task].train(turns[task], (rank, processes))
        # Dropout draws from the global generator: seeding it by step makes a step independent of what ran before it.
        torch.manual_seed(seed_for(config.seed, "dropout", step, rank))
        target_BK = target_tokens(model, batch)
        with torch.autocast(device.type, dtype=autocast_dtype(precision), enabled=precision != "fp32"):
            logits_BKV = parallel(
                batch.inputs,
                target_BK,
                input_mask(config, task, turns[task], target_BK, (rank, processes)),
                gumbel_noise(config, step).to(device),
                temperature(config, step),
            )
        loss = sequence_loss(model, batch, logits_BKV, target_BK, optim)
        accumulated = len(optim.cycle) if optim.update == "cycle" else 1
        scaler.scale(loss / accumulated).backward()
        recent.setdefault(task, []).append(loss.detach())
        turns[task] += 1
        step += 1

        if step % accumulated == 0:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step - 1)
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
            if precision != "fp16" and not torch.isfinite(norm):
                _raise_non_finite(step, task, loss.item(), config)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            if average is not None:
                average.update_parameters(model)

        if not math.isfinite(loss_now := float(loss.detach())):
            _raise_non_finite(step, task, loss_now, config)

        if step % options.log_every == 0 or step == optim.steps:
            now = time.monotonic()
            means = {name: mean_over_processes(torch.stack(recent[name]).mean(), processes) for name in sorted(recent)}
            line = {f"train/{name}_loss": value for name, value in means.items()}
            line |= {"learning_rate": learning_rate(config, step - 1)}
            line |= {"steps_per_second": min(options.log_every, step - first_step) / max(now - last_logged, 1e-9)}
            line |= {"memory_mb": memory_mb(device)}
            recent, last_logged = {}, now
            left = (optim.steps - step) * (now - started) / max(step - first_step, 1)
            if rank == 0:
                logger.info("step %d/%d  %s  %s left", step, optim.steps, short_line(line), duration(left))
                append_row(options.out / "progress.jsonl", {"step": step, **line})
                if on_metrics is not None:
                    on_metrics(step, line)

        if step in curve_at:
            if rank == 0:
                evaluated = _evaluated(model, average)
                with _diverged_at(step, config):
                    found = measure(evaluated, feeds, "validation", config.evaluation, max_clips=CURVE_CLIPS)
                curve[step] = {name: found[name] for name in map(headline_metric, optim.tasks)}
                row = {f"curve/{name}": value for name, value in curve[step].items()}
                append_row(options.out / "progress.jsonl", {"step": step, **row})
                if on_metrics is not None:
                    on_metrics(step, row)
            wait_for_all(processes)

        validate = optim.evaluate_every and step % optim.evaluate_every == 0
        validate = (validate or step == optim.steps) and config.data.validation_subjects  # type: ignore[assignment]  # used as a bool
        if validate:
            if rank == 0:
                seconds_before = time.monotonic()
                with _diverged_at(step, config):
                    found = measure(_evaluated(model, average), feeds, "validation", config.evaluation)
                value = score(found, optim.tasks, parts.mean_pose_mm)
                found = {f"validation/{name}": number for name, number in found.items()} | {"validation/score": value}
                if best is None or value > best["score"]:
                    best = {"step": step, "score": value, "metrics": found}
                    save_weights(options.out / "best", step, _evaluated(model, average), parts, key, found)
                logger.info("step %d  %s  (%.0f s)", step, short_line(found), time.monotonic() - seconds_before)
                append_row(options.out / "progress.jsonl", {"step": step, **found})
                if on_metrics is not None:
                    on_metrics(step, found)
            wait_for_all(processes)

        asked = should_stop is not None and should_stop() and step < optim.steps
        # All processes end at the same step, whichever of them was told.
        stopped = mean_over_processes(torch.tensor(float(asked), device=device), processes) > 0
        if rank == 0 and (step % options.checkpoint_every == 0 or step == optim.steps or stopped):
            groups = {"model": model.state_dict(), "optimizer": optimizer_tensors(optimizer)}
            if average is not None:
                groups["ema"] = average.state_dict()
            if step % accumulated:  # In the middle of a cycle: what its tasks so far have added up.
                pairs = model.named_parameters()
                groups["gradients"] = {name: value.grad for name, value in pairs if value.grad is not None}
            state = {
                "key": key,
                "best": best,
                "curve": {str(point): values for point, values in curve.items()},
                "scaler": scaler.state_dict(),
                "seconds": seconds + time.monotonic() - started,
                "made_on": made_on,
            }
            save_checkpoint(options.out / "checkpoints", step, groups, state)
            prune_checkpoints(options.out / "checkpoints", options.keep)
            # A best that a kept checkpoint names must outlive a later best, or resuming from it would find nothing.
            keep_steps(options.out / "best", named_best_steps(options.out / "checkpoints"))
            if on_checkpoint is not None:
                on_checkpoint()

    seconds += time.monotonic() - started
    wait_for_all(processes)
    result = None
    if rank == 0:
        result = _finish(parts, options, average, best, curve, step, key, seconds, stopped, made_on)
    if processes > 1:
        shared = [result]
        dist.broadcast_object_list(shared)
        result = shared[0]
    return result  # type: ignore[return-value]  # rank 0 has sent it to all


def _finish(
    parts: Parts,
    options: RunOptions,
    average: nn.Module | None,
    best: dict[str, Any] | None,
    curve: dict[int, dict[str, float]],
    step: int,
    key: str,
    seconds: float,
    stopped: bool,
    made_on: list[list[str]],
) -> Result:
    """Choose the weights, measure them once on the test split, write `result.json`."""
    config, model = parts.config, _evaluated(parts.model, average)
    metrics: dict[str, float] = {}
    checkpoint, health, hashed = None, {}, ""
    if not stopped:
        if best is not None:
            checkpoint = options.out / "best" / f"step-{best['step']:08d}"
            tensors, _ = load_checkpoint(checkpoint)
            load_weights(model, tensors["model"], checkpoint)
            metrics |= best["metrics"]
        else:
            checkpoint = save_weights(options.out / "best", step, model, parts, key, {})
        if options.test:
            with _diverged_at(step, config):
                found, hashed = measure_test(model, parts.feeds, config.evaluation, options.out)
            metrics |= {f"test/{name}": value for name, value in found.items()}
            metrics["test/score"] = score(found, config.optim.tasks, parts.mean_pose_mm)
        if curve:
            health = judge(curve, trivial_values(parts.feeds, parts.validation_mean_pose_mm))
            logger.info("health, on validation subjects: %s", health_line(health))
    about = {
        "config": config.canonical(),
        "data": data_identity(parts.sets),
        "synthetic": sorted({clips.name for clips, _ in parts.sets.values() if clips.info.synthetic}),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "chosen_step": best["step"] if best else step,
        "chosen_by": config.chosen_by,
        # In the order in which they came, e.g. "fp16 then bf16" of a run that was moved to another kind of GPU.
        "device": " then ".join(dict.fromkeys(name for name, _ in made_on)),
        "precision": " then ".join(dict.fromkeys(name for _, name in made_on)),
        "train_seconds": round(seconds, 1),
        "torch": torch.__version__,
        "mean_pose_mm": parts.mean_pose_mm,
    }
    result = Result(
        "stopped" if stopped else "finished",
        key,
        step,
        metrics,
        model.routes(),
        str(checkpoint or ""),
        about,
        health,
        hashed,
    )
    write_result(options.out, result)
    if checkpoint is not None:
        keep_steps(options.out / "best", {about["chosen_step"]})  # type: ignore[arg-type]  # `about` holds many types
    return result


def make_optimizer(model: UPS, config: Config) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, config.optim.beta2))


def _evaluated(model: UPS, average: nn.Module | None) -> UPS:
    return model if average is None else average.module  # type: ignore[return-value]  # AveragedModel keeps no type


@contextmanager
def _diverged_at(step: int, config: Config) -> Iterator[None]:
    """The output of a model that diverged is the run's fault, not that of its configuration or data."""
    try:
        yield
    except NonFiniteValues as error:
        raise NonFiniteLoss(f"the output is not finite at step {step} ({error}); {_ways_out(config)}") from error


def _raise_non_finite(step: int, task: str, loss: float, config: Config) -> None:
    raise NonFiniteLoss(f"loss or gradient of {task} is not finite at step {step} (loss {loss}); {_ways_out(config)}")


def _ways_out(config: Config) -> str:
    return (
        "the newest checkpoint is kept. "
        f"Try a learning_rate below {config.optim.learning_rate}, a longer warmup_share, a smaller clip_norm, or "
        "--precision fp32"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ups_model.train",
        description="Train one UPS model. The same command again resumes it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="tiny: synthetic data, a minute; small: open data; paper; paper_twin: the same, small",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a configuration as written to config.json")
    parser.add_argument("--task", choices=TASK_NAMES, help="train one task alone instead of all")
    parser.add_argument("--parent", type=Path, metavar="CHECKPOINT", help="fine-tune from these weights, routes kept")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field (repeatable)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    add_data_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="(runs/PRESET)")
    add_device_arguments(parser)
    parser.add_argument("--checkpoint-every", type=int, default=500, metavar="STEPS", help="(500)")
    given = parser.parse_args(arguments)
    start_logging()
    try:
        config = read_config(given)
        paths = data_paths(given.data, configured_sets(config))
        out = given.out or Path("runs") / (given.preset or given.config.stem)
        if given.checkpoint_every < 1:
            raise ValueError(f"--checkpoint-every must be at least 1, got {given.checkpoint_every}")
        options = RunOptions(out, given.device, given.precision, given.checkpoint_every)
        stop = StopOnSignal()
        result = train(config, paths, options, given.parent, should_stop=stop)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteLoss as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if first_process():
        print(report(result))
    return 0 if result.status == "finished" else 1


if __name__ == "__main__":
    sys.exit(main())
