"""Verdicts of a study's claims: tested over seeds, corrected for number, withheld where arms aren't comparable."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np

from orchestrator.planning.plan_file import PlanFile, PlannedColumn
from orchestrator.project import ITEM
from orchestrator.record import Record
from orchestrator.report.claim_tests import (
    ALPHA,
    MIN_SUBJECTS,
    crossed_interval,
    decide,
    decide_with_looks,
    holm,
    seeds_needed,
)
from orchestrator.report.model import CODE, UNKNOWN, Cell, ClaimResult, NewSubjects, TableOfCells, unhealthy
from orchestrator.report.statistics import is_possible, mean_and_sd, t_interval
from search_spaces.study import Claim
from ups_model.config import set_of

Outcomes = Mapping[str, np.ndarray]
"""Arrays of a unit's outcomes.npz (`ups_model.evaluation.outcomes`)."""
ERRORS = ("mpjpe_mm", "p_mpjpe_mm")
"""Measures of poses that outcomes have sums of."""
OutcomesOf = Callable[[str], Outcomes | None]
"""Outcomes of a unit by its key; None where there are none at hand."""


def judge(
    plan: PlanFile, tables: Sequence[TableOfCells], records: Mapping[str, Record], outcomes: OutcomesOf
) -> tuple[ClaimResult, ...]:
    """The plan's claims, in its order; `records` are of its units, by key."""
    results = [_test(plan, tables, records, outcomes, claim) for claim in plan.claims]
    for family in dict.fromkeys(result.claim.family for result in results):
        places = [index for index, result in enumerate(results) if result.claim.family == family]
        # A claim whose verdict is withheld still counts: leaving it out would depend on the data.
        ps = [1.0 if results[index].withheld else results[index].decision.p for index in places]
        for index, adjusted in zip(places, holm(ps), strict=True):
            result = replace(results[index], adjusted_p=adjusted)
            if result.verdict == "undecided":
                result = replace(result, seeds_needed=_seeds_needed(plan, result, len(places)))
            results[index] = result
    return tuple(results)


@dataclass(frozen=True)
class Looks:
    """At which runs the claims could be looked at, the present ones included."""

    seeds: tuple[tuple[int, ...], ...]
    factors: tuple[float, ...]
    """What p is multiplied by at each."""
    next_factor: float
    """At a look that is still to come."""
    planned: bool

    @property
    def max_errors(self) -> float:
        """Share of studies that has a false verdict at any of the looks, at most."""
        # The first look of a study that was extended later was taken for the only one.
        return ALPHA if self.planned else ALPHA * (1 + sum(1 / factor for factor in self.factors[1:]))


def looks_of(plan: PlanFile) -> Looks:
    """The looks at a plan's claims. The factors of looks that were not planned are of a series whose sum of 1 / factor
    stays below 1 however many there will be. A look at one seed gives no p, and so no error."""
    every = dict.fromkeys(tuple(sorted(look)) for look in (*plan.looks, plan.seed_numbers))
    seeds = tuple(look for look in every if len(look) > 1) or tuple(every)[-1:]
    if plan.planned_looks:
        number = float(len({*(tuple(range(one)) for one in plan.planned_looks), *seeds}))
        return Looks(seeds, (number,) * len(seeds), number, planned=True)
    is_first = len(seeds) == 1
    factors = (1.0,) if is_first else tuple(_unplanned(place) for place in range(1, len(seeds) + 1))
    return Looks(seeds, factors, _unplanned(len(seeds) + 1), planned=is_first)


def _unplanned(look: int) -> float:
    """Factor of a look that was not planned; the first is 1. The sum over all of 1 / factor is 1."""
    return float(max(4, look * (look - 1)))


