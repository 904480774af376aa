"""What Optuna suggests next: a function of the trials so far and the space's sampler seed.

Optuna's samplers draw from generators that live as long as a process, and some keep their state beside the trials. Here
each suggestion is drawn in a study of its own, made of the trials, so that a search that was killed suggests what it
would have suggested.
"""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from orchestrator.search.dimensions import count_points, distribution_of, rounded, suggest, values_of
from orchestrator.search.plan import Dimensions, Params, active
from search_spaces.space import Space
from ups_model.config.schema import digest

STARTUP = 10
"""Trials drawn at random before Optuna's TPE and Gaussian process learn from them."""
GENERATION = 10
"""Trials of each generation of the genetic algorithm; those of the first are random."""
MAX_ATTEMPTS = 10
"""Suggestions that were there before, until one of the rest is drawn."""


@dataclass(frozen=True)
class PriorTrial:
    """A configuration that was trained before the search; it informs the sampler and is no trial of the search."""

    params: Params
    values: Sequence[float]
    """Of each objective."""
    constraints: Mapping[str, float]
    """As of `Journal.complete`."""
    own: bool
    """Trained with all seeds of the search, too, so that it costs nothing as a trial."""


class Suggestions:
    """Of one search; keeps nothing."""

    def __init__(self, space: Space, dimensions: Dimensions) -> None:
        self._space, self._dimensions = space, dimensions
        self._where = {path: distribution_of(where) for path, where in dimensions.items()}
        self.directions = [aim.direction for aim in space.aims]
        """Of each objective."""
        self.most = count_points(self._where, dimensions)
        """Configurations that there are; None for a continuum."""

    def next(self, trials: Sequence[FrozenTrial], prior: Sequence[PriorTrial]) -> Params | None:
        """Parameters that no trial has, unless the space is a continuum; None where it has no more. Trials are in the
        order of their numbers."""
        # Some samplers call themselves experimental; ours are fixed by the journal, and tests hold them to it.
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            return self._next(trials, prior)

    def _next(self, trials: Sequence[FrozenTrial], prior: Sequence[PriorTrial]) -> Params | None:
        taken, name = [trial.params for trial in trials], self._space.sampler
        if self.most is not None and len(taken) >= self.most:
            return None
        if name == "grid":
            points = itertools.product(*map(values_of, self._where.values()))
            every = (active(dict(zip(self._where, point, strict=True)), self._dimensions) for point in points)
            return next(params for params in every if params not in taken)
        for attempt in range(MAX_ATTEMPTS):
            seed = int(digest([self._space.sampler_seed, len(taken), attempt])[:8], 16)
            if name == "qmc":
                params = self._sobol(len(taken) + attempt)
            elif name == "cmaes":
                params = self._evolve(trials, prior, attempt)
            else:
                params = self._draw(self._sampler(seed), trials, prior)
            if params not in taken:
                return params
        return params if self.most is None else self._draw(BruteForceSampler(seed=seed), trials, ())

    def _sampler(self, seed: int) -> BaseSampler:
        if self._space.sampler == "random":
            return RandomSampler(seed=seed)
        if self._space.sampler == "gp":
            return GPSampler(seed=seed, n_startup_trials=STARTUP)
        if self._space.sampler == "nsga2":
            return Generations(seed)
        conditional = any(where.when for where in self._dimensions.values())
        return TPESampler(
            seed=seed,
            multivariate=True,
            group=conditional,  # It would else learn together only what all trials have.
            constant_liar=True,
            n_startup_trials=STARTUP,
        )

    def _sobol(self, number: int) -> Params:
        """Point `number` of Sobol's sequence, which Optuna's sampler counts by how often a study has asked it."""
        sampler = QMCSampler(seed=self._space.sampler_seed, scramble=True, warn_asynchronous_seeding=False)
        study = optuna.create_study(directions=self.directions, sampler=sampler)
        # The first trial is drawn at random: from it the sampler learns the dimensions.
        first = self._of(optuna.create_study(sampler=RandomSampler(seed=0)).ask(self._where).params)
        study.add_trial(self.trial(first, TrialState.RUNNING))
        for _ in range(number):
            study.ask(self._where)
        return active(self._of(study.ask(self._where).params), self._dimensions)

    def _evolve(self, trials: Sequence[FrozenTrial], prior: Sequence[PriorTrial], attempt: int) -> Params:
        """CMA-ES from its first generation to that of the complete trials, in their order. Optuna's sampler leaves the
        optimizer's state with the trial that it suggests; here the next complete trial takes it over."""
        before = [self.trial(one.params, TrialState.COMPLETE, one.values) for one in prior]
        sampler = CmaEsSampler(
            seed=self._space.sampler_seed, source_trials=before or None, warn_independent_sampling=False
        )
        study = optuna.create_study(directions=self.directions, sampler=sampler)
        complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
        for trial in complete:
            study.ask(self._where)
            state = study.get_trials(deepcopy=False)[-1].system_attrs
            study.add_trial(self.trial(trial.params, TrialState.COMPLETE, trial.values, system_attrs=state))
        for _ in range(len(trials) - len(complete) + attempt):
            study.ask(self._where)
        return self._of(study.ask(self._where).params)

    def _draw(self, sampler: BaseSampler, trials: Sequence[FrozenTrial], prior: Sequence[PriorTrial]) -> Params:
        study = optuna.create_study(directions=self.directions, sampler=sampler)
        complete = [trial.params for trial in trials if trial.state is TrialState.COMPLETE]
        for one in prior:
            if one.params not in complete:
                study.add_trial(
                    self.trial(one.params, TrialState.COMPLETE, one.values, constraints=dict(one.constraints))
                )
        for trial in trials:
            facts = {"constraints": trial.constraints, "intermediate_values": trial.intermediate_values}
            study.add_trial(self.trial(trial.params, _state_for_sampler(trial), trial.values, **facts))
        asked, drawn = study.ask(), dict[str, Any]()
        for path, where in self._where.items():
            if path in active({**drawn, path: None}, self._dimensions):
                drawn[path] = rounded(suggest(asked, path, where), where)
        return drawn

    def _of(self, drawn: Params) -> Params:
        return {path: rounded(drawn[path], where) for path, where in self._where.items()}

    def trial(
        self, params: Params, state: TrialState, values: Sequence[float] | None = None, **facts: Any
    ) -> FrozenTrial:
        """A trial as Optuna has it; `facts` as of `create_trial`."""
        distributions = {path: self._where[path] for path in params}
        return create_trial(state=state, values=values, params=dict(params), distributions=distributions, **facts)


def _state_for_sampler(trial: FrozenTrial) -> TrialState:
    """What has been shown at rungs counts. One that failed counts as one without a value yet: both are taken for bad,
    and their neighbours avoided."""
    if trial.state is TrialState.COMPLETE:
        return TrialState.COMPLETE
    has_shown = trial.intermediate_values and trial.state is not TrialState.FAIL
    return TrialState.PRUNED if has_shown else TrialState.RUNNING


class Generations(NSGAIISampler):
    """NSGA-II whose generations follow from the complete trials in their order, so that it suggests the same from the
    same trials; Optuna's keeps each trial's generation where the trials are kept."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed, population_size=GENERATION)

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        return len(_complete(study)) // GENERATION

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        return _complete(study)[generation * GENERATION :][:GENERATION]


def _complete(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
