"""The report of a search: trials best first, what to make of them, and how to go on."""

import csv
import io
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from orchestrator.search.best_study import STUDY_FILE, STUDY_SEEDS, is_base, study_command, study_text
from orchestrator.search.figures import DRAWN, figures
from orchestrator.search.journal import number_of
from orchestrator.search.plan import named
from orchestrator.search.resolve_space import SearchInputs
from orchestrator.search.trial_queue import TrialQueue
from orchestrator.search.trials import front, is_feasible, ranked, spread, units_of_trials
from orchestrator.search.warm_start import warm_start_text
from search_spaces.space import TRAIN_SECONDS, Space
from ups_model.atomic import write_atomic
from ups_model.wording import count

MAX_BEST = 5
"""Trials of the front that the study of the best has rows of."""
SHOWN = 3
"""Trials that the end of the command shows."""
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.PRUNED: "stopped early",
}


def write_trials(
    inputs: SearchInputs, graph: TrialQueue, importances: Mapping[str, float], command: str, folders: Sequence[Path]
) -> list[Path]:
    """Write search.md, trials.csv, figures and, where a trial is better than the base, the study of both into each
    folder; returns their paths."""
    drawn = figures(inputs, graph)
    texts: dict[str, str | bytes] = {
        "search.md": markdown(inputs, graph, importances, command, list(drawn)),
        "trials.csv": table(inputs, graph),
        **drawn,
    }
    if rows := study_rows(inputs, graph):
        texts[STUDY_FILE] = study_text(inputs, {label: trial.params for label, trial in rows.items()})
    written = []
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for name in {STUDY_FILE, *DRAWN} - texts.keys():
            (folder / name).unlink(missing_ok=True)  # Of an earlier call.
        for name, text in texts.items():
            write_atomic(folder / name, text)
            written.append(folder / name)
    return written


def _ranked(inputs: SearchInputs, graph: TrialQueue) -> list[FrozenTrial]:
    return ranked(graph.trials, *(aim.direction for aim in inputs.plan.study.aims))


def best_of(inputs: SearchInputs, graph: TrialQueue) -> FrozenTrial | None:
    """The best complete trial that keeps the constraints; of several objectives that of the front which is best by the
    first."""
    return next((trial for trial in _ranked(inputs, graph) if trial.values is not None and is_feasible(trial)), None)


def front_of(inputs: SearchInputs, graph: TrialQueue) -> list[FrozenTrial]:
    """The Pareto front, best by the first objective first; none of one objective."""
    aims = inputs.plan.study.aims
    if len(aims) == 1:
        return []
    numbers = {number_of(trial) for trial in front(graph.trials, [aim.direction for aim in aims])}
    return [trial for trial in _ranked(inputs, graph) if number_of(trial) in numbers]


def study_rows(inputs: SearchInputs, graph: TrialQueue) -> dict[str, FrozenTrial]:
    """The trials that the study of the best compares with the base, by label; none where the base is best. Of a longer
    front those at its ends and evenly between."""
    if len(inputs.plan.study.aims) == 1:
        best = best_of(inputs, graph)
        return {} if best is None or is_base(inputs, best.params) else {"best": best}
    trials = [trial for trial in front_of(inputs, graph) if not is_base(inputs, trial.params)]
    if len(trials) > MAX_BEST:
        trials = [trials[round(place * (len(trials) - 1) / (MAX_BEST - 1))] for place in range(MAX_BEST)]
    return {f"trial {number_of(trial)}": trial for trial in trials}


def table(inputs: SearchInputs, graph: TrialQueue) -> str:
    """All trials as CSV, best first, with each seed's value."""
    space, several = inputs.plan.study, len(inputs.plan.study.metrics) > 1
    on_front = {number_of(trial) for trial in front_of(inputs, graph)}
    heads = ["trial", "state"]
    for metric in space.metrics:
        lead = f"{metric} " if several else ""
        heads += [metric, f"{lead}sd", f"{lead}n", *(f"{lead}seed {seed}" for seed in inputs.plan.own_seeds)]
    heads += ["feasible"] * bool(space.limits) + ["front"] * bool(space.objectives)
    steps = inputs.plan.rungs.at if inputs.plan.rungs else ()
    heads += [f"at step {step}" for step in steps]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*heads, *inputs.dimensions, "units", "error"])
    for trial in _ranked(inputs, graph):
        row: list[object] = [number_of(trial), STATES[trial.state]]
        for metric in space.metrics:
            values = graph.values(trial, metric)
            each = values if len(values) == inputs.plan.seeds else [""] * inputs.plan.seeds
            mean = "" if trial.values is None else _mean(inputs, trial, metric, values)
            row += [mean, statistics.stdev(values) if len(values) > 1 else "", len(values), *each]
        done = trial.values is not None
        row += [("yes" if is_feasible(trial) else "no") if done else ""] * bool(space.limits)
        row += [("yes" if number_of(trial) in on_front else "no") if done else ""] * bool(space.objectives)
        row += [trial.intermediate_values.get(step, "") for step in steps]
        row += [trial.params.get(path, "") for path in inputs.dimensions]
        writer.writerow([*row, " ".join(_keys(inputs, trial)), graph.reason.get(number_of(trial), "")])
    return stream.getvalue()


