"""fp16 and bf16 against fp32."""

import statistics

import torch
from synthetic_runs import autocast, tasks_of

from gpu_parts.part import Part
from gpu_parts.table import Row
from ups_model.config import TASK_NAMES
from ups_model.model.decoding import classify, decode_poses
from ups_model.training.run import Run


def precision(part: Part) -> None:
    """fp16 and bf16 against fp32: one batch's gradients, predictions of equal weights, 200 steps of training."""
    steps = 24 if part.quick else 200
    low = part.formats[1:]
    gradients = {name: gradient_of_all_tasks(part, name) for name in part.formats}
    for name in low:
        error = float((gradients[name] - gradients["fp32"]).norm() / gradients["fp32"].norm())
        Row(f"gradients, {name} from fp32", error, "of their norm").emit()
    trained, curve = train_tiny(part, steps, "fp32")
    reference = tail_of(curve)
    Row(f"loss after {steps} steps, fp32", reference, "mean over tasks", data={"losses": curve}).emit()
    # The other seed is a scale for the differences: it changes weights, clips and noise.
    for title, name, seed in (*((name, name, 0) for name in low), ("another seed in fp32", "fp32", 1)):
        _, curve = train_tiny(part, steps, name, seed)
        difference = 100 * (tail_of(curve) / reference - 1)
        Row(f"loss after {steps} steps, {title} from fp32", difference, "%", data={"losses": curve}).emit()
    for name in low:
        compare_predictions(trained, name)


def train_tiny(part: Part, steps: int, precision: str, seed: int = 0) -> tuple[Run, dict[str, list[float]]]:
    """Preset `tiny` after so many steps, and the losses of each task on the way."""
    run = part.start(part.config("tiny", steps=steps, seed=seed), precision)
    losses: dict[str, list[float]] = {task: [] for task in run.config.optim.tasks}
    for _ in range(steps):
        task = tasks_of(run)[0]
        run.recent.clear()
        run.train_step()
        losses[task].append(float(torch.stack(run.recent[task]).mean()))
    return run, losses


def tail_of(losses: dict[str, list[float]]) -> float:
    """Mean over tasks of the loss in the last quarter of the steps."""
    return statistics.fmean(statistics.fmean(values[-(len(values) // 4) :]) for values in losses.values())


def gradient_of_all_tasks(part: Part, precision: str) -> torch.Tensor:
    """Gradient of one batch of every task, added up, before any update."""
    # Of two rounds the first alone is taken: an update would come after the second.
    run = part.start(part.config("tiny", update="cycle", cycle=TASK_NAMES * 2, steps=64), precision)
    # The usual first scale of 65536 is too high for some gradients; the scaler would skip steps until it has halved.
    run.state.scaler = torch.amp.GradScaler(run.device.type, init_scale=1024.0, enabled=precision == "fp16")
    for _ in TASK_NAMES:
        run.train_step()
    gradients = [p.grad.flatten() for p in run.state.model.parameters() if p.grad is not None]
    return torch.cat(gradients).double() / run.state.scaler.get_scale()


@torch.no_grad()
def compare_predictions(run: Run, precision: str) -> None:
    """Answers of one model to one batch of each task, in a low precision and in fp32."""
    model = run.state.model.eval()
    for task, feed in run.parts.feeds.items():
        batch = next(iter(feed.evaluate("test", max_clips=256)))
        answers = []
        for name in ("fp32", precision):
            run.precision = name
            with autocast(run):
                if task == "pe":
                    memory, _, _ = model.encode(batch.inputs)
                    answers.append(decode_poses(model, memory).pose_BJ3)
                else:
                    answers.append(classify(model, batch.inputs, batch.source).logits_BK.argmax(dim=1))
        run.precision = "fp32"
        if task == "pe":
            distance = 1000 * float((answers[1] - answers[0]).norm(dim=-1).mean())
            Row(f"pe predictions, {precision} from fp32", distance, "mm").emit()
        else:
            same = 100 * float((answers[0] == answers[1]).float().mean())
            Row(f"{task} predictions, {precision} as fp32", same, f"% of {len(answers[0])} clips").emit()
    model.train()