def _test(
    plan: PlanFile, tables: Sequence[TableOfCells], records: Mapping[str, Record], outcomes: OutcomesOf, claim: Claim
) -> ClaimResult:
    table = next(table for table in tables if table.name == claim.table)
    index, column = next(pair for pair in enumerate(table.columns) if claim.names(pair[1].metric, pair[1].title))
    cells = {row.label: row.cells[index] for row in table.rows}
    arm, baseline = cells[claim.arm], cells[claim.baseline]
    sign = 1.0 if column.higher_is_better else -1.0
    # In the order in which they were added, which is that of the looks.
    seeds = [seed for seed in plan.seed_numbers if seed in arm.values and seed in baseline.values]
    effects = {seed: sign * (arm.values[seed] - baseline.values[seed]) for seed in seeds}
    keys = plan.claim_units(claim)
    looks = looks_of(plan)
    values = list(effects.values())
    low, high = t_interval(values) if len(values) > 1 else (None, None)
    at_looks = [[effects[seed] for seed in seeds] if effects.keys() >= set(seeds) else () for seeds in looks.seeds]
    decision = decide_with_looks(at_looks, claim.kind, claim.margin, looks.factors)
    published = None
    if arm.published is not None and baseline.published is not None:
        published = round(sign * (arm.published - baseline.published), 6)
    withheld = (*_incomparable(claim, column, arm, baseline), *_differing_runs(plan, records, keys))
    if decision.p < ALPHA and decide(values, claim.kind, claim.margin).direction != decision.direction:
        withheld += ("the effect of all seeds is on the other side than that of an earlier look",)
    classes = plan.data[set_of(column.sources[0])].classes if column.sources else ()
    subjects = _new_subjects(
        column, classes, [{seed: outcomes(key) for seed, key in one.items() if seed in effects} for one in keys]
    )
    return ClaimResult(
        claim, column, effects, low, high, subjects, published, decision, decision.p, withheld, seeds_needed=None
    )


def _incomparable(claim: Claim, column: PlannedColumn, arm: Cell, baseline: Cell) -> list[str]:
    """What is missing or unhealthy in the cells themselves, in words."""
    reasons = []
    for label, cell in ((claim.arm, arm), (claim.baseline, baseline)):
        for state in dict.fromkeys(state for state in cell.states.values() if state != "finished"):
            runs = list(cell.states.values()).count(state)
            reasons.append(f"{runs} of {len(cell.states)} runs of “{label}” {state}")
        for runs, what in zip(unhealthy(cell.health), ("collapsed", "did not converge"), strict=True):
            if runs:
                reasons.append(f"{runs} of {len(cell.health)} runs of “{label}” {what}")
        if not all(is_possible(value, column.unit) for value in cell.values.values()):
            reasons.append(f"a value of “{label}” is outside of what {column.title} can be")
    if arm.samples != baseline.samples:
        reasons.append(f"unequal budgets: {arm.samples:,} and {baseline.samples:,} training samples")
    return reasons


def _differing_runs(plan: PlanFile, records: Mapping[str, Record], keys: Sequence[Mapping[int, str]]) -> list[str]:
    """In what the two runs of a pair differ besides the setting: code, device, precision."""
    differing: list[str] = []
    unknown: list[str] = []
    for seed in sorted(keys[0].keys() & keys[1].keys()):
        ours, theirs = (_conditions(plan, records, one[seed]) for one in keys)
        if ours and theirs:
            if ours["project"] != theirs["project"]:  # Then the code is what the claim is about.
                ours, theirs = ({**one, "project": (), "training code": (), "commit": ()} for one in (ours, theirs))
            differing += [name for name in ours if ours[name] != theirs.get(name)]
            # Where there is no digest of the code, the commit says which it was.
            named = [name for name in ours if not (name.endswith("code") and "commit" in ours)]
            unknown += [name for name in named if UNKNOWN in (*ours[name], *theirs.get(name, ()))]
    reasons = (("paired runs differ in", differing), ("of paired runs is not known:", unknown))
    return [f"{what} {', '.join(dict.fromkeys(names))}" for what, names in reasons if names]


def _conditions(plan: PlanFile, records: Mapping[str, Record], key: str) -> dict[str, tuple[str, ...]]:
    """Under what a unit and its parents ran; the commit counts where a record has no digest of the code."""
    chain = [records[key] for key in takewhile(records.__contains__, reversed(plan.chain(key)))]
    if not chain:
        return {}
    training = [CODE["training code"](record) for record in chain]
    conditions = {
        "project": [chain[0].project],
        "training code": training,
        "evaluation code": [CODE["evaluation code"](chain[0])],
    }
    for name in ("device", "precision", "torch", *["commit"] * (UNKNOWN in training)):
        conditions[name] = [str(record.about.get(name, UNKNOWN)) for record in chain]
    # Builds for other hardware (2.13.0+cu126) are the same version.
    conditions["torch"] = [version.partition("+")[0] for version in conditions["torch"]]
    # Rows may differ in their stages; what counts is the set of values.
    return {name: tuple(sorted(set(values))) for name, values in conditions.items()}


