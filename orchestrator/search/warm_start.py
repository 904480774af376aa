"""What a search can learn from before its first trial: finished units of earlier searches and studies."""

from collections.abc import Sequence
from statistics import fmean

from optuna.trial import create_trial

from orchestrator.record import Record, finished_of
from orchestrator.search.plan import Dimensions, SearchPlan, active, field_of
from orchestrator.search.resolve_space import holds
from orchestrator.search.suggestions import PriorTrial
from orchestrator.search.trials import ranked
from orchestrator.storage.ledger import Ledger, Place
from orchestrator.storage.search_journal import NUMBER
from orchestrator.storage.source_check import SourceCheck
from ups_model.config.schema import digest
from ups_model.wording import count


def prior_trials(plan: SearchPlan, dimensions: Dimensions, ledger: Ledger, check: SourceCheck) -> list[PriorTrial]:
    """Configurations of the space that have finished units on storage with all that decides in their records: the means
    over their seeds, best first. A unit counts where it is one that the search would train with that seed.

    Args:
        check: leaves out what other code has trained, unless it is accepted.

    Raises:
        OSError: the storage doesn't answer.
    """
    folders = [name for name in ledger.storage.children("units") if "-" in name]
    records = finished_of(ledger.read([Place(name.rpartition("-")[2], name) for name in folders]))
    seeds: dict[str, dict[int, dict[str, float]]] = {}
    params_of: dict[str, dict[str, object]] = {}
    for key in sorted(records):
        if (trial := _trial_of(plan, dimensions, records[key], check)) is not None:
            params, seed, values = trial
            params_of[digest(params)] = params
            seeds.setdefault(digest(params), {})[seed] = values
    space, every = plan.study, []
    for name in sorted(seeds):
        means = {metric: fmean(values[metric] for values in seeds[name].values()) for metric in space.metrics}
        excess = {str(limit): limit.excess(means[limit.metric]) for limit in space.limits}
        own = set(plan.own_seeds) <= seeds[name].keys()
        every.append(PriorTrial(params_of[name], [means[aim.metric] for aim in space.aims], excess, own))
    trials = [
        create_trial(values=one.values, constraints=dict(one.constraints), user_attrs={NUMBER: place})
        for place, one in enumerate(every)
    ]
    return [every[trial.user_attrs[NUMBER]] for trial in ranked(trials, *(aim.direction for aim in space.aims))]


def _trial_of(
    plan: SearchPlan, dimensions: Dimensions, record: Record, check: SourceCheck
) -> tuple[dict[str, object], int, dict[str, float]] | None:
    """Parameters, seed and values of a record; None where it is no trial of the space."""
    if record.project != plan.study.project:
        return None
    try:
        settings = plan.project.read(record.about.get("config", {}))
        params = active({path: field_of(settings, path) for path in dimensions}, dimensions)
        unit = plan.unit_of(params, settings.seed)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # Of another version, or a combination that the space's base does not make.
    if unit.key != record.key or not all(holds(dimensions[path], value) for path, value in params.items()):
        return None
    values = plan.measured(unit, record)
    is_whole = all(metric in values for metric in plan.study.metrics)
    return (params, settings.seed, values) if is_whole and check.is_current(unit, record) else None


def warm_start_text(prior: Sequence[PriorTrial]) -> str:
    """What a search has learned from before its first trial."""
    own = sum(one.own for one in prior)
    return (
        f"Suggestions learn from {count(len(prior), 'configuration')} of earlier searches and studies, {own} of them "
        "with all seeds of this search"
    )
