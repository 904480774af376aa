"""The section on equal tuning: what each arm's search has chosen, and what it changes between rows. Plain text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby

from orchestrator.planning.tuning import PlannedTuning, TunedArm
from orchestrator.report.model import Cell, Report, RowOfCells, TableOfCells, trained_out
from orchestrator.report.statistics import CONFIDENCE, Paired, mean_and_sd, paired
from orchestrator.report.wording import DIGITS, MINUS, NONE, digits_beside, listed, number
from search_spaces.study import tuned_label
from ups_model.training.progress import duration
from ups_model.wording import count


@dataclass(frozen=True)
class Ranking:
    """Rows of one column from the best mean to the worst, as the study has them and tuned; equal means together."""

    column: str
    """Its title."""
    untuned: tuple[tuple[str, ...], ...]
    tuned: tuple[tuple[str, ...], ...]
    """By the labels of the rows as the study has them. Both are empty where a row has no value."""
    swapped: tuple[tuple[str, str, Paired, Paired], ...]
    """Two rows that stand otherwise to each other, and their paired difference as the study has them and tuned."""
    trained_out: bool = True
    """Whether no run of the column collapsed or did not converge."""

    @property
    def changed(self) -> bool:
        return self.untuned != self.tuned


@dataclass(frozen=True)
class Differences:
    """A table's rows beside its baseline row, as the study has them and tuned."""

    title: str
    varies: str
    baseline: str
    headings: tuple[str, ...]
    lines: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]
    """Label, and of each column two lines of text."""
    rankings: tuple[str, ...]
    """A sentence or more of each column."""


@dataclass(frozen=True)
class TuningView:
    """The section as it reads."""

    budget: tuple[str, ...]
    arms: tuple[tuple[str, ...], ...]
    """Lines of a table, headings first."""
    tables: tuple[Differences, ...]
    summary: str


def tuning_view(report: Report) -> TuningView | None:
    """None for a study without tuning."""
    tuning = report.plan.tuning
    if tuning is None:
        return None
    headings = ("Rows", "Judged by", "As the study has it", "Best trial", "Chosen", "Trials", "Training time")
    by_table = [(table, rankings(table)) for table in report.tables]
    return TuningView(
        budget=tuple(_budget(tuning)),
        arms=(headings, *(_arm(report, arm) for arm in tuning.arms)),
        tables=tuple(_differences(table, ranked) for table, ranked in by_table),
        summary=_summary([ranking for _, ranked in by_table for ranking in ranked], report.plan.seeds),
    )


def _budget(tuning: PlannedTuning) -> Iterable[str]:
    dimensions = "; ".join(f"{name}: {where}" for name, where in tuning.dimensions.items())
    same = ", the same points for every arm" if tuning.sampler == "qmc" else ""
    last = tuning.first_seed + tuning.seeds - 1
    seeds = f"seed {last}" if tuning.seeds == 1 else f"seeds {tuning.first_seed} to {last}"
    yield (
        f"Each arm had the same search: {count(tuning.trials, 'trial')}, {count(tuning.seeds, 'run')} each ({seeds}), "
        f"over {dimensions} (sampler {tuning.sampler}{same}), judged on {tuning.judged_on}. No trial measured the "
        "test split."
    )
    runs = tuning.seeds * sum(arm.complete + arm.failed for arm in tuning.arms)
    seconds = sum(arm.seconds for arm in tuning.arms)
    yield f"Spent on the searches: {count(runs, 'run')}, {duration(seconds)} (h:mm:ss) of training."
    if failed := sum(arm.failed for arm in tuning.arms):
        yield f"{count(failed, 'trial')} failed and gave no value, though the budget was spent."
    yield (
        "The best trial was chosen by its own value, which is therefore too good: part of its lead is luck. The tables "
        "are trained with other seeds."
    )


def _arm(report: Report, arm: TunedArm) -> tuple[str, ...]:
    titles = {table.name: table.title for table in report.plan.tables}
    labels: dict[str, dict[str, None]] = {}
    for table, label, _ in arm.rows:
        labels.setdefault(titles[table], {})[label] = None
    rows = "; ".join(
        (f"{title}: " if len(titles) > 1 else "") + listed(f"“{label}”" for label in names)
        for title, names in labels.items()
    )
    task = f", {report.plan.titles[arm.task]} alone" if arm.task else ""
    chosen = listed(f"{name}={value}" for name, value in arm.chosen.items())
    failed = f", {arm.failed} failed" if arm.failed else ""
    return (
        f"{rows} ({arm.training}{task})",
        arm.objective,
        _value(arm, arm.start_values) if arm.start is not None else "outside of the dimensions",
        _value(arm, arm.best_values),
        f"{chosen} (as the study has it)" if arm.is_start else chosen,
        f"{arm.complete}{failed}",
        duration(arm.seconds),
    )


def _value(arm: TunedArm, values: Sequence[float]) -> str:
    mean, sd = mean_and_sd(values)
    if mean is None:
        return NONE
    digits = DIGITS[arm.unit]
    spread = f" ± {number(sd, digits)}" if sd is not None else ""
    return f"{number(mean, digits)}{f' {arm.unit}' if arm.unit else ''}{spread} (n={len(values)})"


