"""Which trial of a search trains on: successive halving over rungs. Pure.

A rung is a step at which a trial pauses and is measured. ASHA (Li et al. 2020, "A System for Massively Parallel
Hyperparameter Tuning", algorithm 2): whenever there is room, the best trial that waits at a rung, and is among the best
1 / reduction of all that have come to it, trains on to the next one; where there is none, a new trial begins. Hyperband
(Li et al. 2018) lets shares of the trials begin at later rungs, each share with rungs of its own.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from search_spaces.space import EarlyStopping
from ups_model.wording import count

END = 0
"""In place of a rung's step: train to the end."""


@dataclass(frozen=True)
class Standing:
    """How far a trial has come."""

    aim: int
    """Step of the rung that it trains to, or waits at; `END` without one."""
    values: Mapping[int, float] = field(default_factory=dict)
    """By the step of each rung that it has reached; higher is better."""
    failed: bool = False

    @property
    def waits(self) -> bool:
        """At its rung, for others."""
        return not self.failed and self.aim != END and self.aim in self.values


class Rungs:
    """The rungs of a search whose trials train for `steps` steps."""

    def __init__(self, rule: EarlyStopping, steps: int) -> None:
        """ValueError for runs too short for a rung."""
        self.rule, self.steps = rule, steps
        if rule.rule == "median":
            self.keep, shares = 0.5, [point / rule.points for point in range(1, rule.points)]
            shares = [share for share in shares if share >= rule.first - 1e-9]
        else:
            number = math.ceil(math.log(1 / rule.first, rule.reduction) - 1e-9)
            self.keep, shares = 1 / rule.reduction, [rule.first * rule.reduction**power for power in range(number)]
        self.at = tuple(round(share * steps) for share in shares)
        """Steps, ascending."""
        if not steps:
            raise ValueError(
                "early stopping needs to know the steps of a run, which this project doesn't say; give its settings a "
                "field `steps`"
            )
        if len(set(self.at)) < len(self.at) or self.at[0] < 1 or self.at[-1] >= steps:
            named = ", ".join(f"{share:.3g}" for share in shares)
            raise ValueError(
                f"early stopping has rungs at {named} of a run, which must be different steps below its last, got runs "
                f"of {count(steps, 'step')}; train longer, or give fewer rungs (`first`, `points`)"
            )

    @property
    def share(self) -> float:
        """Of a full run, what a trial takes on average where all begin at the first rung."""
        ends = [0, *self.at, self.steps]
        return sum(self.keep**place * (end - ends[place]) for place, end in enumerate(ends[1:])) / self.steps

    def bracket(self, number: int) -> int:
        """Rungs that a trial passes over: 0, but of Hyperband's brackets, by turns in the shares of its paper."""
        if self.rule.rule != "hyperband":
            return 0
        most = len(self.at)
        sizes = [
            math.ceil((most + 1) / (most - skipped + 1) * self.rule.reduction ** (most - skipped))
            for skipped in range(most + 1)
        ]
        ends = list(accumulate(sizes))
        return bisect_right(ends, number % ends[-1])

    def first(self, number: int) -> int:
        """What a new trial trains to."""
        return self._behind(self.bracket(number) - 1)

    def next(self, step: int) -> int:
        """What a trial that waits at a rung would train to."""
        return self._behind(self.at.index(step))

    def _behind(self, place: int) -> int:
        return self.at[place + 1] if place + 1 < len(self.at) else END

    def promotable(self, trials: Sequence[Standing], is_last: bool) -> int | None:
        """Number of the trial to train on with now, None where none has earned it.

        Args:
            trials: by number.
            is_last: no other trial runs or is to come. Then a rung may send on one trial at least, so that a search of
                few trials has one that came to its end.
        """
        brackets = {number: self.bracket(number) for number in range(len(trials))}
        for bracket in sorted(set(brackets.values())):
            of_bracket = {number: trial for number, trial in enumerate(trials) if brackets[number] == bracket}
            for step in reversed(self.at):
                reached = [number for number, trial in of_bracket.items() if step in trial.values and not trial.failed]
                order = sorted(reached, key=lambda number: (-trials[number].values[step], number))
                for number in order[: math.floor(len(order) * self.keep + 1e-9)]:
                    if trials[number].waits and trials[number].aim == step:
                        return number
        ended = any(trial.aim == END and not trial.failed for trial in trials)
        waiting = [number for number, trial in enumerate(trials) if trial.waits]
        if not is_last or ended or not waiting:
            return None
        return max(waiting, key=lambda number: (trials[number].aim, trials[number].values[trials[number].aim], -number))
