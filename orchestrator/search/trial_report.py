"""The report of a search: trials best first, what to make of them, and how to go on."""

import csv
import io
import statistics
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from orchestrator.search.best_study import (
    STUDY_FILE,
    STUDY_SEEDS,
    is_base,
    study_command,
    study_text,
)
from orchestrator.search.journal import number_of
from orchestrator.search.plan import named
from orchestrator.search.resolve_space import SearchInputs
from orchestrator.search.trial_queue import TrialQueue, ranked, spread
from ups_model.atomic import write_atomic
from ups_model.wording import count

FIGURES = {
    "history.png": "plot_optimization_history",
    "slice.png": "plot_slice",
    "parallel.png": "plot_parallel_coordinate",
    "contour.png": "plot_contour",
}
"""Files, and what `optuna.visualization.matplotlib` draws in them."""
MAX_CONTOUR = 5
"""Dimensions of which each pair is drawn."""
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
    best = best_of(inputs, graph)
    if best is not None and not is_base(inputs, best.params):
        texts[STUDY_FILE] = study_text(inputs, best.params)
    written = []
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for name in {STUDY_FILE, *FIGURES} - texts.keys():
            (folder / name).unlink(missing_ok=True)  # Of an earlier call.
        for name, text in texts.items():
            write_atomic(folder / name, text)
            written.append(folder / name)
    return written


