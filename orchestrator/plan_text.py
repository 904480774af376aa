"""A plan in words and columns, for `--plan`."""

from collections.abc import Container

from orchestrator.estimate import Estimate
from orchestrator.plan import Plan
from ups_model.progress import duration


def plan_text(plan: Plan, expected: Estimate, done: Container[str]) -> str:
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
            lines.append(f"  {line.row.label:<{width}}  arm {line.arm.name} ({line.arm.training}): {what}")
    finished = sum(key in done for key in plan.units)
    lines += [
        "",
        f"{plan.rows} rows -> {len(plan.arms)} arms -> {len(plan.units)} units with {plan.seeds} "
        f"seed{'s' * (plan.seeds > 1)}; {plan.unshared_units - len(plan.units)} trainings saved by sharing, "
        f"{finished} done already",
        "",
    ]
    header = f"{'unit':<48}{'parameters':>12}{'operations':>12}{'time':>10}  "
    lines.append(header)
    for key, unit in plan.units.items():
        parent = f"after {plan.units[unit.parent].slug}" if unit.parent else ""
        state = "done" if key in done else parent
        lines.append(
            f"{unit.name:<48}{expected.sizes[key].parameters / 1e6:>10.2f} M{expected.operations[key]:>12.2e}"
            f"{duration(expected.seconds[key]):>10}  {state}"
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
