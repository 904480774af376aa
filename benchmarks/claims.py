"""Error rates, power and coverage of the report's claims, with the report's own functions on invented effects.

    python benchmarks/claims.py [--studies 4000] [--out benchmarks/results/claims/claims.txt]

Effects are drawn from four generators: normal; discretised to whole test clips (0.5 points); bimodal (a fifth of the
seeds trains 2 points worse); heteroscedastic (the spread itself varies fourfold between studies). Printed, for each and
for numbers of seeds: how often a family of six claims without any effect has a false verdict, how often two settings
that differ by exactly the margin are called equivalent, and how often the interval covers the true effect. For
planned looks after 5, 8, 12 and 20 seeds: the family-wise error, and how often a decided claim was undecided later. For
fixed seeds that were extended after looking: the family-wise error of the last report, and of all reports together,
the first of which took its look for the only one, beside the bound that the report states. For new subjects: how often
the crossed interval covers, for 5 to 20 subjects, beside the interval over seeds alone.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from orchestrator.cli.arguments import AUTO_LOOKS
from orchestrator.planning.plan import DataFacts, make_plan
from orchestrator.planning.plan_file import PlanFile
from orchestrator.planning.resolve import resolve
from orchestrator.report.claim_tests import ALPHA, crossed_interval, decide, decide_with_looks, holm
from orchestrator.report.claims import Looks, looks_of
from orchestrator.report.statistics import t_interval
from search_spaces import find_study

SD, MARGIN, FAMILY = 0.5 * np.sqrt(2), 1.0, 6
Generator = Callable[[np.random.Generator, int], np.ndarray]


def normal(random: np.random.Generator, n: int) -> np.ndarray:
    return random.normal(0, SD, n)


def discretised(random: np.random.Generator, n: int) -> np.ndarray:
    """Differences of two accuracies on 200 clips."""
    return np.round(random.normal(0, 0.5, (2, n)) * 2).T @ np.array([0.5, -0.5])


def bimodal(random: np.random.Generator, n: int) -> np.ndarray:
    """Both arms have a fifth of seeds that train 2 points worse."""
    arms = random.normal(0, 0.5, (2, n)) - 2 * (random.random((2, n)) < 0.2)
    return arms[0] - arms[1]


def heteroscedastic(random: np.random.Generator, n: int) -> np.ndarray:
    """Arms whose spreads differ, by another factor in each study."""
    return random.normal(0, 0.5 * 2 ** random.uniform(-1, 1), n) - random.normal(0, 0.5 * 2 ** random.uniform(-1, 1), n)


UNPLANNED = ((3, 5, 8), (5, 10), tuple(range(5, 13)))
"""Numbers of seeds of studies that were extended after looking."""

GENERATORS: tuple[Generator, ...] = (normal, discretised, bimodal, heteroscedastic)


def family_error(random: np.random.Generator, draw: Generator, n: int, studies: int) -> float:
    """Share of studies with a verdict on any of FAMILY claims of "superior" whose true effect is 0."""
    return (
        sum(
            min(holm([decide(draw(random, n), "superior", 0).p for _ in range(FAMILY)])) < ALPHA for _ in range(studies)
        )
        / studies
    )


def false_equivalence(random: np.random.Generator, draw: Generator, n: int, studies: int) -> float:
    """Share of claims of equivalence that are supported at an effect of exactly the margin."""
    decisions = (decide(draw(random, n) + MARGIN, "equivalent", MARGIN) for _ in range(studies))
    return sum(one.p < ALPHA and one.direction == "supported" for one in decisions) / studies


def coverage(random: np.random.Generator, draw: Generator, n: int, studies: int) -> float:
    """Share of 95 % t intervals that hold the true effect, 0."""
    intervals = (t_interval(list(draw(random, n))) for _ in range(studies))
    return sum(low <= 0 <= high for low, high in intervals) / studies


def looks_of_extended(seeds: Sequence[int]) -> list[Looks]:
    """What each report of a study takes into account that had so many seeds at first, then so many, and so on."""
    resolved = resolve(find_study("smoke"), "tiny", {})
    names = ("synthetic_h36m17", "synthetic_openpose18", "synthetic_ntu25")
    data = {name: DataFacts("0" * 64, True, "invented", 10) for name in names}
    looks: list[Looks] = []
    for place, number in enumerate(seeds):
        plan = PlanFile.of(make_plan(resolved, number, data, "text"), "benchmarks/claims.py", {})
        looks.append(looks_of(replace(plan, looks=tuple(tuple(range(before)) for before in seeds[:place]))))
    return looks


def extended(
    random: np.random.Generator, draw: Generator, reports: Sequence[Looks], studies: int
) -> tuple[float, float]:
    """Share of null studies with a verdict in the last report, and in any report, of a study that was extended."""
    last = at_any = 0
    for _ in range(studies):
        effects = [draw(random, len(reports[-1].seeds[-1])) for _ in range(FAMILY)]
        verdicts = []
        for looks in reports:
            ps = [
                decide_with_looks([one[list(seeds)] for seeds in looks.seeds], "superior", 0, looks.factors).p
                for one in effects
            ]
            verdicts.append(min(holm(ps)) < ALPHA)
        last += verdicts[-1]
        at_any += any(verdicts)
    return last / studies, at_any / studies


def sequential(random: np.random.Generator, draw: Generator, studies: int) -> tuple[float, int]:
    """Share of null studies with a verdict at any look, and decided claims that were undecided at a later look."""
    errors = reversals = 0
    for _ in range(studies):
        effects = [draw(random, AUTO_LOOKS[-1]) for _ in range(FAMILY)]
        decided: set[int] = set()
        for place in range(1, len(AUTO_LOOKS) + 1):
            looks = AUTO_LOOKS[:place]
            factors = [len(AUTO_LOOKS)] * place
            ps = [decide_with_looks([one[:n] for n in looks], "superior", 0, factors).p for one in effects]
            now = {index for index, p in enumerate(holm(ps)) if p < ALPHA}
            reversals += len(decided - now)
            decided |= now
        errors += bool(decided)
    return errors / studies, reversals


def subject_coverage(random: np.random.Generator, n: int, subjects: int, studies: int) -> tuple[float, float]:
    """Coverage of the effect on new subjects: of the crossed interval, and of the t interval over seeds alone."""
    crossed = alone = 0
    for _ in range(studies):
        effect_SJ = (
            random.normal(0, 0.5, (n, 1)) + random.normal(0, 1, (1, subjects)) + random.normal(0, 1, (n, subjects))
        )
        _, low, high = crossed_interval(effect_SJ)
        crossed += low <= 0 <= high
        low, high = t_interval(list(effect_SJ.mean(axis=1)))
        alone += low <= 0 <= high
    return crossed / studies, alone / studies


def report(studies: int, seeds: Sequence[int] = (3, 5, 10, 20)) -> str:
    """The tables as text."""
    random = np.random.default_rng(0)
    lines = [f"{studies} studies a line, {FAMILY} claims a family, margin {MARGIN:g}", ""]
    lines += [f"{'generator':<18}{'seeds':>6}{'family error':>14}{'false equivalence':>19}{'coverage':>10}"]
    for draw in GENERATORS:
        for n in seeds:
            figures = [measure(random, draw, n, studies) for measure in (family_error, false_equivalence, coverage)]
            lines.append(f"{draw.__name__:<18}{n:>6}{figures[0]:>14.3f}{figures[1]:>19.3f}{figures[2]:>10.3f}")
    lines += ["", f"looks after {', '.join(map(str, AUTO_LOOKS))} seeds: family error, decided claims undecided later"]
    for draw in GENERATORS:
        error, reversals = sequential(random, draw, studies // 4)
        lines.append(f"{draw.__name__:<18}{error:>14.3f}{reversals:>10}")
    lines += ["", f"{'extended, not planned':<36}{'generator':<18}{'last report':>12}{'all reports':>13}{'bound':>8}"]
    for numbers in UNPLANNED:
        reports = looks_of_extended(numbers)
        series = f"{', '.join(map(str, numbers))} seeds"
        for draw in GENERATORS:
            last, at_any = extended(random, draw, reports, studies // 2)
            bound = f"{reports[-1].max_errors:>8.3f}"
            lines.append(f"{series:<36}{draw.__name__:<18}{last:>12.3f}{at_any:>13.3f}{bound}")
    lines += ["", f"{'new subjects':<18}{'seeds':>6}{'crossed':>14}{'seeds alone':>19}"]
    for subjects in (5, 10, 20):
        for n in (3, 5, 10):
            crossed, alone = subject_coverage(random, n, subjects, studies)
            lines.append(f"{subjects:<18}{n:>6}{crossed:>14.3f}{alone:>19.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    text = report(options.studies)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
