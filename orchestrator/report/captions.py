"""What stands around a table: data, provenance, warnings, legend, summary. Plain text, no markup."""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable

from orchestrator.report.claims import looks_of
from orchestrator.report.model import DIFFERING, PROVENANCE, UNKNOWN, Report, Source, TableOfCells
from orchestrator.report.statistics import CONFIDENCE
from orchestrator.report.wording import DAGGER, DOUBLE_DAGGER, NONE, listed, sign_agrees
from orchestrator.storage.source_check import THEN
from ups_model.config import set_of
from ups_model.evaluation.health import CHANCE_CLIPS, COLLAPSED_GAIN, CONVERGED_GAIN, LEARNT_GAIN, MAX_FALL
from ups_model.training.progress import duration
from ups_model.wording import count

MAX_CLIPS_APART = 0.01
"""Share of its clips by which a set may differ from the published one and still be the same data."""

CHOSEN_BY = {
    "validation subjects": "checkpoint chosen on held-out training subjects, test split measured once",
    "last step": "weights of the last step, nothing was chosen; test split measured once",
    "last step, validated": "weights of the last step, no other candidates; held-out training subjects judge health "
    "alone; test split measured once",
}


COST_NOTE = (
    "Counted from the configuration, but for time and energy. These are as measured, means over the seeds whose every "
    "run is timed: machines may have been slower or shared with other work. Joint training counts in full in each row "
    "that rests on it."
)


def table_caption(report: Report, table: TableOfCells, alone: bool = True) -> list[str]:
    """Sentences: what was trained on what, and how to read it beside the paper.

    Args:
        alone: the table will stand without the report's head, as in a paper.
    """
    how = f"{setup_text(report)}; {CHOSEN_BY.get(report.plan.chosen_by, report.plan.chosen_by)}."
    origins = (
        f"{name} {' / '.join(_shown(name, origin.value) for origin in table.origins[name]) or UNKNOWN}"
        for name in PROVENANCE
    )
    return [
        f"Data: {data_text(_table_sources(table))}.",
        *_stand_in(report, table),
        *_overridden(report, table),
        *([how] if alone else []),
        f"Trained with {'; '.join(origins)}.",
        f"Δ is the difference to row “{table.baseline}”, paired by seed.",
    ]


def synthetic_text(used: Iterable[tuple[Source, ...]]) -> str:
    """What must be said first, where anything used is synthetic; else empty."""
    names = [source.name for sources in used for source in sources if source.synthetic]
    if not names:
        return ""
    return f"SYNTHETIC DATA ({listed(dict.fromkeys(names))}): these numbers say nothing about real motion"


def all_sources(report: Report) -> list[tuple[str, tuple[Source, ...]]]:
    """What each task is trained and measured on, then each column that says otherwise."""
    uses = {(report.plan.titles[task], sources): None for task, sources in report.sources.items()}
    for table in report.tables:
        for column, sources in zip(table.columns, table.sources, strict=True):
            if column.changes:
                uses[f"{table.titles[column.task]}, {column.title}", sources] = None
    return list(uses)


def _table_sources(table: TableOfCells) -> list[tuple[str, tuple[Source, ...]]]:
    """What each task is trained and measured on; where a task's columns differ in it, each column."""
    uses = []
    for task in table.titles:
        own = [(c, sources) for c, sources in zip(table.columns, table.sources, strict=True) if c.task == task]
        if len({sources for _, sources in own}) == 1:
            uses.append((table.titles[task], own[0][1]))
        else:
            uses += [(f"{table.titles[task]}, {column.title}", sources) for column, sources in own]
    return uses


def data_text(used: Iterable[tuple[str, tuple[Source, ...]]]) -> str:
    """What for -> clip sets, with size and the first digits of the fingerprint; uses of the same are named together."""
    by_sets: dict[tuple[Source, ...], list[str]] = {}
    for what, sources in used:
        by_sets.setdefault(sources, []).append(what)
    return "; ".join(
        f"{' and '.join(titles)} on {' + '.join(map(_source_text, sources)) or 'no data set that is named'}"
        + (f" (measured on {sources[0].name})" if len(sources) > 1 else "")
        for sources, titles in by_sets.items()
    )


def _source_text(source: Source) -> str:
    kind = "SYNTHETIC, " if source.synthetic else ""
    size = f"{count(source.clips, 'clip')}, " if source.clips else ""
    return f"{source.name} ({kind}{size}{source.fingerprint[:8]})"


