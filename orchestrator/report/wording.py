"""How numbers and states read: the one place that decides digits, marks and sentences. Plain text, no markup.

Marks: + is never left out of a difference; minus is U+2212; † sampling error; ‡ unequal budget; * a decided claim.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from orchestrator.planning.plan_file import PlannedColumn
from orchestrator.report.claim_tests import ALPHA, MAX_SEEDS, without_spread
from orchestrator.report.model import Cell, ClaimResult, State, TableOfCells, failed, unhealthy
from orchestrator.report.statistics import Paired
from ups_model.wording import count

DIGITS_OF_UNITS = {"%": 2, "mm": 1}
DIGITS: Mapping[str, int] = defaultdict(lambda: 3, DIGITS_OF_UNITS)
"""Decimals of our values, their spreads and differences, by unit."""
MAX_MORE_DIGITS = 6
"""Decimals that are added at most where rounding would hide on which side of a bound a value lies."""
NONE = "—"
MINUS = "\N{MINUS SIGN}"
DAGGER, DOUBLE_DAGGER = "†", "‡"

STATES: tuple[State, ...] = ("failed", "parent failed", "not run", "not measured", "not finite")
"""In the order in which a cell names them."""


def number(value: float, digits: int, signed: bool = False) -> str:
    """Fixed decimals with a real minus sign; what rounds to 0 has no sign."""
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def digits_beside(values: Iterable[float], bounds: Iterable[float], digits: int) -> int:
    """Decimals, `digits` or more, with which each value stays on its side of each bound: an interval that excludes 0
    must not read as one that ends there."""
    pairs = [(value, bound) for value in values for bound in bounds]
    for more in range(digits, digits + MAX_MORE_DIGITS):
        if all(_side(value, bound) == _side(round(value, more), bound) for value, bound in pairs):
            return more
    return digits + MAX_MORE_DIGITS


def _side(value: float, bound: float) -> int:
    """Of a bound on which a value lies: 1 above, -1 below, 0 at it."""
    return 0 if math.isclose(value, bound, rel_tol=1e-9, abs_tol=1e-9) else 1 if value > bound else -1


def digits_of(unit: str, *values: float | None) -> int:
    """Decimals of values in a unit: of a measure of a user's own as many as its smallest value needs."""
    digits = DIGITS[unit]
    if unit in DIGITS_OF_UNITS:
        return digits
    smallest = min((abs(value) for value in values if value), default=1.0)
    return digits if smallest >= 10**-digits else min(1 - math.floor(math.log10(smallest)), digits + MAX_MORE_DIGITS)


def listed(items: Iterable[str]) -> str:
    return ", ".join(items)


def value_texts(cell: Cell) -> tuple[str, ...]:
    """Our value: mean, spread and number of seeds; then what became of the seeds that are missing."""
    digits = digits_of(cell.column.unit, cell.mean, cell.sd)
    missing = missing_text(cell)
    mark = DOUBLE_DAGGER if cell.unequal_budget else ""
    if cell.mean is None:
        return (missing + mark,)
    seeds = f"n={cell.n} of {len(cell.states)}" if missing else f"n={cell.n}"
    if cell.sd is None:
        error = "unknown" if cell.sampling_error is None else number(cell.sampling_error, digits)
        text = f"{number(cell.mean, digits)}{mark} {DAGGER}± {error} ({seeds})"
    else:
        text = f"{number(cell.mean, digits)}{mark} ± {number(cell.sd, digits)} ({seeds})"
    return tuple(filter(None, (text, missing, health_text(cell))))


def health_text(cell: Cell) -> str:
    """How many runs collapsed or did not converge; empty where none did or none was judged."""
    parts = zip(unhealthy(cell.health), ("collapsed", "not converged"), strict=True)
    return listed(f"{what} {runs} of {len(cell.health)}" for runs, what in parts if runs)


def missing_text(cell: Cell) -> str:
    """Which seeds have no value and why: "1 failed, 1 not run"; of one state alone and no value at all, the state."""
    states = list(cell.states.values())
    present = [state for state in STATES if state in states]
    if len(present) == 1 and not cell.n:
        return present[0]
    return listed(f"{states.count(state)} {state}" for state in present)


def difference_text(cell: Cell) -> str:
    """Our paired difference to the baseline row; empty in that row."""
    pairs = cell.difference
    if pairs is None:
        return ""
    if pairs.mean is None:
        return f"Δ {NONE}" + (" (no common seed)" if cell.n else "")
    digits = digits_of(cell.column.unit, pairs.mean, pairs.sd)
    text = f"Δ {number(pairs.mean, digits, signed=True)}"
    if pairs.sd is not None:
        text += f" ± {number(pairs.sd, digits)}"
    if cell.decided:
        text += "*"
    return text if pairs.n == cell.n and pairs.n > 1 else f"{text} ({count(pairs.n, 'pair')})"