def _seeds_needed(plan: PlanFile, result: ClaimResult, family: int) -> int | None:
    """At the strictest level that Holm's procedure may ask for."""
    mean, sd = mean_and_sd(list(result.effects.values()))
    if mean is None or sd is None:
        return None
    level = ALPHA / (family * looks_of(plan).next_factor)
    return seeds_needed(mean, sd, result.claim.kind, result.claim.margin, level)


def _new_subjects(
    column: PlannedColumn, classes: Sequence[str], by_seed: Sequence[Mapping[int, Outcomes | None]]
) -> NewSubjects | str:
    """The effect for new subjects and seeds, of the arm's outcomes and the baseline's by seed; or why there is none."""
    if len(by_seed[0]) < 2:
        return "fewer than 2 seeds"
    if any(one is None for runs in by_seed for one in runs.values()):
        return "results by clip are not at hand"
    every = [[subject_means(column, runs[seed], classes) for seed in sorted(runs)] for runs in by_seed]
    if any(one is None for runs in every for one in runs):
        of_action = column.metric.count("/") > 1  # "pe/mpjpe_mm/deep squat"
        return "no results by clip that name actions" if of_action else "this metric has no results by clip"
    means = [[one or {} for one in runs] for runs in every]
    subjects = sorted(set.intersection(*(set(one) for runs in means for one in runs)))
    if any(set(one) != set(subjects) for runs in means for one in runs) or -1 in subjects:
        return "the clips' subjects are unknown"
    if len(subjects) < MIN_SUBJECTS:
        return f"{len(subjects)} test subjects; at least {MIN_SUBJECTS} are needed"
    values = np.array([[[one[subject] for subject in subjects] for one in runs] for runs in means])
    if not np.isfinite(values).all():
        return "results by clip are not all numbers"
    sign = 1.0 if column.higher_is_better else -1.0
    mean, low, high = crossed_interval(sign * (values[0] - values[1]))
    if low == high:
        return "no spread over seeds and subjects"
    return NewSubjects(mean, low, high, len(subjects))


def subject_means(
    column: PlannedColumn, outcomes: Outcomes | None, classes: Sequence[str] = ()
) -> dict[int, float] | None:
    """A column's metric of each test subject, from the results by clip; None for a metric that has none.

    Accuracies in %, errors in mm. An error is averaged as the column's is: over the frames of each action (class), then
    over the actions, of those that the subject has; over all frames where clips have no classes.

    Args:
        classes: names of the clips' classes, of which an error may be ("pe/mpjpe_mm/deep squat").
    """
    if outcomes is None or not column.sources:
        return None
    measure = column.metric.partition("/")[2]
    measure, _, action = measure.partition("/") if measure.startswith(ERRORS) else (measure, "", "")
    place = f"{column.task}/{column.sources[0]}/"
    if f"{place}{ITEM}{measure}" in outcomes:
        value = outcomes[f"{place}{ITEM}{measure}"]
        weight = np.ones(len(value))
    elif measure in ERRORS:
        sums, counts = f"{place}{measure.replace('mpjpe', 'error_sum')}", f"{place}frames"
        if sums not in outcomes or counts not in outcomes:
            return None
        value, weight = outcomes[sums], outcomes[counts]
    else:
        top, _, ratio = measure.removeprefix("top").partition("@")
        rank = f"{place}rank{'@' + ratio if ratio else ''}"
        if not measure.startswith("top") or not top.isdigit() or rank not in outcomes:
            return None
        value = 100.0 * (outcomes[rank] < int(top))
        weight = np.ones(len(value))
    subject = outcomes[f"{place}subject"]
    if action:
        if action not in classes or f"{place}label" not in outcomes:
            return None
        of_action = outcomes[f"{place}label"] == classes.index(action)
        value, weight, subject = value[of_action], weight[of_action], subject[of_action]
    by_action = measure in ERRORS and classes and f"{place}label" in outcomes and not action
    label = outcomes[f"{place}label"] if by_action else np.zeros(len(value))

    def mean(one: int) -> float:
        parts = [(subject == one) & (label == each) for each in np.unique(label[subject == one])]
        return float(np.mean([value[part].sum() / weight[part].sum() for part in parts]))

    return {int(one): mean(one) for one in np.unique(subject)}