def setup_text(report: Report) -> str:
    """Preset, changed fields, seeds."""
    plan = report.plan
    changed = listed(f"{name}={value}" for name, value in sorted(plan.changes.items()))
    seeds = f"{'seed' if plan.seeds == 1 else 'seeds'} {listed(map(str, plan.seed_numbers))}"
    return f"Preset {plan.preset}" + (f" with {changed}" if changed else "") + f"; {seeds}"


def _stand_in(report: Report, table: TableOfCells) -> list[str]:
    if not _is_published(table):
        return []
    published_on = {task: (title, pattern) for task, title, pattern in report.plan.published_on}
    others: dict[str, dict[str, None]] = {}
    sizes: dict[str, None] = {}
    tasks = list(table.titles)
    order = sorted(zip(table.columns, table.sources, strict=True), key=lambda pair: tasks.index(pair[0].task))
    for column, sources in order:
        title, own = published_on.get(column.task, ("", ""))
        if title and any(source.synthetic or not re.fullmatch(own, set_of(source.name)) for source in sources):
            others.setdefault(title, {})[table.titles[column.task]] = None
        sizes |= {text: None for source in sources if (text := _size_text(source))}
    where = listed(f"{title} ({' and '.join(tasks)})" for title, tasks in others.items())
    stands_in = f"The published values are on {where}, ours are not: values can't be compared, look at the differences "
    return [*([f"{stands_in}between rows."] if others else []), *sizes]


def _overridden(report: Report, table: TableOfCells) -> list[str]:
    if not report.plan.overridden or not _is_published(table):
        return []
    return [
        f"Not as the study has it: {listed(report.plan.overridden)}. Headings, notes and published values are of its "
        "own setting: values can't be compared."
    ]


def _is_published(table: TableOfCells) -> bool:
    return bool(table.references) or any(cell.published is not None for row in table.rows for cell in row.cells)


def _size_text(source: Source) -> str:
    """Where a set of a known name is not of the size that published figures are on."""
    here, published = source.clips, source.published_clips
    if published is None or here == published:
        return ""
    far = abs(here - published) > MAX_CLIPS_APART * published
    text = f"{set_of(source.name)} has {count(here, 'clip')} here, {published:,} as published"
    return f"{text}: values can't be compared." if far else f"{text}."


def _shown(name: str, value: str) -> str:
    """Twelve digits of a commit, and whether its working tree was changed."""
    match = re.fullmatch(r"([0-9a-f]{12})[0-9a-f]*(-dirty)?", value) if name == "commit" else None
    return match[1] + (match[2] or "") if match else value


def table_warnings(table: TableOfCells) -> list[str]:
    """What makes rows of one table hard to compare."""
    warnings = []
    for name in (*PROVENANCE, *DIFFERING):
        per_project = Counter(origin.project for origin in table.origins[name])
        origins = [origin for origin in table.origins[name] if per_project[origin.project] > 1]
        if origins:
            where = "; ".join(
                f"{_shown(name, origin.value)} ({count(origin.units, 'unit')}, {_in_rows(origin.rows)})"
                for origin in origins
            )
            warnings.append(f"The runs of this table differ in {name}: {where}.")
    mixed = [origin for origin in table.origins["training code"] if THEN in origin.value]
    if mixed:
        units = sum(origin.units for origin in mixed)
        rows = dict.fromkeys(label for origin in mixed for label in origin.rows)
        warnings.append(
            "Trained by more than one version of the code, one after the other, parents included: "
            f"{count(units, 'unit')} ({listed(dict.fromkeys(origin.value for origin in mixed))}), {_in_rows(rows)}."
        )
    dirty = [_shown("commit", origin.value) for origin in table.origins["commit"] if "-dirty" in origin.value]
    if dirty:
        warnings.append(f"Trained from a working tree with uncommitted changes: {listed(dirty)}.")
    if any(origin.value == UNKNOWN for origin in table.origins["commit"]):
        warnings.append("The commit of some runs is unknown.")
    return warnings


def _in_rows(labels: Collection[str]) -> str:
    return f"in row{'s' * (len(labels) > 1)} {listed(f'“{label}”' for label in labels)}"


def budget_notes(table: TableOfCells) -> list[str]:
    """One for each row and task whose number of training samples is not the baseline row's."""
    unequal = [(row.label, cell) for row in table.rows for cell in row.cells if cell.unequal_budget]
    notes = {
        (label, cell.column.task): f"{DOUBLE_DAGGER} Unequal budget: row “{label}” saw {cell.samples:,} training "
        f"samples of {table.titles[cell.column.task]}, the baseline row “{table.baseline}” {cell.baseline_samples:,}."
        for label, cell in unequal
    }
    return list(notes.values())