def published_digits(table: TableOfCells, index: int) -> int:
    """Decimals that the paper prints in a column; JSON has lost the zeros at the end, so the longest decides."""
    printed = [row.cells[index].published for row in table.rows] + [line.published[index] for line in table.references]
    decimals = [len(f"{value:.6f}".rstrip("0").split(".")[1]) for value in printed if value is not None]
    return max(decimals, default=1) or 1


def published_texts(table: TableOfCells, index: int, cell: Cell) -> tuple[str, ...]:
    """The paper's value, and its difference to the paper's baseline row if both are printed."""
    if cell.published is None:
        return (NONE,)
    digits = published_digits(table, index)
    value = number(cell.published, digits)
    if cell.published_difference is None:
        return (value,)
    return (value, f"Δ {number(cell.published_difference, digits, signed=True)}")


def parameters_text(parameters: Sequence[int]) -> str:
    """Millions of parameters; the range where runs of one row differ."""
    if not parameters:
        return "unknown"
    return " to ".join(f"{value / 1e6:.2f} M" for value in dict.fromkeys((parameters[0], parameters[-1])))


def three_digits(value: float) -> str:
    """With as many decimals as three digits need: 0.580, 57.6, 1,234."""
    places = 2 - math.floor(math.log10(abs(value))) if value else 2
    return f"{value:,.{max(0, places)}f}"


def cost_lines(table: TableOfCells, price_per_hour: float | None) -> tuple[tuple[str, ...], ...]:
    """A table's rows with what they cost, headings first; columns that no row has a value of are left out."""
    columns = {
        "Active parameters": [
            parameters_text(row.cost.active_parameters) if row.cost.active_parameters else NONE for row in table.rows
        ]
    }
    for task in table.titles:
        groups = dict.fromkeys(column.group for column in table.columns if column.task == task)
        by_row = [[row.cost.flops[group] for group in groups if group in row.cost.flops] for row in table.rows]
        texts = [listed(dict.fromkeys(three_digits(value / 1e6) for value in flops)) or NONE for flops in by_row]
        columns[f"{table.titles[task]}, MFLOPs a prediction"] = texts

    def numbers(name: str, text: Callable[[float], str]) -> list[str]:
        values = [getattr(row.cost, name) for row in table.rows]
        return [NONE if value is None else text(value) for value in values]

    columns["Training, TFLOPs a seed"] = numbers("operations", lambda one: three_digits(one / 1e12))
    columns["Training, minutes a seed"] = numbers("seconds", lambda one: f"{one / 60:,.1f}")
    columns["Energy of the GPUs, Wh a seed"] = numbers("joules", lambda one: f"{one / 3600:,.1f}")
    if price_per_hour is not None:
        of_price = 3600 / price_per_hour
        title = f"Price a seed, at {price_per_hour:g} an hour"
        columns[title] = numbers("slot_seconds", lambda one: f"{one / of_price:,.2f}")
    kept = {title: texts for title, texts in columns.items() if set(texts) != {NONE}}
    if not kept:
        return ()
    lines = zip([row.label for row in table.rows], *kept.values(), strict=True)
    return ((table.varies, *kept), *lines)


def column_text(column: PlannedColumn) -> str:
    """Unit and direction."""
    return f"{column.unit} {'↑' if column.higher_is_better else '↓'}"


def sign_agrees(cell: Cell) -> bool | None:
    """Whether our difference and the paper's have one sign; None where either is 0 or missing, or ours is withheld."""
    if cell.withheld or cell.difference is None or not cell.difference.mean or not cell.published_difference:
        return None
    return (cell.difference.mean > 0) == (cell.published_difference > 0)


def finding(table: TableOfCells, index: int, label: str, cell: Cell) -> str:
    """What one cell shows beside the baseline row's, in words."""
    pairs = cell.difference
    assert pairs is not None, "the baseline row differs from nothing"
    digits = digits_of(cell.column.unit, pairs.mean, pairs.low, pairs.high)
    text = f"“{label}”: {_verdict(pairs, digits, cell.column.higher_is_better)}"
    if cell.withheld and pairs.mean is not None:
        rows = (
            (cell.states, cell.health, "this row"),
            (cell.baseline_states, cell.baseline_health, "the baseline row"),
        )
        reasons = listed(
            f"{count(runs, 'run')} of {whose} {what}"
            for states, health, whose in rows
            for runs, what in zip(
                (failed(states), *unhealthy(health)), ("failed", "collapsed", "did not converge"), strict=True
            )
            if runs
        )
        reasons = listed(filter(None, (reasons, "a value that none can have" if cell.impossible else "")))
        text = f"“{label}”: {number(pairs.mean, digits, signed=True)}, no statement: {reasons}"
    if cell.published_difference is not None:
        paper = number(cell.published_difference, published_digits(table, index), signed=True)
        agrees = sign_agrees(cell)
        sign = "" if agrees is None else ", same sign" if agrees else ", opposite sign"
        text += f" (paper {paper}{sign})"
    return f"{text} {DOUBLE_DAGGER}" if cell.unequal_budget else text


