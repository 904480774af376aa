"""What the report shows of results clip by clip: of the baseline row of the first table that measures a task."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from orchestrator.planning.plan_file import PlanFile, PlannedColumn, PlannedRow
from orchestrator.project import ITEM
from orchestrator.record import Record
from orchestrator.report.claims import Outcomes, OutcomesOf
from orchestrator.report.model import Confusion, ExamplePoses
from ups_model.config import set_of

CLASS_ROWS, POSE_ROWS = ("clip", "subject", "label"), ("clip", "camera", "subject", "frames")
SUMS, ANSWERS = ("error_sum_mm", "p_error_sum_mm"), ("predicted", "rank", "margin")
"""Arrays that are there for each clip: of every classification, of pose estimation, of the latter's errors, and of each
observation ratio of a classification."""
EXAMPLE_AXES = {"input": 2, "pose_mm": 3, "truth_mm": 3}
EXAMPLE_PLACES = ("clip", "camera", "frame")


def by_source(arrays: Outcomes) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Arrays of each task and source, by what they are. ValueError for a name without these three parts."""
    groups: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        parts = name.split("/", 2)
        if len(parts) != 3:
            raise ValueError(f"arrays must be named task/source/what, got {name!r}")
        groups.setdefault((parts[0], parts[1]), {})[parts[2]] = array
    return groups


def ratio_ends(named: Mapping[str, np.ndarray]) -> list[str]:
    """How the names of a classification's arrays end: "@0.2" and the like in early prediction, else "" alone."""
    return sorted(name.removeprefix("rank") for name in named if name.startswith("rank"))


def item_metrics(named: Mapping[str, np.ndarray]) -> list[str]:
    """Metrics whose values are there one by one (`orchestrator.project.ITEM`)."""
    return sorted(name.removeprefix(ITEM) for name in named if name.startswith(ITEM))


def check_outcomes(arrays: Outcomes) -> None:
    """ValueError for arrays that no run leaves (`ups_model.evaluation.outcomes`, `ITEM`), whatever wrote them."""
    for (task, source), named in by_source(arrays).items():
        place, poses, ends = f"{task}/{source}", "frames" in named, ratio_ends(named)
        if metrics := item_metrics(named):
            _check_items(place, named, metrics)
            continue
        rows = [*POSE_ROWS, *SUMS, *(["label"] if "label" in named else [])] if poses else [*CLASS_ROWS]
        rows += [f"{name}{end}" for end in ends for name in ANSWERS]
        if missing := [name for name in rows if name not in named]:
            raise ValueError(f"{place}: {missing[0]} is missing")
        shapes = sorted({named[name].shape for name in rows})
        if len(shapes) > 1 or len(shapes[0]) != 1 or not shapes[0][0]:
            raise ValueError(f"{place}: arrays by clip must be of one length above 0, got {shapes}")
        whole = [name for name in rows if not name.startswith(("margin", *SUMS))]
        if not all(np.issubdtype(named[name].dtype, np.integer) for name in whole):
            raise ValueError(f"{place}: {', '.join(whole)} must be whole numbers")
        least = {"frames": 1, "label": 0, **{f"{name}{end}": 0 for end in ends for name in ("predicted", "rank")}}
        if low := [name for name, bound in least.items() if name in named and named[name].min() < bound]:
            raise ValueError(f"{place}: {low[0]} must be at least {least[low[0]]}")
        if poses and not all(np.isfinite(named[name]).all() for name in SUMS):
            raise ValueError(f"{place}: errors must be finite")
        if "example_pose_mm" in named:
            _check_examples(place, named)


def _check_items(place: str, named: Mapping[str, np.ndarray], metrics: list[str]) -> None:
    arrays = [named[f"{ITEM}{metric}"] for metric in metrics]
    if "subject" not in named or not np.issubdtype(named["subject"].dtype, np.integer):
        raise ValueError(f"{place}: subject must be there, in whole numbers")
    if named["subject"].ndim != 1 or any(array.shape != named["subject"].shape for array in arrays):
        raise ValueError(f"{place}: items and subjects must be of one length")
    if not all(np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all() for array in arrays):
        raise ValueError(f"{place}: items must be finite numbers")