def legend(report: Report) -> list[str]:
    """How to read the cells."""
    cells = [cell for table in report.tables for row in table.rows for cell in row.cells]
    shares = any(cell.column.unit == "%" for cell in cells)
    chance = (
        f" Of accuracies, a change of up to {CHANCE_CLIPS} clips may be chance and counts neither in a run nor in the "
        "mean curve of a row's runs, which has the clips of all of them."
    )
    of_paper = any(cell.published is not None for cell in cells)
    lines = [
        "ours: mean ± sample standard deviation over seeds, n of them; a cell says what became of missing seeds.",
        "Δ: difference to the baseline row, taken seed by seed over the seeds that both rows have: mean ± standard "
        "deviation of the differences." + " In the paper's lines, the difference of its published values." * of_paper,
        f"Below a table, in brackets: the {100 * CONFIDENCE:.0f} % t interval of the paired differences. It speaks of "
        "seeds on this test set and is not corrected for the number of comparisons: of those without effect, one in "
        "twenty excludes 0. Only declared claims get a verdict.",
        *(["*: a claim about this row and the baseline row is supported or contradicted."] if report.claims else []),
        f"{NONE}: {'no value is published; ' * of_paper}after Δ, no seed has both rows. ↑ higher is better, ↓ lower is "
        "better.",
        "Parameters: of the model that a row's runs train.",
        f"collapsed: a run that ended within {COLLAPSED_GAIN:.0%} of the trivial answer (of UPS the most frequent "
        "class, or the mean pose) on held-out training subjects, or lost half of what it had gained. not converged: it "
        f"gained {CONVERGED_GAIN:.0%} or more of the way to a perfect answer in the last fifth of its steps, lost "
        f"{MAX_FALL:.0%}, or gained less than {LEARNT_GAIN:.0%} in all. Differences to such runs have no statement."
        + chance
        * shares,
    ]
    if any(cell.n == 1 for cell in cells):
        lines.append(
            f"{DAGGER}: one seed, so the spread over seeds is unknown. The ± is another thing: the standard error of "
            "the value because the test set is finite (accuracies: Agresti-Coull; errors in mm: over test clips). "
            "Clips of one subject are alike, so it is a lower bound."
        )
    if any(one is not None for table in report.tables for one in table.seed_correlations):
        lines.append(
            "seed correlation: of a column's rows with the baseline row, over common seeds, pooled; above 0, pairing "
            "by seed makes differences vary less."
        )
    if any(cell.unequal_budget for cell in cells):
        lines.append(
            f"{DOUBLE_DAGGER}: the row saw another number of training samples than the baseline row, so the difference "
            "is not that of the setting alone."
        )
    return lines


def summary(report: Report) -> list[str]:
    """How much there is, what it cost, what it shows at large."""
    done = report.progress
    state = f"{done.finished} of {count(done.units, 'unit')} finished, {done.failed} failed, "
    state += f"{done.not_run + done.parent_failed} not run"
    if done.parent_failed:
        state += f" ({done.parent_failed} of them because the parent failed)"
    time = f"Training time {duration(done.train_seconds)} (h:mm:ss), shared units counted once"
    if done.untimed:
        time += f"; unknown for {count(done.untimed, 'finished unit')}"
    if done.borrowed:
        time += f"; {count(done.borrowed, 'unit')} measured with weights that another plan trained, not counted here"
    return [f"{state}.", f"{time}.", _comparisons(report)]


def claim_notes(report: Report) -> list[str]:
    """How to read the table of claims; empty without claims."""
    if not report.claims:
        return []
    looks = looks_of(report.plan)
    families = Counter(result.claim.family for result in report.claims)
    sizes = listed(f"{count(size, 'claim')} of family {name}" for name, size in families.items())
    right = 100 - math.ceil(100 * looks.max_errors - 1e-6)
    notes = [
        "Test: differences paired by seed, since runs of one seed share data order and initial weights. "
        f"Effects are signed so that above 0 the first setting is better. These test subjects: mean and "
        f"{100 * CONFIDENCE:.0f} % t interval of the differences over seeds, not corrected. New subjects: seeds and "
        "test subjects as crossed random factors.",
        f"Verdicts are corrected by Holm's procedure for {sizes}: all of one family are right together in {right} of "
        "100 studies at least. A claim has none where a run of either arm is missing, failed, collapsed or did not "
        "converge, or where the arms' runs differ in budget, code, device, precision or torch.",
    ]
    if report.plan.ended_before:
        notes.append(
            f"Not planned: {count(report.plan.ended_before, 'run')} that the claims rest on had ended when they were "
            "first declared, so that they may have been chosen by what those runs show."
        )
    if len(looks.seeds) > 1 or report.plan.planned_looks:
        seen = "; ".join(
            # A number of seeds stands for the first ones.
            f"{len(seeds)} seeds" if [*seeds] == [*range(len(seeds))] else f"seeds {listed(map(str, seeds))}"
            for seeds in map(sorted, looks.seeds)
        )
        how = "as planned" if looks.planned else "which was not planned"
        notes.append(
            f"Complete, and so to be looked at, with {seen}, {how}: p values are the smallest of "
            f"these looks, each times {listed(dict.fromkeys(f'{factor:g}' for factor in looks.factors))}."
        )
    return notes