def _mean(inputs: SearchInputs, trial: FrozenTrial, metric: str, values: Sequence[float]) -> float | str:
    """Of an objective as the journal has it, of a constraint from the records."""
    return _objectives(inputs.plan.study, trial).get(metric, statistics.fmean(values) if values else "")


def _objectives(space: Space, trial: FrozenTrial) -> dict[str, float]:
    """Values of a complete trial's objectives, as the journal has them."""
    return dict(zip((aim.metric for aim in space.aims), trial.values, strict=True))


def markdown(
    inputs: SearchInputs, graph: TrialQueue, importances: Mapping[str, float], command: str, drawn: Sequence[str] = ()
) -> str:
    """The search's report; `drawn` are files of figures beside it."""
    plan, space, trials = inputs.plan, inputs.plan.study, graph.trials
    order = _ranked(inputs, graph)
    states = Counter(STATES[trial.state] for trial in trials)
    stopped_early = f"{states['stopped early']} were stopped early, " if plan.rungs else ""
    synthetic = sorted(name for name, facts in plan.data.items() if facts.synthetic)
    lines = [
        f"# Search: {space.name}",
        "",
        space.question,
        "",
        f"{_looked_for(space)}; {count(plan.seeds, 'seed')} a trial, from "
        f"{space.first_seed}; preset {plan.preset}; data: {', '.join(plan.data)}; "
        f"judged on {inputs.objectives.held_out}. "
        f"Of {graph.total} trials {states['complete']} are complete, {states['failed']} failed, "
        f"{stopped_early}{graph.total - states['complete'] - states['failed'] - states['stopped early']} are open.",
        "",
    ]
    counts = plan.project.samples(plan.base).items()
    samples = ", ".join(f"{number} samples of {task}" for task, number in counts if number)
    budget = f"Every unit: {samples}. " if samples else ""
    if synthetic:
        lines += [f"**Synthetic data ({', '.join(synthetic)}): these numbers say nothing about real motion.**", ""]
    lines += [f"    {command}", "", f"{budget}The search measured no test split.", ""]
    lines += [*early_stopping(graph), ""] if plan.rungs else []
    if graph.journal.prior is not None:
        lines += [f"{warm_start_text(graph.journal.prior)}; they are no trials of this search.", ""]
    if on_front := front_of(inputs, graph):
        lines += [f"## Pareto front: {len(on_front)} of {count(states['complete'], 'trial')}", ""]
        lines += ["None of the other trials is at least as good in all objectives and better in one.", ""]
        lines += [*_rows(inputs, graph, on_front), "", "## All trials", ""]
    lines += [*_rows(inputs, graph, order), "", *caution(inputs, graph, order), ""]
    if importances:
        shown = ", ".join(f"`{name}` {value:.2f}" for name, value in importances.items())
        lines += [
            f"What sets the best tenth of the trials apart (Optuna's PED-ANOVA, shares of 1): {shown}. A rough guide: "
            "trials are few, and crowd where earlier ones were good.",
            "",
        ]
    lines += [line for name in drawn for line in (f"![{name.removesuffix('.png')}]({name})", "")]
    units = [graph.units[unit.key] for unit in units_of_trials(plan, trials) if unit.key in graph.units]
    records = [record for record in map(graph.ledger.finished, units) if record is not None]
    commits = {str(record.about.get("commit", "unknown")) for record in records}
    if len(commits) > 1:
        lines += [f"Trials were trained at different commits: {', '.join(sorted(commits))}.", ""]
    if rows := study_rows(inputs, graph):
        what = "the best trial" if list(rows) == ["best"] else f"{count(len(rows), 'trial')} of the front"
        lines += [f"To measure {what} and the base on the test split, with the study in {STUDY_FILE}:", ""]
        lines += [f"    {study_command(inputs, STUDY_FILE)}", ""]
    return "\n".join(lines)