def _check_examples(place: str, named: Mapping[str, np.ndarray]) -> None:
    joints = named["example_pose_mm"].shape[1] if named["example_pose_mm"].ndim == 3 else 0
    shapes = {name: (3, joints, axes) for name, axes in EXAMPLE_AXES.items()} | dict.fromkeys(EXAMPLE_PLACES, (3,))
    if missing := [name for name in ("bones", *shapes) if f"example_{name}" not in named]:
        raise ValueError(f"{place}: example_{missing[0]} is missing")
    sound = all(named[f"example_{name}"].shape == shape for name, shape in shapes.items())
    bones = named["example_bones"]
    sound &= bones.ndim == 2 and bones.shape[1] == 2 and np.issubdtype(bones.dtype, np.integer)
    if not sound or (bones.size and not 0 <= bones.min() <= bones.max() < joints):
        raise ValueError(f"{place}: the example poses don't fit together")


def confusions(plan: PlanFile, records: Mapping[str, Record], outcomes: OutcomesOf) -> Iterable[Confusion]:
    """Of each classification task that has results by clip, in the paper's order; of early prediction at its middle
    observation ratio. `records` are of the plan's units, by key."""
    for task, row, column, place in _first_measured(plan):
        runs = [run for _, run in _runs(plan, records, outcomes, row, column)]
        ratios = sorted(
            (name.partition("@")[2] for run in runs[:1] for name in run if name.startswith(f"{place}predicted")),
            key=lambda ratio: float(ratio or 1),
        )
        ratio = ratios[(len(ratios) - 1) // 2] if ratios else ""
        predicted = f"{place}predicted{'@' if ratio else ''}{ratio}"
        pairs = [(run[f"{place}label"], run[predicted]) for run in runs if predicted in run]
        if pairs:
            classes = plan.data[set_of(column.sources[0])].classes
            counts = _counts(pairs, len(classes))
            named = classes if len(classes) == len(counts) else ()
            yield Confusion(task, plan.titles[task], column.sources[0], row.label, ratio, len(pairs), counts, named)


def _first_measured(plan: PlanFile) -> Iterable[tuple[str, PlannedRow, PlannedColumn, str]]:
    """Of each task that has a source, in the order of reports: the baseline row and the column of the first table that
    measures it, and how the names of its arrays begin."""
    for task in plan.titles:
        columns = ((table, column) for table in plan.tables for column in table.columns if column.task == task)
        first = next(columns, None)
        if first is not None and first[1].sources:
            table, column = first
            row = next(row for row in table.rows if row.label == table.baseline)
            yield task, row, column, f"{task}/{column.sources[0]}/"


def _runs(
    plan: PlanFile, records: Mapping[str, Record], outcomes: OutcomesOf, row: PlannedRow, column: PlannedColumn
) -> Iterable[tuple[int, Outcomes]]:
    """Seed and results by clip of a row's finished runs, by ascending seed."""
    keys = sorted(row.units[column.group], key=lambda key: plan.units[key].seed)
    for key in keys:
        if key in records and records[key].status == "finished" and (run := outcomes(key)) is not None:
            yield plan.units[key].seed, run


def _counts(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int) -> tuple[tuple[int, ...], ...]:
    """[true][predicted] clips, summed over runs; at least `classes` lines."""
    true, predicted = (np.concatenate(values).astype(np.int64) for values in zip(*pairs, strict=True))
    size = max(classes, 1 + int(max(true.max(initial=-1), predicted.max(initial=-1))))
    counts = np.bincount(true * size + predicted, minlength=size * size).reshape(size, size)
    return tuple(tuple(map(int, line)) for line in counts)


def example_poses(plan: PlanFile, records: Mapping[str, Record], outcomes: OutcomesOf) -> ExamplePoses | None:
    """Those of the first finished run that has them; `records` as of `confusions`."""
    for _, row, column, place in _first_measured(plan):
        for seed, run in _runs(plan, records, outcomes, row, column):
            if f"{place}example_pose_mm" in run:
                arrays = {name.removeprefix(place): run[name] for name in run if name.startswith(place)}
                return ExamplePoses(
                    source=column.sources[0],
                    row=row.label,
                    seed=seed,
                    frames=int(arrays["frames"].sum()),
                    bones=_tuples(arrays["example_bones"]),
                    places=_tuples(np.stack([arrays[f"example_{name}"] for name in EXAMPLE_PLACES], axis=1)),
                    joints=_tuples(arrays["example_input"]),
                    predicted=_tuples(arrays["example_pose_mm"]),
                    truth=_tuples(arrays["example_truth_mm"]),
                )
    return None


def _tuples(array: np.ndarray) -> Any:
    """Nested tuples of Python's numbers, which compare and don't change."""
    return tuple(map(_tuples, array)) if array.ndim > 1 else tuple(array.tolist())
