"""A plan in words and columns, for `--plan`."""

from collections.abc import Container, Mapping

from orchestrator.planning.estimate import GUESSED_SECONDS, Estimate, borrowers, operations_of
from orchestrator.planning.plan import Plan, kind_name
from orchestrator.project import Data, Fitting, Gpus
from ups_model.training.progress import duration

GB = 1e9


def memory_notes(fits: list[Fitting], gpus: Gpus) -> list[str]:
    """What the memory columns mean, and whether units fit."""
    unit = f"{gpus.of_a_unit} a unit"
    lines = [
        f"memory: of a training step in 16 bits on GPUs of {gpus.memory_bytes / GB:.1f} GB, {unit}, of the task that "
        "takes the most: for all clips that a GPU has of a batch, clips computed at once, and the peak then.",
    ]
    if any(fit.activation_checkpointing for fit in fits):
        lines.append("*: layers are computed again in the backward pass (activation checkpointing).")
    too_large = [fit for fit in fits if fit.peak > gpus.room]
    if too_large:
        largest = max(fit.peak for fit in too_large)
        lines.append(
            f"not every unit fits: the largest needs {largest / GB:.1f} GB of the {gpus.room / GB:.1f} GB planned for; "
            "give --micro-batch auto, or take larger GPUs"
        )
    elif gpus.micro_batch == 0 and any(fit.whole > gpus.room for fit in fits):
        lines.append("whole batches don't fit; run with --micro-batch auto, which takes about so many clips at once")
    return lines


def plan_text(
    plan: Plan,
    sets: Mapping[str, Data],
    expected: Estimate,
    done: Container[str],
    gpus: Gpus | None = None,
    price_per_hour: float | None = None,
) -> str:
    """Rows -> arms -> units, what is shared and done, sizes, memory, times, costs.

    Args:
        gpus: what memory is shown for, if for any.
        price_per_hour: of a GPU; of a slot where there are none.
    """
    lines = [f"{plan.name}: {plan.study.question}"]
    for name, facts in plan.data.items():
        kind = "SYNTHETIC, " if facts.synthetic else ""
        size = f"{facts.clips:,} clips, " if facts.clips else ""
        lines.append(f"  data {name}: {kind}{size}{facts.fingerprint[:8]}")
    for table, rows in plan.tables:
        lines += ["", table.title]
        width = max(len(line.row.label) for line in rows)
        for line in rows:
            keys = [key for keys in line.units.values() for key in keys]
            units = plan.with_parents(keys)
            left = sum(key not in done for key in units)
            what = f"{len(units)} units, {left} to run"
            arms = " | ".join(dict.fromkeys(arm.name for arm in line.arms.values()))
            lines.append(f"  {line.row.label:<{width}}  arm {arms} ({next(iter(line.arms.values())).training}): {what}")
    finished = sum(key in done for key in plan.units)
    lines += [
        "",
        f"{plan.rows} rows -> {len(plan.arms)} arms -> {len(plan.units)} units with {plan.seeds} "
        f"seed{'s' * (plan.seeds > 1)}; {plan.unshared_units - len(plan.units)} trainings saved by sharing, "
        f"{finished} done already",
    ]
    if borrowing := borrowers(plan.units):
        lines.append(f"{len(borrowing)} of them train nothing: they measure the weights of another in their own way")
    lines.append("")
    kinds: dict[tuple[str, str, str], list[str]] = {}
    for key, unit in plan.units.items():
        kinds.setdefault((unit.arm, unit.stage, unit.task), []).append(key)
    width = max(len(kind_name(*named)) for named in kinds)
    memory = f"{'whole batch':>15}{'at once':>14}{'peak':>10}" if gpus else ""
    lines.append(
        f"{'unit':<{width}}{'seeds':>7}{'done':>6}{'parameters':>14}{'operations':>12}{memory}{'time each':>13}  after"
    )
    fits: list[Fitting] = []
    for named, keys in kinds.items():
        first = plan.units[keys[0]]
        name = kind_name(*named)
        seconds = sum(expected.seconds[key] for key in keys) / len(keys)
        parent = plan.units[first.parent].stage if first.parent else "-"
        memory = f"{'unknown':>15}{'':>14}{'':>10}" if gpus else ""
        if gpus and (fit := first.trainer.fitting(first.config, sets, gpus)) is not None:
            fits.append(fit)
            part = f"{fit.at_once} of {fit.clips}{'*' * fit.activation_checkpointing}"
            memory = f"{fit.whole / GB:>7.1f} GB {fit.task:<4}{part:>14}{fit.peak / GB:>7.1f} GB"
        sizes, operations = first.trainer.sizes(first.config, sets), operations_of(first, sets)
        size = f"{'unknown':>14}" if sizes is None else f"{sizes.parameters / 1e6:>12.2f} M"
        size += f"{'unknown':>12}" if operations is None else f"{operations:>12.2e}"
        lines.append(
            f"{name:<{width}}{len(keys):>7}{sum(key in done for key in keys):>6}{size}{memory}"
            f"{duration(seconds):>13}  {parent}"
        )
    rate = f"{expected.rate:.2g} operations a second"
    if expected.measured:
        source = f"measured on {expected.measured} units"
    elif expected.measured_elsewhere:
        source = f"at the rate of {expected.measured_elsewhere} measured units of other studies in this storage, {rate}"
    else:
        source = f"a guess: nothing has been measured here, {rate} are assumed"
        if any(unit.trainer.sizes(unit.config, sets) is None for unit in plan.units.values()):
            source += f", and {duration(GUESSED_SECONDS)} where operations are unknown"
    lines += [
        "",
        f"operations: multiplications and additions of training, forward and backward. Times: {source}.",
        *(memory_notes(fits, gpus) if gpus and fits else []),
        f"to run: {len(plan.units) - finished} units, {duration(expected.left)} of one slot, about "
        f"{duration(expected.makespan)} on {expected.slots} at once",
    ]
    if price_per_hour is not None:
        each = gpus.per_unit * gpus.share if gpus else 1
        cost = expected.left / 3600 * each * price_per_hour
        what = f"a GPU, {gpus.of_a_unit} a slot" if gpus else "a slot"
        lines.append(f"cost: about {cost:,.{0 if cost >= 10 else 2}f}, at {price_per_hour:g} an hour of {what}")
    return "\n".join(lines)