def correlation_text(correlation: float | None) -> str:
    """How the seeds of two rows go together, as far as their number lets one say."""
    return "" if correlation is None else f"seed correlation {number(correlation, 2, signed=True)}"


def _verdict(pairs: Paired, digits: int, higher_is_better: bool) -> str:
    if pairs.mean is None:
        return "no seed has both rows, no statement"
    if pairs.low is None or pairs.high is None:
        return f"{number(pairs.mean, digits, signed=True)}, one pair: no statement"
    if pairs.verdict == "no spread":
        mean = number(pairs.mean, digits, signed=True)
        return f"{mean} in each of {pairs.n} pairs, no spread to judge it by"
    digits = digits_beside((pairs.low, pairs.high), (0,), digits)
    mean, low, high = (number(value, digits, signed=True) for value in (pairs.mean, pairs.low, pairs.high))
    interval = f"{mean} [{low}, {high}], n={pairs.n}"
    if pairs.verdict == "not distinguishable":
        return f"{interval}, not distinguishable from 0"
    return f"{interval}, {'better' if (pairs.mean > 0) == higher_is_better else 'worse'}"


def claim_texts(result: ClaimResult) -> tuple[str, ...]:
    """A line of the table of claims: statement, effect, interval, new subjects, the paper's effect, verdict."""
    claim, new = result.claim, result.new_subjects
    ends = (result.low, result.high, *(() if isinstance(new, str) else (new.low, new.high)))
    bounds = (0, claim.margin, -claim.margin)
    digits = digits_of(result.column.unit, result.mean, *ends)
    digits = digits_beside((end for end in ends if end is not None), bounds, digits)
    unit = "points" if result.column.unit == "%" else result.column.unit

    def signed(value: float) -> str:
        return number(value, digits, signed=True)

    margin = f"{claim.margin:g} {'point' if unit == 'points' and claim.margin == 1 else unit}"
    by = f" by more than {margin}" if claim.margin else ""
    within = f"equal within {margin}"
    kind = {"superior": f"better{by}", "not better": f"not better{by}", "equivalent": within}
    statement = f"{claim.text} ({kind[claim.kind]}{f'; margin: {claim.reason}' if claim.reason else ''})"
    compared = f"“{claim.arm}” against “{claim.baseline}”, {result.column.title}"
    if result.mean is None:
        effect = NONE
    elif result.low is None or result.high is None:
        effect = f"{signed(result.mean)} {unit} (n={len(result.effects)})"
    elif without_spread(list(result.effects.values())):
        effect = f"{signed(result.mean)} {unit} in each of {len(result.effects)} seeds"
    else:
        effect = f"{signed(result.mean)} {unit} [{signed(result.low)}, {signed(result.high)}] (n={len(result.effects)})"
    if isinstance(new, str):
        subjects = new
    else:
        subjects = f"{signed(new.mean)} {unit} [{signed(new.low)}, {signed(new.high)}] ({new.subjects} subjects)"
    paper = NONE if result.published is None else f"{signed(result.published)} {unit}"
    return statement, compared, effect, subjects, paper, verdict_text(result)


def verdict_text(result: ClaimResult) -> str:
    """The verdict, and what it rests on or why there is none."""
    if result.withheld:
        return f"withheld: {'; '.join(result.withheld)}"
    p = f"p = {result.adjusted_p:.{digits_beside((result.adjusted_p,), (ALPHA,), 3)}f}"
    p = "p < 0.001" if result.adjusted_p < 0.001 else p
    if result.verdict != "undecided":
        return f"{result.verdict} ({p})"
    if len(result.effects) < 2:
        return "undecided: one seed"
    if without_spread(list(result.effects.values())):
        return "undecided: the same effect in every seed, no spread to judge it by"
    needed = f"about {result.seeds_needed} seeds" if result.seeds_needed else f"more than {MAX_SEEDS} seeds"
    return f"undecided ({p}; {needed} would decide it)"
