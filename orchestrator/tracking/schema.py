"""What MLflow is told of a study, as plain data: names, parameters, tags, points of curves. Imports no MLflow."""

import getpass
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from orchestrator.planning.plan import Line, Unit
from orchestrator.project import DataFacts, Settings
from orchestrator.record import Record, is_number
from search_spaces.study import Table
from ups_model.config import set_of
from ups_model.evaluation.health import read_health

KEY, PLAN, STUDY = "ups.key", "ups.plan", "ups.study"
MIRRORED = "ups.mirrored"
"""Digest of the record that a run shows completely; the record's text is its artifact."""
SYNCED = "ups.synced_step"
"""Newest step of each kind of progress line that a run has, e.g. "train=400 validation=300"."""
ERROR = "ups.error"
SEARCH = "ups.search"
"""Marks the run of a search among those of studies."""
FRONT = "ups.front"
"""Whether a trial of a search with several objectives is on its Pareto front; set at the end of a call."""
HEALTH = "ups.health"
"""Of an arm: how many of its runs are of each state, by task. Of a unit `ups.health.TASK`."""
PLAN_DIGEST = "ups.plan_digest"
ARM_RUN = "ups.arm_run"
"""Names the run of an arm (`arms.arm_key`)."""
ARM_OF_UNIT = "ups.arm_of_unit"
"""Names the arm that a unit's run lies below. Not `ARM_RUN`: two runs of equal `ARM_RUN` count as one made twice."""
OUTCOMES_DIGEST = "ups.outcomes"
"""Digest of the outcomes.npz that a run has."""
PARENT_RUN, RUN_NAME, NOTE = "mlflow.parentRunId", "mlflow.runName", "mlflow.note.content"
USER, SOURCE_NAME, SOURCE_TYPE = "mlflow.user", "mlflow.source.name", "mlflow.source.type"
GIT_COMMIT = "mlflow.source.git.commit"

PARAM_LENGTH, TAG_LENGTH, NAME_LENGTH = 6000, 5000, 250
"""MLflow's limits, in characters; tags of up to 8000 are taken by new servers alone."""
DIGITS = 12
"""Of a clip set's fingerprint, in the digest of a dataset: MLflow takes 36 characters."""


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    name: str
    value: float
    step: int
    time_ms: int


def digest_of(text: str) -> str:
    """Names a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def clean(name: str) -> str:
    """A name in MLflow's alphabet, readable, and no two alike where it has to be cut."""
    cleaned = name.replace("@", "_at_").replace("=", " ").replace(",", " ")
    cleaned = re.sub(r"[^/\w.\- :]", "_", cleaned)
    cleaned = re.sub(r" +", " ", re.sub(r"/{2,}", "/", cleaned)).strip("/ ")
    if len(cleaned) > NAME_LENGTH:
        cleaned = f"{cleaned[: NAME_LENGTH - 17]}-{digest_of(name)}"
    return cleaned


def clean_names(names: Iterable[str]) -> dict[str, str]:
    """`clean` of each name; of those that it would make alike, such as "wave (left)" and "wave [left]", each ends in a
    digest of itself."""
    cleaned = {name: clean(name) for name in names}
    counts = Counter(cleaned.values())
    return {
        name: text if counts[text] == 1 else f"{text[: NAME_LENGTH - 17]}-{digest_of(name)}"
        for name, text in cleaned.items()
    }


def unit_params(unit: Unit) -> dict[str, str]:
    """The unit's whole configuration by dotted names, and what it is in the study."""
    params = {"arm": unit.arm, "seed": str(unit.seed), "stage": unit.stage, "task": unit.task or "all"}
    if unit.parent:
        params["parent"] = unit.parent
    return config_params(unit.config) | {name: value[:PARAM_LENGTH] for name, value in params.items()}


def config_params(config: Settings) -> dict[str, str]:
    """A whole configuration by dotted names."""
    values = dict(leaves(config.canonical()))
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return {name: texts[leaf][:PARAM_LENGTH] for leaf, name in clean_names(values).items()}


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted names and values of a canonical configuration's fields."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class Tracked(Protocol):
    """What MLflow is told of: a study's plan or a search."""

    @property
    def name(self) -> str: ...
    @property
    def units(self) -> Mapping[str, Unit]: ...
    @property
    def study(self) -> _Named: ...
    @property
    def preset(self) -> str: ...
    @property
    def data(self) -> Mapping[str, DataFacts]: ...
    @property
    def seeds(self) -> int: ...
    @property
    def tables(self) -> tuple[tuple[Table, tuple[Line, ...]], ...]: ...