def health_lines(report: Report) -> list[str]:
    """One sentence on the health of the measured runs, where there are any."""
    states = Counter(report.progress.health)
    total = states.total()
    if not total:
        return []
    if states["not judged"] == total:
        return ["Health: not judged, for no run has held-out subjects to judge it by."]
    short = states["not converged"] + states["not learnt"]
    text = f"Health on held-out subjects, of {count(total, 'task')} measured for a cell: "
    text += f"{states['collapsed']} collapsed, {short} not converged, {states['converged']} converged"
    if others := states["not judged"] + states["learnt"]:
        text += f", {others} not judged"
    note = "Runs that were still improving when they ended show which setting learns faster, not which ends better."
    return [f"{text}.", *([note] if short else [])]


def _comparisons(report: Report) -> str:
    cells = [
        (cell, cell.difference)
        for table in report.tables
        for row in table.rows
        for cell in row.cells
        if cell.difference is not None and cell.difference.n > 1
    ]
    judged = [(cell, difference) for cell, difference in cells if not cell.withheld]
    if not cells:
        return "No row has two seeds in common with its baseline row: nothing can be told from chance."
    if not judged:
        return f"{count(len(cells), 'difference')} to a baseline row, none of runs that all trained out: no statement."
    distinguishable = sum(difference.verdict == "distinguishable" for _, difference in judged)
    signs = [sign for cell, _ in judged if (sign := sign_agrees(cell)) is not None]
    text = (
        f"Of {count(len(judged), 'difference')} to a baseline row over two seeds or more, {distinguishable} can be "
        f"told from 0 ({(1 - CONFIDENCE) * len(judged):.1f} would be by chance alone)"
    )
    if others := len(cells) - len(judged):
        text += f"; no statement on {others} more, whose runs did not all train out"
    if signs:
        text += f"; of {len(signs)} that the paper prints too, {sum(signs)} with its sign"
    return f"{text}."


def setup(report: Report) -> list[tuple[str, str]]:
    """The study's setting, as label and text."""
    used = all_sources(report)
    described = {set_of(source.name): source for _, sources in used for source in sources}
    base = [f"{name}={json.dumps(value)}" for name, value in sorted(report.plan.study_base.items())]
    return [
        ("Data", data_text(used)),
        *((f"Clip set {name}", source.description) for name, source in described.items() if source.description),
        ("Setting", setup_text(report)),
        *([("Set by the study", listed(base))] if base else []),
        ("Checkpoint", CHOSEN_BY.get(report.plan.chosen_by, report.plan.chosen_by)),
        *_fine_tuning(report),
    ]


def _fine_tuning(report: Report) -> list[tuple[str, str]]:
    """How fine-tuning goes, where any row has it."""
    if not any(row.training == "fine-tuned" for table in report.tables for row in table.rows):
        return []
    stages = report.plan.fine_tuning
    text = f"{100 * stages.share:.0f} % of a task's iterations are fine-tuning, its peak learning rate is "
    return [("Joint, fine-tuned", f"{text}{stages.rate:g} of the other")]


def route_lines(report: Report) -> list[tuple[str, ...]]:
    """The block that each task takes in each layer, of each joint training, headings first; empty without routes."""
    tasks = [task for task in report.plan.titles if any(task in route.blocks for route in report.routes)]
    lines = [
        (route.arm, str(route.seed), *("-".join(map(str, route.blocks.get(task, ()))) or NONE for task in tasks))
        for route in report.routes
    ]
    return [("Arm", "Seed", *(report.plan.titles[task] for task in tasks)), *lines] if lines else []


def sample_lines(report: Report) -> list[tuple[str, str]]:
    """Each row, and how many training samples of each task its measured weights have seen, headings first."""
    rows: dict[str, dict[str, None]] = {}
    for planned in report.plan.tables:
        for row in planned.rows:
            for column in planned.columns:
                if samples := row.samples.get(column.group):
                    rows.setdefault(row.label, {})[f"{samples:,} of {report.plan.titles[column.task]}"] = None
    return [("Row", "Training samples"), *((label, listed(texts)) for label, texts in rows.items())]