def figures(inputs: SearchInputs, graph: TrialQueue) -> dict[str, bytes]:
    """Optuna's plots of the complete trials, PNG by file name; none of fewer than two trials."""
    complete = [trial for trial in graph.trials if trial.value is not None]
    if len(complete) < 2:
        return {}
    import matplotlib  # It takes a second to import, which the start of a search need not wait for.
    import optuna.visualization.matplotlib as plots

    with matplotlib.rc_context({"backend": "agg"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Its plots call themselves experimental.
        from matplotlib import pyplot

        columns, drawn = len(inputs.dimensions), {}
        study = optuna.create_study(direction=inputs.plan.study.direction)
        study.add_trials(complete)
        for name, plot in FIGURES.items():
            if name == "contour.png" and not 2 <= columns <= MAX_CONTOUR:
                continue
            getattr(plots, plot)(study, target_name=inputs.plan.study.objective)
            figure, stream = pyplot.gcf(), io.BytesIO()
            figure.set_size_inches(max(7, 3.2 * columns), 3.2 * columns if name == "contour.png" else 4)
            figure.savefig(stream, format="png", dpi=110, bbox_inches="tight")
            pyplot.close("all")
            drawn[name] = stream.getvalue()
    return drawn


def best_of(inputs: SearchInputs, graph: TrialQueue) -> FrozenTrial | None:
    """The best complete trial."""
    order = ranked(graph.trials, inputs.plan.study.direction)
    return next((trial for trial in order if trial.value is not None), None)


def table(inputs: SearchInputs, graph: TrialQueue) -> str:
    """All trials as CSV, best first, with each seed's value."""
    space, seeds = inputs.plan.study, range(inputs.plan.seeds)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["trial", "state", space.objective, "sd", "n"]
        + [f"seed {space.first_seed + index}" for index in seeds]
        + [*inputs.dimensions, "units", "error"]
    )
    for trial in ranked(graph.trials, space.direction):
        values = graph.values(trial)
        each = values if len(values) == len(seeds) else [""] * len(seeds)
        sd = statistics.stdev(values) if len(values) > 1 else ""
        mean = "" if trial.value is None else trial.value
        writer.writerow(
            [number_of(trial), STATES[trial.state], mean, sd, len(values), *each]
            + [trial.params[path] for path in inputs.dimensions]
            + [" ".join(_keys(inputs, trial)), graph.reason.get(number_of(trial), "")]
        )
    return stream.getvalue()


def markdown(
    inputs: SearchInputs, graph: TrialQueue, importances: Mapping[str, float], command: str, drawn: Sequence[str] = ()
) -> str:
    """The search's report; `drawn` are files of figures beside it."""
    plan, space, trials = inputs.plan, inputs.plan.study, graph.trials
    order = ranked(trials, space.direction)
    states = Counter(STATES[trial.state] for trial in trials)
    stopped_early = f"{states['stopped early']} were stopped early, " if plan.rungs else ""
    synthetic = sorted(name for name, facts in plan.data.items() if facts.synthetic)
    lines = [
        f"# Search: {space.name}",
        "",
        space.question,
        "",
        f"{space.direction.capitalize()} `{space.objective}`; {count(plan.seeds, 'seed')} a trial, from "
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
    lines += [*_rows(inputs, graph, order), "", *caution(inputs, graph, order), ""]
    if importances:
        shown = ", ".join(f"`{name}` {value:.2f}" for name, value in importances.items())
        lines += [
            f"What sets the best tenth of the trials apart (Optuna's PED-ANOVA, shares of 1): {shown}. A rough guide: "
            "trials are few, and crowd where earlier ones were good.",
            "",
        ]
    lines += [line for name in drawn for line in (f"![{name.removesuffix('.png')}]({name})", "")]
    commits = sorted({commit for trial in trials for commit in _commits(inputs, graph, trial)})
    if len(commits) > 1:
        lines += [f"Trials were trained at different commits: {', '.join(commits)}.", ""]
    best = best_of(inputs, graph)
    if best is not None and not is_base(inputs, best.params):
        lines += [f"To measure the best trial and the base on the test split, with the study in {STUDY_FILE}:", ""]
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
        f"Early stopping ({rule.rule}): trials paused at {at} of {steps} steps and trained on while they were among "
        f"the best {plan.rungs.keep:.0%} there. Trained: {trained * plan.seeds:,} of the "
        f"{steps * plan.seeds * len(trials):,} steps of all trials. A trial that was stopped keeps its checkpoint: "
        "`--promote TRIAL` trains it to its end. Values at a rung are of unfinished training."
    ]


def caution(inputs: SearchInputs, graph: TrialQueue, order: Sequence[FrozenTrial]) -> list[str]:
    """What the best value is worth."""
    plan = inputs.plan
    complete = [trial for trial in order if trial.value is not None]
    if not complete:
        return ["No trial is complete yet."]
    lines = [
        f"**The best of {len(complete)} trials looks better than it is**: it was chosen by these very values, on these "
        "validation subjects and seeds, and part of its lead is luck. Its own value is therefore no result. Train it "
        f"with fresh seeds in an ablation (below; a study's seeds begin at 0, these at {plan.study.first_seed}) and "
        "take the test metrics of that.",
    ]
    if plan.study.first_seed < STUDY_SEEDS:
        lines += ["", f"Seeds from {plan.study.first_seed} on are not fresh in a study: the search has chosen by them."]
    if plan.seeds == 1:
        lines += ["", "With one seed a trial (n = 1) the spread between seeds is unknown: trials can't be told apart."]
    start = next((trial for trial in complete if inputs.start is not None and trial.params == inputs.start), None)
    if start is not None and start is complete[0]:
        lines += ["", "No trial was better than the base configuration."]
    elif start is not None:
        lines += ["", f"The base configuration is trial {number_of(start)}, with {_value(graph, start)}."]
    return lines


def closing(inputs: SearchInputs, graph: TrialQueue, folder: Path) -> list[str]:
    """What the end of a search says of its trials, whose files are in `folder`."""
    trials = graph.trials
    order = ranked(trials, inputs.plan.study.direction)
    complete = [trial for trial in order if trial.value is not None]
    lines = [f"{len(complete)} of {graph.total} trials complete"]
    lines += [f"trial {number_of(trial)}: {_value(graph, trial)}  {named(trial.params)}" for trial in complete[:SHOWN]]
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
    if complete and is_base(inputs, complete[0].params):
        lines.append(f"none of {len(complete)} trials is better than the base configuration: nothing to compare")
    elif complete:
        lines.append(
            f"the best of {len(complete)} is chosen by these values and so too good; measure it with fresh seeds:"
        )
        address = graph.ledger.address
        lines.append(f"  {study_command(inputs, str(folder / STUDY_FILE), address, with_paths=True)}")
    return lines


def _rows(inputs: SearchInputs, graph: TrialQueue, order: Sequence[FrozenTrial]) -> list[str]:
    heads = ["Trial", inputs.plan.study.objective, *(path.rsplit(".", 1)[-1] for path in inputs.dimensions), "Units"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for trial in order:
        base = " (base)" if trial.params == inputs.start else ""
        cells = [f"{number_of(trial)}{base}", _value(graph, trial)]
        cells += [str(trial.params[path]) for path in inputs.dimensions]
        cells += [", ".join(f"`{key}`" for key in _keys(inputs, trial)) or "none"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _value(graph: TrialQueue, trial: FrozenTrial) -> str:
    if trial.state is TrialState.PRUNED:
        step, value = max(trial.intermediate_values.items())
        return f"{value:.4g} at step {step}, stopped"
    if trial.state is not TrialState.COMPLETE:
        reason = graph.reason.get(number_of(trial), "").replace("|", "/").splitlines()
        return "open" if trial.state is TrialState.RUNNING else "failed" + (f": {reason[0]}" if reason else "")
    values = graph.values(trial)
    if len(values) < graph.search.seeds:
        return f"{trial.value:.4g} (its records are gone)"
    return spread(values)


def _keys(inputs: SearchInputs, trial: FrozenTrial) -> list[str]:
    try:
        return [unit.key for unit in inputs.plan.units_of(trial.params)]
    except ValueError:
        return []


def _commits(inputs: SearchInputs, graph: TrialQueue, trial: FrozenTrial) -> set[str]:
    units = [graph.units[key] for key in _keys(inputs, trial) if key in graph.units]
    records = [record for record in map(graph.ledger.finished, units) if record is not None]
    return {str(record.about.get("commit", "unknown")) for record in records}