def study_tag(plan: Tracked) -> dict[str, str]:
    """Marks a unit's run as used by a study; a run may have several."""
    return {clean(f"{STUDY}.{plan.study.name}"): "yes"}


def arm_label(plan: Tracked, arm: str) -> str:
    """Short enough for MLflow's narrow column, where what differs must be seen: "Layers 1", "base"."""
    if "=" not in arm:
        return arm
    names = (
        " ".join(filter(None, (table.varies, line.row.label, column.title if column.changes else "")))
        for table, lines in plan.tables
        for line in lines
        for column in table.columns
        if line.arms[column.group].name == arm
    )
    return next(names, arm)


def run_name(plan: Tracked, unit: Unit) -> str:
    """As `arm_label`: "Layers 1 pe s0", "base joint s0"."""
    return " ".join((*dict.fromkeys((arm_label(plan, unit.arm), unit.task or unit.stage)), f"s{unit.seed}"))


def unit_tags(plan: Tracked, unit: Unit) -> dict[str, str]:
    """What a unit's run is created with."""
    facts = {name: plan.data[name] for name in unit.trainer.sets(unit.config) if name in plan.data}
    tags = {
        RUN_NAME: run_name(plan, unit),
        KEY: unit.key,
        "ups.arm": unit.arm,
        "ups.seed": str(unit.seed),
        "ups.stage": unit.stage,
        "ups.task": unit.task or "all",
        "ups.storage_folder": unit.folder,
        **study_tag(plan),
        **{tag: facts[name].fingerprint for name, tag in _prefixed("ups.data.", facts).items()},
    }
    if synthetic := sorted(name for name, fact in facts.items() if fact.synthetic):
        tags["ups.synthetic_data"] = ", ".join(synthetic)
    return {name: value[:TAG_LENGTH] for name, value in tags.items()}


def _prefixed(prefix: str, names: Iterable[str]) -> dict[str, str]:
    """`clean_names` of names behind a prefix, by what follows the prefix."""
    return {full.removeprefix(prefix): text for full, text in clean_names(prefix + name for name in names).items()}


def plan_tags(plan: Tracked, content: Mapping[str, Any]) -> dict[str, str]:
    """What a study's run has, next to its description."""
    tags = {
        RUN_NAME: plan.name,
        PLAN: plan.name,
        STUDY: plan.study.name,
        "ups.preset": plan.preset,
        "ups.seeds": str(plan.seeds),
        "ups.command": content["command"],
    }
    if is_search(content):
        tags[SEARCH] = "yes"
    return {name: value[:TAG_LENGTH] for name, value in tags.items()}


def is_search(content: Mapping[str, Any]) -> bool:
    """Whether a plan's content is that of a search."""
    return content.get("kind") == "search"


def maker_tags(content: Mapping[str, Any]) -> dict[str, str]:
    """Who makes a run, and with what: MLflow's columns "Created by" and "Source"."""
    tags = {SOURCE_NAME: f"orchestrator.{'search' if is_search(content) else 'ablate'}", SOURCE_TYPE: "LOCAL"}
    with suppress(OSError, KeyError):  # In a container a user may have no name.
        tags[USER] = getpass.getuser()[:TAG_LENGTH]
    return tags


@dataclass(frozen=True)
class DataInput:
    """A clip set that a run has read, as MLflow's dataset. MLflow keeps one use of a dataset a run, so that the test
    split is another than the training split."""

    name: str
    digest: str
    context: Literal["training", "test"]


