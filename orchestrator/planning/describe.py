"""A plan in words and columns, for `--plan`."""

from collections.abc import Container, Mapping

from orchestrator.planning.estimate import Estimate, operations_of, sizes_of
from orchestrator.planning.plan import Plan
from ups_model.data.format.clip_set import ClipSet
from ups_model.training.progress import duration


def plan_text(plan: Plan, sets: Mapping[str, ClipSet], expected: Estimate, done: Container[str]) -> str:
    """Rows -> arms -> units, what is shared and done, sizes, times."""
    lines = [f"{plan.name}: {plan.study.question}"]
    for name, facts in plan.data.items():
        kind = "SYNTHETIC, " if facts.synthetic else ""
        lines.append(f"  data {name}: {kind}{facts.clips:,} clips, {facts.fingerprint[:8]}")
    for table, rows in plan.tables:
        lines += ["", table.title]
        width = max(len(line.row.label) for line in rows)
        for line in rows:
            keys = [key for keys in line.units.values() for key in keys]
            units = plan.with_parents(keys)
            left = sum(key not in done for key in units)
            what = f"{len(units)} units, {left} to run"
            arms = " | ".join(dict.fromkeys(arm.name for arm in line.arms.values()))
            lines.append(f"  {line.row.label:<{width}}  arm {arms} ({line.row.training}): {what}")
    finished = sum(key in done for key in plan.units)
    lines += [
        "",
        f"{plan.rows} rows -> {len(plan.arms)} arms -> {len(plan.units)} units with {plan.seeds} "
        f"seed{'s' * (plan.seeds > 1)}; {plan.unshared_units - len(plan.units)} trainings saved by sharing, "
        f"{finished} done already",
        "",
    ]
    kinds: dict[tuple[str, str, str], list[str]] = {}
    for key, unit in plan.units.items():
        kinds.setdefault((unit.arm, unit.stage, unit.task), []).append(key)
    width = max(len(" · ".join((arm, f"{stage} {task}".rstrip()))) for arm, stage, task in kinds)
    lines.append(
        f"{'unit':<{width}}{'seeds':>7}{'done':>6}{'parameters':>14}{'operations':>12}{'time each':>13}  after"
    )
    for (arm, stage, task), keys in kinds.items():
        first = plan.units[keys[0]]
        name = f"{arm} · {stage} {task}".rstrip()
        seconds = sum(expected.seconds[key] for key in keys) / len(keys)
        parent = plan.units[first.parent].stage if first.parent else "-"
        lines.append(
            f"{name:<{width}}{len(keys):>7}{sum(key in done for key in keys):>6}"
            f"{sizes_of(first.config, sets).parameters / 1e6:>12.2f} M{operations_of(first, sets):>12.2e}"
            f"{duration(seconds):>13}  {parent}"
        )
    source = (
        f"measured on {expected.measured} units" if expected.measured else "a guess: nothing has been measured here"
    )
    lines += [
        "",
        f"operations: multiplications and additions of training, forward and backward. Times: {source}.",
        f"to run: {len(plan.units) - finished} units, {duration(expected.left)} of one slot, about "
        f"{duration(expected.makespan)} on {expected.slots} at once",
    ]
    return "\n".join(lines)