def early_stopping(graph: TrialQueue) -> list[str]:
    """What early stopping did, and what it saved."""
    plan = graph.search
    assert plan.rungs is not None, "only of a search with rungs"
    rule, steps, trials = plan.rungs.rule, plan.rungs.steps, graph.trials
    trained = sum(steps if trial.value is not None else max(trial.intermediate_values, default=0) for trial in trials)
    at = ", ".join(map(str, plan.rungs.at))
    return [
        f"Early stopping ({rule.rule}): trials paused where they were first measured from steps {at} of {steps} on, "
        f"and trained on while they were among the best {plan.rungs.keep:.0%} there. Trained, counted at rungs: "
        f"{trained * plan.seeds:,} of the "
        f"{steps * plan.seeds * len(trials):,} steps of all trials. A trial that was stopped keeps its checkpoint: "
        "`--promote TRIAL` trains it to its end. Values at a rung are of unfinished training."
    ]


def caution(inputs: SearchInputs, graph: TrialQueue, order: Sequence[FrozenTrial]) -> list[str]:
    """What the best value is worth."""
    plan = inputs.plan
    complete = [trial for trial in order if trial.values is not None]
    if not complete:
        return ["No trial is complete yet."]
    constraint = _feasibility(inputs, complete)
    if not any(is_feasible(trial) for trial in complete):
        return [constraint]
    several = len(plan.study.aims) > 1
    if several:
        luck = (
            f"**Trials on the front of {len(complete)} look better than they are**: they were chosen by these very "
            "values, on these validation subjects and seeds, and part of each one's lead is luck. These values are no "
            "results. Train them"
        )
    else:
        luck = (
            f"**The best of {len(complete)} trials looks better than it is**: it was chosen by these very values, on "
            "these validation subjects and seeds, and part of its lead is luck. Its own value is therefore no result. "
            "Train it"
        )
    lines = [constraint, ""] if constraint else []
    lines.append(
        f"{luck} with fresh seeds in an ablation (below; a study's seeds begin at 0, these at {plan.study.first_seed}) "
        "and take the test metrics of that."
    )
    if TRAIN_SECONDS in plan.study.metrics:
        lines += ["", f"`{TRAIN_SECONDS}` is of these machines and this run of them; another run has other times."]
    if plan.study.first_seed < STUDY_SEEDS:
        lines += ["", f"Seeds from {plan.study.first_seed} on are not fresh in a study: the search has chosen by them."]
    if plan.seeds == 1:
        lines += ["", "With one seed a trial (n = 1) the spread between seeds is unknown: trials can't be told apart."]
    start = next((trial for trial in complete if inputs.start is not None and trial.params == inputs.start), None)
    if start is not None and start is complete[0] and not several:
        lines += ["", "No trial was better than the base configuration."]
    elif start is not None:
        lines += ["", f"The base configuration is trial {number_of(start)}, with {_results(graph, start)}."]
    return lines


def _looked_for(space: Space) -> str:
    """What decides, in Markdown."""
    text = " and ".join(f"{aim.direction} `{aim.metric}`" for aim in space.aims)
    limits = ", ".join(f"`{limit.metric}` {str(limit).partition(' ')[2]}" for limit in space.limits)
    return f"{text[0].upper()}{text[1:]}" + (f", with {limits}" if limits else "")


def _feasibility(inputs: SearchInputs, complete: Sequence[FrozenTrial]) -> str:
    """How many complete trials break a constraint; empty without constraints."""
    limits = inputs.plan.study.limits
    if not limits:
        return ""
    infeasible = sum(not is_feasible(trial) for trial in complete)
    if not infeasible:
        return f"All of {count(len(complete), 'complete trial')} kept the constraints."
    if infeasible == len(complete):
        text = f"None of {count(infeasible, 'complete trial')} keeps the constraints ({', '.join(map(str, limits))})"
        return f"{text}: there is no best one."
    return f"{infeasible} of {count(len(complete), 'complete trial')} broke the constraints; none of these is the best."