def pairs_of(table: TableOfCells) -> list[tuple[RowOfCells, RowOfCells]]:
    """Each row as the study has it, with its tuned one."""
    rows = {row.label: row for row in table.rows}
    return [(row, rows[tuned_label(label)]) for label, row in rows.items() if tuned_label(label) in rows]


def rankings(table: TableOfCells) -> list[Ranking]:
    """Of each column."""
    pairs = pairs_of(table)
    ranked = []
    for index, column in enumerate(table.columns):
        untuned = {row.label: row.cells[index] for row, _ in pairs}
        tuned = {row.label: other.cells[index] for row, other in pairs}
        if any(cell.mean is None for cell in (*untuned.values(), *tuned.values())):
            ranked.append(Ranking(column.title, (), (), ()))
            continue
        trained_out = all(map(_is_healthy, (*untuned.values(), *tuned.values())))
        swapped = []
        for one, two in combinations(untuned, 2):
            before, after = (paired(cells[one].values, cells[two].values) for cells in (untuned, tuned))
            if _sign(untuned[one], untuned[two]) != _sign(tuned[one], tuned[two]):
                swapped.append((one, two, before, after))
        ranked.append(Ranking(column.title, _order(untuned), _order(tuned), tuple(swapped), trained_out))
    return ranked


def _order(cells: dict[str, Cell]) -> tuple[tuple[str, ...], ...]:
    labels = sorted(cells, key=lambda label: _goodness(cells[label]), reverse=True)
    return tuple(tuple(group) for _, group in groupby(labels, key=lambda label: _goodness(cells[label])))


def _goodness(cell: Cell) -> float:
    assert cell.mean is not None, "a row without a value has no rank"
    return cell.mean if cell.column.higher_is_better else -cell.mean


def _sign(one: Cell, two: Cell) -> int:
    return (_goodness(one) > _goodness(two)) - (_goodness(one) < _goodness(two))


def _differences(table: TableOfCells, ranked: Sequence[Ranking]) -> Differences:
    pairs = pairs_of(table)
    baseline = next(pair for pair in pairs if pair[0].baseline)
    lines = []
    for pair in pairs:
        if not pair[0].baseline:
            cells = tuple(
                tuple(
                    f"{what} {_difference(row.cells[index], base.cells[index])}"
                    for what, row, base in zip(("untuned", "tuned"), pair, baseline, strict=True)
                )
                for index in range(len(table.columns))
            )
            lines.append((pair[0].label, cells))
    texts = tuple(_ranking_text(ranking, column.unit) for ranking, column in zip(ranked, table.columns, strict=True))
    headings = tuple(f"{column.title} ({column.unit})" if column.unit else column.title for column in table.columns)
    return Differences(table.title, table.varies, baseline[0].label, headings, tuple(lines), texts)


def _is_healthy(cell: Cell) -> bool:
    return trained_out(cell.states, cell.health)


def _difference(cell: Cell, base: Cell) -> str:
    pairs, unit = paired(cell.values, base.values), cell.column.unit
    if pairs.mean is None or (_is_healthy(cell) and _is_healthy(base)):
        return _interval(pairs, unit)
    return f"Δ {number(pairs.mean, DIGITS[unit], signed=True)}, no statement"


def _interval(pairs: Paired, unit: str) -> str:
    if pairs.mean is None:
        return f"Δ {NONE}"
    digits = DIGITS[unit]
    if pairs.low is None or pairs.high is None:
        return f"Δ {number(pairs.mean, digits, signed=True)} (1 pair)"
    digits = digits_beside((pairs.low, pairs.high), (0.0,), digits)
    low, high = number(pairs.low, digits, signed=True), number(pairs.high, digits, signed=True)
    return f"Δ {number(pairs.mean, digits, signed=True)} [{low}, {high}]"


def _ranking_text(ranking: Ranking, unit: str) -> str:
    if not ranking.untuned:
        return f"{ranking.column}: not known, for a row has no value."
    untuned, tuned = (" > ".join(" = ".join(group) for group in order) for order in (ranking.untuned, ranking.tuned))
    short = "" if ranking.trained_out else " No statement: not all runs trained out."
    if not ranking.changed:
        return f"{ranking.column}: {untuned}, untuned and tuned.{short}"
    swaps = "; ".join(
        f"“{one}” {MINUS} “{two}”: untuned {_interval(before, unit)}, tuned {_interval(after, unit)}"
        for one, two, before, after in ranking.swapped
    )
    return f"{ranking.column}: {untuned} untuned, {tuned} tuned. Ranked otherwise: {swaps}.{short}"


def _summary(every: Sequence[Ranking], seeds: int) -> str:
    ranked = [ranking for ranking in every if ranking.untuned]
    changed = sum(ranking.changed for ranking in ranked)
    text = f"The ranking of rows changes in {changed} of {count(len(ranked), 'column')} with values"
    if short := sum(not ranking.trained_out for ranking in ranked):
        text += f", and {short} of them rest{'s' * (short == 1)} on runs that did not all train out"
    return (
        f"{text}. Rankings are of means over {count(seeds, 'seed')} and carry no test: where a "
        f"{100 * CONFIDENCE:.0f} % interval (t, over seeds, on this test set, not corrected for the number of "
        "comparisons) includes 0, either order may come of seeds alone. A ranking that changes is no verdict, and one "
        "that stays does not show that one recipe suits all rows."
    )
