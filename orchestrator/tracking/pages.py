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
MAX_COLUMNS = 40
"""Of a view's metrics and parameters, so that the tag is not too long."""


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


def artifact_page(experiment: str, run: str, path: str) -> str:
    """A file of a run."""
    return f"#/experiments/{experiment}/runs/{run}/artifacts/{quote(path)}"


def arms_view(plan: Tracked, arms: Iterable[TrackedArm], options: Iterable[str], metrics: Iterable[str]) -> str:
    """The state of the experiment's page that lists the arms alone, the best first, with what sets them apart and what
    they reach.

    Args:
        options: in which the arms differ.
        metrics: of their runs, the names that a study without tables shows.
    """
    columns = {clean(f"best/test/{column.metric}"): column for table, _ in plan.tables for column in table.columns}
    names = [f"metrics.`{name}`" for name in list(columns or dict.fromkeys(sorted(metrics)))]
    names = [*names, *(f"params.`{name}`" for name in ("training", *options))][:MAX_COLUMNS]
    first = next(iter(columns.values()), None)
    state = {
        "searchFilter": f"tags.`{schema.ARM_RUN}` LIKE '{plan.name}/%'",
        "orderByKey": names[0] if first else "attributes.start_time",
        "orderByAsc": first is not None and not first.higher_is_better,
        "selectedColumns": names,
        "runsHiddenMode": "SHOW_ALL",
    }
    return json.dumps(state)


def study_note(plan: Tracked, content: Mapping[str, Any], experiment: str, run: str) -> str:
    """A study's description, in Markdown: its question, its claims, and where the rest is."""
    note = [f"**{content['question']}**", f"Expected: {content['expectation']}"]
    if synthetic := sorted(name for name, fact in plan.data.items() if fact.synthetic):
        note.append(f"Synthetic data ({', '.join(synthetic)}): these numbers say nothing about real motion.")
    arms, report = ("Trials", "search.md") if is_search(content) else ("Arms", "report.html")
    note += [
        f"- [{arms} side by side]({arms_page(experiment, plan)}), means over seeds",
        f"- [Units]({units_page(experiment, plan)}), a run a seed",
        f"- [Report]({artifact_page(experiment, run, f'report/{report}')}), from the end of the first call on; it lies "
        "with its figures and tables in the artifact folder `report/`",
    ]
    if claims := content.get("claims"):
        note += ["Claims, fixed before the run:", *(f"- {claim['text']}" for claim in claims)]
    note += ["Tables:", *(f"- {table['title']}" for table in content["tables"])] if content["tables"] else []
    return _joined(note)[:TAG_LENGTH]


def arm_note(arm: TrackedArm) -> str:
    """An arm's description."""
    what = ["Means over the seeds that have finished; `/sd` is their standard deviation, `/seeds` their number."]
    return _joined([*what, *(f"- {row}" for row in arm.rows)])[:TAG_LENGTH]


def _joined(paragraphs: Iterable[str]) -> str:
    return "\n\n".join(paragraphs)