def closing(inputs: SearchInputs, graph: TrialQueue, folder: Path) -> list[str]:
    """What the end of a search says of its trials, whose files are in `folder`."""
    trials = graph.trials
    order = _ranked(inputs, graph)
    complete = [trial for trial in order if trial.values is not None]
    shown, rows = front_of(inputs, graph)[:MAX_BEST] or complete[:SHOWN], study_rows(inputs, graph)
    early = sum(trial.state is TrialState.PRUNED for trial in trials)
    lines = [f"{len(complete)} of {graph.total} trials complete" + (f", {early} stopped early" if early else "")]
    lines += [constraint] if (constraint := _feasibility(inputs, complete)) and complete else []
    lines += [f"trial {number_of(trial)}: {_results(graph, trial)}  {named(trial.params)}" for trial in shown]
    for trial in trials:
        if trial.state is TrialState.FAIL:
            reason = graph.reason.get(number_of(trial), "see the log of its units")
            lines.append(f"trial {number_of(trial)} failed: {reason}")
    if graph.fault:
        lines.append(f"stopped: {graph.fault}")
    if graph.stopping:
        lines.append("stopped; the same command goes on from here")
    elif any(trial.state is TrialState.FAIL for trial in trials):
        lines.append("the same command tries the failed trials again")
    elif len(trials) < graph.wanted:
        lines.append(f"the space has no more than these {len(trials)} configurations")
    if not rows and best_of(inputs, graph) is not None:
        lines.append(f"none of {len(complete)} trials is better than the base configuration: nothing to compare")
    elif rows:
        what = "the best" if len(inputs.plan.study.aims) == 1 else "the front"
        lines.append(
            f"{what} of {len(complete)} is chosen by these values and so too good; measure it with fresh seeds:"
        )
        address = graph.ledger.address
        lines.append(f"  {study_command(inputs, str(folder / STUDY_FILE), address, with_paths=True)}")
    return lines


def _rows(inputs: SearchInputs, graph: TrialQueue, order: Sequence[FrozenTrial]) -> list[str]:
    metrics, on_front = inputs.plan.study.metrics, {number_of(trial) for trial in front_of(inputs, graph)}
    heads = ["Trial", *metrics, *(path.rsplit(".", 1)[-1] for path in inputs.dimensions), "Units"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for trial in order:
        base = " (base)" if trial.params == inputs.start else ""
        marks = (" **front**" if number_of(trial) in on_front else "") + _broken(trial)
        cells = [f"{number_of(trial)}{base}{marks}", *(_value(graph, trial, metric) for metric in metrics)]
        cells += [str(trial.params.get(path, "-")) for path in inputs.dimensions]
        cells += [", ".join(f"`{key}`" for key in _keys(inputs, trial)) or "none"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _at_rung(trial: FrozenTrial) -> str:
    step, value = max(trial.intermediate_values.items())
    return f"{value:.4g} at step {step}"


def _broken(trial: FrozenTrial) -> str:
    return "" if trial.values is None or is_feasible(trial) else " (infeasible)"


def _value(graph: TrialQueue, trial: FrozenTrial, metric: str) -> str:
    if trial.state is TrialState.PRUNED:
        return _at_rung(trial) + ", stopped" if metric == graph.search.study.aims[0].metric else ""
    if trial.state is TrialState.RUNNING and trial.intermediate_values:
        return f"open, {_at_rung(trial)}"
    if trial.state is not TrialState.COMPLETE:
        reason = graph.reason.get(number_of(trial), "").replace("|", "/").splitlines()
        return "open" if trial.state is TrialState.RUNNING else "failed" + (f": {reason[0]}" if reason else "")
    values = graph.values(trial, metric)
    if len(values) < graph.search.seeds:
        by_metric = _objectives(graph.search.study, trial)
        return (f"{by_metric[metric]:.4g} " if metric in by_metric else "") + "(its records are gone)"
    return spread(values)


def _results(graph: TrialQueue, trial: FrozenTrial) -> str:
    """All that decides of a complete trial, on one line."""
    metrics = graph.search.study.metrics
    if len(metrics) == 1:
        return _value(graph, trial, metrics[0]) + _broken(trial)
    return ", ".join(f"{metric} {_value(graph, trial, metric)}" for metric in metrics) + _broken(trial)


def _keys(inputs: SearchInputs, trial: FrozenTrial) -> list[str]:
    return [unit.key for unit in units_of_trials(inputs.plan, [trial])]
