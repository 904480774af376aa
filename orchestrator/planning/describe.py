"""A plan in words and columns, for `--plan`."""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Literal

from orchestrator.planning.estimate import Estimate
from orchestrator.planning.plan import Plan
from orchestrator.planning.sizes import operations_of, peaks_of, sizes_of
from ups_model.config import Config
from ups_model.data.format.clip_set import ClipSet
from ups_model.training.progress import duration
from ups_model.wording import count

GB = 1e9


@dataclass(frozen=True)
class Gpus:
    """The GPUs that a plan is for."""

    memory_bytes: float
    """Of each."""
    per_unit: int
    """Processes of a unit, each on a GPU."""
    micro_batch: int | Literal["auto"]
    """As `RunOptions.micro_batch`; 0 shows what "auto" would take."""
    activation_checkpointing: Literal["auto", "on", "off"]
    share: float = 1.0
    """Of a GPU for each process."""

    @property
    def room(self) -> float:
        """Bytes that a step may take."""
        from ups_model.training.fit import MARGIN

        return self.memory_bytes * self.share * (1 - MARGIN)

    @property
    def of_a_unit(self) -> str:
        """GPUs that a unit has, in words."""
        return count(self.per_unit, "GPU") if self.share == 1 else f"{self.share:g} of a GPU"


@dataclass(frozen=True)
class Fitting:
    """A training step of the task that takes the most memory."""

    task: str
    whole: float
    """Bytes for all clips that a GPU has of a batch."""
    clips: int
    at_once: int
    peak: float
    """Bytes of a part of so many clips."""
    activation_checkpointing: bool

    def cells(self) -> str:
        """Of the table of units."""
        twice = "*" if self.activation_checkpointing else ""
        part = f"{self.at_once} of {self.clips}{twice}"
        return f"{self.whole / GB:>7.1f} GB {self.task:<4}{part:>14}{self.peak / GB:>7.1f} GB"


def fitting(config: Config, sets: Mapping[str, ClipSet], gpus: Gpus) -> Fitting:
    """How a unit fits a GPU, as `training.fit` would choose it."""
    from ups_model.training.fit import MIN_USEFUL_PART

    shares = {task: -(-getattr(config.data, task).batch_size // gpus.per_unit) for task in config.optim.tasks}

    def of(twice: bool) -> list[Fitting]:
        peaks = peaks_of(config, sets, half=True, activation_checkpointing=twice)
        fits = []
        for task, clips in shares.items():
            auto = peaks[task].largest(gpus.room, clips)
            at_once = auto if gpus.micro_batch in (0, "auto") else min(int(gpus.micro_batch), clips)
            fits.append(Fitting(task, peaks[task].of(clips), clips, at_once, peaks[task].of(at_once), twice))
        return fits

    fits = of(gpus.activation_checkpointing == "on")
    may_choose = gpus.activation_checkpointing == "auto" and gpus.micro_batch in (0, "auto")
    if may_choose and any(fit.at_once < min(MIN_USEFUL_PART, fit.clips) for fit in fits):
        fits = of(True)
    return max(fits, key=lambda fit: fit.whole)


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
    sets: Mapping[str, ClipSet],
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
    memory = f"{'whole batch':>15}{'at once':>14}{'peak':>10}" if gpus else ""
    lines.append(
        f"{'unit':<{width}}{'seeds':>7}{'done':>6}{'parameters':>14}{'operations':>12}{memory}{'time each':>13}  after"
    )
    fits = []
    for (arm, stage, task), keys in kinds.items():
        first = plan.units[keys[0]]
        name = f"{arm} · {stage} {task}".rstrip()
        seconds = sum(expected.seconds[key] for key in keys) / len(keys)
        parent = plan.units[first.parent].stage if first.parent else "-"
        memory = ""
        if gpus:
            fits.append(fitting(first.config, sets, gpus))
            memory = fits[-1].cells()
        lines.append(
            f"{name:<{width}}{len(keys):>7}{sum(key in done for key in keys):>6}"
            f"{sizes_of(first.config, sets).parameters / 1e6:>12.2f} M{operations_of(first, sets):>12.2e}{memory}"
            f"{duration(seconds):>13}  {parent}"
        )
    source = (
        f"measured on {expected.measured} units"
        if expected.measured
        else f"a guess: nothing has been measured here, {expected.rate:.2g} operations a second are assumed"
    )
    lines += [
        "",
        f"operations: multiplications and additions of training, forward and backward. Times: {source}.",
        *(memory_notes(fits, gpus) if gpus else []),
        f"to run: {len(plan.units) - finished} units, {duration(expected.left)} of one slot, about "
        f"{duration(expected.makespan)} on {expected.slots} at once",
    ]
    if price_per_hour is not None:
        each = gpus.per_unit * gpus.share if gpus else 1
        cost = expected.left / 3600 * each * price_per_hour
        what = f"a GPU, {gpus.of_a_unit} a slot" if gpus else "a slot"
        lines.append(f"cost: about {cost:,.{0 if cost >= 10 else 2}f}, at {price_per_hour:g} an hour of {what}")
    return "\n".join(lines)
