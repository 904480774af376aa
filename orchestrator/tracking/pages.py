"""Pages of MLflow's own interface: their addresses, a study's description, the view that sets its arms side by side.

Imports no MLflow. Addresses are relative to the server's; its interface routes by what follows the `#`.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from orchestrator.tracking import schema
from orchestrator.tracking.arms import TrackedArm
from orchestrator.tracking.schema import TAG_LENGTH, Tracked, clean, is_search

VIEW = "mlflow.sharedViewState."
"""Begins the tags of an experiment that hold views which its page opens by name, as its button "Share" makes them. An
address alone can't name the page's columns, nor group runs."""
MAX_METRICS = 12
"""Of a view of trials, whose tables don't say which."""
FIRST_COLUMNS, WIDTH = {"attributes.`Run Name`": 260, "runDateAndNestInfo": 130, "duration": 90}, 165
"""Columns that the page always has, and widths in pixels: by default it cuts a metric's name after ten letters."""
MEANS_ALONE = "^(?!.*/(sd|seeds)$)"
"""Charts of the means, and not of their spread and number, which stand in the same names' table."""


def view_name(plan: Tracked) -> str:
    """Name of the view of a study's arms."""
    return clean(plan.name)


def arms_page(experiment: str, plan: Tracked) -> str:
    """The runs of a study's arms, as its view shows them."""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={quote(view_name(plan))}"


def units_page(experiment: str, plan: Tracked) -> str:
    """The runs of a study's units."""
    condition = f"tags.`{schema.ARM_OF_UNIT}` LIKE '{plan.name}/%'"
    return f"#/experiments/{experiment}/runs?searchFilter={quote(condition)}"


def unit_page(experiment_page: str, key: str) -> str:
    """The run of one unit, found by its key.

    Args:
        experiment_page: address of the experiment's page on a server, "http://HOST:5000/#/experiments/1".
    """
    condition = f"tags.`{schema.KEY}` = '{key}'"
    return f"{experiment_page.rstrip('/')}/runs?searchFilter={quote(condition)}"


def arms_view(
    plan: Tracked,
    content: Mapping[str, Any],
    options: Iterable[str],
    metrics: Iterable[str],
    names: Mapping[str, str] | None = None,
) -> str:
    """The state of the experiment's page that lists the arms alone, the best first, with what they reach and what sets
    them apart.

    Args:
        content: of the plan.
        options: in which the arms differ.
        metrics: of the arms' runs, the means.
        names: of metrics, as `schema.best_names` gives them.
    """

    def shown(name: str) -> str:
        return (names or {}).get(name) or clean(f"best/{name}")

    columns = {shown(f"test/{column.metric}"): column for table, _ in plan.tables for column in table.columns}
    if is_search(content):
        first, ascending = shown(content["objective"]), content["direction"] == "minimize"
        means = list(dict.fromkeys([first, *sorted(metrics)]))[:MAX_METRICS]
    else:
        means = list(columns)
        first, ascending = means[0], not columns[means[0]].higher_is_better
    shown_metrics = [f"metrics.`{name}`" for mean in means for name in (mean, f"{mean}/sd")]
    params = [f"params.`{name}`" for name in ("training", *options)]
    selected = [*shown_metrics, f"tags.`{schema.HEALTH}`", *params]
    state: dict[str, Any] = {
        "searchFilter": f"tags.`{schema.ARM_RUN}` LIKE '{plan.name}/%'",
        "orderByKey": f"metrics.`{first}`",
        "orderByAsc": ascending,
        "selectedColumns": selected,
        "columnOrder": [*FIRST_COLUMNS, *selected],
        "columnWidths": _widths(selected),
        "runsHiddenMode": "SHOW_ALL",
        "chartsSearchFilter": MEANS_ALONE,
    }
    while len(text := json.dumps(state)) > TAG_LENGTH:  # MLflow wouldn't take the tag: the last columns are left out.
        selected.pop()
        state |= {"columnOrder": [*FIRST_COLUMNS, *selected], "columnWidths": _widths(selected)}
    return text


def _widths(columns: Iterable[str]) -> dict[str, int]:
    return FIRST_COLUMNS | dict.fromkeys(columns, WIDTH)


def study_note(plan: Tracked, content: Mapping[str, Any], experiment: str, run: str) -> str:
    """A study's description, in Markdown: its question, its claims, and where the rest is."""
    arms, report = ("Trials", "search.md") if is_search(content) else ("Arms", "report.html")
    side_by_side = arms_page(experiment, plan)
    links = [
        f"[{arms}: means over seeds]({side_by_side})",
        f"[charts]({side_by_side}&compareRunsMode=CHART)",
        f"[units]({units_page(experiment, plan)})",
        f"[report](#/experiments/{experiment}/runs/{run}/artifacts/report/{report})",
    ]
    # MLflow's page shows the first lines alone.
    note = [f"**{content['question']}**", " · ".join(links), f"Expected: {content['expectation']}"]
    note.append("The report is there from the end of the first call on, with its figures and tables, in `report/`.")
    if synthetic := sorted(name for name, fact in plan.data.items() if fact.synthetic):
        note.append(f"Synthetic data ({', '.join(synthetic)}): these numbers say nothing about real motion.")
    if claims := content.get("claims"):
        note += ["Claims, fixed before the run:", *(f"- {claim['text']}" for claim in claims)]
    note += ["Tables:", *(f"- {table['title']}" for table in content["tables"])] if content["tables"] else []
    return "\n\n".join(note)[:TAG_LENGTH]


def arm_note(arm: TrackedArm) -> str:
    """An arm's description."""
    what = "Means over the seeds that have finished; `/sd` is their standard deviation, `/seeds` their number."
    return "\n\n".join([what, *(f"- {row}" for row in arm.rows)])[:TAG_LENGTH]
