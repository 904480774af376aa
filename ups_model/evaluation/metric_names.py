"""Names of metrics, and of the file of per-clip outcomes. Imports no torch."""

from collections.abc import Sequence

from ups_model.config import EvalConfig, TaskData, TaskName
from ups_model.tasks import TASKS

OUTCOMES = "outcomes.npz"


def metric_names(task: TaskName, data: TaskData, config: EvalConfig, classes: Sequence[str]) -> list[str]:
    """Names of all that `measure` gives for a task's first clip set, before anything is measured.

    Args:
        classes: of that clip set; empty where clips have no labels.
    """
    if TASKS[task].kind == "class":
        ratios = [f"@{ratio:g}" for ratio in config.ratios] if task == "eap" else [""]
        kinds = ["top1", *(["top5"] if len(classes) >= 5 else []), "free_top1", "ended"]
        return [f"{task}/{kind}{at}" for at in ratios for kind in kinds] + (
            [f"{task}/clips", f"{task}/top1"] if task == "eap" else [f"{task}/clips"]
        )
    errors = ["mpjpe_mm", "p_mpjpe_mm", "n_mpjpe_mm"]
    names = [*errors, *(f"frames_{name}" for name in errors), *(f"{name}_se" for name in errors)]
    names += [f"{error}/{action}{end}" for error in errors for action in classes for end in ("", "_se")]
    if data.evaluate_stride == 1:
        names += ["mpjve_mm_per_frame", *(f"mpjve_mm_per_frame/{action}" for action in classes)]
    return [f"{task}/{name}" for name in (*names, "clip_rate", "floor_mm", "in_grammar", "poses")]


def headline_metric(task: TaskName) -> str:
    """The metric of a task that a run is judged by, e.g. "ar3d/top1"."""
    return f"{task}/mpjpe_mm" if TASKS[task].kind == "pose" else f"{task}/top1"


def is_headline(name: str) -> bool:
    """Whether a metric belongs in a progress line: not the values of single actions, counts and diagnostics."""
    parts = name.split("/")
    quiet = ("frames_", "free_", "ended", "clips", "poses", "in_grammar", "n_mpjpe")
    return len(parts) <= 2 and not parts[-1].startswith(quiet) and not parts[-1].endswith("_se")