def data_inputs(plan: Tracked, unit: Unit, record: Record | None) -> list[DataInput]:
    """The clip sets of the tasks that a unit trains, and of those that it was tested on."""
    tested = {name.split("/")[1] for name in record.metrics if name.startswith("test/")} if record else set()

    by_task = unit.trainer.sources(unit.config)

    def of(tasks: Iterable[str], context: Literal["training", "test"], suffix: str) -> list[DataInput]:
        sources = [source for task in tasks for source in by_task[task]]
        names = [name for name in dict.fromkeys(map(set_of, sources)) if name in plan.data]
        return [DataInput(name, plan.data[name].fingerprint[:DIGITS] + suffix, context) for name in names]

    tasks = list(by_task)
    return [*of(tasks, "training", ""), *of((task for task in tasks if task in tested), "test", "-test")]


CUT = ("processes", "micro_batch", "activation_checkpointing")
"""How a run's batches were cut, as in `Fit.facts`."""


def record_tags(record: Record) -> dict[str, str]:
    """What the end of a unit adds."""
    about = record.about
    shown = ("commit", "device", "precision", "gpus", "out_of_memory_at", *CUT)
    tags = {f"ups.{name}": str(about[name]) for name in shown if name in about}
    if record.routes:
        tags["ups.routes"] = json.dumps(dict(record.routes), sort_keys=True)
    if commit := re.match(r"[0-9a-f]{6,40}\b", str(about.get("commit", ""))):
        tags[GIT_COMMIT] = commit.group()
    if about.get("user"):
        tags[USER] = str(about["user"])
    health = _prefixed(f"{HEALTH}.", record.health)
    tags |= {health[task]: one.state for task, one in read_health(record.health, record.metrics).items()}
    if record.error:
        tags[ERROR] = record.error[-TAG_LENGTH:]
    return {name: value[:TAG_LENGTH] for name, value in tags.items()}


def record_points(record: Record, time_ms: int) -> list[Point]:
    """The values that the report takes, as `best/...`, and the costs. Equal for equal records, so that MLflow sees a
    repetition as one."""
    about = record.about
    costs = ("train_seconds", "parameters", "peak_memory_mb", "chosen_step")
    names = best_names([record])
    values = {names[name]: value for name, value in record.metrics.items()}
    values |= {name: about[name] for name in costs if name in about}
    step = int(about.get("chosen_step", 0))
    return [Point(name, float(value), step, time_ms) for name, value in values.items() if is_number(value)]


def best_names(records: Iterable[Record | None]) -> dict[str, str]:
    """MLflow's names `best/...` of the metrics of records, by the records' own names."""
    return _prefixed("best/", {name: None for record in records if record for name in record.metrics})


def parse_synced(text: str) -> dict[str, int]:
    """The value of the tag SYNCED; what isn't one counts as nothing synced."""
    return {kind: int(step) for kind, step in re.findall(r"(\w+)=(\d+)", text)}


def format_synced(synced: Mapping[str, int]) -> str:
    """Inverse of `parse_synced`."""
    return " ".join(f"{kind}={step}" for kind, step in sorted(synced.items()))


def new_rows(
    rows: Sequence[Mapping[str, float]], synced: Mapping[str, int]
) -> tuple[list[list[Point]], dict[str, int]]:
    """Points of the progress lines that are newer than `synced`, a list a line, and what is synced after them.

    Training and validation write lines of their own at the same step, so each has its own newest step. A resumed unit
    repeats steps, with equal values at another time: they are not newer.
    """
    after, points_by_row = dict(synced), []
    names = clean_names({name: None for row in rows for name in row})
    for row in rows:
        kind, step = _kind(row), int(row["step"])
        if step <= after.get(kind, -1):
            continue
        after[kind] = step
        time_ms = int(1000 * row.get("time", 0))
        points = [
            Point(names[name], float(value), step, time_ms)
            for name, value in row.items()
            if name not in ("step", "time") and is_number(value)
        ]
        if points:
            points_by_row.append(points)
    return points_by_row, after


def _kind(row: Mapping[str, float]) -> str:
    kinds = {name.partition("/")[0] for name in row}
    return next((kind for kind in ("validation", "curve", "system") if kind in kinds), "train")


def unit_counts(plan: Tracked, records: Mapping[str, Record | None]) -> dict[str, float]:
    """How far a study is."""
    states = [record.status if record else "left" for record in map(records.get, plan.units)]
    return {f"units/{state}": float(states.count(state)) for state in ("finished", "failed", "left")}
